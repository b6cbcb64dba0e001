import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trace_models import CONFIG, llama, write

from hermitcrab.progress import set_quiet

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "trace"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", llama(0), CONFIG)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write(tmp_path / "twin", llama(1), CONFIG)


@pytest.fixture(autouse=True)
def speak_again() -> Iterator[None]:
    """`--quiet` is for the whole process; tests that come after these must not be silenced by it."""
    yield
    set_quiet(False)
