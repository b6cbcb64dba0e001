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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import warn
from hermitcrab.store import disk_errors, read_json, sync_folder, sync_tree, write_json
from hermitcrab.train.adapters import learnt

KEEP = 2


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that learn, and what a model counts as it goes (means and spreads of batches)."""
    saved = model.state_dict(keep_vars=True)
    return {**learnt(model), **{name: b.detach() for name, b in model.named_buffers() if name in saved}}


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """A checkpoint of `state["step"]` below `folder`; older ones but the last go."""
    final = folder / f"step-{state['step']:08d}"
    beside = folder / f".{final.name}"
    with disk_errors("cannot write a checkpoint to"):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(_contiguous(kept(model)), beside / "learnt.safetensors")
        save_file(_optimizer_tensors(model, optimizer), beside / "optimizer.safetensors")
        write_json(beside / "state.json", state)
        sync_tree(beside)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(beside, final)
        sync_folder(folder)
        for old in found(folder)[:-KEEP]:
            shutil.rmtree(old)


def found(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Bring model and optimizer to the newest checkpoint and answer its state; None where there is none."""
    for place in reversed(found(folder)):
        try:
            learnt_tensors, tensors = (
                load_file(place / "learnt.safetensors"),
                load_file(place / "optimizer.safetensors"),
            )
            state = read_json(place / "state.json")
        except (SafetensorError, OSError, HermitcrabError) as error:
            warn(f"{place.name} is damaged ({error}); going back to the checkpoint before it")
            continue
        break
    else:
        return None
    put(learnt_tensors, model, place)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("::")
        optimizer.state[names[name]][slot] = value.to(names[name].device)
    return state


def save_learnt(path: Path, model: nn.Module) -> None:
    """What training changes, as one file: written beside, fsynced, renamed."""
    beside = path.with_name(f".{path.name}")
    with disk_errors("cannot write the best weights to"):
        save_file(_contiguous(kept(model)), beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)


def load_learnt(path: Path, model: nn.Module) -> None:
    """Copy saved tensors over the model's learnable parameters; names and shapes must agree."""
    put(load_file(path), model, path)


def put(tensors: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    here = kept(model)
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
        if value is not None  # SGD without momentum keeps nothing
    }
