"""Folders of images and recordings: a row is a file. What it shows or says comes from the name of its folder, a pattern over its
path, a manifest, or annotations with boxes (COCO, Pascal VOC).

Images are stored as PNG of their pixels and recordings as plain WAV, so that equal content is equal bytes; a row is named by the digest of
its file, and by its number among files of the same bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermitcrab.data.files import MEDIA
from hermitcrab.data.images import decode, encode_png
from hermitcrab.data.readers import BadRow, Record, Rows, Table, open_table
from hermitcrab.digest import digest_bytes
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source
from hermitcrab.references import files_below

ENDINGS = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"),
    "audio": (".wav",),
}  # fmt: skip
LARGEST = 1 << 28  # bytes of a file
Cells = dict[str, Any]
Of = Callable[[str, Path], Cells | BadRow]


@contextmanager
def open_media(source: Source, kind: str, folder: Path, labels: Path | None) -> Iterator[Table]:
    """The files of a folder as a table of `image` or `audio`, `file`, and what is known of each.

    Raises:
        HermitcrabError: no file of the kind, a manifest or annotations that cannot be read.
    """
    from hermitcrab.data.sources import boxes

    what = MEDIA[kind]
    if kind == "coco" and labels is not None:
        names, known = boxes.coco(folder, labels, source.labels or "")
        columns = ["objects"]
    elif kind == "voc":
        names, known = boxes.voc(folder, labels, source.labels or "")
        columns = ["objects"]
    else:
        names = [name for name in files_below(folder) if name.lower().endswith(ENDINGS[what])]
        known, columns = _known(source, labels, names)
    if not names:
        raise HermitcrabError(f"{source.path}: has no file of {', '.join(ENDINGS[what])}")

    def rows(only: object) -> Rows:
        seen = Counter[str]()
        for number, name in enumerate(names):
            yield _row(source, what, folder, name, number, known, seen)

    yield Table([what, "file", *columns], rows)


def _row(
    source: Source, what: str, folder: Path, name: str, number: int, known: Of, seen: Counter[str]
) -> Record | BadRow:
    where = f"{source.path}/{name}"
    path = folder / name
    try:
        if path.stat().st_size > LARGEST:
            return BadRow(where, "file too large", f"has over {LARGEST:,} bytes")
        raw = path.read_bytes()
    except OSError as error:
        return BadRow(where, "file that cannot be read", f"cannot be read: {error.strerror}")
    about = known(name, path)
    if isinstance(about, BadRow):
        return about
    try:
        if what == "image":
            pixels, cut = decode(raw, where)
            height, width, channels = pixels.shape
            stored = encode_png(pixels.tobytes(), height, width, channels)
        else:
            from hermitcrab.data.sources.wav import normalized

            stored, cut = normalized(raw, where), []
    except HermitcrabError as error:
        return BadRow(where, f"{what} that cannot be read", str(error).removeprefix(f"{where}: "))
    digest = digest_bytes(raw)
    seen[digest] += 1
    return Record(seen[digest] - 1, where, {what: stored, "file": name, **about}, tuple(cut), digest)


def _known(source: Source, labels: Path | None, names: list[str]) -> tuple[Of, list[str]]:
    """What is known of a file by its path or a manifest, and the columns of that."""
    if labels is not None and source.labels is not None:
        return _manifest(source, labels, names)
    if source.pattern is not None:
        pattern = re.compile(source.pattern)

        def by_pattern(name: str, path: Path) -> Cells | BadRow:
            found = pattern.search(name)
            if found is None:
                told = f"its path does not fit the pattern {source.pattern}"
                return BadRow(f"{source.path}/{name}", "path that does not fit the pattern", told)
            return {key: value or "" for key, value in found.groupdict().items()}

        return by_pattern, list(pattern.groupindex)

    def by_folder(name: str, path: Path) -> Cells | BadRow:
        label, slash, _ = name.partition("/")
        if not slash:
            if source.format in ("image", "audio"):
                return {"label": ""}
            told = "lies in no folder that could name its label; use folders, `pattern` or `labels`"
            return BadRow(f"{source.path}/{name}", "file without a label", told)
        return {"label": label}

    return by_folder, ["label"]


def _manifest(source: Source, labels: Path, names: list[str]) -> tuple[Of, list[str]]:
    from hermitcrab.data.files import kind_of

    name = source.labels or ""
    listed: dict[str, Cells] = {}
    columns = dict[str, None]()
    with open_table(labels, name, kind_of(name)) as table:
        for row in table.read(table.columns or ()):
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, Record):
                continue
            file = row.cells.get("file")
            if not isinstance(file, str):
                raise UsageError(
                    f"{row.where}: expected a column `file`, the path in the folder. It has: {', '.join(row.cells)}"
                )
            if file in listed:
                raise HermitcrabError(f"{row.where}: names {file} a second time")
            listed[file] = {key: value for key, value in row.cells.items() if key != "file"}
            columns |= dict.fromkeys(listed[file])
    lost = sorted(set(listed) - set(names))
    if lost:
        raise HermitcrabError(f"{name}: names {len(lost):,} files that the folder does not have, such as {lost[0]}")

    def of(file: str, path: Path) -> Cells | BadRow:
        if file not in listed:
            return BadRow(f"{source.path}/{file}", "file that the manifest does not name", f"is not named by {name}")
        return listed[file]

    return of, list(columns)
