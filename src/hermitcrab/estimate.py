"""What a run will need: time, memory and disk, from the size of the base and of the data. Estimates, and told as such.

Formulas, with P parameters and t tokens (positions) in all:
    memory, LoRA: 2 P (bfloat16) while training, 6 P when merging and comparing in float32;  full: 16 P (weights, gradients, Adam)
    activations:  as the task counts them
    compressed:   bits/8 P bytes a type on disk, and again in the package; packing, reading back and probing by P alone; healing and
                  students as trainings of the whole model, which the smaller one stays under
    time:         6 P t floating-point operations (4 P t for LoRA), at half of what a matrix product reaches here
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.compress import asked
from hermitcrab.compress.lessons import trainings
from hermitcrab.models.base import shape
from hermitcrab.recipe import Recipe, Train
from hermitcrab.references import Resolved
from hermitcrab.store import Artifact
from hermitcrab.tasks import load_task

QUANTIZED = 20e6  # weights a second that are packed, written, read back and probed
READ = 10e6  # bytes a second of a CSV into rows
ROW_BYTES = 200.0  # of a file whose rows were not counted yet
RUNTIME = 900 << 20  # bytes that Python, torch and transformers take by themselves
EFFICIENCY = 0.5


@functools.cache
def float32_rate() -> float:
    """Floating-point operations a second of a matrix product, all threads."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    best = min(_timed(a) for _ in range(3))
    return 2 * 1024**3 / best


def _timed(a: np.ndarray) -> float:
    began = time.perf_counter()
    a @ a
    return time.perf_counter() - began


def estimate(
    recipe: Recipe, artifacts: dict[str, Artifact], resolved: Mapping[str, Resolved]
) -> dict[str, dict[str, float]]:
    """`{stage: {seconds, memory, disk}}` (bytes) for the stages whose size can be told: from what is in the store, else from
    files that lie here already. Empty where the base or the data have yet to be fetched."""
    base, rows = _base(recipe, artifacts, resolved), _rows(recipe, artifacts, resolved)
    if base is None or rows is None:
        return {}
    test = artifacts["prepare"].payload / "test.parquet" if "prepare" in artifacts else None
    rate = float32_rate() * (2 if _has_bfloat16() else 1) * EFFICIENCY

    def training(part: Train) -> dict[str, float]:
        """One training with these settings."""
        work, lora = (
            load_task(recipe.task).work(recipe.model_copy(update={"train": part}), base, rows, test),
            part.method == "lora",
        )
        tokens = min(rows["train"], recipe.data.take or rows["train"]) * work.tokens * part.epochs
        if part.steps:
            tokens = part.steps * part.batch_size * part.accumulate * work.tokens_a_training_row
        learning = 2 * work.parameters + work.activation_bytes
        return {
            "seconds": (4 if lora else 6) * work.working * tokens / rate,
            "memory": (max(6 * work.parameters, learning) if lora else 14 * work.parameters + learning) + RUNTIME,
            "disk": (2 if part.final_dtype == "bfloat16" else 4) * work.parameters * 1.1,
        }

    work = load_task(recipe.task).work(recipe, base, rows, test)
    parameters, trained = work.parameters, training(recipe.train)
    passes = (recipe.evaluate.against == "base") + 1 + (recipe.evaluate.few_shot > 0)
    answered = (rows["test"] + (rows["validation"] if recipe.evaluate.calibrate else 0)) * work.asked * passes
    shipped = trained["disk"]
    text = rows["bytes"]
    kinds = [form.bits(recipe.compress, kind) for form, kind in asked(recipe.compress)]
    compressed = sum(kinds) / 8 * parameters
    cuts = sum(form.format == "prune" for form, _ in asked(recipe.compress))
    taught = [training(part) for part in trainings(recipe.compress, recipe.train, cuts)]
    again = min(rows["test"], recipe.compress.rows or rows["test"]) * work.tokens * len(kinds)
    return {
        "collect": {"seconds": 1 + text / READ, "memory": 200 << 20, "disk": text},
        "prepare": {"seconds": 1 + text / READ, "memory": (200 << 20) + 8 * text, "disk": text},
        "tune": _search(recipe, training, 2 * work.working * rows["validation"] * work.asked / rate),
        "train": trained,
        "evaluate": {
            "seconds": 2 * work.working * answered / rate,
            "memory": 4 * parameters + RUNTIME,
            "disk": rows["test"] * 400.0 * passes,
        },
        "compress": {
            "seconds": 2 * parameters * again / rate
            + parameters * len(kinds) / QUANTIZED
            + sum(t["seconds"] for t in taught),
            "memory": max([6 * parameters + RUNTIME if kinds else 1 << 20, *(t["memory"] for t in taught)]),
            "disk": compressed,
        },
        "package": {"seconds": 2.0, "memory": 200 << 20, "disk": 2 * (shipped + compressed)},
    }


