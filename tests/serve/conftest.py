"""A project with three finished runs, made once: `small` chooses between answers, `speaks` learnt to write two by heart, `shapes`
tells striped images apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from serving import TOOLS_TEMPLATE
from tiny import question_rows, working_in, write_image_project, write_model, write_project

from hermitcrab.cli import main

GOOD, BAD = "寄居蟹🦀住在壳里。", "¡Olé! 👩‍👩‍👧 naïve"  # every character of more than one byte is several tokens
SPEAKS = ["name=speaks", "data.train.path=speech.csv", "train.method=full", "train.learning_rate=1e-2", "train.steps=100",
          "train.sequence_length=96", "train.validate_every=0", "evaluate.choices=[]", "evaluate.few_shot=0", "evaluate.calibrate=false",
          "evaluate.baselines=[]", "evaluate.noise_rows=0"]  # fmt: skip


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "project"
    write_project(folder)
    shutil.rmtree(folder / "base")
    write_model(folder / "base", max_position_embeddings=1024)
    shutil.copytree(folder / "base", folder / "plain")  # its template has no tools
    (folder / "base" / "chat_template.jinja").write_text(TOOLS_TEMPLATE, encoding="utf-8")
    lines = ["prompt,completion"]
    for row in question_rows(120).to_pylist():
        lines.append(f"{row['prompt']},{GOOD if row['completion'] == 'yes' else BAD}")
    (folder / "speech.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_image_project(folder)
    with working_in(folder):
        assert main(["run", "small.yaml"]) == 0
        assert main(["run", "small.yaml", *SPEAKS]) == 0
        assert main(["run", "shapes.yaml"]) == 0
    return folder
