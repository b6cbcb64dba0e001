"""tune: the settings of a search are trained and compared on validation rows; the best is what the run goes on with.

Notable:
- A trial is an ordinary training, reached through the store by its key: reused where it was ever made, continued where it was
  killed, and the final training of the best setting is found there too.
- The test rows are opened by `evaluate` alone, once, for the setting that was chosen here.
- Without a search an empty list is left, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import Diverged, HermitcrabError, UsageError
from hermitcrab.evaluate.metrics import lower_is_better
from hermitcrab.progress import say, warn
from hermitcrab.recipe import Evaluate, Part, Recipe, Train, Tune
from hermitcrab.stages import Job, Stage, train, validate
from hermitcrab.store import Artifact, process_cpu
from hermitcrab.tasks import check_recipe

LOSS_VERSION = "1"  # mean loss over the validation rows of the weights that are kept


class TuneSlice(Part):
    """All None where nothing is searched, so that no other key of the recipe makes this stage another."""

    task: str | None = None
    init_seed: int | None = None
    train: Train | None = None
    """With each searched key at the first of its values: what the recipe says of it otherwise is not used."""
    evaluate: Evaluate | None = None
    """How validation rows are asked; None where the loss decides."""
    tune: Tune | None = None


def slice_of(recipe: Recipe) -> TuneSlice:
    """What `tune` reads of a recipe.

    Raises:
        UsageError: a search that no validation row could decide, or by a metric that the task does not give.
    """
    tune = recipe.tune
    if tune is None:
        return TuneSlice()
    if recipe.data.split.validation == 0 and not recipe.data.validation:
        raise UsageError(
            "tune chooses on validation rows, and there are none; set data.split.validation or data.validation"
        )
    first = recipe.with_settings({path: values[0] for path, values in tune.values.items()})
    for settings in tune.settings():
        check_recipe(trial_recipe(recipe, settings).model_copy(update={"evaluate": recipe.evaluate}))
    asked = None
    if tune.metric != "loss":
        asked = asking(recipe)
        try:
            check_recipe(recipe.model_copy(update={"evaluate": asked}))
        except UsageError as error:
            raise UsageError(f"tune.metric: {tune.metric} is not what this task gives here: {error}") from error
    return TuneSlice(
        task=recipe.task, init_seed=recipe.base.init_seed, train=first.train.unprofiled(), evaluate=asked, tune=tune
    )


def asking(recipe: Recipe) -> Evaluate:
    """How a trial is asked: as `evaluate` asks, without what is compared there."""
    plain = Evaluate.model_fields
    kept = ("against", "few_shot", "calibrate", "baselines", "resamples", "noise_rows", "seed")
    metrics = [recipe.tune.metric] if recipe.tune and recipe.tune.metric != "loss" else recipe.evaluate.metrics
    return recipe.evaluate.model_copy(update={"metrics": metrics, **{name: plain[name].default for name in kept}})


def trial_recipe(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of one trial: with its settings, without a search, asked on validation rows."""
    return recipe.with_settings(settings).model_copy(update={"tune": None, "evaluate": asking(recipe)})


