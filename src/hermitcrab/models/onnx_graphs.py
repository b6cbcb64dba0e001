"""What is exported of a transformers model as an ONNX graph: inputs, outputs and the sizes that may change.

A decoder has one graph for both ways to ask it: with keys and values of tokens before (`past_key_values.0.key` …), which may be
of no tokens at all, it gives logits and all keys and values (`present.0.key` …), under the names that other tools use.

Shapes: B rows, S tokens given, P tokens before, H heads of keys, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats.onnx_writer import Graph

ROWS, TOKENS, BEFORE = 2, 5, 3


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=values[0]).logits


class _Hidden(nn.Module):
    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, values, strict=True))).last_hidden_state


class _Decoder(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        input_ids, attention_mask, position_ids, *past = values
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )  # fmt: skip
        return found.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))


def graph_of(model: Any, kind: str) -> Graph:
    """The graph of a model of that kind (`IMAGE_CLASSIFICATION`, `CAUSAL_LM`, `ENCODER`).

    Raises:
        HermitcrabError: another kind.
    """
    graphs = {"IMAGE_CLASSIFICATION": _image, "CAUSAL_LM": _decoder, "ENCODER": _encoder}
    if kind not in graphs:
        raise HermitcrabError(f"onnx: no graph is known for models of the kind {kind}; expected {', '.join(graphs)}")
    return graphs[kind](model)


def _image(model: Any) -> Graph:
    config = model.config
    size = config.image_size if getattr(config, "image_size", None) else 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    pixels = torch.zeros(ROWS, config.num_channels, height, width)
    return Graph(_Logits(model), {"pixel_values": pixels}, ("logits",), {"pixel_values": {0: "batch"}})


def _encoder(model: Any) -> Graph:
    """Of texts: `last_hidden_state` [B, S, hidden]."""
    names = (
        "input_ids",
        "attention_mask",
        *(("token_type_ids",) if getattr(model.config, "type_vocab_size", 0) else ()),
    )
    make = {
        "attention_mask": torch.ones
    }  # each a tensor of its own: one that is given twice would be taken for one input
    inputs = {name: make.get(name, torch.zeros)(ROWS, TOKENS, dtype=torch.long) for name in names}
    sizes = {name: {0: "batch", 1: "sequence"} for name in names}
    return Graph(_Hidden(model, names), inputs, ("last_hidden_state",), sizes)


def _decoder(model: Any) -> Graph:
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones(ROWS, BEFORE + TOKENS, dtype=torch.long),
        "position_ids": BEFORE + torch.arange(TOKENS).expand(ROWS, TOKENS).contiguous(),
    }
    sizes = {
        "input_ids": {0: "batch", 1: "sequence"},
        "attention_mask": {0: "batch", 1: "all_tokens"},
        "position_ids": {0: "batch", 1: "sequence"},
    }
    outputs = ["logits"]
    for layer in range(layers):
        for what in ("key", "value"):
            name = f"past_key_values.{layer}.{what}"
            inputs[name] = torch.zeros(ROWS, kept, BEFORE, size)
            sizes[name] = {0: "batch", 2: "past"}
            outputs.append(f"present.{layer}.{what}")
    return Graph(_Decoder(model), inputs, tuple(outputs), sizes)
