"""hermitcrab's side of the language-model benchmarks: a session and its loop as the train stage runs them, on the job's rows.

The clock is marked where the loop asks its task for the batch of a step, so a step holds everything that the loop does: batch,
forward, backward, optimizer, log, TensorBoard, progress.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, tell

from hermitcrab.models.base import describe
from hermitcrab.progress import set_quiet
from hermitcrab.recipe import Base, Train
from hermitcrab.references import resolve
from hermitcrab.store import Store, process_cpu, write_json
from hermitcrab.train.session import Session


def matmul_peak(slices: int = 6) -> float:
    """FLOP a CPU-second of a bfloat16 product of 2048 x 2048 matrices: the best of `slices`."""
    a, b = (torch.randn(2048, 2048).to(torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(slices + 1):
        began = time.process_time()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.process_time() - began))
    return best


class Watched:
    """A task that marks the clock whenever it is asked for a batch."""

    def __init__(self, task: Any, clock: Clock):
        self.task, self.clock = task, clock
        self.counts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        self.clock.mark()
        batch = self.task.batch(*args, **kwargs)
        self.counts.append(self.task.count(batch))
        return batch


def open_session(job: dict[str, Any], folder: Path) -> Session:
    work = Path(job["work"])
    part = Train.model_validate({
        "template": "none", "steps": job["warm"] + job["steps"] + 1, "checkpoint_every": 10**6, "seed": job["seed"], **job["train"],
    })  # fmt: skip
    scratch = job.get("scratch")
    base = Base(path="scratch" if scratch else str(work / "base"), license="CC0-1.0", architecture=scratch,
                tokenizer=str(work / "base") if scratch else None)  # fmt: skip
    told = describe(work / "base", resolve(base.path, None, Store(folder / "store")), base)
    write_json(folder / "job.json", {
        "task": "text-generation", "part": part.model_dump(mode="json"), "base": told, "path": str(work / "base"),
        "rows": str(work / "rows"), "seed": job["seed"] if scratch else None,
    })  # fmt: skip
    return Session.open(folder)


def main(job: dict[str, Any]) -> None:
    set_quiet(True)
    with tempfile.TemporaryDirectory() as name:
        session = open_session(job, Path(name))
        began = process_cpu()
        plan, model = session.plan(1)
        plan.threads = job.get("threads", 1)
        torch.set_num_threads(plan.threads)
        peak = matmul_peak() if job.get("peak") else 0.0
        clock = Clock()
        session.task = watched = Watched(session.task, clock)
        model = session.ready(model, plan)
        ready = process_cpu() - began
        state = session.fit(model, plan)
        peak = max(peak, matmul_peak()) if job.get("peak") else 0.0
    warm, steps = job["warm"], clock.steps()
    labels = watched.counts[warm : len(steps)]
    tell(
        rate=sum(labels) / sum(steps[warm:]), seconds=sum(steps[warm:]), labels=sum(labels), steps=len(labels),
        fill=session.ledger[0]["fill"], warm_seconds=sum(steps[:warm]), plan_seconds=ready, first=state.loss_first,
        last=state.loss_last, peak=peak, plan=plan.as_json(),
    )  # fmt: skip


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
