"""A profile of a few steps: what the operators of a training cost, as a trace that TensorBoard and chrome://tracing open.

Notable:
- It is a fact: it lies beside the TensorBoard logs, in no payload and no digest, and changes no bit of what is learnt.
- Bounded: three steps (one, where a step has many micro-batches) after a warm-up, without shapes, stacks or memory.
- Taken once a training: a resumed run goes on with the trace that it has, or takes one if it was killed before.

Names are those that TensorBoard's profile plugin looks for: `rank<R>.<first step>.pt.trace.json.gz`.
https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hermitcrab.progress import say, warn

WAIT, WARM, ACTIVE = 1, 2, 3  # steps passed over, steps that warm the profiler up, steps that are in the trace
MICRO_BATCHES = 16  # in a trace, where more than one step is
ENDING = ".pt.trace.json.gz"


@dataclass(frozen=True)
class Window:
    """Which steps are recorded, counted from the step that the run goes on from."""

    wait: int
    warm: int
    active: int

    @classmethod
    def of(cls, left: int, accumulate: int) -> Window | None:
        """The window that fits into the steps that are left: the warm-up is given up before what is recorded is.

        Of a step that is left alone nothing but itself can be recorded; of none, nothing (None).
        """
        if left < 1:
            return None
        active = max(1, min(ACTIVE, MICRO_BATCHES // accumulate, left))
        warm = min(WARM, left - active)
        return cls(min(WAIT, left - active - warm), warm, active)


class Profiler:
    """`step()` after every step; idle where nothing is recorded."""

    def __init__(self, profile: torch.profiler.profile | None = None):
        self.profile = profile

    def step(self) -> None:
        if self.profile is not None:
            self.profile.step()


@contextmanager
def profiled(wanted: bool, folder: Path, done: int, steps: int, accumulate: int, rank: int) -> Iterator[Profiler]:
    """Record a few of the steps from `done` to `steps` into `folder`, if that is wanted and was not done before.

    Args:
        folder: where TensorBoard's logs are; the trace is written beside and renamed.
        done: steps taken so far.
        accumulate: micro-batches in a step.
        rank: of this process among those of the training.
    """
    window = Window.of(steps - done, accumulate) if wanted and not traces(folder, rank) else None
    if window is None:
        if wanted and rank == 0 and not traces(folder, rank):
            warn("train.profile: no step was left to record; a profile is of steps that are taken")
        yield Profiler()
        return
    first = done + window.wait + window.warm + 1
    path = folder / f"rank{rank}.{first}{ENDING}"
    broken = False

    def write(profile: torch.profiler.profile) -> None:
        if broken or profile.step_num <= window.wait + window.warm:  # stopped before a step was recorded
            return
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{path.name}.{os.getpid()}.gz"  # `.gz` at the end has it compressed
        profile.export_chrome_trace(str(beside))
        os.replace(beside, path)
        if rank == 0:
            count = f"{window.active} steps from step {first} on are" if window.active > 1 else f"step {first} is"
            say(f"train.profile: {count} recorded")

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library reports its starts and stops on standard error
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    schedule = torch.profiler.schedule(wait=window.wait, warmup=window.warm, active=window.active, repeat=1)
    with torch.profiler.profile(activities=kinds, schedule=schedule, on_trace_ready=write, acc_events=True) as profile:
        try:
            yield Profiler(profile)
        except BaseException:
            broken = True
            raise


def traces(folder: Path, rank: int | None = None) -> list[str]:
    """Names of the traces in a folder: of one rank, or of all."""
    return sorted(path.name for path in folder.glob(f"rank{'*' if rank is None else rank}.*{ENDING}"))


def told(folder: Path) -> dict[str, Any] | None:
    """What the facts say of the traces of a training; None where there are none."""
    names = traces(folder)
    return {"folder": folder.name, "files": names} if names else None
