"""How a training in `compress` goes, in the words of `train`: healing after a cut, and a student's. Torch-free, for estimates."""

from __future__ import annotations

from dataclasses import dataclass

from hermitcrab.recipe import Compress, Distill, Prune, Train


@dataclass(frozen=True)
class Lessons:
    """
    Attributes:
        epochs, steps: as in `train`; `steps` overrides.
        temperature, alpha: of the uncompressed model's lessons; without a temperature it is not asked.
        zeros: names of weights whose zeros stay zero.
    """

    steps: int | None
    learning_rate: float
    batch_size: int
    epochs: float = 1.0
    temperature: float | None = None
    alpha: float = 0.5
    zeros: tuple[str, ...] = ()

    @classmethod
    def of_healing(cls, part: Prune, zeros: tuple[str, ...] = ()) -> Lessons:
        heal = part.heal
        temperature = heal.temperature if heal.distill else None
        return cls(
            heal.steps, heal.learning_rate, heal.batch_size, temperature=temperature, alpha=heal.alpha, zeros=zeros
        )

    @classmethod
    def of_student(cls, part: Distill) -> Lessons:
        return cls(part.steps, part.learning_rate, part.batch_size, part.epochs, part.temperature, part.alpha)

    def train(self, part: Train) -> Train:
        """The recipe's training with these settings: all weights, to the planned end."""
        return Train.model_validate({
            **part.model_dump(), "method": "full", "steps": self.steps, "epochs": self.epochs, "learning_rate": self.learning_rate,
            "batch_size": self.batch_size, "accumulate": 1, "validate_every": 0, "patience": None, "compile": "off", "profile": False,
        })  # fmt: skip


def trainings(part: Compress, train: Train, cuts: int) -> list[Train]:
    """What is trained in `compress`: each of so many cut models heals, and the student learns."""
    found = []
    if part.prune and part.prune.heal.steps:
        found += [Lessons.of_healing(part.prune).train(train)] * cuts
    if part.distill:
        found.append(Lessons.of_student(part.distill).train(train))
    return found
