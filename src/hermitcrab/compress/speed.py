"""How fast a form answers and how much memory it takes: measured in a child process that opens nothing else.

A form that another runtime will serve is measured in that runtime (`Form.pace`), every other by its task. These are facts of a
machine in one hour: they are told, and decide nothing.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_json, short
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.store import process_cpu, read_json, write_json

if TYPE_CHECKING:
    from hermitcrab.compress import Source
    from hermitcrab.tasks import Start


def measure(source: Source, start: Start, format: str | None, kept: Path) -> dict[str, Any]:
    """`{per_second, per_cpu_second, unit, cpu_seconds, memory, runtime, threads}` of a process that opens and runs it; memory is
    its peak, in bytes.

    Args:
        format: the form that these files have; None: the uncompressed model.
        kept: folder in which what was measured stays, so that it is measured once.

    Raises:
        HermitcrabError: the child could not open or run it.
    """
    path = kept / f"{short(digest_json([format, start.base['files']]))}.json"
    if not path.exists():
        asked = {
            "format": format, "task": source.task, "train": source.train.model_dump(mode="json"),
            "start": {"base": start.base, "path": str(start.path), "seed": start.seed, "fitted": start.fitted},
        }  # fmt: skip
        with progress(f"measuring {format or 'the uncompressed model'}"):
            child = subprocess.run(
                [sys.executable, "-m", "hermitcrab.compress.speed"], input=json.dumps(asked), capture_output=True, text=True
            )  # fmt: skip
        try:
            found = json.loads(child.stdout.splitlines()[-1])  # a library may have printed before
        except (ValueError, IndexError) as error:
            why = (child.stderr.strip() or child.stdout.strip()).splitlines()[-1:] or ["no message"]
            raise HermitcrabError(
                f"compress: {start.path.name} cannot be run by itself (exit status {child.returncode}): {why[0][:300]}"
            ) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return read_json(path)


def threads() -> int:
    """Threads that a runtime gets: what torch would take."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)


def peak() -> int:
    """The most bytes that this program had in memory. Linux's `ru_maxrss` also remembers the parent that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """The child: one JSON object in, one out."""
    from hermitcrab.compress import load_form
    from hermitcrab.recipe import Train
    from hermitcrab.tasks import Start

    asked = json.load(sys.stdin)
    given = asked["start"]
    start = Start(given["base"], Path(given["path"]), given["seed"], given["fitted"])
    form = load_form(asked["format"]) if asked["format"] else None
    work = form.pace(start) if form else None
    runtime = getattr(form, "runtime", "torch") if work else "torch"
    if work is None:
        from hermitcrab.evaluate.asking import load

        train = Train.model_validate(asked["train"])
        task, model = load(asked["task"], start, train, train.final_dtype)

        def work() -> tuple[int, str]:
            return task.pace(model)

    work()  # the first time, memory is taken and kernels are chosen
    cpu, clock = process_cpu(), time.perf_counter()
    units, unit = work()
    cpu, clock = process_cpu() - cpu, time.perf_counter() - clock
    print("\n" + json.dumps({
        "per_second": units / clock, "per_cpu_second": units / max(cpu, 1e-9), "unit": unit, "cpu_seconds": cpu,
        "memory": peak(), "runtime": runtime, "threads": threads(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
