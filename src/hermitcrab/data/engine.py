"""Where a pass runs: here, in Daft's threads, or on the workers of a Ray cluster. What runs is the same function of a task either way.

Daft gives tasks to threads or workers; texts do not go through it: a task reads one row group and writes its own files, so memory is flat
whatever the size of the input (Daft's own Parquet reader reads ahead without a bound; figures in docs/data.md), and every result is found
by its task's number, so nothing hangs on who was first.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from hermitcrab.data.segment import Piece
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.progress import progress

SMALL = 64 << 20  # bytes of text: below, a pass is over before Daft has started


class Work(Protocol):
    def run(self, task: int, piece: Piece) -> None: ...


@dataclass(frozen=True)
class Engine:
    """`address`: a Ray cluster (`ray://local`, `ray://HOST:PORT`); None: this machine. `size`: bytes of text in all."""

    address: str | None = None
    size: int = 0

    @property
    def name(self) -> str:
        return "ray" if self.address else "here" if self.size < SMALL else "native"

    def each(self, work: Work, pieces: Sequence[Piece], what: str) -> None:
        """Run `work` on every piece.

        Raises:
            HermitcrabError: a task failed; its own words.
        """
        with progress(what, len(pieces), "parts") as bar:
            if self.name == "here":
                for task, piece in enumerate(pieces):
                    work.run(task, piece)
                    bar.add()
                return
            for failed in _frame(self, work, pieces):
                if failed:
                    raise HermitcrabError(f"{what}: {failed}")
                bar.add()


def _frame(engine: Engine, work: Work, pieces: Sequence[Piece]) -> Any:
    """One answer for each task, as they come: empty, or what went wrong (an error never crosses the engine as one)."""
    daft = _daft(engine.address)
    packed, every = pickle.dumps(work), list(pieces)

    def run(tasks: Any) -> Any:
        return [_answer(packed, task, every[task]) for task in tasks.to_pylist()]

    call = daft.func.batch(return_dtype=daft.DataType.string(), batch_size=1)(run)
    frame = daft.from_pydict({"task": list(range(len(pieces)))})
    if engine.address:
        frame = frame.into_partitions(min(len(pieces), 4 * _workers()))
    for batch in frame.select(call(daft.col("task")).alias("failed")).to_arrow_iter():
        yield from batch.column("failed").to_pylist()


_own = threading.local()  # the work of each thread: filters keep state of their own


def _answer(packed: bytes, task: int, piece: Piece) -> str:
    try:
        if getattr(_own, "packed", None) != packed:
            _own.packed, _own.work = packed, pickle.loads(packed)
        _own.work.run(task, piece)
    except HermitcrabError as error:
        return str(error) or "failed"
    except Exception as error:  # noqa: BLE001 (an engine may end the process on an exception of ours)
        return f"{type(error).__name__}: {error}"
    return ""


def _workers() -> int:
    ray = needs("ray", "ray")
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _join(ray: Any, address: str, quiet: dict[str, str]) -> None:
    """Join a Ray cluster, or start one here.

    Raises:
        HermitcrabError: it does not come up, or is not there; Ray's own words.
    """
    if ray.is_initialized():
        return
    local = address == "ray://local"
    env = {"env_vars": {**quiet, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    try:
        ray.init(
            address="local" if local else address, runtime_env=env, log_to_driver=False, logging_level="warning",
            include_dashboard=False if local else None,
        )  # fmt: skip
    except Exception as error:
        raise HermitcrabError(f"{address} cannot be used: {' '.join(str(error).split())[:300]}") from error


@cache
def _daft(address: str | None) -> Any:
    """Daft with the runner that is asked for, telling nobody. A process has one runner.

    Raises:
        HermitcrabError: this process runs Daft otherwise already.
    """
    quiet = {"DO_NOT_TRACK": "true", "DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}
    os.environ.update(quiet)
    daft = needs("daft", "data")
    if address is not None:
        _join(needs("ray", "ray"), address, quiet)
    try:
        if address is None:
            daft.set_runner_native()
        else:
            daft.set_runner_ray(noop_if_initialized=True)
    except daft.exceptions.DaftCoreException as error:
        if (now := daft.runners.get_or_infer_runner_type()) != ("native" if address is None else "ray"):
            raise HermitcrabError(f"data cannot be prepared here: this process runs Daft as `{now}` already") from error
    return daft
