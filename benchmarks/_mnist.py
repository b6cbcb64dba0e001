"""One contender of mnist_epoch.py: `style` of the job says whose loop trains the net of 784-128-64-10 on images in memory.

Everyone gets the same bytes, batches of 64, Adam at 1e-3, cross-entropy, float32; and marks the clock once an epoch.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _measure import Clock, tell
from torch import nn

BATCH, RATE = 64, 1e-3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def scaled(images: np.ndarray, mean: float, std: float) -> torch.Tensor:
    return ((torch.from_numpy(images).float() / 255 - mean) / std)[:, None]


def naive(images: np.ndarray, labels: np.ndarray, epochs: int, clock: Clock, mean: float, std: float) -> float:
    """As tutorials have it: an image at a time from bytes to PIL to tensor, the loss read at every step."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    def to_tensor(image: Any) -> torch.Tensor:
        """The steps of torchvision's ToTensor."""
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        return pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)

    def normalize(tensor: torch.Tensor) -> torch.Tensor:
        """The steps of torchvision's Normalize."""
        tensor = tensor.clone()
        means = torch.as_tensor((mean,), dtype=tensor.dtype, device=tensor.device)
        spreads = torch.as_tensor((std,), dtype=tensor.dtype, device=tensor.device)
        if (spreads == 0).any():
            raise ValueError("a spread of 0")
        return tensor.sub_(means.view(-1, 1, 1)).div_(spreads.view(-1, 1, 1))

    class Images(Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return normalize(to_tensor(Image.fromarray(images[i]))), int(labels[i])

    model = net()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    loader = DataLoader(Images(), BATCH, shuffle=True)
    for _ in range(epochs):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        clock.mark()
    return total / len(images)


def by_hand(images: np.ndarray, labels: np.ndarray, epochs: int, clock: Clock, mean: float, std: float) -> float:
    """Tensors in memory, one permutation an epoch, autograd, fused Adam: what one writes for this net alone."""
    x_all, y_all = scaled(images, mean, std), torch.from_numpy(labels).long()
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    for _ in range(epochs):
        order = torch.randperm(len(x_all))
        x_mixed, y_mixed = x_all[order], y_all[order]
        total = 0.0
        for at in range(0, len(x_all), BATCH):
            y = y_mixed[at : at + BATCH]
            loss = F.cross_entropy(model(x_mixed[at : at + BATCH]), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
        clock.mark()
    return total / len(images)


def lightning(
    images: np.ndarray, labels: np.ndarray, epochs: int, clock: Clock, mean: float, std: float, bare: bool = True
) -> float:
    """Lightning's Trainer with a TensorDataset: at its best, with fused Adam and no logger, bar, checkpoint or summary; or as it
    comes, which logs, keeps checkpoints and shows a bar, as we do."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.total = net(), 0.0

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            if not bare:
                self.log("loss", loss, prog_bar=True)
            self.total += loss.item() * len(batch[1])
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), RATE, fused=bare)

        def on_train_epoch_start(self) -> None:
            self.total = 0.0

        def on_train_epoch_end(self) -> None:
            clock.mark()

    model = Net()
    data = TensorDataset(scaled(images, mean, std), torch.from_numpy(labels).long())
    less = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, **(less if bare else {})
        )
        trainer.fit(model, DataLoader(data, BATCH, shuffle=True))
    return model.total / len(images)


def ours(work: Path, epochs: int, clock: Clock) -> float:
    """The session and the loop of the train stage, with log, TensorBoard, checkpoints and progress as they are."""
    from _ours import Watched

    from hermitcrab.models import architectures
    from hermitcrab.progress import set_quiet
    from hermitcrab.recipe import Train
    from hermitcrab.store import write_json
    from hermitcrab.train.session import Session

    set_quiet(True)
    part = Train.model_validate({"method": "full", "optimizer": "adam", "learning_rate": RATE, "schedule": "constant", "warmup": 0.0,
                                 "clip_norm": None, "batch_size": BATCH, "epochs": float(epochs), "checkpoint_every": 2000})  # fmt: skip
    config = architectures.complete({"model_type": "mlp", "hidden_sizes": [128, 64]}, "here")
    base = {"kind": "scratch", "model_type": "mlp", "configuration": config, "files": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / "job.json", {"task": "image-classification", "part": part.model_dump(mode="json"), "base": base,
                                         "path": ".", "rows": str(work), "seed": 0})  # fmt: skip
        session = Session.open(folder)
        plan, model = session.plan(1)
        session.task = watched = Watched(session.task, Clock())
        model = session.ready(model, plan)
        session.fit(model, plan)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = -(-len(session.examples) // BATCH)
    clock.marks = watched.clock.marks[::steps]
    last = [line for line in log if line["step"] > plan.steps - steps]
    return sum(line["loss"] * line["labels"] for line in last) / sum(line["labels"] for line in last)


def main(job: dict[str, Any]) -> None:
    work, epochs, clock = Path(job["work"]), job["epochs"], Clock()
    if job["style"] == "ours":
        loss = ours(work, epochs + 1, clock)  # the first mark is its beginning, not the first epoch's end
    else:
        images, labels = np.load(work / "images.npy"), np.load(work / "labels.npy")
        styles = {
            "naive": naive, "by hand": by_hand, "lightning": lightning, "lightning, as it comes": partial(lightning, bare=False),
        }  # fmt: skip
        style = styles[job["style"]]
        loss = style(images, labels, epochs + 1, clock, job["mean"], job["std"])
    epoch_seconds = clock.steps()[:epochs]
    tell(seconds=float(np.median(epoch_seconds)), epochs=len(epoch_seconds), loss=loss)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
