"""The ledger: what a stage kept, cut, masked and dropped, by reason. What does not balance raises."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hermitcrab.errors import HermitcrabError


class Ledger:
    """Counts of one unit (`rows`, `tokens`). kept + dropped by reason must equal taken."""

    def __init__(self, unit: str = "rows"):
        self.unit = unit
        self.taken = 0
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()

    def take(self, count: int) -> None:
        self.taken += count

    def keep(self, count: int = 1) -> None:
        self.kept += count

    def drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.dropped[reason] += count

    def change(self, reason: str, count: int = 1) -> None:
        """Kept, but not as it came: cut, masked, normalized, defaulted."""
        if count:
            self.changed[reason] += count

    def merge(self, other: Ledger) -> None:
        """Count what another ledger of the same unit counted."""
        self.taken, self.kept = self.taken + other.taken, self.kept + other.kept
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)

    def balance(self) -> None:
        if self.taken != self.kept + sum(self.dropped.values()):
            raise HermitcrabError(
                f"the ledger of {self.unit} does not balance: taken {self.taken:,}, kept {self.kept:,}, "
                f"dropped {sum(self.dropped.values()):,}; this is a fault of hermitcrab, please report it"
            )

    def as_json(self) -> dict[str, Any]:
        self.balance()
        return {
            "unit": self.unit,
            "taken": self.taken,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "changed": dict(sorted(self.changed.items())),
        }
