"""What a model is made of: tensors before and after they are known."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seen:
    """A tensor before it is known: `turned`: the graph says that rows are inputs (None: no graph)."""

    name: str
    shape: tuple[int, ...]
    turned: bool | None = None


@dataclass(frozen=True)
class Part:
    """A matrix of a model, (out, in) whatever the file's layout: rows `start:stop` along the file's output axis.

    `index`: the place along the first axis of a stack of experts.
    """

    role: str
    layer: int
    tensor: str
    shape: tuple[int, int]
    turned: bool = False
    start: int = 0
    expert: int = -1
    index: int = -1

    @property
    def key(self) -> tuple[int, str, int]:
        return self.layer, self.role, self.expert


@dataclass
class Structure:
    """What was recognized. `spare` are matrices without a role, compared by shape and place alone."""

    parts: list[Part] = field(default_factory=list)
    gains: dict[tuple[int, int], str] = field(default_factory=dict)
    """(layer, 0 before attention or 1 before the MLP) → name of the gain vector; layer -1: the last norm."""
    spare: list[Seen] = field(default_factory=list)
    layers: int = 0
    width: int = 0
    gated: bool = False
    centered: bool = False
    """Norms subtract the mean (they have shifts), so that residual coordinates have no sign to flip."""
    sure_gate: bool = True
    """Which of two twin matrices is the gate is known, not guessed from position."""
    learned_positions: bool = False
    how: str = "names and shapes"

    def of(self, layer: int, role: str) -> list[Part]:
        return [p for p in self.parts if p.layer == layer and p.role == role]