def _search(recipe: Recipe, training: Callable[[Train], dict[str, float]], asking: float) -> dict[str, float]:
    """All trials of a search, each trained and, where a metric of answers decides, asked the validation rows."""
    if recipe.tune is None:
        return {"seconds": 0.0, "memory": 1 << 20, "disk": 0.0}
    trials = [training(recipe.with_settings(settings).train) for settings in recipe.tune.settings()]
    asked = 0.0 if recipe.tune.metric == "loss" else asking
    return {
        "seconds": sum(trial["seconds"] + asked for trial in trials),
        "memory": max(trial["memory"] for trial in trials),
        "disk": sum(trial["disk"] for trial in trials),
    }


def _base(recipe: Recipe, artifacts: dict[str, Artifact], resolved: Mapping[str, Resolved]) -> dict[str, Any] | None:
    """Parameters and shape of the base: as recorded, or from the header of a file that lies here."""
    if "collect" in artifacts:
        return artifacts["collect"].read("base.json")
    if recipe.base.architecture is not None:
        return {"parameters": None, "shape": shape(recipe.base.architecture)}
    path = resolved[recipe.base.path].path
    if path is None:
        return None
    from hermitcrab.models.formats import open_weights

    return {"parameters": open_weights(path).parameters, "shape": {}}


def shortage(needs: dict[str, dict[str, float]], store: Path) -> str | None:
    """The sentence that says why this cannot fit, or None."""
    import psutil

    memory = psutil.virtual_memory().available
    worst = max(needs, key=lambda s: needs[s]["memory"], default=None)
    if worst and needs[worst]["memory"] > memory:
        return (
            f"{worst} needs about {needs[worst]['memory'] / 2**30:.1f} GiB of memory and {memory / 2**30:.1f} GiB are available; "
            "lower train.batch_size (and, of texts, train.sequence_length), train adapters (method: lora) or take a smaller model"
        )
    disk, free = sum(n["disk"] for n in needs.values()), shutil.disk_usage(store).free
    if disk > free:
        return f"the run needs about {disk / 2**30:.1f} GiB of disk and {free / 2**30:.1f} GiB are free; `crab gc` may free some"
    return None


def _rows(recipe: Recipe, artifacts: dict[str, Artifact], resolved: Mapping[str, Resolved]) -> dict[str, float] | None:
    """Rows by split, bytes of all and of a row: from row tables, or guessed from the sizes of files."""
    import pyarrow.parquet as pq

    counts: dict[str, float] = {"train": 0, "validation": 0, "test": 0}
    size = 0.0
    if source := artifacts.get("prepare") or artifacts.get("collect"):
        for split in counts:
            path = source.payload / f"{split}.parquet"
            if path.exists():
                meta = pq.read_metadata(path)
                counts[split] = meta.num_rows
                size += sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
    else:
        for split in counts:
            for part in getattr(recipe.data, split):
                here = resolved[part.path].path
                if here is None:
                    return None
                counts[split] += here.stat().st_size / ROW_BYTES
                size += here.stat().st_size
    for split in ("validation", "test") if "prepare" not in artifacts else ():
        if not counts[split]:
            wanted = getattr(recipe.data.split, split)
            counts[split] = wanted if isinstance(wanted, int) else wanted * counts["train"]
    return {**counts, "bytes": size, "row_bytes": size / max(1, sum(counts.values()))}


def _has_bfloat16() -> bool:
    from hermitcrab.environment import _flags

    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _flags())
