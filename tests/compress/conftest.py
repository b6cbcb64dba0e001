"""Real small models, trained by the project's loop, and what a form is made from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from tiny import question_rows, stripes, write_model

from hermitcrab.data.images import encode_png
from hermitcrab.digest import describe_files, tree_files
from hermitcrab.models import architectures
from hermitcrab.models.base import describe
from hermitcrab.recipe import Base, Train
from hermitcrab.references import resolve
from hermitcrab.store import Store, write_json
from hermitcrab.tasks import Start
from hermitcrab.train.session import Session

NAMES = ["diagonal", "flat", "upright"]


def image_rows(count: int, seed: int) -> pa.Table:
    pixels, labels = stripes(count, seed)
    return pa.table({
        "row_id": [f"{seed:04x}{i:012x}" for i in range(count)],
        "source": ["test"] * count,
        "document": pa.array([None] * count, pa.string()),
        "image": [encode_png(p.tobytes(), *p.shape) for p in pixels],
        "label": [NAMES[label] for label in labels],
    })  # fmt: skip


def trained(folder: Path, task: str, base: dict[str, Any], path: Path, part: Train, splits: dict[str, pa.Table]) -> Any:
    """A model of the loop, saved as `train` saves it, with its rows: as much of `compress.Source` as a cut and a healing need."""
    (folder / "rows").mkdir()
    for name, rows in splits.items():
        pq.write_table(rows, folder / "rows" / f"{name}.parquet")
    work = folder / "work"
    work.mkdir()
    write_json(work / "job.json", {"task": task, "part": part.model_dump(mode="json"), "base": base, "path": str(path),
                                   "rows": str(folder / "rows"), "seed": 1})  # fmt: skip
    session = Session.open(work)
    plan, model = session.plan(1)
    model = session.ready(model, plan)
    session.fit(model, plan)
    session.task.save(model.to(getattr(torch, part.final_dtype)), folder / "model")
    files = describe_files(folder / "model", tree_files(folder / "model"))
    start = Start({**base, "kind": "safetensors", "files": files}, folder / "model", None, session.task.start.fitted)
    rows = splits["train"].sort_by("row_id").slice(0, 32)
    return SimpleNamespace(
        model=folder / "model", name="small", task=task, start=start, train=part, base=base, calibration=rows,
        rows=folder / "rows", about={"name": "small"}, init_seed=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A llama of six layers that has learnt which weather is good."""
    folder = tmp_path_factory.mktemp("text")
    path = write_model(
        folder / "base", num_hidden_layers=6, hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=8
    )
    base = describe(path, resolve(str(path), None, Store(folder / "store")), Base(path=str(path)))
    part = Train(
        method="full", steps=40, sequence_length=64, batch_size=8, learning_rate=3e-3, precision="float32", attention="sdpa",
        compile="off", final_dtype="float32",
    )  # fmt: skip
    splits = {"train": question_rows(120), "validation": question_rows(24, 200)}
    return trained(folder, "text-generation", base, path, part, splits)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An mlp that tells stripes apart."""
    folder = tmp_path_factory.mktemp("image")
    config = architectures.complete({"model_type": "mlp", "hidden_sizes": [48, 32]}, "here")
    base = {"kind": "scratch", "model_type": "mlp", "configuration": config, "files": [], "architecture": None}
    part = Train(
        method="full", steps=150, batch_size=16, optimizer="adam", learning_rate=3e-3, precision="float32", compile="off",
        final_dtype="float32",
    )  # fmt: skip
    splits = {"train": image_rows(240, 1), "validation": image_rows(60, 2)}
    return trained(folder, "image-classification", base, Path(), part, splits)
