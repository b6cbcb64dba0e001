"""train: a base and prepared rows in, merged weights in their final precision out, with adapter, ledger, log and parity."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path
from typing import Any

from hermitcrab.errors import needs
from hermitcrab.progress import progress, say
from hermitcrab.recipe import Part, Recipe, Train
from hermitcrab.stages import Job, Stage
from hermitcrab.store import read_json, write_json


class TrainSlice(Part):
    task: str
    train: Train
    init_seed: int | None


def run(job: Job) -> None:
    for module in ("torch", "transformers", "peft", "tensorboard"):
        needs(module, "train")
    from hermitcrab.train.session import Session, launch

    part: TrainSlice = job.part
    base, work = job.inputs["collect"].read("base.json"), job.draft.work
    seed = initial_seed(part, base, work)
    write_json(work / "job.json", {
        "task": part.task, "part": part.train.model_dump(mode="json"), "base": base, "path": str(job.base_path),
        "rows": str(job.inputs["prepare"].payload), "seed": seed["seed"] if seed else None,
    })  # fmt: skip
    session = Session.open(work)
    write_json(work / "ledger.json", session.ledger)  # before the first step
    job.draft.write("ledger.json", session.ledger)
    for entry in session.ledger:
        say(session.task.summary(entry))  # what will be learnt, told before the first step
    with progress("probing this machine"):
        plan, model = session.plan(job.processes)
    if plan.processes > 1:
        del model
        launch(work, plan.processes)
        model = session.model(plan.precision)
    model = session.ready(model, plan)
    state = session.fit(model, plan, job.draft.mark)  # after `launch` this only loads the last checkpoint
    job.draft.facts["plan"] = plan.as_json()
    job.draft.facts["steps"] = state.step
    with progress("merging and comparing"):
        finish(job, session, model, state, seed)


def initial_seed(part: TrainSlice, base: dict[str, Any], work: Path) -> dict[str, Any] | None:
    """For a model from scratch: a seed from the system's entropy, once a run, kept with the draft; or the recipe's."""
    if base["kind"] != "scratch":
        return None
    path = work / "init.json"
    if not path.exists():
        if part.init_seed is None:
            write_json(path, {"seed": secrets.randbits(53), "nonce": secrets.token_hex(16)})
        else:
            write_json(path, {"seed": part.init_seed, "nonce": ""})  # the recipe tells it, so nothing is hidden
    return read_json(path)


def finish(job: Job, session: Any, model: Any, state: Any, seed: dict[str, Any] | None) -> None:
    """Merge, save, read back, compare with what was trained and with the base, and write down how it went."""
    import torch

    from hermitcrab.train import adapters, parity, profiling

    part, draft, task = session.part, job.draft, session.task
    dtype = getattr(torch, part.final_dtype)
    probes = task.probes()
    learnable = sum(t.numel() for t in adapters.learnt(model).values())
    model = model.float()
    trained = task.probe_outputs(model, probes)
    names = ["trained (float32)", f"saved ({part.final_dtype})"]
    if part.method == "lora":
        names = ["base + adapter", f"merged ({part.final_dtype})"]
        adapters.save_adapter(model, draft.payload / "adapter")
    merged = adapters.merge(model, part, dtype)
    parameters = sum(p.numel() for p in merged.parameters())
    folder = draft.payload / "model"
    task.save(merged, folder)
    del merged, model
    saved = task.probe_outputs(task.reload(folder), probes)
    base = task.probe_outputs(task.model(dtype).float(), probes)
    started_in = session.start_dtype(draft.facts["plan"]["precision"])
    draft.write(
        "parity.json",
        {**parity.judge(trained, saved, base, probes, names, task.distributions), "base_dtype": started_in},
    )
    told = {
        "method": part.method, "steps": state.step, "epochs": state.step * part.batch_size * part.accumulate / len(session.examples),
        "trainable_parameters": learnable, "parameters": parameters, "labels": state.labels,
        "loss_first": state.loss_first, "loss_last": state.loss_last, "validation": state.validation,
        "best_step": state.best_step, "stopped": state.stopped, "seed": part.seed, "fitted": task.start.fitted, **task.told(),
    }  # fmt: skip
    if seed is not None:
        # A commitment, so that the record can prove the seed later without telling it now.
        told["init_commitment"] = "sha256:" + hashlib.sha256(f"{seed['seed']}|{seed['nonce']}".encode()).hexdigest()
        draft.facts["init"] = seed
    draft.write("training.json", told)
    shutil.copyfile(draft.work / "log.jsonl", draft.payload / "log.jsonl")
    if (draft.work / "tensorboard").exists():
        shutil.copytree(draft.work / "tensorboard", draft.loose / "tensorboard", dirs_exist_ok=True)
        if traces := profiling.told(draft.loose / "tensorboard"):
            draft.facts["profile"] = traces


def slice_of(recipe: Recipe) -> TrainSlice:
    return TrainSlice(task=recipe.task, train=recipe.train, init_seed=recipe.base.init_seed)


STAGE = Stage(
    "train",
    ("collect", "prepare"),
    (
        "stages/train.py",
        "train",
        "tasks",
        "models",
        "data/images.py",
        "data/tables.py",
        "data/packing.py",
        "data/ledger.py",
        "digest.py",
    ),
    slice_of,
    run,
)
