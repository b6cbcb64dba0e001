"""Which layers of an ONNX file stay wide: those that hurt most when they alone are rounded, as few as meet the target.

As in `mixing` for GGUF: what a node costs is the mean KL on the task's probes with it alone in int8; how many stay wide is found by
bisection, each time with the file as it would ship. Test rows are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from hermitcrab.compress import Source
from hermitcrab.models.runtimes.onnx import OnnxModel
from hermitcrab.progress import progress, say


class OnnxMixture:
    """Args:
    wide: the float32 file. write: makes the file at a path with the named nodes left wide.
    """

    def __init__(self, source: Source, wide: Path, write: Callable[[Path, tuple[str, ...]], Any]):
        from hermitcrab.models.formats.onnx_writer import narrowed
        from hermitcrab.tasks import make_task

        self.source, self.wide, self.write = source, wide, write
        self.nodes = narrowed(wide)
        self.task = make_task(source.task, source.start, source.train)
        self.scratch = wide.with_name("mixture.onnx")

    @cached_property
    def reference(self) -> Any:
        return self.task.probe_logits(OnnxModel(self.wide), self.task.probes())

    def kl(self, kept: tuple[str, ...]) -> float:
        """Mean, on the probes, of the file with these nodes left wide."""
        from hermitcrab.train.parity import compare

        self.write(self.scratch, kept)
        found = self.task.probe_logits(OnnxModel(self.scratch), self.task.probes())
        return compare(self.reference, found)["mean_kl"]

    def fewest(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Nodes that stay wide, and what was measured."""
        alone = {}
        with progress("sensitivity", len(self.nodes), "layers") as bar:
            for node in self.nodes:
                alone[node] = self.kl(tuple(n for n in self.nodes if n != node))
                bar.add()
        order = sorted(self.nodes, key=lambda node: (-alone[node], node))
        meets, told = self._criterion()
        low, high = -1, len(order)  # `low` is too few, `high` is taken to be enough
        with progress("widening"):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if meets(tuple(order[:middle])) else (middle, high)
        self.scratch.unlink(missing_ok=True)
        say(f"compress: {high:,} of {len(order):,} layers stay in float32")
        return tuple(order[:high]), {
            **told, "layers": len(order), "widened": order[:high], "wide": "F32", "kl_alone": {n: alone[n] for n in order},
        }  # fmt: skip

    def _criterion(self) -> tuple[Callable[[tuple[str, ...]], bool], dict[str, Any]]:
        """Does the file with these nodes left wide meet the target?"""
        from hermitcrab.compress.parity import Parity, Reference

        source, target = self.source, self.source.compress.target
        assert target is not None
        if target.max_kl is not None:
            limit = target.max_kl
            return lambda kept: self.kl(kept) <= limit, {"max_kl": limit}
        before = self.task.predict(OnnxModel(self.wide), source.validation, source.evaluate)
        parity = Parity(source, Reference(source.validation, before, (source.metric,), None), source.model)

        def meets(kept: tuple[str, ...]) -> bool:
            self.write(self.scratch, kept)
            after = self.task.predict(OnnxModel(self.scratch), source.validation, source.evaluate)
            return bool(parity.paired("mixture", after)["within_margin"])

        return meets, {"max_loss": target.max_loss, "validation_rows": source.validation.num_rows}
