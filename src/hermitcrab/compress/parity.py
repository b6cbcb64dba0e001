"""Is a smaller form still the model? The gate is the paired difference on the rows that the uncompressed model was asked.

Notable:
- Perplexity and size say little of what a compression broke (and a distribution that is near says little of a task), so each
  form answers the test rows with the same prompts in the same precision, and the interval of the paired difference is held
  against a margin that was stated before: "not shown to be within" is an answer, and with a `target` it stops the run.
- Distributions are compared in float32 on the task's probes, with those of the base too: a form that is nearer to the base lost
  what training added, and is refused.
- Answers and distances are kept on disk, so a killed comparison goes on where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_json, short
from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.metrics import find, within
from hermitcrab.progress import progress
from hermitcrab.store import read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from hermitcrab.compress import Source
    from hermitcrab.tasks import Start, Task

MARGIN = (
    0.01  # where a recipe states none: a hundredth of all rows, or of a metric without bounds a hundredth of its value
)


@dataclass(frozen=True)
class Reference:
    """The uncompressed model on the rows: its answers (to these rows or more), the metrics that it has, the deciding one first,
    and the digest of what it was asked (None: of rows that `evaluate` did not ask)."""

    rows: pa.Table
    answers: pa.Table
    metrics: tuple[str, ...]
    prompt_digest: str | None


class Parity:
    """What all forms share: the answers and the distributions of the uncompressed model."""

    def __init__(self, source: Source, reference: Reference, work: Path, stated: float | None = None):
        from hermitcrab.evaluate.asking import Keeper

        self.source, self.reference, self.work, self.stated = source, reference, work, stated
        self.keeper = Keeper(work / "answers", "compress")

    @cached_property
    def task(self) -> Task:
        """The task of the uncompressed model."""
        from hermitcrab.tasks import make_task

        return make_task(self.source.task, self.source.start, self.source.train)

    @cached_property
    def asked_rows(self) -> pa.Table:
        """The rows with the smallest ids, which are digests: a draw that does not depend on the order of a file."""
        return smallest(self.reference.rows, self.source.compress.rows)

    @cached_property
    def references(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the uncompressed model, and of its base where that is known."""
        base = self.source.base_start
        return self.logits(self.source.start), None if base is None else self.logits(base)

    def logits(self, start: Start) -> torch.Tensor:
        """Of a model in float32, on the task's probes."""
        from hermitcrab.evaluate.asking import load

        task, model = load(self.source.task, start, self.source.train, "float32")
        return task.probe_logits(model, task.probes())

    def check_inputs(self, label: str, start: Start) -> None:
        """That a form reads and is asked what the uncompressed model is.

        Raises:
            HermitcrabError: it is not.
        """
        from hermitcrab.tasks import make_task

        task = make_task(self.source.task, start, self.source.train)
        check_inputs(task, self.task, self.reference.rows, label)
        recorded, found = self.reference.prompt_digest, task.asked(self.reference.rows, self.source.evaluate)
        if recorded is not None and found != recorded:
            raise HermitcrabError(
                f"{label}: would be asked with other prompts ({found}) than evaluate asked ({recorded})"
            )

    def distance(self, label: str, start: Start) -> dict[str, float]:
        """How far the form's distributions are from those of the uncompressed model, and from the base's."""
        from hermitcrab.train.parity import compare

        path = self.work / "distances" / f"{short(digest_json([label, start.base['files']]))}.json"
        if not path.exists():
            with progress(f"comparing {label}"):
                derived, base = self.references
                logits = self.logits(start)
                check_shapes(label, derived, logits)
                found = compare(derived, logits)
                if base is not None and base.shape == logits.shape:
                    found["mean_kl_to_base"] = compare(base, logits)["mean_kl"]
            check_distance(label, found)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)
        return read_json(path)

    def answers(self, label: str, start: Start) -> pa.Table:
        from hermitcrab.evaluate.asking import ask, load

        def make() -> pa.Table:
            task, model = load(self.source.task, start, self.source.train, self.source.train.final_dtype)
            return ask(task, model, self.asked_rows, self.source.evaluate)

        return self.keeper.get(f"{label} {short(digest_json(start.base['files']))}", "test", make)

    def measure(self, label: str, start: Start) -> dict[str, Any]:
        """The compressed model minus the uncompressed one on the same rows, with what turned, and the distance on probes."""
        distance = self.distance(label, start)
        found = {**self.paired(label, self.answers(label, start)), **distance}
        if self.source.compress.target is not None:
            check_target(label, found)
        return found

    def paired(self, label: str, table: pa.Table) -> dict[str, Any]:
        """The paired difference of the deciding metric, held against the margin; and that of perplexity."""
        import pyarrow.compute as pc

        from hermitcrab.evaluate.answers import read
        from hermitcrab.evaluate.metrics import available
        from hermitcrab.evaluate.statistics import paired_shares
        from hermitcrab.evaluate.value_added import compare
        from hermitcrab.tasks import load_task

        source, part = self.source, self.source.evaluate
        before = self.reference.answers.filter(pc.is_in(self.reference.answers["row_id"], table["row_id"]))
        labels = load_task(source.task).labels(part, source.start.fitted)
        a, b = read(table, label), read(before, "uncompressed")
        name = self.reference.metrics[0]
        wanted = list(dict.fromkeys([name, *available(["perplexity"], a, labels)]))
        pairs = compare(
            {label: table, "uncompressed": before}, metrics=wanted, labels=labels, derived=label, base="uncompressed",
            confidence=part.confidence, resamples=part.resamples, seed=part.seed,
        )["pairs"]  # fmt: skip
        pair = pairs[0]
        if (
            pair["low"] is not None and find(name).right is not None
        ):  # a share of rows: where few rows turn, resampling them says too much
            shares = paired_shares(pair["gained"], pair["lost"], len(a), part.confidence)
            pair = {**pair, "low": min(pair["low"], shares.low), "high": max(pair["high"], shares.high)}
        stated = source.compress.target.max_loss if source.compress.target else self.stated
        margin = margin_of(stated, name, pair["b_value"])
        changed = sum(x != y for x, y in zip(a.prediction, b.prediction, strict=True))
        return {
            "n": len(a), "metric": name, "uncompressed": pair["b_value"], "compressed": pair["a_value"],
            "difference": pair["difference"], "low": pair["low"], "high": pair["high"], "confidence": part.confidence,
            "margin": margin, "within_margin": within(name, pair["low"], pair["high"], margin),
            "gained": pair["gained"], "lost": pair["lost"],
            "flips": None if all(p is None for p in a.prediction) else changed,
            "perplexity": next(
                ({key: p[key] for key in ("difference", "low", "high")} for p in pairs if p["metric"] == "perplexity"), None
            ),
        }  # fmt: skip