def chosen(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial that the run goes on with; None where nothing was searched."""
    return next((trial for trial in trials if trial["chosen"]), None)


def run(job: Job) -> None:
    tune: Tune | None = job.part.tune
    trials: list[dict[str, Any]] = []
    ledgers: list[dict[str, Any]] = []
    if tune is not None:
        search = Search(job, tune)
        trials = search.run()
        ledgers.append(search.ledger())
    job.draft.write("trials.json", trials)
    job.draft.write("ledger.json", ledgers)


class Search:
    """The trials of one search, made or found, and what they gave."""

    def __init__(self, job: Job, tune: Tune):
        import pyarrow.parquet as pq

        self.job, self.tune = job, tune
        self.rows = pq.read_metadata(job.inputs["prepare"].payload / "validation.parquet").num_rows
        if not self.rows:
            raise HermitcrabError(
                "tune chooses on validation rows, and none is left after cleaning; raise data.split.validation"
            )
        self.made: list[Artifact] = []
        self.failed: list[str] = []
        self.lost = 0.0  # CPU-seconds of trials that failed

    def run(self) -> list[dict[str, Any]]:
        settings = self.tune.settings()
        base = self.job.inputs["collect"].read("base.json")
        if base["kind"] == "scratch" and self.job.part.init_seed is None:
            warn("tune: each trial starts from other initial weights, which are in the differences too; "
                 "set base.init_seed to have all start from the same")  # fmt: skip
        trials = []
        for number, setting in enumerate(settings, 1):
            say(f"tune: trial {number} of {len(settings)}: {words(setting)}")
            trials.append(self.trial(setting))
            self.job.draft.mark()
        best = best_of(trials, self.tune.metric)
        if best is None:
            why = "none failed, and none has a figure of it"
            if self.failed:
                why = f"the first that failed: {self.failed[0]}"
            raise HermitcrabError(
                f"tune: none of {len(trials)} trials gave a {self.tune.metric} on {self.rows:,} validation rows; {why}"
            )
        trials[best]["chosen"] = True
        say(f"tune: chosen {words(trials[best]['settings'])}, {self.tune.metric} {trials[best]['value']:.4f} on "
            f"{self.rows:,} validation rows, the best of {len(trials)}")  # fmt: skip
        self.account(trials[best])
        return trials

    def trial(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The entry of one setting in trials.json. A training that diverges is a trial that failed, not a failed search."""
        if self.job.trial is None:
            raise HermitcrabError("tune: this run cannot make trials")
        entry: dict[str, Any] = {
            "settings": settings, "name": self.tune.metric, "version": LOSS_VERSION,
            "best": "lowest" if falls(self.tune.metric) else "highest",
            "value": None, "low": None, "high": None, "n": self.rows, "split": "validation", "prompt_digest": None,
            "model": None, "steps": None, "chosen": False, "failed": None,
        }  # fmt: skip
        trial, before = self.job.trial(settings), process_cpu()
        try:
            trained = trial.ensure(train.STAGE)
        except Diverged as error:
            warn(f"tune: this trial failed: {error}")
            self.lost += process_cpu() - before
            self.failed.append(str(error))
            return {**entry, "failed": str(error)}
        self.made.append(trained)
        told = trained.read("training.json")
        entry |= {"model": trained.digest, "steps": told["steps"]}
        if self.tune.metric == "loss":
            patience = settings.get("train.patience", self.job.part.train.patience)
            return {**entry, "value": kept_loss(told, best=patience is not None)}
        answered = trial.ensure(validate.STAGE)
        self.made.append(answered)
        found = next((m for m in answered.read("metrics.json") if m["name"] == self.tune.metric), None)
        if found is None:
            raise HermitcrabError(f"tune.metric: the answers to the validation rows give no {self.tune.metric}")
        return entry | {name: found[name] for name in ("version", "value", "low", "high", "n", "prompt_digest")}

    def ledger(self) -> dict[str, Any]:
        ledger, size = Ledger("trials"), self.tune.size
        tried = len(self.tune.settings())
        ledger.take(size)
        ledger.keep(tried - len(self.failed))
        if size > tried:
            ledger.drop(f"not among the {tried:,} drawn", size - tried)
        if self.failed:
            ledger.drop("training diverged", len(self.failed))
        return {"name": "settings searched", **ledger.as_json()}

    def account(self, best: Mapping[str, Any]) -> None:
        """Facts: which artifacts the search refers to, and what it took besides the training that the run keeps."""
        facts = self.job.draft.facts
        facts["trials"] = [{"stage": a.stage, "key": a.key, "digest": a.digest} for a in self.made]
        kept = next(a for a in self.made if a.digest == best["model"])
        others = [a.facts for a in self.made if a is not kept]
        facts["cpu_seconds"] = self.lost + sum(f["cpu_seconds"] for f in others)
        joules = [f["energy"]["joules"] for f in others]
        method = next((f["energy"]["method"] for f in others if f["energy"]["joules"] is None), None)
        facts["energy"] = {
            "joules": None if method else sum(joules),
            "method": method or "the sum of the trials besides the chosen training",
            **({"estimated": True} if not method and any(f["energy"].get("estimated") for f in others) else {}),
        }


def kept_loss(told: Mapping[str, Any], best: bool) -> float | None:
    """The validation loss of the weights that a training kept: the `best` ones where it had patience, else the last."""
    seen = {int(v["step"]): v["loss"] for v in told["validation"]}
    return seen.get(told["best_step"] if best else told["steps"])


def falls(metric: str) -> bool:
    """Whether less of it is better."""
    return metric == "loss" or lower_is_better(metric)


def best_of(trials: list[dict[str, Any]], metric: str) -> int | None:
    """Which trial is best: of equals the first listed; None where none has a figure."""
    sign = 1 if falls(metric) else -1
    known = [i for i, trial in enumerate(trials) if trial["value"] is not None]
    return min(known, key=lambda i: (sign * trials[i]["value"], i), default=None)


def words(settings: Mapping[str, Any]) -> str:
    """`train.learning_rate 0.001, train.lora.rank 8`."""
    return ", ".join(f"{path} {value}" for path, value in settings.items())


STAGE = Stage(
    "tune",
    ("collect", "prepare"),
    ("stages/tune.py", "stages/validate.py", "stages/train.py", "evaluate", "train", "tasks", "models", "data/images.py",
     "data/tables.py", "data/packing.py", "data/ledger.py", "digest.py"),
    slice_of,
    run,
)  # fmt: skip
