"""The loop: plain torch, every task, one process or several.

- A loss is a sum and a count; a step divides by the count of all its micro-batches on all ranks, so accumulation, several
  processes and a ragged last batch give the same gradient as one large batch.
- Which rows a step takes, and what dropout draws in it, are pure functions of (seed, step, rank): a resumed run asks for step k
  and gets what an undisturbed run would have had.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from hermitcrab.data.packing import step_rows
from hermitcrab.errors import Diverged, HermitcrabError
from hermitcrab.progress import Progress, progress
from hermitcrab.recipe import Train
from hermitcrab.train import checkpoint
from hermitcrab.train.plan import Plan
from hermitcrab.train.profiling import Profiler, profiled

LOGGED = 200  # lines of the log, about as many at most: a small model's step is shorter than telling of it
SHOWN_EVERY = 0.25  # seconds between points in TensorBoard, which costs half a millisecond each


@dataclass
class State:
    """What a checkpoint says besides tensors."""

    step: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    validation: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float = math.inf
    labels: int = 0
    stopped: str = "planned"
    unlogged: list[float] = field(
        default_factory=lambda: [0.0, 0]
    )  # loss summed, and labels, since the last line of the log

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        return cls(**{**value, "best_loss": math.inf if value["best_loss"] is None else value["best_loss"]})


def learning_rate(part: Train, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warm-up, then cosine, linear or constant."""
    warm = round(part.warmup * steps)
    if step < warm:
        return part.learning_rate * (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)
    if part.schedule == "constant":
        return part.learning_rate
    if part.schedule == "linear":
        return part.learning_rate * left
    return part.learning_rate * 0.5 * (1 + math.cos(math.pi * (1 - left)))


def make_optimizer(model: nn.Module, part: Train) -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), Adam (Kingma & Ba 2015, arXiv:1412.6980) or SGD.
    Vectors (norms, biases) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": 0.0}]
    if part.weight_decay:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": part.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    groups = [g for g in groups if g["params"]]
    if part.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=part.learning_rate, momentum=part.momentum or 0.0, fused=True)
    kind = torch.optim.AdamW if part.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=part.learning_rate, fused=True)


@dataclass(frozen=True)
class Ranks:
    """Who we are among the processes of this run."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Ranks:
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def sum(self, *values: float) -> list[float]:
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.double)  # on the CPU: the group has gloo for it, beside nccl
        dist.all_reduce(total)
        return total.tolist()

    def shares(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        """This rank's micro-batches of a step: rows dealt out in turn, cut to `size`; empty where others have one more."""
        longest = len(rows[0 :: self.world])
        mine = rows[self.rank :: self.world]
        return [mine[i : i + size] for i in range(0, longest, size)]


