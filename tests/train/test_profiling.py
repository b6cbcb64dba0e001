"""A profile is a readable trace of the model's own operators, is taken once, and changes no bit of what is learnt."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis.strategies import integers

torch = pytest.importorskip("torch")

from test_loop import assert_equal, fit, open_session, tensors
from tiny import question_rows, write_model

from hermitcrab.train.profiling import Window, traces
from hermitcrab.train.session import Session, launch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


def events(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_a_trace_has_the_operators_of_three_steps_and_the_training_is_the_same(tmp_path, tiny):
    rows = question_rows(48)
    plain, _ = fit(open_session(tmp_path / "plain", tiny, rows, steps=8))
    profiled, _ = fit(open_session(tmp_path / "profiled", tiny, rows, steps=8, profile=True))
    assert_equal(tensors(plain), tensors(profiled))
    assert not traces(tmp_path / "plain" / "tensorboard")
    (name,) = traces(tmp_path / "profiled" / "tensorboard")
    assert name == "rank0.4.pt.trace.json.gz"
    found = [e for e in events(tmp_path / "profiled" / "tensorboard" / name) if e.get("ph") == "X"]
    names = {event["name"] for event in found}
    assert {"aten::mm", "aten::embedding", "aten::scaled_dot_product_attention"} <= names  # of a llama, under sdpa
    assert any("Backward" in name for name in names)
    assert {"ProfilerStep#3", "ProfilerStep#4", "ProfilerStep#5"} <= names
    optimizer = [e for e in found if e["name"].startswith("Optimizer.step")]
    assert len(optimizer) == 3
    assert all(event["dur"] >= 0 for event in found)
    assert not list((tmp_path / "profiled" / "tensorboard").glob(".rank*"))  # nothing half-written


def test_a_killed_training_is_profiled_after_its_resume_and_once_only(tmp_path, tiny):
    session = open_session(tmp_path, tiny, question_rows(48), steps=9, profile=True)
    plan, model = session.plan(1)
    from hermitcrab.train.loop import Fit

    half = Fit(session.task, session.ready(model, plan), session.part, plan, tmp_path, session.examples, None)
    original = half._step

    def die(step: int, tell: bool):
        if step == 3:
            raise KeyboardInterrupt
        return original(step, tell)

    half._step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        half.run()
    early = traces(tmp_path / "tensorboard")
    fit(Session.open(tmp_path))
    after = traces(tmp_path / "tensorboard")
    assert len(after) == 1
    assert early in ([], after)
    assert any(e["name"] == "aten::mm" for e in events(tmp_path / "tensorboard" / after[0]) if "name" in e)


def test_every_process_leaves_a_trace_with_its_rank(tmp_path, tiny):
    session = open_session(tmp_path, tiny, question_rows(48), steps=4, batch_size=2, profile=True)
    session.plan(2)
    launch(tmp_path, 2)
    names = traces(tmp_path / "tensorboard")
    assert [name.split(".")[0] for name in names] == ["rank0", "rank1"]
    for name in names:
        assert any(e["name"] == "aten::mm" for e in events(tmp_path / "tensorboard" / name) if "name" in e)


@given(integers(1, 10**6), integers(1, 1000))
def test_the_window_fits_into_the_steps_that_are_left_and_is_bounded(left, accumulate):
    window = Window.of(left, accumulate)
    assert window is not None
    assert window.wait + window.warm + window.active <= left
    assert window.active >= 1
    assert window.active == 1 or window.active * accumulate <= 16


def test_of_no_step_nothing_is_recorded():
    assert Window.of(0, 1) is None
