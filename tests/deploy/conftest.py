"""A small signed package, made by the stage itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lineage"))

from lineage_artifacts import INPUTS, ORDER, chain, laid_out, packaged

from hermitcrab.lineage.keys import Key, keygen
from hermitcrab.lineage.sign import sign_package
from hermitcrab.lineage.statements import statement
from hermitcrab.store import Store


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return keygen(tmp_path_factory.mktemp("keys") / "signer.pem")


@pytest.fixture(scope="session")
def package(key: Key, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("deployed")
    store = Store(folder / "store")
    made = packaged(store, chain(store, folder))
    where = laid_out(made["package"], folder / "package")
    sign_package(where, [statement(made[name], [made[i] for i in INPUTS[name]]) for name in ORDER], key.private)
    return where
