"""The recipe's steps in passes: filters of one text run together, and rows are compared between two passes, on keys alone.

A pass ends where a step compares rows; the next begins where a filter looks at texts again. Most recipes are one pass over the texts and
one that writes. `Cleaning.run` ends with a census that says which rows stay, in which split, and a scratch that has their texts.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hermitcrab.data import census as compare
from hermitcrab.data import contamination, lines, near, split
from hermitcrab.data.census import Census
from hermitcrab.data.engine import Engine
from hermitcrab.data.filters import FILTERS
from hermitcrab.data.scratch import RANKS, Scratch, own_columns
from hermitcrab.data.segment import Piece, Segment
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Part, Split
from hermitcrab.recipe.clean import Decontaminate, LineDedup, NearDedup

if TYPE_CHECKING:
    import pyarrow as pa

BUCKET = 8 << 20  # bytes of text in a bucket, about


@dataclass
class Group:
    """What one pass does: lines that go, filters of one text, then comparisons on keys, in order."""

    line_dedup: LineDedup | None = None
    filters: list[tuple[str, Part]] = field(default_factory=list)
    compare: list[tuple[str, Part]] = field(default_factory=list)


def grouped(listed: Sequence[tuple[str, Part]]) -> list[Group]:
    """The recipe's steps in passes."""
    groups = [Group()]
    for name, options in listed:
        if name in FILTERS:
            if groups[-1].compare:
                groups.append(Group())
            groups[-1].filters.append((name, options))
        elif isinstance(options, LineDedup):
            groups[-1].compare.append((name, options))
            groups.append(Group(options))
        else:
            groups[-1].compare.append((name, options))
    return groups


