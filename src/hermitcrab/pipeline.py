"""A recipe into stages, each reused or executed; then the run's folder: package, signature, report.

    for stage in order:
        key = digest(slice of the recipe, digests of its inputs, digest of its code)
        artifact = found in the store, or made in a draft and sealed

Caching, resumption and the lineage are these lines.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab import compress, environment
from hermitcrab.digest import describe_files, digest_json, short, tree_files
from hermitcrab.energy import Meter
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.lineage.keys import default_key, fingerprint, load_private
from hermitcrab.lineage.licenses import admit, check, refuse, result_license
from hermitcrab.progress import progress, say, warn
from hermitcrab.recipe import Recipe
from hermitcrab.references import Resolved, fetch, resolve
from hermitcrab.stages import Job, Stage, place_of
from hermitcrab.stages.collect import files_of
from hermitcrab.stages.evaluate import check_rows
from hermitcrab.stages.tune import chosen, trial_recipe
from hermitcrab.store import Artifact, Store, disk_errors, sync_tree, write_json
from hermitcrab.tasks import check_recipe, load_task, outside_code

if TYPE_CHECKING:
    pass

ORDER = ("collect", "prepare", "tune", "train", "evaluate", "compress", "package")


def stage_named(name: str) -> Stage:
    return importlib.import_module(f"hermitcrab.stages.{name}").STAGE


def references(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    """Every reference of a recipe with the digest that it must have."""
    base, reads_text = recipe.base, load_task(recipe.task).reads_text
    if base.path == "scratch":
        wanted = ["architecture", *(["tokenizer"] if reads_text else [])]
        if any(getattr(base, key) is None for key in wanted):
            raise UsageError(f"base.path is `scratch`, which needs {' and '.join(f'base.{key}' for key in wanted)}")
        if base.tokenizer is not None and not reads_text:
            raise UsageError(f"base.tokenizer: {recipe.task} reads no text. Received: {base.tokenizer}")
        if base.sha256 is not None and base.tokenizer is None:
            raise UsageError(f"base.sha256: there is no file that could have it. Received: {base.sha256}")
        yield "scratch", None
        if base.tokenizer is not None:
            yield base.tokenizer, base.sha256
    else:
        for key in ("architecture", "tokenizer", "init_seed"):
            if getattr(base, key) is not None:
                raise UsageError(
                    f"base.{key} is for a base that starts from `scratch`. Received: base.path={base.path}"
                )
        yield base.path, base.sha256
    for source in (*recipe.data.train, *recipe.data.validation, *recipe.data.test):
        yield from files_of(source).items()


@dataclass
class Run:
    """One recipe on one store. `places` fills as references are brought here."""

    recipe: Recipe
    store: Store
    runs: Path
    resolved: dict[str, Resolved] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    warned: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """Of everything that this run and its trials have reached so far: `gc` leaves these alone."""

    @property
    def folder(self) -> Path:
        return self.runs / self.recipe.name

    def resolve(self) -> None:
        check_recipe(self.recipe)
        for reference, sha256 in references(self.recipe):
            self.resolved[reference] = resolve(reference, sha256, self.store)

    def check_licenses(self, base_license: str | None) -> None:
        """What forbids the declared use is said before anything runs, and stops; so does a source that the recipe's policy keeps out."""
        data = self.recipe.data
        given = [(source.path, source.license) for source in (*data.train, *data.validation, *data.test)]
        if kept_out := admit(given, data.licenses.allow, data.licenses.deny):
            raise HermitcrabError("\n".join(kept_out))
        findings = check(self.recipe.use, base_license, self._data_licenses())
        for finding in findings:
            if not finding.stops and finding not in self.warned:
                warn(finding.message)
        self.warned = [*self.warned, *findings]
        refuse(findings)

    def _data_licenses(self) -> list[str]:
        data = self.recipe.data
        return [source.license for source in (*data.train, *data.validation, *data.test)]

    def asked(self, stage: Stage) -> dict[str, Any]:
        """What decides a stage's key; needs its inputs to be known."""
        if stage.inputs:
            inputs = [{"stage": name, "digest": self.artifacts[name].digest} for name in stage.inputs]
        else:
            inputs = [{"stage": r.uri, "digest": r.identity} for r in self.resolved.values()]
        part = stage.slice(self.recipe).model_dump(mode="json")
        outside = outside_code(self.recipe.task) if "tasks" in stage.code else None
        brought = {"task_code": outside} if outside else {}
        return {"code": stage.code_digest(), **brought, "slice": self.by_uri(part), "inputs": inputs}

    def by_uri(self, value: Any) -> Any:
        """A slice as it is recorded: references as their uris, which name no folder of this machine."""
        if isinstance(value, dict):
            return {
                k: self.resolved[v].uri
                if k in ("path", "tokenizer", "labels") and isinstance(v, str) and v in self.resolved
                else self.by_uri(v)
                for k, v in value.items()
            }
        return [self.by_uri(v) for v in value] if isinstance(value, list) else value

    def places(self) -> dict[str, Path]:
        """Where everything that the recipe names lies on this machine, brought here if need be."""
        return {reference: fetch(r, self.store) for reference, r in self.resolved.items() if r.kind != "scratch"}

    def ensure(self, stage: Stage) -> Artifact:
        """The stage's artifact: from the store if it was ever made, else made now."""
        asked = self.asked(stage)
        key = digest_json({"stage": stage.name, **asked})
        self.keys += [key] if key not in self.keys else []
        self.store.begin_run(self.recipe.name, self.folder, self.keys)
        artifact, made = self.store.find(key), False
        if artifact is None:
            with self.store.lock(key, stage.name):
                artifact = self.store.find(key)  # another run may have made it while we waited
                if artifact is None:
                    artifact, made = self._make(stage, key, asked), True
        if not made:
            self.reused.append(stage.name)
            say(f"{stage.name}: reused {short(artifact.digest)}")
        self.artifacts[stage.name] = artifact
        return artifact

    def trial(self, settings: Mapping[str, Any]) -> Run:
        """The same run with other settings of `train` and without a search; it shares the store and what was made before."""
        before = {name: made for name, made in self.artifacts.items() if name in ("collect", "prepare")}
        return replace(self, recipe=trial_recipe(self.recipe, settings), artifacts=before, reused=[])

    def trials(self) -> list[Run]:
        return [self.trial(settings) for settings in self.recipe.tune.settings()] if self.recipe.tune else []

    def _make(self, stage: Stage, key: str, asked: dict[str, Any]) -> Artifact:
        began = time.time()
        say(f"{stage.name}: running")
        for name in stage.inputs:
            self.artifacts[name].check()
        with Meter() as meter, self.store.draft(stage.name, key, asked) as draft:
            with disk_errors(f"{stage.name}: cannot write"):
                stage.run(
                    Job(
                        part=stage.slice(self.recipe),
                        inputs=dict(self.artifacts),
                        draft=draft,
                        places=self.places(),
                        resolved=self.resolved,
                        base=self.recipe.base,
                        processes=self.recipe.cluster.processes,
                        cluster=self.recipe.cluster.address,
                        trial=self.trial,
                    )
                )
            draft.facts["environment"] = environment.describe()
            draft.facts["peak_memory"] = environment.peak_memory()
            measured = meter.told(len(draft.sessions()))
            draft.facts.setdefault("energy", measured)  # a search tells its own: it is made of other stages
            artifact = self.store.seal(draft)
        say(f"{stage.name}: done in {time.time() - began:.1f} s, {short(artifact.digest)}")
        return artifact

    def execute(self, key_file: Path | None = None) -> dict[str, Any]:
        """Run every stage, then lay out the run's folder. Returns run.json."""
        if key_file is not None:
            load_private(key_file)  # a wrong key is told now, not after an hour
        check_recipe(self.recipe)
        for name in ORDER:
            stage_named(name).slice(self.recipe)  # what a stage can refuse by its slice alone, it refuses now
        self.resolve()
        self.check_licenses(self.recipe.base.license)
        if self.recipe.base.license is None:
            self.check_licenses(self.license_found())
        for name in ORDER:
            self.ensure(stage_named(name))
            if name == "collect":
                used = self.artifacts[name].read("base.json")["license"]["used"]
                self.check_licenses(used)
                result_license(
                    used, self._data_licenses(), self.recipe.package.license
                )  # stops where it cannot be carried
            if name == "prepare":
                check_rows(self.recipe, self.artifacts[name])
                self.check_training()
                self.say_what_could_show()
            if name == "tune":
                self.choose()
            if name == "train":
                self.check_chosen()
        with self.store.lock(f"run-{self.recipe.name}", "run folder"), disk_errors(f"cannot write to {self.folder}:"):
            return self.lay_out(key_file)

    def license_found(self) -> str | None:
        """What the base's own files say of their license, read before anything else is."""
        from hermitcrab.models.base import license_in

        base = self.resolved[self.recipe.base.path]
        return None if base.kind == "scratch" else license_in(fetch(base, self.store))

    def choose(self) -> None:
        """From here on the recipe is the one with the best setting of its search."""
        if best := chosen(self.artifacts["tune"].read("trials.json")):
            self.recipe = self.recipe.with_settings(best["settings"])

    def check_chosen(self) -> None:
        """What goes on is the very model that the search chose.

        Raises:
            HermitcrabError: it was lost from the store, and training again did not give the same bytes.
        """
        best = chosen(self.artifacts["tune"].read("trials.json"))
        if best and best["model"] != self.artifacts["train"].digest:
            raise HermitcrabError(
                f"train: the model that the search chose ({short(best['model'])}) is gone from the store, and training again gave "
                f"another ({short(self.artifacts['train'].digest)}); remove {self.artifacts['tune'].path} to search again"
            )

    def check_training(self) -> None:
        """What would train in vain is told before: a run that cannot fit, a model that could not be compressed as asked.
        What is there already needs neither."""
        from hermitcrab.estimate import estimate, shortage

        stage = stage_named("train")
        missing = [
            run for run in self.trials() or [self]
            if self.store.find(digest_json({"stage": "train", **run.asked(stage)})) is None
        ]  # fmt: skip
        if not missing:
            return
        if self.recipe.compress.anything:
            place = place_of(self.recipe.base, self.places())
            compress.check(self.recipe.compress, self.artifacts["collect"].read("base.json"), place)
        for run in [self, *missing] if self.recipe.tune else missing:
            if problem := shortage(estimate(run.recipe, run.artifacts, run.resolved), self.store.root):
                raise HermitcrabError(problem)

    def say_what_could_show(self) -> None:
        """The smallest difference that the test rows could show, told before it is known what they show."""
        import pyarrow.parquet as pq

        from hermitcrab.evaluate.metrics import find
        from hermitcrab.evaluate.value_added import expected_effect

        part = self.recipe.evaluate
        rows = pq.read_metadata(self.artifacts["prepare"].payload / "test.parquet").num_rows
        deciding = load_task(self.recipe.task).deciding(part, self.recipe.data.train[0].format)
        if part.against == "none" or deciding is None or find(deciding).right is None:
            return
        effect = expected_effect(rows, deciding, alpha=1 - part.confidence)
        if effect["difference"] is None:
            warn(f"{rows:,} test rows could show no difference at all ({effect['assumes']}); hold out more")
        else:
            say(f"smallest effect that {rows:,} test rows could show: {effect['difference']:.3f} ({effect['assumes']})")

    def lay_out(self, key_file: Path | None) -> dict[str, Any]:
        from hermitcrab.report.gather import gather, profile
        from hermitcrab.report.page import write_page

        record = {
            "name": self.recipe.name, "task": self.recipe.task, "folder": str(self.folder.absolute()),
            "recipe": self.by_uri(self.recipe.model_dump(mode="json")),
            "artifacts": {name: a.key for name, a in self.artifacts.items()},
        }  # fmt: skip
        if trials := self.artifacts["tune"].facts.get("trials"):
            record["trials"] = [trial["key"] for trial in trials]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store.remember_run(self.recipe.name, record)
        lay_out_package(self.artifacts, self.folder / "package", self.recipe.package.sign, key_file)
        public = {**record, "folder": self.folder.name, "digests": {n: a.digest for n, a in self.artifacts.items()}}
        write_json(self.folder / "run.json", public)
        write_page(gather({**record, "reused": self.reused}, self.artifacts), self.folder / "report.html")
        return {
            **public,
            "reused": self.reused,
            "report": str(self.folder / "report.html"),
            "package": str(self.folder / "package"),
            **({"profile": found} if (found := profile(self.artifacts["train"])) else {}),
        }


