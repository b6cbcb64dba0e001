"""What our loop costs beside forward, backward and optimizer: its steps and hand-written ones in turns, in one process.

The hand-written step is the bare minimum on the same compiled model: a batch that lies ready, the task's loss, backward, fused
AdamW. What the loop does besides is then its overhead: gathering the batch, the seeds, the checks that loss and gradient are finite,
the gradient norm and its clipping, the learning rate, the log, TensorBoard, progress.
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

from hermitcrab.progress import set_quiet


def main(job: dict[str, Any]) -> None:
    set_quiet(True)
    blocks, each = job["blocks"], job["steps"]
    ours: list[float] = []
    hand: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        session = open_session(job, Path(name))
        plan, model = session.plan(1)
        plan.threads = job.get("threads", 1)
        model = session.ready(model, plan)
        task, part = session.task, session.part
        clock = Clock()
        session.task = Watched(task, clock)
        rows = [list(range(i * part.batch_size, (i + 1) * part.batch_size)) for i in range(each)]
        batches = [task.batch(session.examples, rows_of) for rows_of in rows]
        counts = [task.count(batch) for batch in batches]
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        for block in range(blocks + 1):  # the first warms up
            plan.steps = (block + 1) * (each + 1)  # the loop goes on from its checkpoint
            clock.marks.clear()
            session.fit(model, plan)
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
                ours, hand = ours + mine, hand + theirs
                print(f"block {block}: ours {statistics.median(mine):.4f}, hand-written {statistics.median(theirs):.4f}",
                      file=sys.stderr, flush=True)  # fmt: skip
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        began = time.process_time()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        clipping = time.process_time() - began
    tell(ours=statistics.median(ours), hand=statistics.median(hand), steps=len(ours), clipping=clipping)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