@dataclass
class Cleaning:
    """One run of all steps.

    Attributes:
        told: of the split, what was asked and got; None before it is made.
        names: what the bits of `_changed` stand for.
        filters: what each filter counted, in texts.
        evidence: of contamination, where n-grams were asked for.
    """

    format: str
    listed: Sequence[tuple[str, Part]]
    form: Literal["NFC", "NFKC"]
    split: Split
    take: int | None
    work: Path
    engine: Engine
    told: dict[str, Any] | None = None
    names: list[str] = field(default_factory=list)
    filters: list[dict[str, Any]] = field(default_factory=list)
    evidence: pa.Table | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, files: Mapping[str, Path]) -> tuple[Census, Scratch]:
        """Clean, split, draw and prove. `files`: the rows of each split that was collected."""
        given = list(files)
        census: Census | None = None
        scratch: Scratch | None = None
        pieces, size = _row_groups(files)
        buckets = max(1, -(-size // BUCKET))
        self.facts["engine"] = self.engine.name
        _clear(self.work)
        split.check_columns(self.split, own_columns(self.format))
        groups = grouped(self.listed)
        for number, group in enumerate(groups):
            segment = self._segment(number, groups, buckets, scratch, given)
            if scratch is not None:
                pieces = [Piece(bucket) for bucket in range(buckets)]
            before, scratch = scratch, self._pass(segment, pieces)
            census = Census.read(scratch.all("keys"), scratch.all("gone"), census)
            self._tell(group, scratch)
            for name, options in group.compare:
                self._compare(name, options, census, scratch, given)
            census.save(scratch.folder)
            if before is not None:
                before.folder.rename(before.folder.with_name(f"gone-{number}"))  # whole or not at all
                _clear(self.work)
        if census is None or scratch is None:
            raise HermitcrabError("no pass was made")
        self._hold_out(census, given)
        if self.take is not None:
            split.take(census, self.take)
        split.prove_apart(census, self._proof)
        return census, scratch

    @property
    def _proof(self) -> str:
        return "fold" if any(name == "decontaminate" for name, _ in self.listed) else "plain"

    def _segment(
        self, number: int, groups: Sequence[Group], buckets: int, before: Scratch | None, given: Collection[str]
    ) -> Segment:
        group, last = groups[number], number == len(groups) - 1
        names = [name for name, _ in group.compare]
        near_dedup = next((options for _, options in group.compare if isinstance(options, NearDedup)), None)
        line_dedup = next((options for _, options in group.compare if isinstance(options, LineDedup)), None)
        wants = {"exact"} if "exact-dedup" in names else set()
        drawn = any(getattr(self.split, name) for name in ("test", "validation") if name not in given)
        drawn = drawn and self.told is None and (last or "decontaminate" in names)
        by, within = (self.split.by, self.split.within) if drawn else (None, None)
        if drawn and by is None:
            wants.add("group")
        if "decontaminate" in names:
            wants.add("fold")
        if last:
            wants |= {self._proof} | ({"take"} if self.take is not None else set())
        return Segment(
            format=self.format, out=str(self.work / f"pass-{number}"), buckets=buckets, steps=tuple(group.filters), bit=len(self.names),
            wants=frozenset(wants), form=self.form, seed=self.split.seed, by=by, within=within, near=near_dedup, before=before,
            line_dedup=group.line_dedup, compare_lines=line_dedup,
        )  # fmt: skip

    def _pass(self, segment: Segment, pieces: list[Piece]) -> Scratch:
        folder = Path(segment.out)
        folder.mkdir(parents=True, exist_ok=True)
        names = ", ".join(name for name, _ in segment.steps) or ("repeated lines" if segment.line_dedup else "reading")
        self.engine.each(segment, pieces, names)
        rows = [folder / f"rows-{task:06d}.arrow" for task in range(len(pieces))]
        return Scratch(folder, [[(path, bucket) for path in rows] for bucket in range(segment.buckets)], len(pieces))

    def _tell(self, group: Group, scratch: Scratch) -> None:
        """What the filters of a pass counted, all tasks together."""
        counts = {name: {"changed": Counter[str](), "found": Counter[str]()} for name, _ in group.filters}
        cut = 0
        for told in scratch.told():
            cut += told["lines"]
            for its in told["filters"]:
                for kind, count in counts[its["name"]].items():
                    count.update(its[kind])
        if group.line_dedup is not None:
            self.names.append("line-dedup")
            self.filters.append({"name": "line-dedup", "changed": {"lines that went": cut}, "found": {}})
        self.names += [name for name, _ in group.filters]
        self.filters += [
            {"name": name, **{kind: dict(sorted(count.items())) for kind, count in its.items()}}
            for name, its in counts.items()
        ]

    def _compare(self, name: str, options: Part, census: Census, scratch: Scratch, given: Collection[str]) -> None:
        if isinstance(options, NearDedup):
            self.facts["near-dedup"] = near.resolve(census, scratch, self.format, options, self.engine.each)
        elif isinstance(options, LineDedup):
            lines.resolve(census).save(scratch.folder)
        elif isinstance(options, Decontaminate):
            self._hold_out(census, given)
            compare.decontaminate(census)
            if options.ngram is not None:
                self.evidence = contamination.resolve(census, scratch, self.format, options, self.engine.each)
        else:
            compare.exact(census, self.format)

    def _hold_out(self, census: Census, given: Collection[str]) -> None:
        if self.told is None:
            self.told = split.hold_out(census, self.split, given)


def _row_groups(files: Mapping[str, Path]) -> tuple[list[Piece], int]:
    """Every row group of the collected rows, and how many bytes they are, unpacked."""
    import pyarrow.parquet as pq

    pieces, size = list[Piece](), 0
    for name, path in files.items():
        found = pq.read_metadata(path)
        for number in range(found.num_row_groups):
            pieces.append(Piece(number, str(path), RANKS.index(name)))
            size += found.row_group(number).total_byte_size
    return pieces, size


def _clear(work: Path) -> None:
    for stale in work.glob("gone-*"):
        shutil.rmtree(stale)


def bytes_of(files: Mapping[str, Path]) -> int:
    return _row_groups(files)[1]
