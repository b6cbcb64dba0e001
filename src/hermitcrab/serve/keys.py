"""API keys: only their hashes are kept, every comparison takes the same time, each key has limits of its own.

A key that `crab apikey` makes has 256 random bits, so one round of SHA-256 is as good as any slow hash: there is nothing to guess.
The file is JSON: {"keys": [{"name", "sha256", "requests_per_minute", "concurrent"}]}; only its owner may read it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.serve.requests import Refusal
from hermitcrab.store import write_atomic

PREFIX = "crab-"
LONGEST = 1024  # bytes of a key that somebody sends


@dataclass
class Key:
    """One key. `None` is no limit.

    Attributes:
        hash: SHA-256 of the key.
        allowance: requests that may be made at once, filled up evenly over a minute.
    """

    name: str
    hash: bytes
    requests_per_minute: int | None = None
    concurrent: int | None = None
    running: int = 0
    allowance: float = field(init=False)
    filled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.allowance = float(self.requests_per_minute or 0)

    @contextmanager
    def use(self, now: float | None = None) -> Iterator[None]:
        """One request by this key.

        Raises:
            Refusal: 429, with the time after which it is in its limits again.
        """
        if self.concurrent is not None and self.running >= self.concurrent:
            raise Refusal(
                429,
                f"the key `{self.name}` has {self.running} requests running, its limit",
                None,
                "concurrency_limit",
                1,
            )
        if self.requests_per_minute is not None:
            now = time.monotonic() if now is None else now
            rate = self.requests_per_minute / 60
            self.allowance = min(float(self.requests_per_minute), self.allowance + (now - self.filled) * rate)
            self.filled = now
            if self.allowance < 1:
                message = f"the key `{self.name}` may make {self.requests_per_minute:,} requests a minute"
                raise Refusal(429, message, None, "rate_limit_exceeded", (1 - self.allowance) / rate)
            self.allowance -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class Keys:
    """All keys of a server; none: everybody may ask."""

    def __init__(self, keys: Sequence[Key] = ()):
        self.keys = list(keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, authorization: bytes) -> Key | None:
        """The key of a header `Bearer …`. Each is compared, whole, whichever fits: nothing is learnt from the time it takes."""
        scheme, _, given = authorization.partition(b" ")
        hashed = hashlib.sha256(given[:LONGEST].strip()).digest()
        found = None
        for key in self.keys:
            same = hmac.compare_digest(key.hash, hashed)
            found = key if same else found
        return found if hmac.compare_digest(scheme.lower(), b"bearer") and len(given) <= LONGEST else None


def read_keys(references: Sequence[str], file: Path | None) -> Keys:
    """Those of `--api-key env:NAME` and of `--api-keys FILE`.

    Raises:
        UsageError: no such variable or file, or one that holds no keys.
    """
    found = [Key(reference.removeprefix("env:"), _hash(_variable(reference))) for reference in references]
    found += [] if file is None else [_key(part, file) for part in _read(file)]
    names = [key.name for key in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two API keys are named `{name}`")
    return Keys(found)


def make_key(name: str, file: Path, requests_per_minute: int | None, concurrent: int | None) -> str:
    """A new key, whose hash is added to the file. It is told once and kept nowhere.

    Raises:
        UsageError: a name that is taken or none.
    """
    if not re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", name):
        raise UsageError(f"a key's name has 1 to 64 letters, digits and . _ @ -. Received: {name[:80]}")
    known = _read(file) if file.exists() else []
    if any(part["name"] == name for part in known):
        raise UsageError(f"{file}: has a key `{name}` already")
    key = PREFIX + secrets.token_urlsafe(32)
    limits = {"requests_per_minute": requests_per_minute, "concurrent": concurrent}
    entry = {"name": name, "sha256": _hash(key).hex(), **{k: v for k, v in limits.items() if v is not None}}
    file.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        write_atomic(file, (json.dumps({"keys": [*known, entry]}, indent=2) + "\n").encode())
    finally:
        os.umask(before)
    return key


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _variable(reference: str) -> str:
    """The key that `env:NAME` names; on a command line it would be seen by everybody on the machine."""
    scheme, _, name = reference.partition(":")
    if scheme != "env" or not name:
        raise UsageError("--api-key: expected env:NAME, the environment variable that holds the key")
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        why = "is not plain ASCII" if key else "holds no key"
        raise UsageError(f"--api-key: the environment variable {name} {why}")
    return key


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_bytes())["keys"]
        if not isinstance(found, list) or not all(isinstance(part["name"], str) for part in found):
            raise ValueError("a name that is no text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "is no file of keys"
        raise UsageError(f"{file}: {why}; make one with: crab apikey NAME --file {file}") from error
    if file.stat().st_mode & 0o022:
        raise HermitcrabError(
            f"{file}: others than its owner may write to it, and so let anybody in; run: chmod 600 {file}"
        )
    return found


def _key(part: dict[str, Any], file: Path) -> Key:
    known = {"name", "sha256", "requests_per_minute", "concurrent"}
    hash = part.get("sha256")
    limits = [part.get("requests_per_minute"), part.get("concurrent")]
    sound = isinstance(hash, str) and re.fullmatch(r"[0-9a-f]{64}", hash) and set(part) <= known
    if not sound or not all(limit is None or (type(limit) is int and limit > 0) for limit in limits):
        raise UsageError(f"{file}: the key `{part['name'][:60]}`: expected sha256 (64 hex digits) and limits from 1")
    return Key(part["name"], bytes.fromhex(str(hash)), limits[0], limits[1])
