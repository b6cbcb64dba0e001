"""What tests of several modules share."""

import os
import shutil
from pathlib import Path

import pytest

# Tiny models on a busy machine: threads that spin while they wait cost more than all the arithmetic.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the project; tests that need them are skipped where they are not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared data folder {SHARED_DATA} is not here")
    return SHARED_DATA


@pytest.fixture
def here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the module's `project` (its finished run, made once), as the working folder of a user of its own."""
    shutil.copytree(project, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "p" / "config"))
    return tmp_path / "p"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they get, wherever the tests run; a test of a narrow terminal says so itself."""
    monkeypatch.setenv("COLUMNS", "200")