class Fit:
    """One training: a model, its examples and a folder for checkpoints and log."""

    def __init__(
        self, task: Any, model: nn.Module, part: Train, plan: Plan, folder: Path, examples: Any, validation: Any
    ):
        self.task, self.part, self.plan, self.folder = task, part, plan, folder
        self.examples, self.validation = examples, validation
        self.ranks = Ranks.here()
        self.module = model
        self.model = nn.parallel.DistributedDataParallel(model) if self.ranks.world > 1 else model
        self.optimizer = make_optimizer(model, part)
        self.state = State()
        self.profiler = Profiler()
        self.device = next(model.parameters()).device
        self.learnable = [p for p in model.parameters() if p.requires_grad]
        self.log_every = max(1, -(-plan.steps // LOGGED))
        self.shown = 0.0

    def run(self, mark: Callable[[], None] = lambda: None) -> State:
        """Train to the planned step, or from the last checkpoint to there. `mark` is called at each checkpoint."""
        if saved := checkpoint.load(self.folder / "checkpoints", self.module, self.optimizer):
            self.state = State.from_json(saved)
        state, steps = self.state, self.plan.steps
        log = self._open_log() if self.ranks.rank == 0 else None
        board = self._open_board() if self.ranks.rank == 0 else None
        with (
            progress("train", steps, "steps", state.step) as bar,
            profiled(self.part.profile, self.folder / "tensorboard", state.step, steps, self.part.accumulate,
                     self.ranks.rank) as self.profiler,
        ):  # fmt: skip
            self._steps(log, board, bar, mark)
        if self.part.patience is not None and state.best_step is not None:
            checkpoint.load_learnt(self.folder / "best.safetensors", self.module)
        if log is not None and board is not None:
            log.close()
            board.close()
        return state

    def _steps(self, log: Any, board: Any, bar: Progress, mark: Callable[[], None]) -> None:
        state, steps = self.state, self.plan.steps
        while state.step < steps and state.stopped == "planned":  # a failed step is counted, and never saved
            state.step += 1
            tell = self._due(self.log_every) or self._due(self.part.checkpoint_every)
            told = self._step(state.step - 1, tell)
            state.loss_last = told["loss"]
            state.loss_first = told["loss"] if state.loss_first is None else state.loss_first
            state.labels += told["labels"]
            state.unlogged = [state.unlogged[0] + told["loss"] * told["labels"], state.unlogged[1] + told["labels"]]
            if self.validation is not None and self._due(self.part.validate_every):
                told["validation_loss"] = self._validate()
            if "validation_loss" in told or self._due(self.log_every) or state.stopped != "planned":
                self._log(log, board, told)
            if state.step % self.part.checkpoint_every == 0 or state.step == steps or state.stopped != "planned":
                if log is not None:
                    log.flush()
                self._save()
                mark()
            bar.add(1, f"loss {told['loss']:.3f}")
            self.profiler.step()

    def _log(self, log: Any, board: Any, told: dict[str, Any]) -> None:
        """A line for the steps since the last one: their mean loss, weighted by labels, and how the last of them went."""
        state = self.state
        total, labels = state.unlogged
        state.unlogged = [0.0, 0]
        if log is None or board is None:
            return
        told = {**told, "loss": total / labels, "labels": labels} if labels != told["labels"] else told
        log.write(json.dumps({"step": state.step, **told}, sort_keys=True) + "\n")  # on disk with the next checkpoint
        now = time.monotonic()
        if "validation_loss" in told or now - self.shown >= SHOWN_EVERY or state.step == self.plan.steps:
            self.shown = now
            for name, value in told.items():
                board.add_scalar(name, value, state.step)

    def _step(self, step: int, tell: bool) -> dict[str, Any]:
        """One optimizer step. The gradient's norm is known where it is clipped, and where the step is told of or kept."""
        part, ranks = self.part, self.ranks
        rows = step_rows(len(self.examples), self.plan.rows_per_step, step, part.seed)
        shares = ranks.shares(rows, part.batch_size)
        # Where other ranks have one more, the first row is run for nothing: gradients of all are summed together.
        batches = [self.task.batch(self.examples, share if len(share) else rows[:1]) for share in shares]
        counts = [self.task.count(b) for b, share in zip(batches, shares, strict=True) if len(share)]
        total = int(ranks.sum(sum(counts))[0])
        if total == 0:
            raise HermitcrabError(f"step {step + 1} has no label to learn; raise train.batch_size or train.accumulate")
        rate = learning_rate(part, step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.model.training:
            self.model.train()
        loss_sum = 0.0
        for number, batch in enumerate(batches):
            seed_all(hash_seed(part.seed, step, number, ranks.rank), self.device)
            last = number == len(batches) - 1
            quiet = nullcontext() if last or ranks.world == 1 else self.model.no_sync()
            with quiet:
                with self._autocast():
                    loss = self.task.loss(self.model, batch).sum
                    loss = loss if len(shares[number]) else loss * 0
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise Diverged(self._not_finite(step, number, shares[number], f"loss is {value}"))
                loss_sum += value
                # DDP averages over ranks; the sum is what we mean
                loss.backward(torch.full_like(loss, ranks.world / total))
        told = {"loss": ranks.sum(loss_sum)[0] / total, "labels": total, "learning_rate": rate}
        if part.clip_norm is not None or tell:
            told["gradient_norm"] = norm = self._norm()
            if not math.isfinite(norm):
                raise Diverged(self._not_finite(step, 0, rows, f"gradient norm is {norm}"))
        self.optimizer.step()
        for parameter in self.learnable:
            parameter.grad = None
        return told

    def _norm(self) -> float:
        """Of the whole gradient, before it is clipped."""
        if self.part.clip_norm is not None:
            return float(nn.utils.clip_grad_norm_(self.learnable, self.part.clip_norm))
        return float(nn.utils.get_total_norm([p.grad for p in self.learnable if p.grad is not None]))

    def _autocast(self) -> Any:
        if self.plan.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _not_finite(self, step: int, number: int, rows: np.ndarray, what: str) -> str:
        names = self.examples.row_ids(rows)
        return (
            f"step {step + 1}, micro-batch {number + 1}: {what}. Its rows are {', '.join(names[:20])}"
            f"{f' and {len(names) - 20} more' if len(names) > 20 else ''} (or those of the step before). "
            "Lower train.learning_rate, set train.clip_norm, "
            "or look at these rows; the last checkpoint is kept"
        )

    def _due(self, every: int) -> bool:
        return self.state.step == self.plan.steps or (every > 0 and self.state.step % every == 0)

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss over the validation rows; remembers the best step and stops when patience is over."""
        self.model.eval()
        loss_sum, count = 0.0, 0
        mine = np.arange(len(self.validation))[self.ranks.rank :: self.ranks.world]
        for start in range(0, len(mine), self.part.batch_size):
            batch = self.task.batch(self.validation, mine[start : start + self.part.batch_size])
            with self._autocast():
                loss = self.task.loss(self.module, batch)
            loss_sum, count = loss_sum + float(loss.sum), count + loss.count
        loss_sum, total = self.ranks.sum(loss_sum, count)
        mean, state = loss_sum / max(1, total), self.state
        if not math.isfinite(mean):
            raise Diverged(
                f"after step {state.step} the loss over the validation rows is {mean}. Lower train.learning_rate or set "
                "train.clip_norm; the last checkpoint is kept"
            )
        state.validation.append({"step": state.step, "loss": mean})
        if mean < state.best_loss:
            state.best_loss, state.best_step = mean, state.step
            if self.part.patience is not None and self.ranks.rank == 0:
                checkpoint.save_learnt(self.folder / "best.safetensors", self.module)
        elif self.part.patience is not None:
            seen = [v["step"] for v in state.validation]
            if len(seen) - 1 - seen.index(state.best_step or 0) >= self.part.patience:
                state.stopped = "early"
        return mean

    def _save(self) -> None:
        if self.ranks.rank == 0:
            checkpoint.save(self.folder / "checkpoints", self.module, self.optimizer, self.state.as_json())
        if self.ranks.world > 1:
            dist.barrier()

    def _open_log(self) -> Any:
        """The log, cut back to the checkpoint that we go on from."""
        path = self.folder / "log.jsonl"
        kept = []
        if path.exists():
            kept = [
                line
                for line in path.read_text().splitlines()
                if line.endswith("}") and json.loads(line)["step"] <= self.state.step
            ]
        path.write_text("".join(line + "\n" for line in kept))
        return open(path, "a")

    def _open_board(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.state.step + 1)


def hash_seed(*values: int) -> int:
    """One 63-bit seed of several numbers, by the mixing of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2714064.2660195)."""
    mixed = 0
    for value in values:
        mixed = (mixed + value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def seed_all(seed: int, device: torch.device) -> None:
    """As torch.manual_seed for the devices at hand; that one keeps a stack trace a call for devices that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
