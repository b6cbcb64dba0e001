"""Models asked rows: loaded from exactly the bytes that were sealed, their answers kept on disk so that none is asked twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import digest_bytes
from hermitcrab.progress import say
from hermitcrab.recipe import Evaluate, Train
from hermitcrab.store import Artifact, process_cpu, write_atomic
from hermitcrab.tasks import Start, Task, make_task

if TYPE_CHECKING:
    import pyarrow as pa


class Keeper:
    """Answers on disk, so that none is asked for twice; with the CPU-seconds that they took."""

    def __init__(self, folder: Path, stage: str):
        self.folder, self.stage = folder, stage

    def get(self, name: str, split: str, make: Callable[[], pa.Table]) -> pa.Table:
        import io

        import pyarrow.parquet as pq

        path = self.folder / f"{digest_bytes(f'{name}/{split}'.encode())[7:23]}.parquet"
        if not path.exists():
            say(f"{self.stage}: {name}, {split} rows")
            sink = io.BytesIO()
            pq.write_table(make(), sink)
            write_atomic(path, sink.getvalue())
        return pq.read_table(path)


def base_start(base: dict[str, Any], path: Path, trained: Artifact) -> Start:
    return Start(base, path, trained.facts.get("init", {}).get("seed"), trained.read("training.json")["fitted"])


def derived_start(base: dict[str, Any], trained: Artifact) -> Start:
    """The merged weights that `train` sealed."""
    files = [
        {**f, "path": f["path"].removeprefix("model/")}
        for f in trained.manifest["files"]
        if f["path"].startswith("model/")
    ]
    fitted = trained.read("training.json")["fitted"]
    return Start({**base, "kind": "safetensors", "files": files}, trained.payload / "model", None, fitted)


def load(name: str, start: Start, train: Train, dtype: str) -> tuple[Task, Any]:
    """Task and model, in that precision, on the device that there is."""
    import torch

    task = make_task(name, start, train)
    torch.manual_seed(0)
    model = task.model(getattr(torch, dtype))
    return task, model.to("cuda") if torch.cuda.is_available() else model


def ask(task: Task, model: Any, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
        size: int | None = None) -> pa.Table:  # fmt: skip
    """Answers, with the CPU-seconds that they took in the table's metadata."""
    before = process_cpu()
    table = task.predict(model, rows, part, shots, size)
    return table.replace_schema_metadata({**table.schema.metadata, "cpu_seconds": str(process_cpu() - before)})
