"""Energy: measured where a counter can be read, estimated and said to be where CodeCarbon is installed, unknown with a reason else."""

from __future__ import annotations

import importlib.util
import time

import pytest

from hermitcrab import energy


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """The two files of the kernel's interface, in a folder of their own."""
    file = tmp_path / "energy_uj"
    file.write_text("1000000\n")
    (tmp_path / "max_energy_range_uj").write_text("262143328850\n")
    monkeypatch.setattr(energy, "RAPL", file)
    return file


def test_a_counter_is_read_before_and_after(rapl):
    with energy.Meter() as meter:
        rapl.write_text("3500000\n")
        told = meter.told(1)
    assert told["joules"] == 2.5
    assert "RAPL" in told["method"]
    assert "estimated" not in told


def test_a_counter_that_began_again_tells_nothing(rapl):
    with energy.Meter() as meter:
        rapl.write_text("10\n")
        assert meter.told(1)["joules"] is None


def test_of_several_sessions_nothing_is_known(rapl):
    with energy.Meter() as meter:
        assert "another session" in meter.told(2)["method"]


def test_without_a_counter_the_estimate_says_that_it_is_one(tmp_path, monkeypatch, capfd):
    pytest.importorskip("codecarbon")
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    with energy.Meter() as meter:
        until = time.process_time() + 0.5
        while time.process_time() < until:
            sum(range(1000))
        told = meter.told(1)
    assert told["estimated"]
    assert "not measured" in told["method"]
    assert 0.5 < told["joules"] < 5000
    assert capfd.readouterr() == ("", "")
    with energy.Meter() as meter:
        assert "another session" in meter.told(2)["method"]


def test_without_either_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with energy.Meter() as meter:
        told = meter.told(1)
    assert told == {"joules": None, "method": "unknown: this machine has no readable energy counter"}
