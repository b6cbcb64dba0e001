"""A filter answers which texts go and why, and what it makes of those that stay. One file each; the engine knows only this.

A filter is made once for a run of `prepare`, from its options in the recipe, and called with batches in no known order, in
several processes: what it answers for a text depends on that text and its options alone, so the result depends on neither.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from hermitcrab.data.kernel import Words

FILTERS: dict[str, str] = {
    "normalize": "hermitcrab.data.fold:NormalizeFilter",
    "unicode": "hermitcrab.data.filters.unicode:UnicodeFilter",
    "language": "hermitcrab.data.filters.language:LanguageFilter",
    "quality": "hermitcrab.data.filters.quality:QualityFilter",
    "personal": "hermitcrab.data.filters.personal:PersonalFilter",
}
"""Name in a recipe → `module:Class`, of filters that look at one text at a time. Those that compare texts are the engine's."""


@dataclass(frozen=True)
class Texts:
    """A batch: `text`, large_string [N] without nulls, and the `row_id` of each, string [N]."""

    row_id: pa.Array
    text: pa.Array

    @cached_property
    def words(self) -> Words:
        """The words of the texts; split once for every filter that asks."""
        from hermitcrab.data.kernel import split

        return split(self.text)

    def kept(self, keep_N: np.ndarray) -> Texts:
        """Those that a mask (bool [N]) keeps, with their words where they were split."""
        import pyarrow as pa

        texts = Texts(*(column.filter(pa.array(keep_N)) for column in (self.row_id, self.text)))
        if "words" in self.__dict__:
            texts.__dict__["words"] = self.words.kept(keep_N)
        return texts

    def __len__(self) -> int:
        return len(self.text)


@dataclass
class Outcome:
    """What became of a batch.

    Attributes:
        text: large_string [N], the texts as they are now; None: as they came.
        reasons: [N], why a text goes, the same words for all with the same fault; None for one that stays. Empty: all stay.
        changed: what was done to texts that stay, and to how many (`mojibake mended`: 3).
        found: what was counted in them, of all that came (`email`: 17). Kinds and numbers, never what was found.
    """

    text: pa.Array | None = None
    reasons: Sequence[str | None] = ()
    changed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)


class Filter(Protocol):
    name: ClassVar[str]

    def __init__(self, options: Any): ...

    def __call__(self, texts: Texts) -> Outcome: ...


def make_filter(name: str, options: Any) -> Filter:
    """The filter of that name, with its options as `recipe.filters` checked them."""
    module, _, attribute = FILTERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(options)
