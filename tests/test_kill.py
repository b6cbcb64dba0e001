"""Killed anywhere, the same command continues, and the result is the one of a run that was never killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiny import RECIPE, write_project

from hermitcrab.digest import digest_file, tree_files
from hermitcrab.store import read_json

STAGES = ("collect", "prepare", "tune", "train", "evaluate", "compress", "package")
KILLS = 4  # in each stage
COMPRESS = "compress: {gguf: [Q8_0, Q4_0], rows: 16}\n"
TUNE = "tune: {train.learning_rate: [1e-3, 5e-3], metric: accuracy}\n"
WITH = {"tune": ("tune", "train", "validate")}  # what a stage is made of besides itself


def start(project: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hermitcrab", "run", "small.yaml", "--key", "key.pem"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(project / "cache"), "XDG_CONFIG_HOME": str(project / "config")}
    return subprocess.Popen(
        command, cwd=project, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )


def finish(project: Path) -> str:
    process = start(project)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill_during(project: Path, stage: str, delay: float, number: int) -> bool:
    """Kill the run with signal `number`, `delay` seconds after `stage` began. False: it had no more to do there."""
    process = start(project)
    began = threading.Event()
    said: list[str] = []

    def listen() -> None:
        for line in process.stderr or ():
            said.append(line)
            if line.startswith(f"{stage}: running"):
                began.set()

    ear = threading.Thread(target=listen)
    ear.start()
    while process.poll() is None and not began.is_set():
        time.sleep(0.005)
    if began.is_set():
        time.sleep(delay)
    alive = process.poll() is None
    if alive:
        process.send_signal(number)
    process.wait(timeout=60)
    ear.join()
    assert process.returncode in (0, 1, -number), "".join(said)
    if process.returncode == 1:
        assert "the same command continues" in "".join(said), "".join(said)  # Ctrl-C is told in a sentence
    return alive


def digests(project: Path) -> dict[str, str]:
    return read_json(project / "runs" / "small" / "run.json")["digests"]


@pytest.mark.slow
def test_kills_over_all_stages_change_no_digest(tmp_path):
    draw = random.Random(20260101)
    subprocess.run(
        [sys.executable, "-m", "hermitcrab", "keygen", "--out", str(tmp_path / "key.pem")],
        check=True,
        capture_output=True,
    )
    for name in ("calm", "killed"):
        write_project(tmp_path / name, RECIPE + COMPRESS + TUNE)
        (tmp_path / name / "key.pem").write_bytes((tmp_path / "key.pem").read_bytes())
    finish(tmp_path / "calm")
    project, kills = tmp_path / "killed", 0
    spans = {
        "collect": 0.3,
        "prepare": 0.2,
        "tune": 0.1,
        "train": 5.0,
        "evaluate": 4.0,
        "compress": 4.0,
        "package": 0.5,
    }
    for stage in STAGES:
        for turn in range(KILLS):
            number = signal.SIGINT if turn == 0 else signal.SIGKILL
            forget(project, stage)
            kills += kill_during(project, stage, draw.uniform(0, spans[stage]), number)
    while kills < KILLS * len(STAGES):  # some came too late
        stage = draw.choice(STAGES)
        forget(project, stage)
        kills += kill_during(project, stage, draw.uniform(0, spans[stage] / 2), signal.SIGKILL)
    finish(project)
    assert digests(project) == digests(tmp_path / "calm")
    calm, killed = (tmp_path / n / "runs" / "small" / "package" for n in ("calm", "killed"))
    facts = {"claims.jsonl", "model.sig"}  # they tell when it was
    assert {n: digest_file(killed / n) for n in tree_files(killed) if n not in facts} == {
        n: digest_file(calm / n) for n in tree_files(calm) if n not in facts
    }
    assert not list((project / ".crab" / "store" / "drafts").iterdir())


def forget(project: Path, stage: str) -> None:
    """Remove a stage's finished artifact from the store, so that it is made again; what a kill left of it stays."""
    for path in (project / ".crab" / "store" / "artifacts").glob("*"):
        if read_json(path / "manifest.json")["stage"] in WITH.get(stage, (stage,)):
            shutil.rmtree(path)


@pytest.mark.slow
def test_two_runs_at_once_leave_one_result(tmp_path):
    write_project(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "hermitcrab", "keygen", "--out", str(tmp_path / "key.pem")],
        check=True,
        capture_output=True,
    )
    both = [start(tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    made = [sum(f"{stage}: done" in text for text in said) for stage in STAGES]
    assert made == [1] * len(STAGES)