def lay_out_package(artifacts: dict[str, Artifact], target: Path, sign: bool, key_file: Path | None) -> None:
    """The package with its signed record at its final place; left alone where it already stands there, whole."""
    from hermitcrab.lineage.sign import sign_package
    from hermitcrab.lineage.statements import statement

    package = artifacts["package"]
    key = (key_file or default_key()) if sign else None
    if target.exists() and _stands(package, target, key):
        return
    fresh, old = target.with_name(f".new.{target.name}"), target.with_name(f".old.{target.name}")
    for stale in (fresh, old):  # of a run that was killed right here
        shutil.rmtree(stale, ignore_errors=True)
    beside = fresh / target.name  # the signature names the folder
    files = package.manifest["files"]
    with progress("package", sum(f["size"] for f in files), "bytes") as bar:
        for file in files:
            (beside / file["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.payload / file["path"], beside / file["path"])
            bar.add(file["size"])
    if key is not None:
        claims = [statement(a, [artifacts[n] for n in stage_named(a.stage).inputs]) for a in artifacts.values()]
        sign_package(beside, claims, key)
    sync_tree(beside)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    for done in (fresh, old):
        shutil.rmtree(done, ignore_errors=True)


def _stands(package: Artifact, target: Path, key: Path | None) -> bool:
    """Is this very package already there, and signed by this key (or unsigned, if that is wanted)?"""
    from hermitcrab.lineage.verify import verify

    signed = {"claims.jsonl", "model.sig", "signer.pub.pem"}
    here = set(tree_files(target))
    if (signed <= here) != (key is not None) or here - signed != {f["path"] for f in package.manifest["files"]}:
        return False
    if describe_files(target, sorted(here - signed)) != package.manifest["files"]:
        return False
    if key is None:
        return not signed & here
    found = verify(target)
    return found.ok and found.signer == fingerprint(load_private(key).public_key())


def plan(run: Run) -> list[dict[str, Any]]:
    """What `execute` would do, stage by stage, without doing it: `{stage, action, key, why}` and estimates."""
    from hermitcrab.estimate import estimate

    run.resolve()
    run.check_licenses(run.recipe.base.license)
    rows: list[dict[str, Any]] = []
    for name in ORDER:
        stage = stage_named(name)
        if name == "train" and run.recipe.tune and "tune" not in run.artifacts:
            rows.append({"stage": name, "action": "reuse", "why": "what tune chooses"})
            continue
        if any(i not in run.artifacts for i in stage.inputs):
            rows.append({"stage": name, "action": "run", "why": f"after {stage.inputs[-1]}"})
        else:
            rows.append(_planned(run, stage))
        if name == "tune" and run.recipe.tune:
            rows[-1]["trials"] = plan_trials(run)
            if "tune" in run.artifacts:
                run.choose()
    guesses = estimate(run.recipe, run.artifacts, run.resolved)
    for row in rows:
        row["needs"] = guesses.get(row["stage"], {}) if row["action"] != "reuse" else {}
    return rows


def _planned(run: Run, stage: Stage) -> dict[str, Any]:
    """What would happen to a stage whose inputs are known; an artifact that is there becomes one of the run's."""
    key = digest_json({"stage": stage.name, **run.asked(stage)})
    if artifact := run.store.find(key):
        run.artifacts[stage.name] = artifact
        return {"stage": stage.name, "action": "reuse", "key": key, "digest": artifact.digest}
    work = run.store.folder("drafts", key) / "work"
    begun = (work / "plan.json").exists() or (stage.name == "tune" and work.exists())
    return {"stage": stage.name, "action": "continue" if begun else "run", "key": key}


def plan_trials(run: Run) -> list[dict[str, Any]]:
    """What would become of each training of a search: `{settings, action, needs}`, and its key where the inputs are known."""
    from hermitcrab.estimate import estimate

    assert run.recipe.tune is not None
    found = []
    for settings, trial in zip(run.recipe.tune.settings(), run.trials(), strict=True):
        known = "prepare" in trial.artifacts
        row = _planned(trial, stage_named("train")) if known else {"action": "run"}
        needs = {} if row["action"] == "reuse" else estimate(trial.recipe, run.artifacts, run.resolved).get("train", {})
        found.append({"settings": settings, **{k: v for k, v in row.items() if k != "stage"}, "needs": needs})
    return found


def find_run(name: str, store: Store) -> tuple[dict[str, Any], dict[str, Artifact]]:
    """A finished run and its artifacts, by name."""
    known = store.runs()
    if name not in known:
        raise UsageError(
            f"no run is named `{name}`{did_you_mean(name, known) or '; nothing was run in this store yet'}"
        )
    if not known[name]["artifacts"]:
        raise HermitcrabError(f"run {name} is not finished; the same `crab run` continues it")
    record, artifacts = known[name], {}
    for stage, key in record["artifacts"].items():
        artifact = store.find(key)
        if artifact is None:
            raise HermitcrabError(f"run {name}: the artifact of {stage} is gone from the store; run its recipe again")
        artifacts[stage] = artifact
    return record, artifacts
