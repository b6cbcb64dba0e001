"""From what a user names to a model that may be used: found, verified, its files pinned to the signed digests. Torch-free.

    MODEL → folder of a package (or a bare model) → lineage.verify → files as they were signed → encoder as it was trained

The chat template is chosen by the digest that hermitcrab.json records, so prompts are rendered as they were in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.lineage.bundle import NAME as SIGNATURE
from hermitcrab.lineage.bundle import read_bundle
from hermitcrab.models.base import describe
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.weights import Stamp
from hermitcrab.models.load import load_text
from hermitcrab.models.tokenizer import FILES as TOKENIZER_FILES
from hermitcrab.models.tokenizer import TextTokenizer, read_json_file, read_tokenizer
from hermitcrab.packaged import RECORD, no_package, place_of, vouched
from hermitcrab.progress import say, warn
from hermitcrab.recipe import Base, Train
from hermitcrab.references import Resolved
from hermitcrab.store import Store
from hermitcrab.tasks import Start, known, load_task, task_that_opens
from hermitcrab.tasks.encoding import Encoder, load_encoder

VECTORS = "feature-extraction"
"""What an encoder of texts does, by its Hugging Face pipeline name; none is made here, so it is no task."""


@dataclass(frozen=True)
class Opened:
    """A model ready to be loaded.

    Attributes:
        name: what requests call it.
        task: its Hugging Face task name.
        start: its files and their record (as `models.base.describe` gives it), and what was fitted on training rows.
        train: the part of a recipe that decides how inputs are rendered.
        encoder: how texts become tokens; None where the task reads no text. `text`: the tokenizer that it came from.
        choices: what a classifier by likelihood chooses from; empty where answers are generated.
        plain_text: it learnt texts, not answers: an input is the beginning of a text.
        created: when its record was written (seconds since 1970), or 0.
        verified: what verification found, or None where nothing vouches for it.
        stamps: of every file of the package as it was right before it was verified; of a bare model, of what is read.
    """

    name: str
    task: str
    start: Start
    train: Train
    encoder: Encoder | None
    choices: list[str]
    plain_text: bool
    created: int
    verified: str | None
    text: TextTokenizer | None = None
    stamps: dict[Path, Stamp] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all files of the model."""
        return self.base["digest"]

    @property
    def path(self) -> Path:
        return self.start.path

    @property
    def base(self) -> dict[str, Any]:
        return self.start.base

    @property
    def precision(self) -> str:
        """The one of its files, which is the one that was evaluated."""
        return "float32" if set(self.base["dtypes"]) <= {"F32", "F16"} else "bfloat16"


def open_model(
    what: str, store: Store, key: Path | None = None, unverified: bool = False, bare: bool = False
) -> Opened:
    """The model that `what` names: a package's folder, a run's name or folder, or a reference.

    With `bare`, what is no package is opened too, and said to be none; a package is verified all the same.

    Raises:
        UsageError: no such model, or one that is no package, without `unverified`.
        Contradiction, HermitcrabError: a package that does not verify, without `unverified`.
    """
    path, resolved = place_of(what, store)
    if not (path / RECORD).is_file():
        return _open_bare(what, path, resolved, unverified, bare)
    stamps = stamps_of(path, [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()])
    told = vouched(path, key, unverified)
    record = _record(path)
    reads_text, prompted = load_task(record["task"]).reads_text, load_task(record["task"]).prompted
    base = describe(path, resolved, Base(path=what, license=record["license"]), reads_text)
    base["name"] = record["name"]
    if told is not None:
        _as_signed(path, base)
    text = load_text(base, path) if reads_text else None
    train, encoder = _rendering(base, path, text, record["template_digest"]) if prompted and text else (Train(), None)
    return Opened(
        name=record["name"],
        task=record["task"],
        start=Start(base, path, None, record["fitted"]),
        train=train,
        encoder=encoder,
        choices=record["choices"],
        plain_text=record["format"] == "text",
        created=int((path / RECORD).stat().st_mtime),
        verified=told,
        text=text,
        stamps=stamps,
    )


def stamps_of(root: Path, names: Iterable[str]) -> dict[Path, Stamp]:
    """The stamps of these files of a folder, as far as they are there."""
    return {path: Stamp.of(path.stat()) for name in names if (path := root / name).is_file()}


