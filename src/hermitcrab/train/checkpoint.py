"""Checkpoints: safetensors and JSON, written beside, fsynced, renamed. No pickle anywhere.

    step-000050/learnt.safetensors      what training changes
                optimizer.safetensors   <name>::exp_avg, …
                state.json              step, curves, counters

Data order, dropout and adapters are pure functions of (seed, step, rank), so there is no generator state to keep.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hermitcrab.errors import HermitcrabError
from hermitcrab.store import disk_errors, read_json, sync_tree, write_json
from hermitcrab.train.adapters import learnt

KEEP = 2


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A checkpoint of `state["step"]` below `folder`; older ones but the last go."""
    final = folder / f"step-{state['step']:08d}"
    beside = folder / f".{final.name}"
    with disk_errors("cannot write a checkpoint to"):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(_contiguous(learnt(model)), beside / "learnt.safetensors")
        save_file(_optimizer_tensors(model, optimizer), beside / "optimizer.safetensors")
        write_json(beside / "state.json", state)
        sync_tree(beside)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        for old in found(folder)[:-KEEP]:
            shutil.rmtree(old)


def found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model and optimizer to the newest checkpoint and answer its state; None where there is none."""
    places = found(folder)
    if not places:
        return None
    load_learnt(places[-1] / "learnt.safetensors", model)
    tensors = load_file(places[-1] / "optimizer.safetensors")
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("::")
        optimizer.state[names[name]][slot] = value
    return read_json(places[-1] / "state.json")


def load_learnt(path: Path, model: nn.Module) -> None:
    """Copy saved tensors over the model's learnable parameters; names and shapes must agree."""
    tensors, here = load_file(path), learnt(model)
    if tensors.keys() != here.keys():
        odd = sorted(tensors.keys() ^ here.keys())
        raise HermitcrabError(
            f"{path}: the checkpoint is of another model; {len(odd)} tensors differ, the first is {odd[0]}"
        )
    for name, tensor in here.items():
        if tensor.shape != tensors[name].shape:
            raise HermitcrabError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, expected {list(tensor.shape)}"
            )
        tensor.copy_(tensors[name])


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.contiguous() for name, t in tensors.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}::{slot}": value.contiguous()
        for name, p in model.named_parameters()
        if p.requires_grad
        for slot, value in optimizer.state.get(p, {}).items()
    }
