"""All that was measured between a suspect and one base."""

from __future__ import annotations

from dataclasses import dataclass, field

from hermitcrab.trace.aligned import Alignment
from hermitcrab.trace.chain import Channels
from hermitcrab.trace.digests import Copies
from hermitcrab.trace.exact import Exact, Group
from hermitcrab.trace.mapping import Mapped
from hermitcrab.trace.model import Model
from hermitcrab.trace.neurons import Block


@dataclass
class Pair:
    """All that was measured between the suspect and one base."""

    base: Model
    exact: Exact
    suspect: Model
    """With the roles that it was given for this base."""
    copies: Copies | None = None
    alignments: list[Alignment] = field(default_factory=list)
    ours: list[Block] = field(default_factory=list)
    theirs: list[Block] = field(default_factory=list)
    mapped: list[Mapped] = field(default_factory=list)
    channels: Channels | None = None
    """Hidden units of models without blocks."""
    deflated: list[Group] = field(default_factory=list)
    deflated_by: str = ""
    told: list[tuple[str, str, float, float]] = field(default_factory=list)
    chosen: bool = False
    borrowed: bool = False
    sampled: bool = False
    layers: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_read: int = 0

    @property
    def best(self) -> Alignment | None:
        return self.alignments[0] if self.alignments else None
