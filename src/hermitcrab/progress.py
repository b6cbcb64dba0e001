"""Progress on anything over two seconds: a line that rewrites itself on a terminal, plain lines elsewhere.

Everything goes to standard error, so `--json` keeps standard output to itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FIRST = 2.0  # seconds before anything is said
EVERY_PLAIN = 15.0  # seconds between plain lines
EVERY_TERMINAL = 0.2

_quiet = False


def set_quiet(quiet: bool) -> None:
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """One line to standard error."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A likely mistake, said once and never silenced."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Progress:
    """Counts towards `total` (None: unknown) and tells rate and remaining time."""

    def __init__(self, what: str, total: float | None = None, unit: str = "", start: float = 0):
        self.what, self.total, self.unit = what, total, unit
        self.done = self.start = start
        self.began = self.said = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.spoke = False

    def add(self, count: float = 1, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        wait = (EVERY_TERMINAL if self.terminal else EVERY_PLAIN) if self.spoke else FIRST
        if _quiet or now - self.said < wait:
            return
        self.said, self.spoke = now, True
        self._line(now, note, end="\r" if self.terminal else "\n")

    def _line(self, now: float, note: str, end: str) -> None:
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        text = f"  {self.what}: {self.done:,.0f}"
        if self.total:
            text += f" of {self.total:,.0f}"
        text += f" {self.unit}, {rate:,.1f}/s" if self.unit else f", {rate:,.1f}/s"
        if self.total and rate > 0 and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        text += f", {note}" if note else ""
        print(text.ljust(100) if self.terminal else text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.spoke and self.terminal and not _quiet:
            print("".ljust(100), end="\r", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "", **more: Any) -> Iterator[Progress]:
    bar = Progress(what, total, unit, **more)
    try:
        yield bar
    finally:
        bar.close()
