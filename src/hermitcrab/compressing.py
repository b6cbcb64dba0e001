"""Smaller forms of a finished package or run, without training again: made, measured on rows, and one chosen by a budget.

The package is signed and stays as it is: each form becomes a folder of its own, as an export does, whose record names the package by
digest and which `crab verify` checks. Among the forms that a budget allows, the smallest is suggested where a loss is stated, else
the one whose distributions are nearest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.comparing import How, answers, asking, read_on
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.progress import say, warn
from hermitcrab.recipe import Compress, Evaluate
from hermitcrab.report.picture import picture
from hermitcrab.store import Store, disk_errors, write_atomic, write_json
from hermitcrab.tasks import load_task, metrics_asked

if TYPE_CHECKING:
    import pyarrow as pa

    from hermitcrab.compress import Source
    from hermitcrab.compress.work import Compression
    from hermitcrab.serve.opening import Opened

CANDIDATES = {"gguf": ["Q8_0", "Q5_1", "Q4_0"], "openvino": ["int8", "int4"], "onnx": ["int8"]}
"""What is tried where nothing is named."""


@dataclass(frozen=True)
class Budget:
    """What a form may be: bytes of its files at most, loss of the deciding metric at most (by the whole paired interval), units a
    second at least."""

    max_size: int | None = None
    max_loss: float | None = None
    min_speed: float | None = None

    def rejects(self, entry: Mapping[str, Any]) -> list[str]:
        """What speaks against a measured form, in words."""
        parity, speed, found = entry["parity"], entry["speed"], []
        if self.max_size is not None and entry["size"] > self.max_size:
            found.append(f"size {entry['size'] / 1e6:,.1f} MB over {self.max_size / 1e6:,.1f}")
        if self.max_loss is not None and not parity["within_margin"]:
            found.append(
                f"not shown to lose at most {self.max_loss:g} of {parity['metric']}: {parity['difference']:+.4f} "
                f"({parity['low']:+.4f} to {parity['high']:+.4f}) on {parity['n']:,} rows"
            )
        if self.min_speed is not None and speed["per_second"] < self.min_speed:
            found.append(f"{speed['per_second']:,.1f} {speed['unit']} a second under {self.min_speed:g}")
        return found


@dataclass(frozen=True)
class Asked:
    """What is to be made of which model.

    Attributes:
        forms: format → types; empty: `CANDIDATES`.
        on: a file of rows or `run:NAME/prepare`; None: the test rows of the run that the model is.
        suggest: only the form that is chosen is written.
        rows: ask only so many. how: how rows are read and asked. sign: private key.
    """

    forms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on: str | None = None
    budget: Budget = Budget()
    suggest: bool = False
    how: How = field(default_factory=How)
    sign: Path | None = None


def compress(model: str, out: Path, store: Store, asked: Asked) -> dict[str, Any]:
    """`{model, on, metric, candidates, suggested, folder, written}`: every candidate with what was measured and what speaks against it.

    Raises:
        UsageError: no such model, rows or type; `out` is there already.
        HermitcrabError: a package that does not verify, a form that is not the model, or no form that the budget allows.
    """
    from hermitcrab.exporting.record import signing_key
    from hermitcrab.serve.opening import open_model

    for module in ("torch", "transformers"):
        needs(module, "train")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; the smaller forms go into a new folder")
    private = signing_key(asked.sign)
    run = run_of(model, store)
    if asked.on is None and run is None:
        raise UsageError(f"{model}: is no run of this store, so its test rows are not known; name rows with --on")
    opened = open_model(model, store, asked.how.key, asked.how.unverified)
    part = compress_part(opened, asked)
    table, about = read_on(asked.on or f"run:{run}/prepare", store, asked.how)
    work = _measured(opened, part, table, about, run, store, asked, out)
    for entry in work.entries:
        entry["speed"] = work.facts[f"{entry['format']} {entry['type']}"]
        entry["rejected"] = asked.budget.rejects(entry)
    allowed = [entry for entry in work.entries if not entry["rejected"]]
    chosen = choose(allowed, asked.budget)
    written = [chosen] if asked.suggest and chosen else [] if asked.suggest else allowed
    with disk_errors("cannot write"):
        folders = _write(opened, work, written, out, asked.budget, private)
    if work.entries and not allowed:
        warn("no form is within the budget; nothing was written")
    if folders and private is None:
        warn(f"{out}: is not signed, for there is no key (crab keygen makes one, --sign names one)")
    return {
        "model": opened.name, "verified": opened.verified, "on": about, "metric": work.parity.reference.metrics[0],
        "uncompressed": {"size": work.entries[0]["size_of_model"], **work.facts["uncompressed"]},
        "candidates": work.entries, "suggested": f"{chosen['format']} {chosen['type']}" if chosen else None,
        "folder": str(out) if folders else None, "written": folders, "signed": bool(folders) and private is not None,
    }  # fmt: skip


def run_of(model: str, store: Store) -> str | None:
    """The name of the run that `model` is: its name, its folder, or that of its package."""
    runs = store.runs()
    name = model.removeprefix("run:")
    if name in runs:
        return name
    path = Path(model).expanduser().absolute()
    for known, record in runs.items():
        folder = (
            (store.root / "runs" / record["folder"]).resolve()
            if not Path(record["folder"]).is_absolute()
            else Path(record["folder"])
        )
        if path.resolve() in (folder.resolve(), folder.resolve() / "package"):
            return known
    return None


def compress_part(opened: Opened, asked: Asked) -> Compress:
    """The part of a recipe that says the same.

    Raises:
        UsageError: a format that the task cannot have, or a type that there is not.
    """
    from pydantic import ValidationError

    able = load_task(opened.task).compresses
    forms = {name: list(kinds) for name, kinds in asked.forms.items() if kinds}
    forms = forms or {name: kinds for name, kinds in CANDIDATES.items() if name in able}
    for name in forms:
        if name not in able:
            raise UsageError(f"--{name}: {opened.task} can be compressed to: {', '.join(able) or 'nothing so far'}")
    try:
        # A loss is a budget here: what exceeds it is rejected and told, so it is no target, which would stop or widen tensors.
        return Compress.model_validate({**forms, "rows": asked.how.rows})
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--{first['loc'][0] if first['loc'] else 'compress'}: {first['msg']}. Received: {first['input']}"
        ) from error


def _measured(opened: Opened, part: Compress, table: pa.Table, about: dict[str, Any], run: str | None, store: Store,
              asked: Asked, out: Path) -> Compression:  # fmt: skip
    """Every form made and measured, in a folder beside `out` that a killed call continues from."""
    from hermitcrab.compress import check
    from hermitcrab.compress.parity import Reference
    from hermitcrab.compress.work import Compression
    from hermitcrab.digest import digest_json, short
    from hermitcrab.evaluate.answers import read
    from hermitcrab.evaluate.metrics import available

    task = load_task(opened.task)
    evaluate = asking(asked.how, about, table, {"derived": opened, "base": opened}, task)
    check(part, opened.base, opened.path)
    told = answers("uncompressed", opened, evaluate, opened.precision, table, store)
    metrics = available(
        metrics_asked(task, evaluate), read(told, "uncompressed"), task.labels(evaluate, opened.start.fitted)
    )
    source = source_of(opened, part, evaluate, run, store, metrics[0])
    scratch = place(out) / short(digest_json([opened.base["digest"], about["digest"], part.model_dump(mode="json")]))
    payload = scratch / "payload"
    shutil.rmtree(payload, ignore_errors=True)
    payload.mkdir(parents=True)
    work = Compression(
        source, Reference(table, told, tuple(metrics), None), scratch / "work", payload, asked.budget.max_loss
    )
    work.run()
    return work


def place(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.part")


def source_of(opened: Opened, part: Compress, evaluate: Evaluate, run: str | None, store: Store, metric: str) -> Source:
    """What the forms are made from: the package's own files, and of a run its training rows to calibrate on."""
    from hermitcrab.compress import Source
    from hermitcrab.compress.parity import smallest
    from hermitcrab.data.tables import schema
    from hermitcrab.exporting.record import about

    calibration = validation = schema("text").empty_table()
    if run is not None:
        import pyarrow.parquet as pq

        from hermitcrab.pipeline import find_run

        rows = find_run(run, store)[1]["prepare"].payload
        calibration = smallest(pq.read_table(rows / "train.parquet"), part.calibration_rows)
        validation = pq.read_table(rows / "validation.parquet")
    elif any(
        "calibrated" in kind or "static" in kind for kinds in (part.gguf, part.openvino, part.onnx) for kind in kinds
    ):
        raise UsageError(
            "calibrated types need training rows, which only a run of this store has; name the run as the model"
        )
    return Source(
        model=opened.path, name=opened.name, task=opened.task, start=opened.start, base_start=None,
        train=opened.train.model_copy(update={"final_dtype": opened.precision}), evaluate=evaluate, compress=part,
        base=opened.base, about=about(opened), calibration=calibration, validation=validation, metric=metric,
    )  # fmt: skip


