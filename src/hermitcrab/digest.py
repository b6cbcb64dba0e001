"""Digests: `sha256:<hex>` of bytes, of files, of JSON in canonical form (RFC 8785), of trees of files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CHUNK = 1 << 22


def digest_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """`value` in JSON Canonicalization Scheme (RFC 8785): one value, one byte string.

    Raises:
        rfc8785.CanonicalizationError: for NaN, infinities and integers beyond 2**53.
    """
    import rfc8785

    return rfc8785.dumps(value)


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value))


def digest_file(path: str | Path, seen: Callable[[int], object] | None = None) -> str:
    """The digest of a file's bytes; `seen` is told of every chunk's length, for progress."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
            if seen is not None:
                seen(len(chunk))
    return "sha256:" + state.hexdigest()


def tree_files(folder: Path) -> list[str]:
    """Relative POSIX paths of every regular file below `folder`, sorted. Links are not followed."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def describe_files(
    folder: Path, names: Iterable[str], seen: Callable[[int], object] | None = None
) -> list[dict[str, Any]]:
    """`{path, sha256, size}` for each name below `folder`."""
    return [
        {"path": name, "sha256": digest_file(folder / name, seen), "size": (folder / name).stat().st_size}
        for name in names
    ]


def short(digest: str) -> str:
    """A digest for people: the first 12 hex digits."""
    return digest.removeprefix("sha256:")[:12]
