"""A process that waits for its engine before the model is known: real processes, real engines."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")

from engine_specs import gguf_spec

from hermitcrab.serve.engine import Options
from hermitcrab.serve.spare import Spare, spare_for
from hermitcrab.serve.worker import Worker


async def served(worker: Worker) -> int:
    """Tokens of one answer; the process that made them is the worker's only one."""
    await worker.start()
    try:
        return sum([len(piece.tokens) async for piece in worker.generate([1, 50, 60], Options(4))])
    finally:
        await worker.close(0)


def test_the_right_guess_is_the_engines_process(gguf: Path) -> None:
    spare = Spare("llama.cpp", 1)
    waiting = spare.process
    worker = Worker(gguf_spec(gguf, "llama.cpp"), spare)
    assert asyncio.run(served(worker)) == 4
    assert worker._process is waiting
    assert spare.process is None
    spare.close()  # nothing of the worker's


@pytest.mark.parametrize(("engine", "threads"), [("openvino-genai", 1), ("llama.cpp", 2)])
def test_a_wrong_guess_ends_and_another_is_started(gguf: Path, engine: str, threads: int) -> None:
    spare = Spare(engine, threads)
    if spare.threads == 1 and threads == 2:
        pytest.skip("one processor: as many threads either way")
    waiting = spare.process
    worker = Worker(gguf_spec(gguf, "llama.cpp"), spare)
    assert asyncio.run(served(worker)) == 4
    assert worker._process is not waiting
    assert waiting is not None
    assert waiting.poll() is not None


def test_one_that_died_while_it_waited_is_not_taken(gguf: Path) -> None:
    spare = Spare("llama.cpp", 1)
    assert spare.process is not None
    spare.process.kill()
    spare.process.wait()
    assert spare.take(gguf_spec(gguf, "llama.cpp")) is None


def test_one_that_nobody_needs_ends_with_its_parent() -> None:
    code = "from hermitcrab.serve.spare import Spare; print(Spare('llama.cpp', 1).process.pid)"
    pid = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(30)


def test_the_guess_is_by_name_or_by_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr("hermitcrab.serve.spare.Spare", lambda engine, threads: asked.append(engine))
    (tmp_path / "runs" / "demo" / "package" / "gguf").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    for models, engine in ((["demo"], None), (["m.gguf", "plain"], None), (["plain"], None), (["plain", "m.gguf"], None),
                           (["plain"], "llama.cpp")):  # fmt: skip
        spare_for(models, engine, 1)
    assert asked == ["openvino-genai", "openvino-genai", "llama.cpp"]


def test_what_a_server_opens_with_imports_neither_torch_nor_scipy() -> None:
    """Both take longer than a model of 100M takes to load."""
    imported = "hermitcrab.serve.setup, hermitcrab.serve.choosing, hermitcrab.serve.api"
    code = f"import sys, {imported}; print({{'torch', 'scipy'}} & {{*sys.modules}})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "set()"
