"""An engine's process, started before anybody knows what it will load: its libraries are imported while the model is verified.

    crab serve MODEL → Spare(guess) → (find, verify, open, choose) → Worker takes it, where the guess was right

A wrong guess costs the processor half a second and nothing else: that process ends, and the worker starts one of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hermitcrab
from hermitcrab.serve.engine import Spec, cores

SERVED = ("gguf", "openvino")  # folders of a package whose files go to the first engine that reads them
FIRST = "openvino-genai"


def spawn(theirs: socket.socket, threads: int, engine: str = "") -> subprocess.Popen[bytes]:
    """A fresh interpreter that imports only what is installed (and this package), not what lies in the working folder; `engine`: whose
    libraries it may import while it waits to be told what to load."""
    ours = str(Path(hermitcrab.__file__).resolve().parents[1])
    paths = [ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Threads that wait must not spin: on shared cores that costs more than all the arithmetic.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "passive",
                   "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "hermitcrab.serve.engines.process", str(theirs.fileno()), engine],
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)  # fmt: skip


class Spare:
    """Belongs to one worker, or to none."""

    def __init__(self, engine: str, threads: int):
        self.engine, self.threads = engine, cores(threads)
        self.socket, theirs = socket.socketpair()
        self.process: subprocess.Popen[bytes] | None = spawn(theirs, self.threads, engine)
        theirs.close()

    def take(self, spec: Spec) -> tuple[subprocess.Popen[bytes], socket.socket] | None:
        """The process, where it is what this model needs and nobody has it yet. Anything else has it ended."""
        process, self.process = self.process, None
        if process is None:
            return None
        if spec.engine == self.engine and spec.cores == self.threads and process.poll() is None:
            return process, self.socket
        self.process = process
        self.close()
        return None

    def close(self) -> None:
        """Ends it where nobody took it."""
        process, self.process = self.process, None
        if process is not None:
            self.socket.close()
            process.kill()
            process.wait()


def spare_for(models: Sequence[str], engine: str | None, threads: int) -> Spare | None:
    """For the first of `models`: of the engine that was asked for, or of the one that its files look like; None where they do not tell."""
    name = engine or next((FIRST for what in models[:1] if _compressed(what)), None)
    return None if name is None else Spare(name, threads)


def _compressed(what: str) -> bool:
    if what.endswith(".gguf"):
        return True
    places = (Path(what), Path(what, "package"), Path("runs", what, "package"))
    return any((place / name).is_dir() for place in places for name in SERVED)
