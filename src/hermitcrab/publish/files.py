"""Files on their way out: opened once without following a link, counted as they are read, digested as git does."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermitcrab.digest import CHUNK
from hermitcrab.errors import HermitcrabError
from hermitcrab.packaged import File


def open_plain(path: Path) -> io.FileIO:
    """Open a regular file for reading; never through a link.

    Raises:
        HermitcrabError: it is gone, or became a link.
    """
    try:
        return io.FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise HermitcrabError(
            f"{path}: cannot be read: {error.strerror}; it changed since the package was read"
        ) from error


class Counted(io.BufferedReader):
    """A file that tells `seen` what is read of it once `counting` is set; `sent` is the sum, with what was read twice."""

    def __init__(self, path: Path, seen: Callable[[int], None]):
        super().__init__(open_plain(path), CHUNK)
        self.seen, self.counting, self.sent = seen, False, 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.counting:
            self.sent += len(data)
            self.seen(len(data))
        return data


def git_digest(path: Path, file: File) -> str:
    """SHA-1 (hex) of git's blob; the bytes must be those whose sha256 is known.

    Raises:
        HermitcrabError: the file changed.
    """
    blob: Any = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    known = hashlib.sha256()
    with open_plain(path) as handle:
        while chunk := handle.read(CHUNK):
            blob.update(chunk)
            known.update(chunk)
    if known.hexdigest() != file.sha256:
        raise HermitcrabError(f"{path}: changed since the package was read a moment ago")
    return blob.hexdigest()
