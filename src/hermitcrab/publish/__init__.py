"""A package to a model hub: verified, sent, read back. One module a hub, with a few calls (`Hub`).

    verified package → what the hub has, by digest → what it lacks is sent, file by file → one commit → every digest read back

Killed anywhere, the same command goes on: a file that has arrived is not sent again, committed or not.
The token is read from an environment variable, and is in no argument, message, log or answer.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.lineage.card import plain
from hermitcrab.packaged import File, Packaged, find_package
from hermitcrab.progress import progress, warn
from hermitcrab.publish.files import git_digest
from hermitcrab.references import without_credentials
from hermitcrab.store import Store

HUBS = {"hf": ("HF_TOKEN", "huggingface")}  # the variable that its own tools read a token from, and the module
KEPT = (".gitattributes",)  # the hub's own: it says which files are kept in large storage
MOST_FILES = 2000
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
BRANCH = re.compile(r"[A-Za-z0-9][\w./-]{0,119}", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Target:
    """Where to: `hub` is one of `HUBS`, `name` is ORG/NAME, `branch` None for the repository's own."""

    hub: str
    name: str
    branch: str | None


@dataclass(frozen=True)
class Remote:
    """The state of a branch: the commit at its head (none: yet to be made), whether few may read it, and `{path: digest}` of its files.

    A digest is `sha256:…`, or `git:…` (SHA-1 of git's blob) where the hub keeps the file in git itself.
    """

    commit: str
    private: bool
    files: dict[str, str]


class Hub(Protocol):
    def look(self) -> Remote | None: ...  # None: no such repository
    def create(self, public: bool) -> Remote: ...  # the repository or the branch, whichever is not there
    def send(
        self, source: Path, file: File, seen: Callable[[int], None]
    ) -> int: ...  # bytes that went out before the commit
    def commit(self, remote: Remote, removed: list[str], message: str) -> str: ...
    def read_back(self, commit: str) -> dict[str, str]: ...
    def close(self) -> None: ...


