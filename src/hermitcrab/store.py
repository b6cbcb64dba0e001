"""The content-addressed home of artifacts.

    store/artifacts/<key>/manifest.json   what made it and the digest of every payload file
                          payload/        the files; immutable
                          facts.json      times, host, plan, energy: beside the payload, in no key and no digest
                          facts/          files of that kind (tensorboard logs)
    store/drafts/<key>/                   an artifact in the making; a crash leaves only this
    store/locks/<key>                     one maker at a time, held by the operating system, so a dead maker holds nothing
    store/runs/<name>.json                what a run refers to: everything else is `crab gc`'s

A draft has a `work/` folder too, for what a stage needs to go on after a kill (frozen plan, checkpoints). It is not sealed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, digest_json, tree_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import say


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename: nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Sorted keys, two spaces, no NaN: equal values give equal bytes."""
    write_atomic(
        path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    for name in tree_files(folder):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    for sub in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(sub)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """A full, read-only or forbidden disk, in one sentence."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full; free some space (`crab gc` removes what no run refers to) and run again",
            errno.EDQUOT: "the disk quota is used up; free some space (`crab gc`) and run again",
            errno.EROFS: "the file system is read-only; choose another folder with --store and --runs",
            errno.EACCES: "permission denied; choose another folder with --store and --runs",
            errno.EPERM: "permission denied; choose another folder with --store and --runs",
        }.get(error.errno or 0)
        if reason is None:
            raise
        raise HermitcrabError(f"{doing} {error.filename or ''}: {reason}".replace("  ", " ")) from error


@dataclass(frozen=True)
class Artifact:
    """A sealed folder of the store."""

    path: Path
    manifest: dict[str, Any]

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def digest(self) -> str:
        """Digest of the payload: of the list of its files with their digests."""
        return self.manifest["digest"]

    @property
    def payload(self) -> Path:
        return self.path / "payload"

    @property
    def facts(self) -> dict[str, Any]:
        return read_json(self.path / "facts.json")

    def read(self, name: str) -> Any:
        """A JSON file of the payload."""
        return read_json(self.payload / name)


@dataclass
class Draft:
    """An artifact in the making. Stages write below `payload`, may keep what a resume needs below `work`."""

    path: Path
    stage: str
    key: str
    asked: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    _session: int = 0
    _cpu: float = 0.0
    _began: float = 0.0

    @property
    def payload(self) -> Path:
        return self.path / "payload"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def loose(self) -> Path:
        """Files that are facts, not payload (tensorboard logs)."""
        return self.path / "facts"

    def write(self, name: str, value: Any) -> None:
        """A JSON file of the payload."""
        write_json(self.payload / name, value)

    def mark(self) -> None:
        """Note CPU time and clock of this session, so that a kill loses little of the account."""
        write_json(
            self.work / "sessions" / f"{self._session:04d}.json",
            {"started": self._began, "until": time.time(), "cpu_seconds": process_cpu() - self._cpu},
        )

    def sessions(self) -> list[dict[str, float]]:
        return [read_json(p) for p in sorted((self.work / "sessions").glob("[0-9]*.json"))]


def process_cpu() -> float:
    """CPU-seconds of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Store:
    def __init__(self, root: str | Path = ".crab/store"):
        self.root = Path(root)

    def folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key.removeprefix("sha256:")

    def find(self, key: str) -> Artifact | None:
        """The sealed artifact of that key, if it is there and whole (every file present, of its recorded size)."""
        path = self.folder("artifacts", key)
        try:
            artifact = Artifact(path, read_json(path / "manifest.json"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            say(f"store: {path / 'manifest.json'} cannot be read; the artifact is made again")
            return None
        for file in artifact.manifest["files"]:
            try:
                whole = (artifact.payload / file["path"]).stat().st_size == file["size"]
            except FileNotFoundError:
                whole = False
            if not whole:
                say(f"store: {artifact.stage} {path.name[:12]} lost {file['path']}; it is made again")
                return None
        return artifact

    @contextmanager
    def lock(self, key: str, what: str) -> Iterator[None]:
        """One maker of a key at a time; the second waits, then finds the artifact made."""
        path = self.folder("locks", key)
        with disk_errors("cannot write to the store"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                say(f"{what}: another run is making this; waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def draft(self, stage: str, key: str, asked: dict[str, Any]) -> Iterator[Draft]:
        """The draft of `key`: a new one, or what a killed run left of it. Sealed by `seal`; left alone on errors."""
        path = self.folder("drafts", key)
        with disk_errors("cannot write to the store"):
            for stale in ("payload", "facts", "manifest.json", "facts.json"):
                target = path / stale
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            (path / "payload").mkdir(parents=True)
            (path / "work" / "sessions").mkdir(parents=True, exist_ok=True)
            draft = Draft(path, stage, key, asked)
            draft._session = len(draft.sessions())
            draft._cpu, draft._began = process_cpu(), time.time()
            draft.mark()
            yield draft

    def seal(self, draft: Draft) -> Artifact:
        """Digest every payload file, write manifest and facts, fsync, rename. After this the artifact exists."""
        with disk_errors("cannot write to the store"):
            draft.mark()
            files = describe_files(draft.payload, tree_files(draft.payload))
            manifest = {"schema": 1, "stage": draft.stage, "key": draft.key, **draft.asked, "files": files}
            manifest["digest"] = digest_json(files)
            sessions = draft.sessions()
            facts = {
                "started": min(s["started"] for s in sessions),
                "finished": time.time(),
                "sessions": len(sessions),
                "cpu_seconds": sum(s["cpu_seconds"] for s in sessions),
                **draft.facts,
            }
            write_json(draft.path / "manifest.json", manifest)
            write_json(draft.path / "facts.json", facts)
            shutil.rmtree(draft.work)
            sync_tree(draft.path)
            final = self.folder("artifacts", draft.key)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # a damaged one that `find` refused
                shutil.rmtree(final)
            os.replace(draft.path, final)
            sync_folder(final.parent)
        return Artifact(final, manifest)

    def remember_run(self, name: str, record: dict[str, Any]) -> None:
        with disk_errors("cannot write to the store"):
            write_json(self.root / "runs" / f"{name}.json", record)

    def runs(self) -> dict[str, dict[str, Any]]:
        return {p.stem: read_json(p) for p in sorted((self.root / "runs").glob("*.json"))}

    def gc(self, dry: bool = False) -> list[tuple[str, int]]:
        """Remove artifacts and drafts that no run refers to. Returns (path, bytes) of each.

        A run whose folder is gone refers to nothing any more. A key that somebody is making is left alone.
        """
        kept: set[str] = set()
        for name, record in self.runs().items():
            if Path(record["folder"]).exists():
                kept |= {key.removeprefix("sha256:") for key in record["artifacts"].values()}
            elif not dry:
                (self.root / "runs" / f"{name}.json").unlink()
        freed = []
        for kind in ("artifacts", "drafts"):
            for path in sorted((self.root / kind).glob("*")):
                if path.name in kept and kind == "artifacts":
                    continue
                handle = os.open(self.root / "locks" / path.name, os.O_CREAT | os.O_RDWR, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    freed.append((path.as_posix(), sum(p.stat().st_size for p in path.rglob("*") if p.is_file())))
                    if not dry:
                        shutil.rmtree(path)
                except BlockingIOError:
                    say(f"{path.name[:12]}: being made right now; left alone")
                finally:
                    os.close(handle)
        return freed
