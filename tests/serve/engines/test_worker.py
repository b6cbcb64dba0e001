"""The engine in a process of its own: answers, cancellation, death and restart. Each test speaks to a real process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")

from engine_specs import gguf_spec, spec_of

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve.engine import EngineLost, Options, Piece, Spec
from hermitcrab.serve.worker import Worker

PROMPT = [1, 50, 60, 70]


def with_worker(spec: Spec, use: Callable[[Worker], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        worker = Worker(spec)
        await worker.start()
        try:
            return await use(worker)
        finally:
            await worker.close(0)

    return asyncio.run(run())


def llamacpp(gguf: Path, **more: Any) -> Spec:
    """The engine that loads fastest."""
    return gguf_spec(gguf, "llama.cpp", **more)


async def tokens(worker: Worker, prompt: list[int], count: int, **more: Any) -> list[int]:
    return [token async for piece in worker.generate(prompt, Options(count, **more)) for token in piece.tokens]


def test_greedy_answers_are_those_of_transformers_alone_and_together(model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [[1, 50, 60, 70], [1, 9], [1, *range(100, 120)], [7, 8, 9, 10, 11], [200]]
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = [
        peer.generate(torch.tensor([p]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, len(p) :].tolist()
        for p in prompts
    ]  # fmt: skip

    async def use(worker: Worker) -> Any:
        alone = [await tokens(worker, p, 12) for p in prompts]
        together = await asyncio.gather(*(tokens(worker, p, 12) for p in prompts))
        return alone, together

    alone, together = with_worker(spec_of(model, ends=[]), use)
    assert alone == expected
    assert together == expected


def test_the_last_piece_alone_says_how_it_ended(gguf: Path) -> None:
    async def use(worker: Worker) -> list[Piece]:
        return [piece async for piece in worker.generate(PROMPT, Options(5))]

    pieces = with_worker(llamacpp(gguf), use)
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    first = pieces[0].tokens[0]
    assert with_worker(llamacpp(gguf, ends=[first]), use) == [Piece([first], None, "stop")]


def test_closing_the_iterator_frees_the_slot(gguf: Path) -> None:
    async def use(worker: Worker) -> tuple[list[int], float]:
        answer = worker.generate(PROMPT, Options(200))
        await anext(answer)
        waiting = asyncio.create_task(tokens(worker, PROMPT, 3))
        await asyncio.sleep(0)
        assert worker.stats()["waiting"] == 1
        await answer.aclose()
        return await waiting, worker.stats()["running"]

    made, running = with_worker(llamacpp(gguf, slots=1), use)
    assert len(made) == 3
    assert running == 0


def test_a_process_killed_in_the_middle_loses_what_had_begun_and_nothing_else(gguf: Path) -> None:
    async def use(worker: Worker) -> Any:
        expected = await tokens(worker, PROMPT, 8)
        begun = worker.generate(PROMPT, Options(240))
        await anext(begun)
        waiting = [asyncio.create_task(tokens(worker, PROMPT, 8)) for _ in range(3)]
        await asyncio.sleep(0)
        assert worker._process is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(EngineLost, match="in the middle"):
            async for _ in begun:
                pass
        assert not await worker.alive(0.01)
        assert await asyncio.gather(*waiting) == [expected] * 3
        assert await worker.alive(5)
        return worker.stats()["restarts"]

    assert with_worker(llamacpp(gguf, slots=1), use) == 1


def test_the_child_ends_when_its_parent_is_killed(gguf: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parents[2])]!r}\n"
        "from pathlib import Path\n"
        "from engine_specs import gguf_spec\n"
        "from hermitcrab.serve.worker import Worker\n"
        "async def run():\n"
        f"    worker = Worker(gguf_spec(Path({str(gguf)!r}), 'llama.cpp'))\n"
        "    await worker.start()\n"
        "    print(worker._process.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(run())\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs([child], timeout=20)
    assert gone


def test_what_cannot_be_loaded_is_told_in_the_engines_own_words(gguf: Path) -> None:
    spec = llamacpp(gguf)
    changed = [{**file, "sha256": "sha256:" + "0" * 64} for file in spec.files]

    async def run() -> None:
        await Worker(replace(spec, files=changed)).start()

    with pytest.raises(HermitcrabError, match="is not the file that was recorded"):
        asyncio.run(run())


def test_what_does_not_fit_is_refused_before_the_engine_hears_of_it(gguf: Path) -> None:
    async def use(worker: Worker) -> None:
        wrong = {
            "do not fit": ([1] * 250, 10),
            "at least one": ([], 1),
            "token 280": ([1, 280], 1),
            "token -1": ([-1], 1),
        }
        for why, (prompt, count) in wrong.items():
            with pytest.raises(HermitcrabError, match=why):
                await tokens(worker, prompt, count)
        assert len(await tokens(worker, [1] * 250, 6)) == 6

    with_worker(llamacpp(gguf), use)


def test_seeds_reproduce_and_differ_alone_and_together(gguf: Path) -> None:
    async def use(worker: Worker) -> Any:
        asked = [tokens(worker, PROMPT, 10, temperature=1.0, seed=seed) for seed in (1, 1, -5, None)]
        return await asyncio.gather(*asked), await tokens(worker, PROMPT, 10, temperature=1.0, seed=1)

    (one, same, other, fresh), alone = with_worker(llamacpp(gguf), use)
    assert one == same == alone
    assert len({tuple(one), tuple(other), tuple(fresh)}) == 3


def test_draining_lets_an_answer_end_and_takes_no_other(gguf: Path) -> None:
    async def run() -> None:
        worker = Worker(llamacpp(gguf))
        await worker.start()
        answer = asyncio.create_task(tokens(worker, PROMPT, 100))
        await asyncio.sleep(0)
        closing = asyncio.create_task(worker.close(3600))
        await asyncio.sleep(0)
        with pytest.raises(HermitcrabError, match="is ending"):
            await tokens(worker, PROMPT, 1)
        assert len(await answer) == 100
        await closing

    asyncio.run(run())


def test_signals_to_the_whole_group_leave_the_engine_to_its_server(gguf: Path) -> None:
    async def use(worker: Worker) -> int:
        assert worker._process is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker._process.pid, number)
        assert await worker.alive(10)
        return len(await tokens(worker, PROMPT, 20))

    assert with_worker(llamacpp(gguf), use) == 20
