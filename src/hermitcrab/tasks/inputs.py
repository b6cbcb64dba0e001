"""What a user names as input: texts from the command line, standard input or files; images from files, folders or IDX."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hermitcrab.data.files import kind_of
from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import BadRow, Record, flaw, open_table
from hermitcrab.data.reading import read_rows
from hermitcrab.data.rows import Shape
from hermitcrab.data.tables import dump_json
from hermitcrab.errors import UsageError
from hermitcrab.recipe import Source

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
LARGEST = 1 << 28  # bytes of an image on standard input


def texts(words: Iterable[str], column: str) -> list[str]:
    """The texts that the words mean: themselves, `-` the lines of standard input, `@FILE` a column of a data file.

    Raises:
        UsageError, HermitcrabError: an empty text, bytes that are no text, a file that cannot be read.
    """
    found: list[str] = []
    for word in words:
        if word == "-":
            lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").splitlines()
            found += [_sound(line, f"standard input, line {number:,}") for number, line in enumerate(lines, 1)]
        elif word.startswith("@"):
            found += _column(word[1:], column)
        else:
            found.append(_sound(word, f"input {len(found) + 1:,}"))
    if not found:
        raise UsageError("there is no input; give texts, `-` for lines of standard input, or @FILE")
    return found


def _sound(text: str, where: str) -> str:
    if wrong := flaw(text):
        raise UsageError(f"{where}: holds {wrong}; expected UTF-8 text")
    if not text.strip():
        raise UsageError(f"{where}: is empty")
    return text


def _column(name: str, column: str) -> list[str]:
    path = _file(name)
    # The reader of every source; nothing is made of these rows that a license could bind.
    source = Source(path=name, license="LicenseRef-not-asked", format="text", columns={"text": column})
    return [row["text"] or "" for row in read_rows(source, path, "", name, Ledger("rows"))]


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"{name}: no such file")
    return path


def files(words: Sequence[str]) -> list[tuple[str, bytes]]:
    """The bytes of the files that the words mean, each with its name: files, those of a folder, `-` one on standard input.

    Raises:
        UsageError: no such file, a folder without files.
    """
    found: list[tuple[str, bytes]] = []
    for word in words:
        path = Path(word).expanduser()
        if word == "-":
            found.append(("standard input", _standard_input()))
        elif path.is_dir():
            here = sorted(p for p in path.iterdir() if p.is_file())
            if not here:
                raise UsageError(f"{word}: has no files")
            found += [(str(p), p.read_bytes()) for p in here]
        else:
            found.append((word, _file(word).read_bytes()))
    return found


def jsons(words: Sequence[str]) -> list[str]:
    """The JSON texts that the words mean: themselves, `-` the lines of standard input, `@FILE` the records of a CSV, TSV, JSON lines or
    Parquet file (a number where a cell is one, null where it is missing).

    Raises:
        UsageError, HermitcrabError: what is no JSON object or list, a file that cannot be read.
    """
    found: list[str] = []
    for word in words:
        if word.startswith("@"):
            found += _records(word[1:])
            continue
        lines = _standard_input().decode("utf-8", "replace").splitlines() if word == "-" else [word]
        for line in lines:
            try:
                value = json.loads(line)
                if not isinstance(value, dict | list):
                    raise ValueError("neither an object nor a list")
                found.append(dump_json(value))
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"input {len(found) + 1:,}: expected a JSON object or list, `-` or @FILE: {error}"
                ) from error
    if not found:
        raise UsageError("there is no input; give JSON, `-` for lines of standard input, or @FILE")
    return found


def _records(name: str) -> list[str]:
    path = _file(name)
    # Every column is one of the record: which of them the model looks at, its task knows.
    with open_table(path, name, kind_of(name, "auto")) as table:
        columns = table.columns
        read = table.read(columns or ())
        shape = Shape(
            Source(path=name, license="LicenseRef-not-asked", format="tabular", columns={"target": "{{}}"}), columns
        )
        rows = []
        for record in read:
            if isinstance(record, BadRow):
                raise record
            if isinstance(record, Record):
                rows.append(shape.row(record)["record"])
    return rows


def _standard_input() -> bytes:
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UsageError(f"standard input: is over {LARGEST:,} bytes")
    return data


def images(words: Sequence[str]) -> list[tuple[str, bytes]]:
    """The images that the words mean, each with its name: files, the images of a folder, `-` one on standard input, `@FILE` IDX.

    Raises:
        UsageError, HermitcrabError: no such file, a folder without images, a file that cannot be read.
    """
    found: list[tuple[str, bytes]] = []
    for word in words:
        path = Path(word).expanduser()
        if word == "-":
            found.append(("standard input", _standard_input()))
        elif word.startswith("@"):
            from hermitcrab.data.idx import read_images

            found += read_images(_file(word[1:]), word[1:])
        elif path.is_dir():
            here = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in IMAGES)
            if not here:
                raise UsageError(f"{word}: has no images ({', '.join(IMAGES)})")
            found += [(str(p), p.read_bytes()) for p in here]
        else:
            found.append((word, _file(word).read_bytes()))
    if not found:
        raise UsageError(f"{', '.join(words)}: holds no image")
    return found