def smallest(rows: pa.Table, wanted: int | None) -> pa.Table:
    """So many rows with the smallest ids, in the order of the table."""
    ids = rows["row_id"].to_pylist()
    return rows.take(sorted(sorted(range(len(ids)), key=lambda i: ids[i])[:wanted]))


def margin_of(stated: float | None, metric: str, value: float) -> float:
    """How much of the metric a smaller model may lose: as stated, or a hundredth."""
    if stated is not None:
        return stated
    return MARGIN if find(metric).bounded else round(MARGIN * value, 6)


def check_inputs(compressed: Task, uncompressed: Task, rows: pa.Table, name: str) -> None:
    """Both tasks make the same of every text.

    Raises:
        HermitcrabError: they do not.
    """
    found, wanted = compressed.inputs(rows), uncompressed.inputs(rows)
    differ = [what for what in wanted if found.get(what) != wanted[what]]
    if differ:
        raise HermitcrabError(
            f"{name}: it does not read what the model reads: {len(differ):,} of {len(wanted):,} inputs become something else, "
            f"as {differ[0]} ({str(found.get(differ[0]))[:60]}, expected {str(wanted[differ[0]])[:60]})"
        )


def check_shapes(label: str, derived: torch.Tensor, logits: torch.Tensor) -> None:
    if derived.shape != logits.shape:
        raise HermitcrabError(
            f"{label}: gives logits of shape {list(logits.shape)} on the probes, expected {list(derived.shape)}"
        )


def check_distance(label: str, found: dict[str, float]) -> None:
    """The form still is the derived model.

    Raises:
        HermitcrabError: it is nearer to the base, or its logits are no numbers.
    """
    if not all(math.isfinite(value) for value in found.values()):
        raise HermitcrabError(f"compress: {label} gives logits that are no numbers; choose a wider type")
    if "mean_kl_to_base" in found and found["mean_kl_to_base"] < found["mean_kl"]:
        raise HermitcrabError(
            f"compress: {label} loses what training added: mean KL to the base {found['mean_kl_to_base']:.2e}, to the "
            f"trained model {found['mean_kl']:.2e} nats; choose a wider type, keep more, or train for longer"
        )


def check_target(label: str, found: dict[str, Any]) -> None:
    """The loss is shown to be within what the recipe allows.

    Raises:
        HermitcrabError: it is not.
    """
    if not found["within_margin"]:
        raise HermitcrabError(
            f"compress.target: {label} is not shown to lose at most {found['margin']:g} of {found['metric']}: "
            f"{found['difference']:+.4f} ({found['low']} to {found['high']}) on {found['n']:,} rows; choose a wider type, "
            "ask more rows, or allow more"
        )
