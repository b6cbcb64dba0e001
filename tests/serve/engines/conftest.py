"""Tiny real models, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiny import write_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engines") / "model", hidden_size=128, head_dim=32)
