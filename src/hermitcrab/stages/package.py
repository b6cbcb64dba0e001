"""package: the folder that others load. Merged weights as they were evaluated, card and bill of materials.

Everything here follows from the input artifacts, so the same run gives the same bytes. The signed claims and
`model.sig` are added to the run's copy of it afterwards (`lineage.sign`): they hold times and a key, and belong to no
digest.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from hermitcrab import digest
from hermitcrab.compress import FOLDERS, TENSORS
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.statements import EVALUATED
from hermitcrab.progress import Progress, progress
from hermitcrab.recipe import Part, Recipe
from hermitcrab.stages import Job, Stage
from hermitcrab.store import Artifact

SIGNED = ("claims.jsonl", "signer.pub.pem", "model.sig")
WRITTEN = ("hermitcrab.json", "README.md", "ml-bom.cdx.json", *EVALUATED)
BASE_FIELDS = ("uri", "revision", "kind", "name", "digest", "files", "model_type")


class PackageSlice(Part):
    name: str
    task: str
    use: Literal["commercial", "non-commercial", "research"]
    license: str | None
    choices: list[str]
    """What a classifier by likelihood chooses from."""


def slice_of(recipe: Recipe) -> PackageSlice:
    return PackageSlice(
        name=recipe.name,
        task=recipe.task,
        use=recipe.use,
        license=recipe.package.license,
        choices=recipe.evaluate.choices,
    )


def run(job: Job) -> None:
    """The package folder but for claims and signature.

    Raises:
        HermitcrabError: where a license stops it, or an input is no longer what it was when it was made.
    """
    from hermitcrab.lineage.bom import bill_of_materials
    from hermitcrab.lineage.card import model_card

    train, evaluate, compress = job.inputs["train"], job.inputs["evaluate"], job.inputs["compress"]
    loaded = copy_files(train, job.draft.payload)
    copy_files(evaluate, job.draft.payload, only=EVALUATED)
    copy_files(compress, job.draft.payload)
    record = record_of(job, loaded)
    metrics, comparison = evaluate.read("metrics.json"), evaluate.read("comparison.json")
    ledgers = [entry for stage in STAGE.inputs for entry in job.inputs[stage].read("ledger.json")]
    card = model_card(record, metrics, comparison, ledgers, train.read("training.json"))
    job.draft.write("hermitcrab.json", record)
    job.draft.write("ml-bom.cdx.json", bill_of_materials(record, metrics, loaded))
    (job.draft.payload / "README.md").write_text(card, encoding="utf-8", newline="\n")


def record_of(job: Job, loaded: list[dict[str, Any]]) -> dict[str, Any]:
    """hermitcrab.json: what the package is. `loaded` are the files of the model, as copied."""
    from importlib.metadata import version

    from hermitcrab.lineage.licenses import check, refuse, result_license

    part: PackageSlice = job.part
    base, sources = job.inputs["collect"].read("base.json"), job.inputs["collect"].read("sources.json")
    training = job.inputs["train"].read("training.json")
    base_license, data_licenses = base["license"]["used"], [source["license"] for source in sources]
    refuse(check(part.use, base_license, data_licenses))
    weights = [file for file in loaded if file["path"].endswith(".safetensors") and "/" not in file["path"]]
    if not weights:
        raise HermitcrabError("package: the trained model has no model.safetensors; nothing can be packaged")
    return {
        "schema": 1,
        "name": part.name,
        "task": part.task,
        "use": part.use,
        "architecture": base["architecture"] or base["model_type"],
        **{name: training[name] for name in ("template_digest", "preprocessing_digest") if name in training},
        **({"fitted": training["fitted"]} if training["fitted"] else {}),
        **({"init_commitment": training["init_commitment"]} if "init_commitment" in training else {}),
        **({"choices": part.choices} if part.choices else {}),
        "format": sources[0]["format"],
        "base": {field: base[field] for field in BASE_FIELDS} | {"license": base_license},
        "data": [
            {field: s[field] for field in ("uri", "split", "sha256", "size", "license", "format")} for s in sources
        ],
        "license": result_license(base_license, data_licenses, part.license),
        "trials": job.inputs["tune"].read("trials.json"),
        "parity": job.inputs["train"].read("parity.json"),
        "compressed": job.inputs["compress"].read("compression.json"),
        "weights": {"files": weights, "digest": digest.digest_json(weights)},
        "made_by": {"hermitcrab": version("hermitcrab")},
    }


def copy_files(source: Artifact, target: Path, only: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Copy `model/*` to the top, `adapter/*` and the folders of smaller forms as they are (or `only` these); every byte is checked
    on the way.

    Returns:
        `{path, sha256, size}` of the files that make up the model, by path.
    """
    wanted = []
    for file in source.manifest["files"]:
        path = file["path"]
        if only is not None:
            wanted += [(file, path)] if path in only else []
        elif path.startswith(("model/", "adapter/", *FOLDERS)) or path == TENSORS:
            wanted.append((file, path.removeprefix("model/")))
    if clash := sorted({name for _, name in wanted if only is None and name in SIGNED + WRITTEN}):
        raise HermitcrabError(f"package: the model brings a file called {clash[0]}, which the package writes itself")
    with progress("package", total=sum(file["size"] for file, _ in wanted) / 1e6, unit="MB") as bar:
        for file, name in wanted:
            try:
                found = _copy(source.payload / file["path"], target / name, bar)
            except FileNotFoundError as error:
                raise HermitcrabError(f"{source.payload / file['path']}: gone from the store; run again") from error
            if found != file["sha256"]:
                raise HermitcrabError(
                    f"{source.payload / file['path']}: the file changed in the store since it was made "
                    f"(expected {file['sha256']}); remove {source.path} and run again"
                )
    copied = [{"path": name, "sha256": file["sha256"], "size": file["size"]} for file, name in wanted]
    return sorted(copied, key=lambda file: file["path"])


def _copy(old: Path, new: Path, bar: Progress) -> str:
    """Copy one file; the digest of the bytes that were copied."""
    state = hashlib.sha256()
    with open(old, "rb") as source:
        new.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "wb") as target:
            while chunk := source.read(digest.CHUNK):
                state.update(chunk)
                target.write(chunk)
                bar.add(len(chunk) / 1e6)
    return f"sha256:{state.hexdigest()}"


STAGE = Stage(
    "package",
    inputs=("collect", "prepare", "tune", "train", "evaluate", "compress"),
    code=(
        "stages/package.py",
        "compress/__init__.py",
        "lineage/statements.py",
        "lineage/card.py",
        "lineage/bom.py",
        "lineage/licenses.py",
    ),
    slice=slice_of,
    run=run,
)
