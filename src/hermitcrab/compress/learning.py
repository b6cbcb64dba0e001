"""A smaller model trained on the recipe's training rows, by the loop, the plan and the checkpoints of every other training.

Nothing is chosen by it: steps and rate are the recipe's, the loss on validation rows is told, and test rows are never opened.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hermitcrab.compress.lessons import Lessons
from hermitcrab.compress.magnitude import Masks
from hermitcrab.compress.teaching import Taught
from hermitcrab.digest import describe_files, tree_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.store import read_json, sync_tree, write_json
from hermitcrab.tasks import Start

if TYPE_CHECKING:
    from hermitcrab.compress import Source


def start_of(source: Source, folder: Path, **more: Any) -> Start:
    """A saved model of the same task as one to load, with what was fitted for its parent."""
    base = {**source.start.base, "kind": "safetensors", "files": describe_files(folder, tree_files(folder)), **more}
    return Start(base, folder, None, source.start.fitted)


def rows_of(source: Source, key: str) -> Path:
    """The folder of the prepared rows.

    Raises:
        HermitcrabError: there are none, as where a finished package is compressed.
    """
    if source.rows is None:
        raise HermitcrabError(f"{key}: needs the training rows, and there is a model alone; ask for it in a recipe")
    return source.rows


def learn(source: Source, start: Start, lessons: Lessons, work: Path, target: Path, key: str) -> dict[str, Any]:
    """Train the model of `start` and save it in `target`, whole or not at all.

    Args:
        work: plan, checkpoints and log; a killed training goes on from there, to the same bytes.
        key: of the recipe, for messages.

    Returns:
        What is to be told of it (JSON), under `told`; what the machine chose under `plan`.
    """
    from hermitcrab.train.session import Session

    done = target.with_name(f"{target.name}.json")
    if done.exists():
        return read_json(done)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", {
        "task": source.task, "part": lessons.train(source.train).model_dump(mode="json"), "base": start.base,
        "path": str(start.path), "rows": str(rows_of(source, key)), "seed": start.seed, "fitted": start.fitted,
    })  # fmt: skip
    session = Session.open(work)
    plan, model = session.plan(1)
    model = session.ready(model, plan)
    told: dict[str, Any] = {}
    if lessons.temperature is not None:
        told |= _teach(source, session, lessons, plan)
    masks, threads = Masks(model, list(lessons.zeros)), torch.get_num_threads()
    try:
        state = session.fit(model, plan)
    finally:
        torch.set_num_threads(threads)  # what is measured next is measured as if this had been done before
    zeros = masks.check()
    saved(session.task, model.to(getattr(torch, source.train.final_dtype)), target)
    told |= {
        "steps": state.step, "learning_rate": lessons.learning_rate, "batch_size": lessons.batch_size,
        "epochs": round(state.step * plan.rows_per_step / len(session.examples), 4), "labels": state.labels,
        "loss_first": state.loss_first, "loss_last": state.loss_last,
        "validation_loss": state.validation[-1]["loss"] if state.validation else None,
        **({"zeros_kept": zeros} if lessons.zeros else {}),
    }  # fmt: skip
    write_json(done, {"told": told, "plan": plan.as_json()})
    shutil.rmtree(work / "checkpoints", ignore_errors=True)  # many times the model, and of no more use
    return read_json(done)


def _teach(source: Source, session: Any, lessons: Lessons, plan: Any) -> dict[str, Any]:
    """Put the uncompressed model before the session's task, in the working precision."""
    teacher = _model(source, plan.precision)
    if plan.attention != "none":
        from hermitcrab.train.attention import use_attention

        use_attention(teacher, plan.attention)
    session.task = Taught(session.task, teacher, lessons.temperature or 1.0, lessons.alpha)
    told = session.task.remember(session.examples, plan.steps * plan.rows_per_step)
    return {"teacher": source.about, "temperature": lessons.temperature, "alpha": lessons.alpha, **told}


def _model(source: Source, dtype: str) -> Any:
    from hermitcrab.evaluate.asking import load

    return load(source.task, source.start, source.train, dtype)[1]


def saved(task: Any, model: Any, target: Path) -> None:
    """`model` as its task saves it: written beside, renamed."""
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    task.save(model, beside)
    sync_tree(beside)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(beside, target)


def once(target: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` answered when it left `target`, now or before."""
    done = target.with_name(f"{target.name}.json")
    if not done.exists():
        write_json(done, make())
    return read_json(done)
