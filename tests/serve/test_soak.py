"""The soak of benchmarks/serve_soak.py in its shorter form: a thousand streams at once, then half a minute of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("torch")
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve_soak.py"


def test_a_thousand_streams_and_a_short_soak(tmp_path):
    out = tmp_path / "soak.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--engine",
        "transformers",
        "--queue",
        "92",
        "--minutes",
        "0.5",
        "--json",
        str(out),
    ]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True)
    listed = json.loads(out.read_text()) if out.exists() else []
    assert ran.returncode == 0, (ran.stderr[-2000:], listed)
    assert all(row["met"] for row in listed), listed
    told = listed[-1]["counted"]
    many = told["thousand"]
    assert many["streams"] == 1000
    assert many["accepted"] == many["complete"] == many["as_a_lone_one"] >= 100
    assert many["refused_with_retry_after"] == 1000 - many["accepted"]
    assert many["as_the_reference"] == many["accepted"]  # the reference engine itself, eight at a time
    assert told["soak"]["counts"]["streams"] > 5
