"""Mixed precision by measured sensitivity: each half layer rounded alone, and those that hurt most keep a wider type.

What a group costs is the mean KL that it alone causes on calibration rows (training split). Groups are widened in the order of
KL for each bit that they would take, and as few as meet the target, found by bisection and measured together each time: costs
add up only roughly. Test rows are not looked at.

Shapes: N positions, V tokens known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hermitcrab.compress import Source
from hermitcrab.models.formats import gguf_writer
from hermitcrab.progress import progress, say

if TYPE_CHECKING:
    import torch

ROWS = 12  # calibration rows that sensitivity is measured on
WIDER = {"Q8_0": "F16"}  # all others: Q8_0


class Mixture:
    """Args:
    planned: every tensor with its narrow type. names: tensor of the file → parameter of the model.
    narrow: parameter → its values as the narrow file has them (float32).
    """

    def __init__(self, source: Source, kind: str, planned: Sequence[gguf_writer.Planned], names: dict[str, str],
                 narrow: dict[str, torch.Tensor]):  # fmt: skip
        from hermitcrab.compress.calibration import documents, model_of

        self.source, self.narrow = source, narrow
        self.wide = WIDER.get(kind.removesuffix(gguf_writer.CALIBRATED), "Q8_0")
        self.model = model_of(source).eval()
        self.parameters = dict(self.model.named_parameters())
        self.original = {name: self.parameters[name].detach().clone() for name in narrow if name in self.parameters}
        self.ids = list(documents(source))[:ROWS]
        self.groups: dict[str, list[gguf_writer.Planned]] = {}
        for tensor in planned:
            match = re.match(r"blk\.\d+\.(attn|ffn)_", tensor.name)
            if match and len(tensor.shape) > 1 and gguf_writer.BITS[tensor.dtype] < gguf_writer.BITS[self.wide]:
                self.groups.setdefault(match[0].rstrip("_"), []).append(tensor)
        self.names = names
        self.reference = self.logits()
        self.rest = [
            name for name in self.original if name not in {names[t.name] for g in self.groups.values() for t in g}
        ]

    def logits(self) -> list[torch.Tensor]:
        """[N, V] of each row."""
        import torch

        with torch.inference_mode():
            return [self.model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in self.ids]

    def kl(self) -> float:
        """Mean over all positions, of the model as it stands now."""
        import torch

        from hermitcrab.train.parity import compare

        return compare(torch.cat(self.reference), torch.cat(self.logits()))["mean_kl"]

    def put(self, groups: Sequence[str], rounded: bool) -> None:
        """The parameters of these groups as the file has them, or as they were."""
        import torch

        with torch.no_grad():
            for group in groups:
                for tensor in self.groups[group]:
                    name = self.names[tensor.name]
                    self.parameters[name].copy_(self.narrow[name] if rounded else self.original[name])

    def sensitivity(self) -> dict[str, float]:
        """Group → the mean KL that it costs alone."""
        found = {}
        with progress("sensitivity", len(self.groups), "groups") as bar:
            for group in self.groups:
                self.put([group], True)
                found[group] = self.kl()
                self.put([group], False)
                bar.add()
        return found

    def fewest(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Tensors that stay wider (→ their type), as few as meet the target; and what was measured."""
        import torch

        alone = self.sensitivity()
        sizes = {
            group: sum(_size(t) * (gguf_writer.BITS[self.wide] - gguf_writer.BITS[t.dtype]) for t in tensors)
            for group, tensors in self.groups.items()
        }
        order = sorted(alone, key=lambda group: (-alone[group] / sizes[group], group))
        with torch.no_grad():
            for name in self.rest:
                self.parameters[name].copy_(self.narrow[name])
        meets, told = self._criterion()

        def enough(count: int) -> bool:
            self.put(order[count:], True)
            self.put(order[:count], False)
            return meets()

        low, high = -1, len(order)  # `low` is too few, `high` is taken to be enough
        with progress("widening"):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle, high)
            self.put(order[high:], True)
            self.put(order[:high], False)
            left = self.kl()
        say(
            f"compress: {high:,} of {len(order):,} half layers stay in {self.wide}; mean KL on calibration rows {left:.2e}"
        )
        wider = {tensor.name: self.wide for group in order[:high] for tensor in self.groups[group]}
        return wider, {
            **told, "groups": len(order), "widened": order[:high], "wide": self.wide, "calibration_kl": left,
            "kl_alone": {group: alone[group] for group in order}, "sensitivity_rows": len(self.ids),
        }  # fmt: skip

    def _criterion(self) -> tuple[Callable[[], bool], dict[str, Any]]:
        """Does the model as it stands meet the target?"""
        target = self.source.compress.target
        assert target is not None
        if target.max_kl is not None:
            limit = target.max_kl
            return lambda: self.kl() <= limit, {"max_kl": limit}
        from hermitcrab.compress.parity import Parity, Reference
        from hermitcrab.tasks import make_task

        source = self.source
        task: Any = make_task(source.task, source.start, source.train)
        whole = task.model(next(self.model.parameters()).dtype)
        before = task.predict(whole, source.validation, source.evaluate)
        del whole
        parity = Parity(source, Reference(source.validation, before, (source.metric,), None), source.model)

        def meets() -> bool:
            after = task.predict(self.model, source.validation, source.evaluate)
            return bool(parity.paired("mixture", after)["within_margin"])

        return meets, {"max_loss": target.max_loss, "validation_rows": source.validation.num_rows}


def _size(tensor: gguf_writer.Planned) -> int:
    size = 1
    for dimension in tensor.shape:
        size *= dimension
    return size
