"""What our loop costs beside forward, backward and optimizer: its steps and hand-written ones in turns, in one process.

The hand-written step is the bare minimum on the same compiled model: a batch that lies ready, the task's loss, backward, fused
AdamW. What the loop does besides is then its overhead: gathering the batch, the seeds, the checks that loss and gradient are finite,
the gradient norm and its clipping, the learning rate, the log, TensorBoard, progress.

Two steps differ by a few percent on a busy machine, so the same is also counted directly: the CPU time of a step of the loop that lies
outside the task's loss, backward and the optimizer, with the clipping added, which lies between the last two.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, tell
from _ours import Watched, open_session
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hermitcrab.progress import set_quiet


class Timed(Watched):
    """Also adds up the CPU time that a step spends in forward, backward and optimizer."""

    def __init__(self, task: Any, clock: Clock):
        super().__init__(task, clock)
        self.work: list[float] = []  # by step
        self.forward_ended = 0.0
        register_optimizer_step_post_hook(self.after)

    def loss(self, *args: Any) -> Any:
        began = time.process_time()
        found = self.task.loss(*args)
        self.forward_ended = time.process_time()
        self.work.append(self.forward_ended - began)
        return found

    def after(self, *args: Any) -> None:
        if self.work:
            self.work[-1] += time.process_time() - self.forward_ended  # backward, clipping, optimizer


def main(job: dict[str, Any]) -> None:
    set_quiet(True)
    blocks, each = job["blocks"], job["steps"]
    ours: list[float] = []
    hand: list[float] = []
    beside: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        session = open_session(job, Path(name))
        plan, model = session.plan(1)
        plan.threads = job.get("threads", 1)
        model = session.ready(model, plan)
        task, part = session.task, session.part
        clock = Clock()
        session.task = watched = Timed(task, clock)
        rows = [list(range(i * part.batch_size, (i + 1) * part.batch_size)) for i in range(each)]
        batches = [task.batch(session.examples, rows_of) for rows_of in rows]
        counts = [task.count(batch) for batch in batches]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        for block in range(blocks + 1):  # the first warms up
            plan.steps = (block + 1) * (each + 1)  # the loop goes on from its checkpoint
            clock.marks.clear()
            watched.work.clear()
            session.fit(model, plan)
            rest = [step - work for step, work in zip(clock.steps(), watched.work, strict=False)]
            watched.work.clear()
            model.train()
            mine, theirs = clock.steps(), []
            for batch, count in zip(batches, counts, strict=True):
                began = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bfloat16"):
                    loss = task.loss(model, batch).sum / count
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                theirs.append(time.process_time() - began)
            if block:
                ours, hand, beside = ours + mine, hand + theirs, beside + rest
                print(f"block {block}: ours {statistics.median(mine):.4f}, hand-written {statistics.median(theirs):.4f}",
                      file=sys.stderr, flush=True)  # fmt: skip
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        began = time.process_time()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        clipping = time.process_time() - began
    tell(ours=statistics.median(ours), hand=statistics.median(hand), beside=statistics.median(beside) + clipping,
         clipping=clipping, steps=len(ours))  # fmt: skip


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
