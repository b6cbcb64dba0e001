"""The server's log: one JSON object a line, on standard error. No text of a prompt or an answer is in it, unless that is asked for."""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any, TextIO


class Log:
    """Writes events. `texts`: also what was asked and answered."""

    def __init__(self, stream: TextIO | None = None, texts: bool = False):
        self.stream, self.texts = stream or sys.stderr, texts

    def __call__(self, event: str, level: str = "info", **fields: Any) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = json.dumps({"time": stamp, "level": level, "event": event, **fields}, ensure_ascii=False, default=str)
        try:
            print(line, file=self.stream, flush=True)
        except (OSError, ValueError):  # whoever read it is gone: the server goes on
            self.stream = open("/dev/null", "w")  # noqa: SIM115 - for as long as the server lives

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """Told to the operator in full, to the client in a word. A traceback holds code and no values."""
        trace = "".join(traceback.format_tb(error.__traceback__))[-4000:]
        self(event, "error", error=f"{type(error).__name__}: {error}"[:500], trace=trace, **fields)