def _open_bare(what: str, path: Path, resolved: Resolved, unverified: bool, bare: bool) -> Opened:
    if not unverified and not bare:
        raise no_package(what)
    if bare:
        say(f"{what}: is no package; nothing vouches for it but the digest that is told")
    else:
        warn(f"{what}: is no package; nothing vouches for it, and it is used because of --unverified")
    if (file := encoder_file(path)) is not None:
        return _open_encoder(what, path, file)
    found = task_that_opens(path)
    if found is None:
        open_weights(path)  # says what is wrong where there are none
        wanted = "; ".join(f"{name}: {load_task(name).opens_from}" for name in known())
        raise HermitcrabError(f"{path}: holds weights, but no model of a task. Expected, of {wanted}")
    task, fitted = found
    part = Base(path=what, license="LicenseRef-not-asked")  # nothing is made of it here
    base = describe(path, resolved, part, task.reads_text)
    text = load_text(base, path) if task.reads_text else None
    encoder = load_encoder(base, path, "auto", text) if task.prompted else None
    stamps = stamps_of(path if path.is_dir() else path.parent, [file["path"] for file in base["files"]])
    start = Start(base, path, None, fitted)
    return Opened(base["name"], task.name, start, Train(), encoder, [], False, 0, None, text, stamps)


def encoder_file(path: Path) -> Path | None:
    """The weights of a folder that holds an encoder of texts beside its tokenizer, ONNX before safetensors: it says how to pool, or
    its architecture has no head (`BertModel`)."""
    if not (path / "tokenizer.json").is_file():
        return None
    config = read_json_file(path / "config.json") if (path / "config.json").is_file() else {}
    kinds = config.get("architectures") if isinstance(config, dict) else None
    headless = isinstance(kinds, list) and bool(kinds) and all(str(kind).endswith("Model") for kind in kinds)
    if not headless and not (path / "modules.json").is_file():
        return None
    names = ("model.onnx", "onnx/model.onnx", "model.safetensors")
    return next((path / name for name in names if (path / name).is_file()), None)


def _open_encoder(what: str, path: Path, file: Path) -> Opened:
    beside = ("config.json", *TOKENIZER_FILES, "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    names = [file.relative_to(path).as_posix(), *(name for name in beside if (path / name).is_file())]
    stamps, files = stamps_of(path, names), describe_files(path, names)
    base: dict[str, Any] = {"name": path.name, "uri": what, "kind": file.suffix[1:], "files": files, "digest": digest_json(files),
            "dtypes": dict(open_weights(file).dtypes)}  # fmt: skip
    return Opened(
        base["name"], VECTORS, Start(base, path), Train(), None, [], False, 0, None, read_tokenizer(path), stamps
    )


def _record(path: Path) -> dict[str, Any]:
    """What is read of hermitcrab.json, each value of its type: the file may be a stranger's."""
    found = read_json_file(path / RECORD)
    for name in ("name", "task", "license", "format"):
        if not isinstance(found, dict) or not isinstance(found.get(name), str):
            raise HermitcrabError(f"{path / RECORD}: expected `{name}`, a text; this is no record of a package")
    choices, fitted = found.get("choices", []), found.get("fitted", {})
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise HermitcrabError(f"{path / RECORD}: expected `choices`, a list of texts. Received: {str(choices)[:80]}")
    if found["task"] not in known():
        raise HermitcrabError(
            f"{path}: its task is {found['task'][:60]!r}; this version knows {', '.join(sorted(known()))}"
        )
    if not isinstance(fitted, dict):
        raise HermitcrabError(f"{path / RECORD}: expected `fitted`, a mapping. Received: {str(fitted)[:80]}")
    load_task(found["task"]).check_fitted(fitted, str(path / RECORD))
    return {**found, "choices": choices, "fitted": fitted}


def _as_signed(path: Path, base: dict[str, Any]) -> None:
    """What will be loaded (each file is digested again then) is what the signature covers."""
    signed = read_bundle((path / SIGNATURE).read_bytes()).files()
    for file in base["files"]:
        if file["sha256"] != f"sha256:{signed.get(file['path'])}":
            raise HermitcrabError(f"{path / file['path']}: changed since the package was verified a moment ago")


def _rendering(base: dict[str, Any], path: Path, text: TextTokenizer, recorded: Any) -> tuple[Train, Encoder]:
    """The rendering whose digest the record has: the package's chat template, or none."""
    for train in (Train(template="auto"), Train(template="none")):
        encoder = load_encoder(base, path, train.template, text)
        if encoder.template_digest == recorded:
            return train, encoder
    raise HermitcrabError(f"{path}: its chat template is not the one that it was trained with. Expected: {recorded}")
