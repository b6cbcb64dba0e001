import sys
from pathlib import Path

import pytest
from trace_models import CONFIG, llama, write

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "trace"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", llama(0), CONFIG)


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write(tmp_path / "twin", llama(1), CONFIG)
