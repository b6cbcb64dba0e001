"""The wheel: built from the tree, installed into a fresh environment without torch, it shows and verifies."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = ("torchvision", "torchaudio")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)], check=True, capture_output=True
    )
    return next(out.glob("*.whl"))


def test_the_wheel_has_the_package_its_page_its_schema_and_the_license(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "hermitcrab/cli/__init__.py",
        "hermitcrab/report/page.html",
        "hermitcrab/serve/page.html",
        "hermitcrab/recipe.schema.json",
        "hermitcrab/py.typed",
        "hermitcrab/starters/text-generation/recipe.yaml",
    ):
        assert wanted in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/"))]


def test_nothing_asks_for_what_breaks_transformers(wheel):
    metadata = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("METADATA"))
    asked = zipfile.ZipFile(wheel).read(metadata).decode().lower()
    assert "license-expression: apache-2.0" in asked
    assert not [name for name in FORBIDDEN if f"requires-dist: {name}" in asked]
    assert not [name for name in FORBIDDEN if name in (ROOT / "constraints.txt").read_text().lower()]


@pytest.mark.slow
def test_a_fresh_environment_shows_and_verifies_without_torch(wheel, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python, crab = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "crab"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True, capture_output=True, env=environment)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [crab, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    assert "crab run" in run("--help").stdout
    assert run("doctor").returncode == 0
    assert "learning_rate" in run("show", ROOT / "recipes" / "demo.yaml").stdout
    (tmp_path / "empty").mkdir()
    told = run("verify", "empty")
    assert told.returncode == 1
    assert "Traceback" not in told.stderr
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, env=environment).returncode != 0
    (tmp_path / "base").mkdir()
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    (tmp_path / "r.yaml").write_text(
        "name: a\ntask: text-generation\nbase: {path: base, license: MIT}\ndata: {train: {path: rows.csv, license: MIT}}\n"
    )
    assert "Traceback" not in run("run", "r.yaml").stderr