def push(
    model: str, to: str, store: Store, *, token: str | None = None, public: bool = False, key: Path | None = None,
    unverified: bool = False, remove: bool = False, dry_run: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a branch of a hub's repository hold the files of a package, and nothing else but the hub's own.

    Args:
        model: a package's folder, a run's name or folder, or a reference.
        to: `hf:ORG/NAME`, with `@BRANCH` for another branch than the repository's own.
        token: `env:NAME`; default: the variable that the hub's own tools read.
        public: everybody may read it. A repository is made private, and one that is public is not pushed to, without it.
        remove: take files out of the branch that are not the package's; without it they stop the push.
        dry_run: only say what would be sent.

    Returns:
        `{to, repository, branch, commit, private, verified, dry_run, sent, skipped, unchanged, removed, bytes_sent, bytes_skipped}`;
        `skipped` had arrived in an earlier try, `unchanged` are in the branch already.

    Raises:
        UsageError: no such package or form of target, no token, files in the way.
        HermitcrabError: a package that does not verify; the hub refuses, breaks off, or tells other digests than were sent.
    """
    target = parse_target(to)
    name, secret = read_token(token or f"env:{HUBS[target.hub][0]}")
    package = find_package(model, store, key, unverified)
    if len(package.files) > MOST_FILES:
        raise UsageError(f"{package.path}: has {len(package.files):,} files; a push takes {MOST_FILES:,} at most")
    module = importlib.import_module(f"hermitcrab.publish.{HUBS[target.hub][1]}")
    with module.told_plainly(target, name, secret), closing(module.open_hub(target, secret)) as hub:
        return _push(hub, target, package, public=public, remove=remove, dry_run=dry_run)


def _push(hub: Hub, target: Target, package: Packaged, *, public: bool, remove: bool, dry_run: bool) -> dict[str, Any]:
    remote = hub.look()
    if remote is not None:
        _check_audience(target, remote, public)
    there = remote.files if remote is not None else {}
    lacking = [file for file in package.files if not same(package, file, there.get(file.path))]
    extra = sorted(there.keys() - {file.path for file in package.files} - set(KEPT))
    if extra and not remove:
        raise UsageError(
            f"{target.hub}:{target.name} has {len(extra):,} files that are not in the package ({plain(', '.join(extra[:3]))}"
            f"{', …' if len(extra) > 3 else ''}): what is downloaded from there would not verify. --remove takes them out"
        )
    told = {
        "to": target.hub, "repository": target.name, "branch": target.branch,
        "private": remote.private if remote is not None else not public,
        "verified": package.verified is not None, "dry_run": dry_run, "removed": extra,
        "unchanged": [file.path for file in package.files if file not in lacking],
    }  # fmt: skip
    if dry_run:
        size = sum(file.size for file in lacking)
        return {
            **told,
            "commit": None,
            "sent": [f.path for f in lacking],
            "skipped": [],
            "bytes_sent": size,
            "bytes_skipped": 0,
        }
    if remote is None or not remote.commit:
        remote = hub.create(public)
        _check_audience(target, remote, public)  # before anything is sent
        told["private"] = remote.private
    went = _send(hub, package, lacking)
    commit = hub.commit(remote, extra, f"Upload {plain(package.name, 60)}") if lacking or extra else remote.commit
    there = hub.read_back(commit)
    _compare(package, target, there)
    # What the hub keeps in git itself went with the commit; of the rest, what did not go out had arrived before.
    for file in lacking:
        if there[file.path].startswith("git:"):
            went[file.path] = file.size
    sent = [file for file in lacking if went[file.path] or not file.size]
    skipped = [file for file in lacking if file not in sent]
    return {
        **told, "commit": commit, "sent": [file.path for file in sent], "skipped": [file.path for file in skipped],
        "bytes_sent": sum(went.values()), "bytes_skipped": sum(file.size for file in skipped),
    }  # fmt: skip


def _check_audience(target: Target, remote: Remote, public: bool) -> None:
    if not remote.private and not public:
        raise UsageError(
            f"{target.hub}:{target.name} is public, and everybody would see this; --public says that it is meant"
        )
    if remote.private and public:
        warn(f"{target.hub}:{target.name} is private and stays so; who may read it is set on the hub")


def _send(hub: Hub, package: Packaged, lacking: list[File]) -> dict[str, int]:
    """Small files first: the most of them has arrived when a large one breaks off. `{path: bytes that went out}`."""
    went = {}
    with progress("sending", sum(file.size for file in lacking) / 1e6, "MB") as bar:
        for file in sorted(lacking, key=lambda file: (file.size, file.path)):
            went[file.path] = hub.send(package.path / file.path, file, lambda count: bar.add(count / 1e6))
            if not went[file.path]:
                bar.add(file.size / 1e6)
    return went


def same(package: Packaged, file: File, told: str | None) -> bool:
    """Whether the hub's digest is that of the file; git's is computed from the bytes, whose sha256 must be the known one."""
    if told is None or not told.startswith("git:"):
        return told == f"sha256:{file.sha256}"
    return told == f"git:{git_digest(package.path / file.path, file)}"


def _compare(package: Packaged, target: Target, there: dict[str, str]) -> None:
    """Every digest that the hub tells of the commit, against the package.

    Raises:
        HermitcrabError: a file is missing, is another, or is one too many.
    """
    wrong = [f"{file.path} ({'is another' if file.path in there else 'is missing'})" for file in package.files
             if not same(package, file, there.get(file.path))]  # fmt: skip
    wrong += [f"{path} (one too many)" for path in sorted(there.keys() - {f.path for f in package.files} - set(KEPT))]
    if wrong:
        raise HermitcrabError(
            f"{target.hub}:{target.name}: what the hub holds is not what was sent: {plain('; '.join(wrong[:5]), 1000)}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. A .gitignore there may leave files out; push again"
        )


def parse_target(to: str) -> Target:
    scheme, colon, rest = to.partition(":")
    name, at, branch = rest.partition("@")
    if colon and scheme == "ms":
        raise UsageError(
            f"{to[:200]}: hermitcrab does not push to ModelScope yet: nothing here could show that what arrives is what was sent. "
            "Use ModelScope's own `modelscope upload`, then `crab verify` on a fresh download"
        )
    if not colon or scheme not in HUBS or not NAME.fullmatch(name) or ".." in name or name.endswith(".git"):
        raise UsageError(f"{without_credentials(to)[:120]}: expected hf:ORG/NAME, with @BRANCH for another branch")
    if at and (
        not BRANCH.fullmatch(branch) or ".." in branch or branch.endswith((".lock", "/")) or COMMIT.fullmatch(branch)
    ):
        raise UsageError(f"{to[:200]}: `{branch[:80]}` is no branch that can be pushed to")
    return Target(scheme, name, branch or None)


def read_token(where: str) -> tuple[str, str]:
    """Name and value of the variable that `env:NAME` names; on a command line everybody on the machine would see it."""
    scheme, _, name = where.partition(":")
    if scheme != "env" or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UsageError("--token: expected env:NAME, the environment variable that holds the token")
    value = os.environ.get(name, "").strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise UsageError(
            f"--token: the environment variable {name} {'holds no token' if not value else 'holds no token but other text'}"
        )
    return name, value


def hide(text: str, secret: str) -> str:
    """A message without the token and without what signs an address."""
    words: Iterable[str] = text.replace(secret, "…").split()
    return plain(" ".join(without_credentials(word) for word in words), 1000)
