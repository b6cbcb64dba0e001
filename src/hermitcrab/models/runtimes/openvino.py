"""A causal language model in OpenVINO's intermediate representation, called as a transformers model is: logits, and a cache.

The representation keeps keys and values in itself (it is stateful). Here they are put into a transformers cache after a call
and taken from it before the next, so a prefix can be computed once and repeated, and `generate` works. Serving does without
these copies; this is for judging a model, not for serving it.

Shapes: B rows, L tokens given, P tokens before, H heads, D numbers a head, V tokens known.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.base import read_config

MODEL = "openvino_model.xml"
INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
STATE = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def open_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in a folder (or beside the .xml at `path`), which computes in `dtype`.

    Raises:
        HermitcrabError: OpenVINO cannot read it, or it is no stateful language model.
    """
    folder = path if path.is_dir() else path.parent
    from hermitcrab.models.load import _config

    return OpenvinoModel(_config(read_config(folder), folder), folder, dtype)


class OpenvinoModel(PreTrainedModel, GenerationMixin):
    main_input_name = "input_ids"

    def __init__(self, config: Any, folder: Path, dtype: torch.dtype):
        super().__init__(config)
        self.request, self.states = _opened(folder, dtype)
        self.generation_config = GenerationConfig.from_model_config(config)
        if (folder / "generation_config.json").exists():
            self.generation_config = GenerationConfig.from_pretrained(folder)
        # tasks ask where a model's first parameter lies and of which type it is
        self.place = torch.nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, float32 [B, L or what is kept, V]; keys and values of the tokens given are added to `past_key_values`."""
        B, L = input_ids.shape
        P = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None:
            attention_mask = torch.ones(B, P + L, dtype=torch.long)
        if position_ids is None:
            position_ids = (P + torch.arange(L)).expand(B, L)
        self.request.reset_state()
        if P:
            self._restore(past_key_values)
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids.expand(B, L),
        }  # fmt: skip
        feeds: dict[str, Any] = {
            name: np.ascontiguousarray(value.cpu().numpy(), np.int64) for name, value in given.items()
        }
        made = self.request.infer({**feeds, "beam_idx": np.arange(B, dtype=np.int32)})
        logits = torch.from_numpy(np.array(made[self.request.model_outputs[0]], np.float32))
        if past_key_values is not None and use_cache is not False:
            self._remember(past_key_values, L)
        if isinstance(logits_to_keep, torch.Tensor):
            logits = logits[:, logits_to_keep]
        elif logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    def _restore(self, cache: Any) -> None:
        import openvino as ov

        for (layer, which), state in self.states.items():
            values = cache.layers[layer].keys if which == "key" else cache.layers[layer].values
            state.state = ov.Tensor(np.ascontiguousarray(values.float().numpy()))

    def _remember(self, cache: Any, tokens: int) -> None:
        """Of the newest tokens, for the cache has the others."""
        layers = sorted({layer for layer, _ in self.states})
        for layer in layers:
            key, value = (
                torch.from_numpy(np.array(self.states[layer, which].state.data, np.float32))[:, :, -tokens:]
                for which in ("key", "value")
            )
            cache.update(key, value, layer)


def _opened(folder: Path, dtype: torch.dtype) -> tuple[Any, dict[tuple[int, str], Any]]:
    """A request that infers, and its states by layer and kind."""
    needs("openvino", "compress")
    import openvino as ov

    hint = "bf16" if dtype == torch.bfloat16 else "f32"
    # Nothing but the weights may be coarser than the model that this one is compared with.
    settings = {
        "INFERENCE_PRECISION_HINT": hint, "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }  # fmt: skip
    try:
        model = ov.Core().read_model(folder / MODEL)
        names = {name for given in model.inputs for name in given.names}
        if not names >= INPUTS or not model.get_sinks():
            raise HermitcrabError(
                f"{folder / MODEL}: is no stateful language model; its inputs are {', '.join(sorted(names))}"
            )
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        found = {}
        for state in request.query_state():
            if match := STATE.search(state.name):
                found[int(match[1]), match[2]] = state
        return request, found
    except RuntimeError as error:
        raise HermitcrabError(
            f"{folder / MODEL}: OpenVINO cannot open it: {' '.join(str(error).split())[:300]}"
        ) from error
