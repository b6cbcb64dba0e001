"""One epoch of a small net on 60,000 images: CPU-seconds, beside a naive loop, Lightning's Trainer and a loop written by hand.

    python benchmarks/mnist_epoch.py --json mnist.json

784-128-64-10, ReLU, cross-entropy, Adam 1e-3, batches of 64, float32, one thread; Fashion-MNIST's training images. On a net as
small as this the arithmetic takes under half a second an epoch, so what is measured is what a trainer does around it. Every
contender's epochs after the first are timed, what each does in them (shuffling, log, TensorBoard, checkpoints) included.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _measure import Contender, Environment, alternate, arguments, machine, median, row, table, versions, write

LIGHTNING = Environment(
    "lightning",
    ("torch==2.13.0", "pytorch-lightning==2.6.6", "tensorboard==2.21.0", "numpy==2.4.6"),
    shown=("torch", "pytorch-lightning"),
)
OURS, UNIT = "hermitcrab", "CPU-s / epoch"
# name: style, aim
PEERS = {
    "naive DataLoader loop": ("naive", ">= 3.5"),
    "Lightning, as it comes": ("lightning, as it comes", ">= 2.5"),
    "Lightning, bare, fused Adam": ("lightning", ">= 2.5"),
    "by hand, in memory, fused Adam": ("by hand", "<= 1.1"),
}


def make_rows(work: Path, take: int | None) -> dict[str, float]:
    """The training images as the recipe names them: for us the table of rows that `prepare` leaves, for peers arrays."""
    import pyarrow.parquet as pq

    from hermitcrab.data.images import stack
    from hermitcrab.data.ledger import Ledger
    from hermitcrab.data.rows import read_rows
    from hermitcrab.data.tables import schema, write_rows
    from hermitcrab.recipe import load
    from hermitcrab.references import fetch, resolve
    from hermitcrab.store import Store
    from hermitcrab.tasks.image_classification import ImageClassification

    recipe = load(Path(__file__).parent.parent / "recipes" / "mnist-mlp.yaml")
    source, store = recipe.data.train[0].model_copy(update={"values": {}}), Store(work / "store")
    path = fetch(resolve(source.path, source.sha256, store), store)
    labels = fetch(resolve(str(source.labels), source.labels_sha256, store), store)
    found = list(read_rows(source, path, str(source.sha256), source.path, Ledger("rows"), labels=labels))[:take]
    write_rows(work / "train.parquet", found, schema("image-label"))
    write_rows(work / "validation.parquet", [], schema("image-label"))
    np.save(work / "images.npy", stack((r["image"] for r in found), (r["row_id"] for r in found))[..., 0])
    np.save(work / "labels.npy", np.array([int(r["label"]) for r in found]))
    fitted = ImageClassification.fit(pq.read_table(work / "train.parquet"), {"kind": "scratch"}, work)
    return {"mean": fitted["mean"][0], "std": fitted["std"][0]}


def main() -> None:
    args = arguments(__doc__).parse_args()
    names = args.only or list(PEERS)
    print(machine())
    contenders = [Contender(OURS, sys.executable, "_mnist.py", {"style": "ours"})]
    for name in names:
        style = PEERS[name][0]
        python = LIGHTNING.python(args.peers) if style.startswith("lightning") else sys.executable
        contenders.append(Contender(name, python, "_mnist.py", {"style": style}))
    print(f"{OURS}: {versions(sys.executable, ('torch', 'numpy'))}")
    if any(name.startswith("Lightning") for name in names):
        print(f"Lightning: {versions(LIGHTNING.python(args.peers), LIGHTNING.shown)}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job: dict[str, Any] = {
            "work": folder,
            "epochs": 1 if args.quick else 3,
            **make_rows(work, 20_000 if args.quick else None),
        }

        def told(found: dict[str, list[dict[str, Any]]]) -> None:
            ours = median(found[OURS], "seconds")
            rows[:] = [
                row(
                    f"small net: {UNIT}",
                    OURS,
                    name,
                    ours,
                    median(found[name], "seconds"),
                    UNIT,
                    PEERS[name][1],
                    lower_is_better=True,
                )
                for name in names
            ]
            write(args.json, rows)

        found = alternate(contenders, job, args.runs or (1 if args.quick else 7), args.peers / "logs" / "mnist", told)
    print("loss of the last epoch: " + ", ".join(f"{n} {median(r, 'loss'):.3f}" for n, r in found.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
