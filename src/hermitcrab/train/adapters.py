"""What is trained of a model: all of it, or low-rank adapters beside it (LoRA, Hu et al. 2021, arXiv:2106.09685) by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.models.load import quiet
from hermitcrab.recipe import Train
from hermitcrab.store import read_json, write_json


def trainable(model: nn.Module, part: Train) -> nn.Module:
    """`model` ready to be trained by `part.method`; adapters start from `part.seed`."""
    if part.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    from hermitcrab.train.lora_linear import LoraLinear

    targets = part.lora.targets
    if isinstance(targets, list):
        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        for name in targets:
            if name not in linear:
                raise HermitcrabError(
                    f"train.lora.targets: the model has no linear module `{name}`{did_you_mean(name, linear)}"
                )
    torch.manual_seed(part.seed)
    config = LoraConfig(r=part.lora.rank, lora_alpha=part.lora.alpha, lora_dropout=part.lora.dropout, target_modules=targets,
                        task_type="CAUSAL_LM")  # fmt: skip
    config._register_custom_module({nn.Linear: LoraLinear})
    with quiet():
        adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():  # adapters learn in float32; the frozen rest stays as it is
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


@contextmanager
def adapter_inputs_as_they_are(model: nn.Module, active: bool) -> Iterator[None]:
    """Under autocast, adapters need no float32 copy of their input, which peft makes otherwise (figures: docs/log.md)."""
    if not active or not hasattr(model, "peft_config"):
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model):
        yield


def learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def merge(model: Any, part: Train, dtype: torch.dtype) -> nn.Module:
    """Plain weights in their final precision. Sums are made in float32 and rounded once."""
    if part.method == "full":
        return model.to(dtype)
    return model.float().merge_and_unload(safe_merge=True).to(dtype)


def save_adapter(model: Any, folder: Path) -> None:
    """The adapter as peft saves it, without the path of this machine's base, and its sets of names in order."""
    model.save_pretrained(folder, save_embedding_layers=False)  # they are frozen; "auto" would ask a hub
    config = read_json(folder / "adapter_config.json")
    config |= {"base_model_name_or_path": None, "target_modules": sorted(config["target_modules"])}
    write_json(folder / "adapter_config.json", config)
    (folder / "README.md").unlink(missing_ok=True)  # peft's blank card; the package has a card of its own
