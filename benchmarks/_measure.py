"""How a claim is measured beside its peer: contenders take turns, medians, CPU-seconds, each peer in an environment of its own.

On a shared machine wall time tells who else was there; the CPU time of the process does not. So every contender runs in a process
of its own with one thread, prints its figures as one JSON line (the last of its standard output), and the contenders take
turns, so that whatever slows the machine down slows all of them. Standard library only: peers' interpreters import this too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LONGEST_RUN = 3600  # seconds of wall time that one run of a contender may take
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "DISABLE_VERSION_CHECK": "1", "WANDB_MODE": "disabled",
    "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore",
}  # fmt: skip


@dataclass(frozen=True)
class Environment:
    """A virtual environment for one peer: exact pins, what to take out again, and empty modules that it only imports."""

    name: str
    pins: Sequence[str]
    without: Sequence[str] = ()
    stubs: Sequence[str] = ()
    shown: Sequence[str] = ()  # packages whose versions are printed

    def python(self, root: Path) -> str:
        """Its interpreter below `root`; made now, unless it was made from the same pins before."""
        home = (root / self.name).absolute()
        digest = hashlib.sha256(repr((platform.python_version(), *self.pins, *self.without, *self.stubs)).encode())
        stamp = home / "made.txt"
        python = home / "bin" / "python"
        if stamp.exists() and stamp.read_text() == digest.hexdigest():
            return str(python)
        print(f"installing {', '.join(self.pins)} into {root / self.name}", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *self.pins], check=True)
        if self.without:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *self.without], check=True)
        site = next((home / "lib").glob("python*/site-packages"))
        for stub in self.stubs:
            # With an empty __spec__ version, so that `find_spec` finds it and nothing in it does.
            (site / stub).mkdir(exist_ok=True)
            (site / stub / "__init__.py").write_text('__version__ = "0"\n')
        stamp.write_text(digest.hexdigest())
        return str(python)


@dataclass(frozen=True)
class Contender:
    """Somebody who does the work: `script` run by `python` with the job as its one argument, a path to JSON."""

    name: str
    python: str
    script: str  # in this folder
    settings: dict[str, Any] = field(default_factory=dict)  # beside the job, told to this one alone


def run(contender: Contender, job: dict[str, Any], folder: Path, threads: int = 1) -> dict[str, Any]:
    """One run in a fresh process; what it printed last. What it said is kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = "".join(c if c.isalnum() else "-" for c in contender.name)
    path = folder / f"{slug}.job.json"
    path.write_text(json.dumps({**job, **contender.settings}))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or contender.python == sys.executable}
    environment |= {**QUIET, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(folder / f"{slug}.log", "a") as log:
        done = subprocess.run([contender.python, str(HERE / contender.script), str(path)], stdout=subprocess.PIPE,
                              stderr=log, env=environment, text=True, timeout=LONGEST_RUN, check=False)  # fmt: skip
        log.write(done.stdout)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{contender.name} ended with status {done.returncode}; see {folder / f'{slug}.log'}")
    return json.loads(lines[-1])


def alternate(contenders: Sequence[Contender], job: dict[str, Any], runs: int, folder: Path,
              told: Callable[[dict[str, list[dict[str, Any]]]], None] = lambda found: None,
              threads: int = 1) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """`runs` rounds in which each contender runs once, in an order that turns; `told` hears what is known after each round.

    A job's `seed` grows by one each round: other rows, the same for all in a round.
    """
    found: dict[str, list[dict[str, Any]]] = {c.name: [] for c in contenders}
    for number in range(runs):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            began = time.time()
            result = run(contender, {**job, "seed": job.get("seed", 0) + number}, folder, threads)
            found[contender.name].append(result)
            shown = {k: v for k, v in result.items() if isinstance(v, int | float)}
            print(f"round {number + 1}/{runs}  {contender.name}: {json.dumps(shown)}  ({time.time() - began:.0f} s)",
                  file=sys.stderr, flush=True)  # fmt: skip
        told(found)
    return found


def median(results: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in results)


def row(name: str, ours: str, peer: str, value: float, peer_value: float, unit: str, aim: str | None = None,
        lower_is_better: bool = False) -> dict[str, Any]:  # fmt: skip
    """One claim. `ratio` is ours over the peer's; where lower is better and the aim is a factor, the peer's over ours.

    `aim` is `>= 1.7` or `<= 1.1`: of the ratio, which for `<=` is always ours over the peer's.
    """
    sign, _, bound = (aim or "").partition(" ")
    ratio = peer_value / value if lower_is_better and sign == ">=" else value / peer_value
    met = None if aim is None else (ratio >= float(bound) if sign == ">=" else ratio <= float(bound))
    return {"name": name, "ours": ours, "peer": peer, "value": value, "peer_value": peer_value, "unit": unit,
            "ratio": ratio, "aim": aim, "met": met}  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| claim | ours | peer | value | peer's | unit | ratio | aim | met |", "|" + " --- |" * 9]
    for r in rows:
        met = {None: "", True: "yes", False: "no"}[r["met"]]
        lines.append(f"| {r['name']} | {r['ours']} | {r['peer']} | {number(r['value'])} | {number(r['peer_value'])} | {r['unit']} "
                     f"| {r['ratio']:.3g} | {r['aim'] or ''} | {met} |")  # fmt: skip
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as JSON, renamed into place, so that a stopped script leaves what it had."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(list(rows), indent=2) + "\n")
    os.replace(beside, path)


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """Of installed packages, as that interpreter sees them."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    return json.loads(
        subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True).stdout
    )


def machine() -> str:
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, one thread a process"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every script of this folder takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer steps, the main peer alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--runs", type=int, help="rounds in which every contender runs once")
    parser.add_argument("--peers", type=Path, default=Path(".crab/peers"), help="where peers' environments are kept")
    parser.add_argument("--only", nargs="+", metavar="PEER", help="these peers alone")
    return parser


class Clock:
    """CPU time of this process at each mark. A contender marks the same place of every step."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.began = time.process_time()

    def mark(self) -> None:
        self.marks.append(time.process_time())

    def steps(self) -> list[float]:
        """CPU-seconds between neighboring marks."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


def tell(**result: Any) -> None:
    """The last line of a contender's standard output."""
    print("\n" + json.dumps(result), flush=True)
