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
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, digest_file, digest_json, tree_files
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.progress import progress, say


def _is_there(path: Path, size: int | None) -> bool:
    try:
        return size is None or path.stat().st_size == size if path.exists() else False
    except NotADirectoryError:
        return False


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
    """A JSON file of ours.

    Raises:
        HermitcrabError: it is damaged.
        FileNotFoundError: it is not there.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise HermitcrabError(f"{path}: is damaged, it is no JSON ({error}); remove it and run again") from error


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
    except Exception as error:
        number = _error_number(error)
        reason = {
            errno.ENOSPC: "the disk is full; free some space (`crab gc` removes what no run refers to) and run again",
            errno.EDQUOT: "the disk quota is used up; free some space (`crab gc`) and run again",
            errno.EROFS: "the file system is read-only; choose another folder with --store and --runs",
            errno.EACCES: "permission denied; choose another folder with --store and --runs",
            errno.EPERM: "permission denied; choose another folder with --store and --runs",
        }.get(number or 0)
        if reason is None:
            raise
        name = getattr(error, "filename", None) or ""
        raise HermitcrabError(f"{doing} {name}: {reason}".replace(" :", ":").replace("::", ":")) from error


def _error_number(error: Exception) -> int | None:
    """The system's error number; safetensors has its own class of error and tells the number in words only."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"os error (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(told[1]) if told else None


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

    def check(self) -> None:
        """Digest the payload again: what a stage is about to read is what was sealed.

        Raises:
            HermitcrabError: a file changed since.
        """
        files = self.manifest["files"]
        with progress(f"checking {self.stage}", sum(f["size"] for f in files), "bytes") as bar:
            for file in files:
                if digest_file(self.payload / file["path"], bar.add) != file["sha256"]:
                    raise HermitcrabError(
                        f"store: {self.payload / file['path']} is not what {self.stage} made; remove {self.path} and run again"
                    )

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
        except HermitcrabError:
            say(f"store: {path / 'manifest.json'} cannot be read; the artifact is made again")
            return None
        try:
            sizes = {"../facts.json": None, **{file["path"]: file["size"] for file in artifact.manifest["files"]}}
            lost = next((n for n, size in sizes.items() if not _is_there(artifact.payload / n, size)), None)
            what = artifact.stage
        except (KeyError, TypeError, AttributeError):
            what, lost = "artifact", "its file list"
        if lost is not None:
            say(f"store: {what} {path.name[:12]} lost {lost}; it is made again")
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
            names = tree_files(draft.payload)
            with progress(
                f"{draft.stage}: digests", sum((draft.payload / n).stat().st_size for n in names), "bytes"
            ) as bar:
                files = describe_files(draft.payload, names, bar.add)
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
            sync_tree(draft.path)
            final = self.folder("artifacts", draft.key)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # a damaged one that `find` refused
                shutil.rmtree(final)
            os.replace(draft.path, final)
            sync_folder(final.parent)
            shutil.rmtree(final / "work", ignore_errors=True)  # only now: until here a kill goes on from it
        return Artifact(final, manifest)

    def remember_run(self, name: str, record: dict[str, Any]) -> None:
        """Note what a run refers to. Its folder is kept relative to the store, so that both may be moved together."""
        with disk_errors("cannot write to the store"):
            folder = os.path.relpath(record["folder"], self.root.absolute())
            write_json(self.root / "runs" / f"{name}.json", {**record, "folder": folder})

    def begin_run(self, name: str, folder: Path, keys: Sequence[str]) -> None:
        """Note what a run is at work on, so that `gc` leaves it alone; what it referred to before stays noted.

        Raises:
            UsageError: another folder has a run of that name in this store.
        """
        here = os.path.abspath(folder)
        before = self.runs().get(name, {"artifacts": {}, "folder": here})
        if before["folder"] != here and Path(before["folder"]).exists():
            raise UsageError(
                f"a run `{name}` of this store lies in {before['folder']}; give this one another name, or another --store"
            )
        with disk_errors("cannot write to the store"):
            folder.mkdir(parents=True, exist_ok=True)
        self.remember_run(name, {**before, "folder": here, "pending": list(keys)})

    def runs(self) -> dict[str, dict[str, Any]]:
        found = {p.stem: read_json(p) for p in sorted((self.root / "runs").glob("*.json"))}
        for record in found.values():
            record["folder"] = os.path.abspath(self.root / record["folder"])
        return found

    def gc(self, dry: bool = False) -> list[tuple[str, int]]:
        """Remove artifacts and drafts that no run refers to. Returns (path, bytes) of each.

        A run whose folder is gone refers to nothing any more. What a run is at work on, finished or not, and a key that
        somebody is making right now are left alone.
        """
        kept: set[str] = set()
        for name, record in self.runs().items():
            if Path(record["folder"]).exists():
                keys = (*record["artifacts"].values(), *record.get("pending", ()), *record.get("trials", ()))
                kept |= {key.removeprefix("sha256:") for key in keys}
            elif not dry:
                (self.root / "runs" / f"{name}.json").unlink()
        freed = []
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        for kind in ("artifacts", "drafts"):
            for path in sorted((self.root / kind).glob("*")):
                if path.name in kept:
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
