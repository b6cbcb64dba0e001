"""What a user names as input: texts from the command line, standard input or files; images from files, folders or IDX."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import flaw
from hermitcrab.data.rows import read_rows
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


def images(words: Sequence[str]) -> list[tuple[str, bytes]]:
    """The images that the words mean, each with its name: files, the images of a folder, `-` one on standard input, `@FILE` IDX.

    Raises:
        UsageError, HermitcrabError: no such file, a folder without images, a file that cannot be read.
    """
    found: list[tuple[str, bytes]] = []
    for word in words:
        path = Path(word).expanduser()
        if word == "-":
            data = sys.stdin.buffer.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise UsageError(f"standard input: is over {LARGEST:,} bytes; expected one image")
            found.append(("standard input", data))
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
