"""What the peers built on transformers' Trainer share: a callback that marks the clock and counts the labels learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, tell
from transformers import TrainerCallback

IGNORE = -100


class Marks(TrainerCallback):
    """Marks the clock at the end of every step, and counts at the model's door what its causal loss will learn from."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.labels: list[int] = []  # by step
        self.sizes: list[int] = []
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].register_forward_pre_hook(self.count, with_kwargs=True)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.labels.append(0)
        self.sizes.append(0)

    def count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.labels[-1] += int((kwargs["labels"][:, 1:] != IGNORE).sum())
        self.sizes[-1] += kwargs["input_ids"].numel()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.mark()

    def tell(self, warm: int) -> None:
        """Of the steps after the first `warm` (at least one)."""
        seconds, labels, sizes = sum(self.clock.steps()[warm - 1 :]), self.labels[warm:], sum(self.sizes[warm:])
        tell(
            rate=sum(labels) / seconds, seconds=seconds, labels=sum(labels), steps=len(labels), fill=sum(labels) / sizes
        )


def documents(job: dict[str, Any]) -> list[list[int]]:
    return json.loads((Path(job["work"]) / "documents.json").read_text())


def base(job: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(Path(job["work"]) / "base", dtype=torch.bfloat16)
