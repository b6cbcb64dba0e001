"""Starters: a commented recipe and a few rows for each task, which run as they are. One folder a task, copied by `crab init`."""

from __future__ import annotations

from pathlib import Path

from hermitcrab.errors import UsageError, did_you_mean
from hermitcrab.store import disk_errors, write_atomic

HERE = Path(__file__).parent


def write_starter(task: str, folder: Path) -> list[Path]:
    """Copy a task's starter into `folder`; nothing is overwritten.

    Raises:
        UsageError: there is no starter for the task, or one of its files exists already.
    """
    known = sorted(p.name for p in HERE.iterdir() if p.is_dir() and not p.name.startswith("_"))
    if task not in known:
        raise UsageError(f"there is no starter for the task `{task}`{did_you_mean(task, known)}")
    pairs = [(source, folder / source.name) for source in sorted((HERE / task).iterdir()) if source.is_file()]
    for _, target in pairs:
        if target.exists():
            raise UsageError(f"{target}: exists already, and nothing is overwritten; choose another folder")
    with disk_errors("cannot write the starter to"):
        for source, target in pairs:
            write_atomic(target, source.read_bytes())
    return [target for _, target in pairs]
