"""What the test of every task needs of each: a few rows that look like its real ones, and a recipe that ends in seconds.

One module a task, named as its file in `tasks/`, with `sample(folder) -> Sample`. A task without one fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    """A folder with the recipe `r.yaml` (its run named `sample`) and the rows of `file`, one a line below a header.

    Attributes:
        bad: a line that is no row.
        unseen: puts rows with a class that no training row has into the test source; None where there are no classes.
        nan: puts NaN into a feature; None where there are no numbers. `survives`: such a row is learnt from, else refused.
        label: one of the labels in another script, to be found among the references.
        spoil, single, empty: for files that have no lines.
    """

    folder: Path
    file: str
    bad: str = ""
    unseen: Callable[[], None] | None = None
    nan: Callable[[], None] | None = None
    survives: bool = False
    label: str | None = None
    spoil: Callable[[], None] | None = None
    single: Callable[[], None] | None = None
    empty: Callable[[], None] | None = None
    header: int = 1

    @property
    def path(self) -> Path:
        return self.folder / self.file

    def lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    def write(self, lines: list[str]) -> None:
        self.path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def make_bad(self) -> None:
        self.spoil() if self.spoil else self.write([*self.lines(), self.bad])

    def make_single(self) -> None:
        self.single() if self.single else self.write(self.lines()[: self.header + 1])

    def make_empty(self) -> None:
        self.empty() if self.empty else self.write(self.lines()[: self.header])
