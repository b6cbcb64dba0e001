"""GGUF blocks rounded by what training rows are multiplied with, instead of to the nearest.

The types of one scale a block of 32 by GPTQ (`gptq`), all others by llama.cpp's own quantizer with an importance matrix: the
mean square of each input. The products of inputs are gathered for a few matrices at a time, in the order of the file, so that
memory stays flat; each time the model reads the rows once more.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.compress import Source
from hermitcrab.models.formats import ggml_native, gguf_writer

if TYPE_CHECKING:
    import torch

    from hermitcrab.models.to_gguf import Export

MEMORY = 768 << 20  # bytes of products at once


class Calibrated:
    """Packs tensors in the order of the file; call it as `gguf_writer.write`'s `pack`."""

    def __init__(self, source: Source, export: Export):
        self.source, self.export = source, export
        self.held: dict[str, torch.Tensor] = {}
        self.counts = {"gptq": 0, "importance": 0}

    @cached_property
    def ids(self) -> list[list[int]]:
        from hermitcrab.compress.calibration import documents

        return list(documents(self.source))

    @cached_property
    def model(self) -> Any:
        from hermitcrab.compress.calibration import model_of

        return model_of(self.source)

    @cached_property
    def matrices(self) -> dict[str, str]:
        """Tensors of the file that inputs are multiplied with → the module's name. The head keeps its own type."""
        from torch.nn import Linear

        linear = {name for name, module in self.model.named_modules() if isinstance(module, Linear)}
        found = {theirs: ours.removesuffix(".weight") for theirs, ours in self.export.names.items()}
        return {theirs: ours for theirs, ours in found.items() if ours in linear and theirs != "output.weight"}

    def products(self, theirs: str) -> torch.Tensor:
        """Of the inputs of a tensor; those of the tensors that follow are gathered with them."""
        from hermitcrab.compress.calibration import products

        if theirs not in self.held:
            names = list(self.matrices)
            wanted: list[str] = []
            size = 0
            for name in names[names.index(theirs) :]:
                size += 8 * self.export.weights.info(self.export.names[name]).shape[-1] ** 2
                if wanted and size > MEMORY:
                    break
                wanted.append(name)
            self.held.clear()
            found = products(self.model, self.ids, [self.matrices[name] for name in wanted])
            self.held.update({name: found[self.matrices[name]] for name in wanted})
        return self.held[theirs]

    def __call__(self, tensor: gguf_writer.Planned, values: np.ndarray) -> np.ndarray | None:
        from hermitcrab.compress import gptq

        if tensor.name not in self.matrices or tensor.dtype in ("F32", "F16", "BF16"):
            return None
        import torch

        products_CC = self.products(tensor.name)
        values = np.ascontiguousarray(values, np.float32)
        if tensor.dtype in gptq.LEVELS:
            self.counts["gptq"] += 1
            return gptq.pack(*gptq.round_columns(torch.from_numpy(values), products_CC, tensor.dtype), tensor.dtype)
        self.counts["importance"] += 1
        tokens = sum(map(len, self.ids))
        return ggml_native.quantize(values, tensor.dtype, (products_CC.diagonal() / tokens).float().numpy())

    def told(self) -> dict[str, Any]:
        return {
            "rounding": " and ".join(
                {"gptq": "GPTQ", "importance": "importance matrix"}[name] for name, n in self.counts.items() if n
            ) or "nearest",
            "matrices": dict(self.counts), "calibration_rows": len(self.ids), "calibration_tokens": sum(map(len, self.ids)),
        }  # fmt: skip
