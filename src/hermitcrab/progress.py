"""Progress on anything over two seconds: a line that rewrites itself on a terminal, plain lines elsewhere.

Everything goes to standard error, so `--json` keeps standard output to itself.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST = 2.0  # seconds before anything is said
EVERY_PLAIN = 15.0  # seconds between plain lines
EVERY_TERMINAL = 0.2

_quiet = False
_sink: Callable[[str, str], None] | None = None


def set_sink(sink: Callable[[str, str], None] | None) -> None:
    """What is said goes there from now on, as (`info` or `warning`, text): into the log of a server, whose lines have a form."""
    global _sink
    _sink = sink


def set_quiet(quiet: bool) -> None:
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """One line to standard error."""
    if _sink is not None:
        _sink("info", text)
    elif not _quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A likely mistake, said once and never silenced."""
    if _sink is not None:
        _sink("warning", text)
    else:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Progress:
    """Counts towards `total` (None: unknown) and tells rate and remaining time.

    A heartbeat speaks where nothing was counted for a while, so that one long step is not mistaken for a hang.
    """

    def __init__(self, what: str, total: float | None = None, unit: str = "", start: float = 0):
        self.what, self.total, self.unit = what, total, unit
        self.done = self.start = start
        self.began = self.said = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.spoke = False
        self.note = ""
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def add(self, count: float = 1, note: str = "") -> None:
        self.done += count
        self.note = note
        self._perhaps_say()

    def _beat(self) -> None:
        while not self._over.wait(FIRST):
            self._perhaps_say()

    def _perhaps_say(self) -> None:
        now = time.monotonic()
        wait = (EVERY_TERMINAL if self.terminal else EVERY_PLAIN) if self.spoke else FIRST
        if not _quiet and _sink is None and now - self.said >= wait:
            self.said, self.spoke = now, True
            self._line(now)

    def _line(self, now: float) -> None:
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        text = f"  {self.what}: "
        if self.total or self.done:
            text += f"{self.done:,.0f}{f' of {self.total:,.0f}' if self.total else ''}{f' {self.unit}' if self.unit else ''}, {rate:,.1f}/s"
        else:
            text += duration(now - self.began)
        if self.total and rate > 0 and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        text += f", {self.note}" if self.note else ""
        print(
            text.ljust(100) if self.terminal else text, end="\r" if self.terminal else "\n", file=sys.stderr, flush=True
        )

    def close(self) -> None:
        self._over.set()
        self._heart.join()
        if self.spoke and self.terminal and not _quiet:
            print("".ljust(100), end="\r", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "", start: float = 0) -> Iterator[Progress]:
    bar = Progress(what, total, unit, start)
    try:
        yield bar
    finally:
        bar.close()
