"""vLLM beside the reference. It is in an environment of its own: CRAB_VLLM_PYTHON names its Python, and without that this is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch")

from engine_specs import Running, running, spec_of

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve.engine import Options

PROMPTS = [[1, 50, 60, 70], [1, 9], [1, *range(100, 140)], [7, 8, 9, 10, 11]]


def test_a_python_that_is_not_there_is_named(model: Path) -> None:
    spec = replace(spec_of(model), engine="vllm", settings={"vllm_python": "/nowhere/python"})
    with pytest.raises(HermitcrabError, match=r"--vllm-python: .*Received: /nowhere/python"), running(spec):
        pass


@pytest.mark.parametrize("told", ["killed", "ends"])
def test_processes_of_processes_end_with_the_engine(tmp_path: Path, told: str) -> None:
    """Workers of vLLM were left behind where the process that had started it was killed."""
    shell = f"sleep 1000 & echo $! > {tmp_path / 'pid'}; {'wait' if told == 'killed' else 'sleep 1'}"
    code = (
        "import os, sys\nfrom hermitcrab.serve.engines.vllm import guarded\n"
        f"sys.exit(guarded(['/bin/sh', '-c', {shell!r}], dict(os.environ)).wait())"
    )
    engine = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    if told == "killed":
        engine.kill()
    assert engine.wait(60) == (-9 if told == "killed" else 0)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert worker.wait(60) is None


@pytest.mark.slow
def test_answers_are_those_of_the_reference(model: Path, reference: Running) -> None:
    python = os.environ.get("CRAB_VLLM_PYTHON")
    if not python:
        pytest.skip("CRAB_VLLM_PYTHON does not name a Python with vLLM")
    asked = [(prompt, Options(30, logprobs=3)) for prompt in PROMPTS]
    expected = reference.ask(*asked)
    settings = {"vllm_python": python, "vllm_arguments": ["--enforce-eager"]}
    end = expected[0].tokens[5]
    with running(replace(spec_of(model, ends=[end]), engine="vllm", settings=settings)) as vllm:
        for ours, theirs in zip(vllm.ask(*asked), expected, strict=True):
            cut = theirs.tokens[: theirs.tokens.index(end) + 1] if end in theirs.tokens else theirs.tokens
            assert ours.tokens == cut
            assert [p.logprob for p in ours.logprobs] == pytest.approx(
                [p.logprob for p in theirs.logprobs][: len(cut)], abs=1e-3
            )
        one, same, other = vllm.ask(*((PROMPTS[1], Options(16, temperature=1.0, seed=seed)) for seed in (3, 3, 4)))
        assert one.tokens == same.tokens != other.tokens
        schema = {
            "type": "object",
            "properties": {"a": {"enum": ["yes", "no"]}},
            "required": ["a"],
            "additionalProperties": False,
        }
        (held,) = vllm.ask((PROMPTS[0], Options(60, schema=json.dumps(schema))))
        assert held.error is None

        async def leave() -> None:
            answer = vllm.worker.generate(PROMPTS[0], Options(200))
            await anext(answer)
            await answer.aclose()

        vllm.do(asyncio.wait_for(leave(), 60))
        assert vllm.worker.stats()["running"] == 0
