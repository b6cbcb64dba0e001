"""A task whose loss also asks a teacher: what healing and distillation train with, by the project's one loop.

Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2: the loss of a decision is

    alpha * cost(student, label) + (1 - alpha) * T² * KL(softmax(teacher / T) || softmax(student / T))

where T² keeps the gradients of both parts in proportion whatever the temperature T.

Shapes: N decisions of a batch, V classes or words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hermitcrab.data.packing import IGNORE
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.tasks import Loss, Task

ROOM = 1 << 29  # bytes of teacher's logits that are kept in memory


@dataclass(frozen=True)
class Lesson:
    """A batch, and which examples it is made of."""

    batch: Any
    examples: Any
    rows: np.ndarray


class Taught:
    """A task as the loop calls it; all but the batch and its loss is the plain task's."""

    def __init__(self, task: Task, teacher: nn.Module, temperature: float, alpha: float):
        self.task, self.teacher = task, teacher.eval().requires_grad_(False)
        self.temperature, self.alpha = temperature, alpha
        self.known: _Known | None = None
        task.attach(teacher)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batch(self, examples: Any, rows: np.ndarray) -> Lesson:
        return Lesson(self.task.batch(examples, rows), examples, rows)

    def count(self, lesson: Lesson) -> int:
        return self.task.count(lesson.batch)

    def loss(self, model: nn.Module, lesson: Lesson) -> Loss:
        """The mixed loss of a batch's decisions, in nats, and their count."""
        logits_NV, label_N = self.task.decisions(model, lesson.batch)
        told_NV = self._told(lesson).to(logits_NV.device)
        if told_NV.shape != logits_NV.shape:
            raise HermitcrabError(
                f"compress.distill: the teacher decides among {told_NV.shape[-1]:,}, the student among {logits_NV.shape[-1]:,}"
            )
        t, learnt_N = self.temperature, label_N != IGNORE
        soft_N = F.kl_div(
            (logits_NV.float() / t).log_softmax(-1), (told_NV.float() / t).log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)  # fmt: skip
        hard = self.task.cost(logits_NV, label_N)
        return Loss(self.alpha * hard + (1 - self.alpha) * t * t * (soft_N * learnt_N).sum(), self.count(lesson))

    @torch.no_grad()
    def _told(self, lesson: Lesson) -> torch.Tensor:
        """The teacher's logits of this batch: [N, V]."""
        if self.known is not None and lesson.examples is self.known.examples:
            return self.known.of(lesson.rows)
        return self.task.decisions(self.teacher, lesson.batch)[0]

    def remember(self, examples: Any, seen: int) -> dict[str, Any]:
        """Ask the teacher about every example once, where it would be asked more often and its answers find room.

        Args:
            seen: how many examples the training takes, the same one as often as it comes.

        Returns:
            What is to be told of it.
        """
        counts = np.array([self.task.count(self.task.batch(examples, np.array([i]))) for i in range(len(examples))])
        wide = self._width(examples, counts)
        size = int(counts.sum()) * wide * 4
        told = {"decisions": int(counts.sum()), "bytes": size}
        if seen <= len(examples):
            return {"teacher_asked": "at every batch: no example comes twice", **told}
        if size > ROOM:
            return {"teacher_asked": f"at every batch: its answers would take over {ROOM:,} bytes", **told}
        self.known = _Known(self.task, self.teacher, examples, counts)
        return {"teacher_asked": "once about every example", **told}

    @torch.no_grad()
    def _width(self, examples: Any, counts: np.ndarray) -> int:
        first = np.flatnonzero(counts)[:1]
        return int(self.task.decisions(self.teacher, self.task.batch(examples, first))[0].shape[-1])


class _Known:
    """The teacher's logits (float32) of all examples, one after the other."""

    def __init__(self, task: Task, teacher: nn.Module, examples: Any, counts: np.ndarray):
        self.examples, self.counts = examples, counts
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        size, parts = task.part.batch_size, []  # type: ignore[attr-defined]
        with torch.no_grad(), progress("asking the teacher", len(examples), "examples") as bar:
            for start in range(0, len(examples), size):
                rows = np.arange(start, min(len(examples), start + size))
                parts.append(task.decisions(teacher, task.batch(examples, rows))[0].float().cpu())
                bar.add(len(rows))
        self.logits_MV = torch.cat(parts)

    def of(self, rows: np.ndarray) -> torch.Tensor:
        places = np.concatenate([np.arange(self.starts[r], self.starts[r + 1]) for r in rows])
        return self.logits_MV.index_select(0, torch.from_numpy(places))
