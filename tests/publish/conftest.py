"""A small signed package whose weights are large enough to go in parts, and a hub to send it to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lineage"))

import lineage_artifacts
from fake_hub import HubServer, serving
from lineage_artifacts import INPUTS, ORDER, chain, laid_out, packaged

from hermitcrab.lineage.keys import keygen
from hermitcrab.lineage.sign import sign_package
from hermitcrab.lineage.statements import statement
from hermitcrab.store import Store


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("published")
    store, train = Store(folder / "store"), lineage_artifacts._train

    def heavier(draft, parity):
        train(draft, parity)
        weights = np.random.default_rng(0).normal(size=(150, 200)).astype(np.float32)
        save_file({"w": weights}, draft.payload / "model" / "model.safetensors")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lineage_artifacts, "_train", heavier)
        made = packaged(store, chain(store, folder))
    where = laid_out(made["package"], folder / "package")
    claims = [statement(made[name], [made[i] for i in INPUTS[name]]) for name in ORDER]
    sign_package(where, claims, keygen(folder / "signer.pem").private)
    return where


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serving() as server:
        yield server
