"""A graph that a runtime computes, called as a torch module is: `.logits`, a cache of keys and values, a device.

Shapes: B rows, S tokens given, P tokens before, V tokens known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError

PAST, PRESENT = "past_key_values.", "present."


class GraphModel(nn.Module):
    """A runtime gives `run`.

    Attributes:
        kinds: input → its dtype. `shapes`: input → its sizes. `outputs`: names, in the order in which `run` gives them.
        given: called with the inputs (numpy) before each run, where somebody wants to see them.
    """

    def __init__(self, kinds: dict[str, torch.dtype], shapes: dict[str, list[Any]], outputs: list[str]):
        super().__init__()
        self.kinds, self.shapes, self.outputs = kinds, shapes, outputs
        self.layers = sum(name.startswith(PAST) for name in kinds) // 2
        self.given: Callable[[dict[str, Any]], None] | None = None
        # tasks ask where a model's first parameter lies and of which type it is
        self.place = nn.Parameter(torch.zeros((), dtype=torch.float32), requires_grad=False)

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        raise NotImplementedError

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
                f"the model has no input `{unknown[0]}`; it has: {', '.join(n for n in self.kinds if not n.startswith(PAST))}"
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
        feeds = {name: value.detach().to("cpu", self.kinds[name]).contiguous().numpy() for name, value in known.items()}
        if self.given is not None:
            self.given(feeds)
        try:
            made = self.run(feeds)
        except Exception as error:  # runtimes have no base class of their own errors
            raise HermitcrabError(
                f"the model cannot be run on these inputs: {' '.join(str(error).split())[:300]}"
            ) from error
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
            raise HermitcrabError("the model takes no keys and values of tokens before; ask it without a cache")
        for layer in range(self.layers):
            cache.update(*(found[f"{PRESENT}{layer}.{what}"][:, :, -new:] for what in ("key", "value")), layer)


def _kept(logits_BSV: torch.Tensor, keep: Any) -> torch.Tensor:
    """`logits_to_keep` as transformers has it: the last so many, or those columns."""
    if isinstance(keep, torch.Tensor):
        return logits_BSV[:, keep]
    return logits_BSV[:, -keep:] if keep else logits_BSV