def choose(entries: Sequence[dict[str, Any]], budget: Budget) -> dict[str, Any] | None:
    """The smallest where a loss is stated (every one of these keeps to it), else the nearest."""
    if budget.max_loss is not None:
        return min(entries, key=lambda entry: (entry["size"], entry["parity"]["mean_kl"]), default=None)
    return min(entries, key=lambda entry: (entry["parity"]["mean_kl"], entry["size"]), default=None)


def _write(opened: Opened, work: Compression, entries: Sequence[dict[str, Any]], out: Path, budget: Budget,
           key: Path | None) -> list[str]:  # fmt: skip
    """A folder for each form, whole or not at all; what was measured of all of them beside."""
    from hermitcrab.exporting.record import complete
    from hermitcrab.exporting.writing import Written

    fresh = place(out) / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    folders = []
    for entry in entries:
        name = f"{entry['format']}-{entry['type']}"
        folder = fresh / name
        folder.mkdir(parents=True)
        names = []
        for file in entry["files"]:
            target = folder / Path(file["path"]).name
            shutil.copyfile(work.payload / file["path"], target)
            names.append(target.name)
        # What is stated is what verification holds the figures against; without a statement they are told, not held.
        worst = worst_loss(entry["parity"])
        stated = {} if budget.max_loss is None else {"worst_loss": budget.max_loss}
        parity = {**entry["parity"], "worst_loss": worst, "tolerance": stated}
        complete(
            opened,
            entry["format"],
            entry["type"],
            folder,
            Written(tuple(names), entry["tensors"], entry["method"]),
            parity,
            key,
        )
        folders.append(name)
    if folders:
        write_json(fresh / "compression.json", work.entries)
        if (drawn := picture(work.entries)) is not None:
            write_atomic(fresh / "compression.svg", drawn.encode())
        if out.exists():
            out.rmdir()
        os.replace(fresh, out)
        shutil.rmtree(place(out), ignore_errors=True)
        say(f"{out}: {', '.join(folders)}")
    return folders


def worst_loss(parity: Mapping[str, Any]) -> float:
    """The end of the interval that tells of the larger loss."""
    from hermitcrab.evaluate.metrics import lower_is_better

    if parity["low"] is None or parity["high"] is None:
        raise HermitcrabError("the interval of the difference is not known; ask more rows")
    return float(parity["high"] if lower_is_better(parity["metric"]) else -parity["low"])
