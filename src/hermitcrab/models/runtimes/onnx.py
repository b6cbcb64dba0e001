"""A model in an ONNX file, run by onnxruntime and called as a torch module: `.logits`, a cache of keys and values, a device.

The file is looked through before the runtime opens it (`formats.onnx_check`), and no library of operators is ever loaded.

Shapes: B rows, S tokens given, P tokens before, V tokens known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.onnx_check import check_file

PAST, PRESENT = "past_key_values.", "present."


class OnnxModel(nn.Module):
    """Attributes:
    config: of the model that the file was made from, where a task asks for it.
    given: called with the inputs (numpy) before each run, where somebody wants to see them.
    """

    def __init__(self, path: Path, config: Any = None):
        """Raises:
        HermitcrabError: a file that is refused, or that onnxruntime cannot open.
        """
        super().__init__()
        needs("onnxruntime", "compress")
        self.config, self.told = config, check_file(path)
        open_weights(path)  # every tensor lies where it says, whole
        self.session = _session(path)
        self.kinds = {given.name: given.type for given in self.session.get_inputs()}
        self.shapes = {given.name: given.shape for given in self.session.get_inputs()}
        self.outputs = [made.name for made in self.session.get_outputs()]
        self.layers = sum(name.startswith(PAST) for name in self.kinds) // 2
        # tasks ask where a model's first parameter lies and of which type it is
        self.given: Callable[[dict[str, Any]], None] | None = None
        self.place = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=False)

    def forward(self, *values: torch.Tensor, return_dict: bool | None = None, **given: Any) -> Any:
        """Inputs by name, or one after another. Gives an object with the outputs by name, or a tuple (`return_dict=False`).

        With `past_key_values` (a transformers cache) its keys and values go in, and those of the tokens given are added to it.
        """
        from transformers.modeling_outputs import ModelOutput

        cache, keep = given.pop("past_key_values", None), given.pop("logits_to_keep", None)
        given.pop("use_cache", None)
        known = {name: value for name, value in zip(self.kinds, values, strict=False)}
        known |= {name: value for name, value in given.items() if value is not None}
        if unknown := sorted(known.keys() - self.kinds.keys()):
            raise HermitcrabError(
                f"the ONNX model has no input `{unknown[0]}`; it has: {', '.join(n for n in self.kinds if not n.startswith(PAST))}"
            )
        if "input_ids" in known:
            self._fill(known, cache)
        found = dict(zip(self.outputs, self._run(known), strict=True))
        if cache is not None:
            self._remember(cache, found, known["input_ids"].shape[1])
        found = {name: value for name, value in found.items() if not name.startswith(PRESENT)}
        if keep is not None and "logits" in found:
            found["logits"] = _kept(found["logits"], keep)
        return tuple(found.values()) if return_dict is False else ModelOutput(found)

    def _run(self, known: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        feeds = {
            name: value.detach().to("cpu", TYPES[self.kinds[name]]).contiguous().numpy() for name, value in known.items()
        }
        if self.given is not None:
            self.given(feeds)
        try:
            made = self.session.run(None, feeds)
        except Exception as error:  # onnxruntime has no base class of its own errors
            why = " ".join(str(error).split())[:300]
            raise HermitcrabError(f"onnxruntime: the model cannot be run on these inputs: {why}") from error
        return [torch.from_numpy(value).to(self.place.device) for value in made]

    def _fill(self, known: dict[str, torch.Tensor], cache: Any) -> None:
        """What transformers' models work out for themselves: mask, positions, an empty past."""
        ids_BS = known["input_ids"]
        B, S = ids_BS.shape
        P = 0 if cache is None else int(cache.get_seq_length())
        known.setdefault("attention_mask", torch.ones(B, P + S, dtype=torch.long))
        if "position_ids" in self.kinds:
            known.setdefault("position_ids", torch.arange(P, P + S).expand(B, S))
        if "token_type_ids" in self.kinds:
            known.setdefault("token_type_ids", torch.zeros_like(ids_BS))
        for layer in range(self.layers):
            pair = (cache.layers[layer].keys, cache.layers[layer].values) if P else (None, None)
            for what, tensor in zip(("key", "value"), pair, strict=True):
                name = f"{PAST}{layer}.{what}"
                _, heads, _, size = self.shapes[name]
                known[name] = torch.zeros(B, heads, 0, size) if tensor is None else tensor

    def _remember(self, cache: Any, found: dict[str, torch.Tensor], new: int) -> None:
        if not self.layers:
            raise HermitcrabError("the ONNX model takes no keys and values of tokens before; ask it without a cache")
        for layer in range(self.layers):
            cache.update(*(found[f"{PRESENT}{layer}.{what}"][:, :, -new:] for what in ("key", "value")), layer)


TYPES = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64, "tensor(int32)": torch.int32, "tensor(bool)": torch.bool, "tensor(uint8)": torch.uint8,
}  # fmt: skip


def _kept(logits_BSV: torch.Tensor, keep: Any) -> torch.Tensor:
    """`logits_to_keep` as transformers has it: the last so many, or those columns."""
    if isinstance(keep, torch.Tensor):
        return logits_BSV[:, keep]
    return logits_BSV[:, -keep:] if keep else logits_BSV


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores may be shared
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path.resolve()), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no base class of its own errors
        why = " ".join(str(error).split())[:300]
        raise HermitcrabError(f"{path}: onnxruntime cannot open it: {why}") from error
    if unknown := sorted({given.type for given in session.get_inputs()} - TYPES.keys()):
        raise HermitcrabError(f"{path}: takes {unknown[0]}, which no task gives")
    return session


def open_model(path: Path, dtype: torch.dtype) -> OnnxModel:
    """The model at `path`; it computes in the types that the file says, whatever `dtype` is."""
    return OnnxModel(path)
