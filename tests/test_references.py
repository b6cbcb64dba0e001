import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hermitcrab import references
from hermitcrab.digest import digest_bytes, digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import cache_folder, fetch, resolve, without_credentials
from hermitcrab.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data" / "rows.csv"
    path.parent.mkdir()
    path.write_bytes(b"a,b\n1,2\n")
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    return path


def test_a_files_identity_is_its_content(rows: Path, store: Store) -> None:
    resolved = resolve("data/rows.csv", None, store)
    assert resolved.identity == digest_bytes(b"a,b\n1,2\n")
    assert (resolved.uri, resolved.kind, resolved.path) == ("data/rows.csv", "file", rows)
    assert fetch(resolved, store) == rows


def test_the_record_names_no_folder_of_this_machine(rows: Path, store: Store, tmp_path: Path) -> None:
    assert resolve(str(rows), None, store).uri == "data/rows.csv"
    outside = tmp_path.parent / f"{tmp_path.name}-outside.csv"
    outside.write_text("x")
    assert resolve(str(outside), None, store).uri == f"file:{outside.name}"


def test_a_file_read_once_is_remembered_until_it_changes(
    rows: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "RACY", 0)
    read = []
    monkeypatch.setattr(references, "digest_file", lambda p, seen: read.append(p) or digest_bytes(p.read_bytes()))
    for _ in range(3):
        resolve("data/rows.csv", None, store)
    assert len(read) == 1
    times = rows.stat()
    rows.write_bytes(b"a,b\n1,3\n")
    os.utime(rows, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time of change as before
    assert resolve("data/rows.csv", None, store).identity == digest_bytes(b"a,b\n1,3\n")
    note = next((store.root / "digests").glob("*.json"))
    assert "rows" not in note.read_text()
    note.write_text("{spoiled")
    assert resolve("data/rows.csv", None, store).identity == digest_bytes(b"a,b\n1,3\n")


def test_a_file_that_may_still_change_is_not_remembered(rows: Path, store: Store) -> None:
    rows.write_bytes(b"new")
    resolve("data/rows.csv", None, store)
    assert not (store.root / "digests").exists()


def test_a_folders_identity_is_that_of_its_files(rows: Path, store: Store) -> None:
    (rows.parent / "sub").mkdir()
    (rows.parent / "sub" / "x").write_text("x")
    resolved = resolve("data", None, store)
    files = [
        {"path": "rows.csv", "sha256": digest_bytes(b"a,b\n1,2\n"), "size": 8},
        {"path": "sub/x", "sha256": digest_bytes(b"x"), "size": 1},
    ]
    assert (resolved.kind, resolved.identity) == ("folder", digest_json(files))
    with pytest.raises(UsageError, match="single file"):
        resolve("data", digest_bytes(b""), store)


def test_another_file_than_the_recipe_means_is_refused(rows: Path, store: Store) -> None:
    with pytest.raises(HermitcrabError, match="expected sha256:e3b0"):
        resolve("data/rows.csv", digest_bytes(b""), store)


def test_a_missing_path_names_the_nearest(rows: Path, store: Store) -> None:
    with pytest.raises(UsageError, match=r"did you mean `rows\.csv`"):
        resolve("data/row.csv", None, store)
    with pytest.raises(UsageError, match="cannot be read"):
        resolve("a\0b", None, store)


@pytest.mark.parametrize(
    "reference",
    [
        "https://u:secret@no-host.invalid/x?token=1",
        "s3://u:secret@bucket/x",
        "postgresql://u:secret@no-host.invalid/d select 1",
    ],
)
def test_what_cannot_be_reached_is_said_without_a_secret(reference: str, store: Store, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(HermitcrabError) as caught:
        resolve(reference, None, store)
    assert "secret" not in str(caught.value)
    assert "token" not in str(caught.value)


def test_environment_variable_stands_for_a_reference(store: Store, tmp_path, monkeypatch) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    monkeypatch.setenv("ROWS", str(tmp_path / "rows.csv"))
    found = resolve("env:ROWS", None, store)
    assert (found.reference, found.uri, found.kind) == ("env:ROWS", "file:rows.csv", "file")
    monkeypatch.delenv("ROWS")
    with pytest.raises(UsageError, match="no variable ROWS"):
        resolve("env:ROWS", None, store)


def test_credentials_are_stripped() -> None:
    assert without_credentials("https://me:pw@host:1/a/b?X-Sig=1") == "https://host:1/a/b"
    assert without_credentials("data/a?b.csv") == "data/a?b.csv"


def make_run(store: Store) -> dict[str, str]:
    made = {}
    for stage, name in (("train", "model/config.json"), ("prepare", "train.parquet")):
        key = digest_bytes(stage.encode())
        with store.draft(stage, key, {}) as draft:
            (draft.payload / name).parent.mkdir(exist_ok=True)
            (draft.payload / name).write_text("{}")
            store.seal(draft)
        made[stage] = key
    store.remember_run("first", {"folder": str(store.root), "artifacts": made})
    return made


def test_a_run_stands_for_its_model_or_a_stage_of_it(store: Store) -> None:
    made = make_run(store)
    train = store.find(made["train"])
    assert train is not None
    resolved = resolve("run:first", None, store)
    assert (resolved.uri, resolved.kind, resolved.identity) == ("run:first/train", "run", train.digest)
    assert resolved.path == train.payload / "model"
    prepared = resolve("run:first/prepare", None, store)
    assert prepared.path is not None
    assert prepared.path.name == "payload"
    with pytest.raises(UsageError, match="did you mean `first`"):
        resolve("run:frist", None, store)
    with pytest.raises(UsageError, match="did you mean `prepare`"):
        resolve("run:first/prepair", None, store)
    (train.payload / "model" / "config.json").unlink()
    with pytest.raises(HermitcrabError, match="no longer in the store"):
        resolve("run:first", None, store)


def test_scratch_has_no_files(store: Store) -> None:
    resolved = resolve("scratch", None, store)
    assert (resolved.kind, resolved.path) == ("scratch", None)
    with pytest.raises(UsageError, match="tokenizer"):
        fetch(resolved, store)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("hf:org/name", "hf:ORG/NAME@REVISION"),
        ("hf:name@main", "hf:ORG/NAME@REVISION"),
        ("hf:org/../x@main", "hf:ORG/NAME@REVISION"),
        ("hf:org/name@../x", "no branch"),
        ("hf:org/name@--x", "no branch"),
        ("ms:org/name@master", "give the commit itself"),
    ],
)
def test_a_hub_reference_names_a_revision(reference: str, says: str, store: Store) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(reference, None, store)


def test_a_commit_needs_no_network_to_resolve(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for hub in ("hf", "ms"):
        reference = f"{hub}:org/name@{COMMIT}"
        resolved = resolve(reference, None, store)
        assert (resolved.uri, resolved.identity, resolved.revision) == (reference, reference, COMMIT)
        assert resolved.path is None
        cache_folder(hub, "org--name", COMMIT).mkdir(parents=True)
        assert fetch(resolve(reference, None, store), store) == cache_folder(hub, "org--name", COMMIT)


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"\2\0\0\0\0\0\0\0{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "original/params.json": b"{}",
}


class Hub(BaseHTTPRequestHandler):
    """The little of a hub that a download asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path in ("api/models/org/name/revision/main", f"api/models/org/name/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in FILES]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
            return self.answer(body, "application/json")
        if path.startswith(f"api/models/org/name/tree/{COMMIT}"):
            body = json.dumps(
                [{"type": "file", "path": n, "size": len(c), "oid": digest_bytes(c)[7:47]} for n, c in FILES.items()]
            ).encode()
            return self.answer(body, "application/json")
        name = path.removeprefix(f"org/name/resolve/{COMMIT}/")
        if name in FILES:
            return self.answer(FILES[name], "application/octet-stream")
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "/revision/" in path else "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{digest_bytes(body)[7:47]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ASK = """
import sys
from hermitcrab.errors import HermitcrabError
from hermitcrab.references import fetch, resolve
from hermitcrab.store import Store
store = Store(sys.argv[1])
try:
    resolved = resolve(sys.argv[2], None, store)
    path = fetch(resolved, store)
    print(resolved.uri)
    print(*sorted(p.name for p in path.iterdir() if not p.is_symlink()))
except HermitcrabError as error:
    print(f"error: {error}")
"""


def ask(tmp_path: Path, reference: str, port: int) -> list[str]:
    env = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hf"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", ASK, str(tmp_path / "store"), reference]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_hubs_branch_becomes_its_commit_and_only_safe_files_come(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    try:
        got = ask(tmp_path, "hf:org/name@main", port)
        assert got == [f"hf:org/name@{COMMIT}", "README.md config.json model.safetensors"]
        assert "no branch, tag or commit" in ask(tmp_path, "hf:org/name@absent", port)[0]
    finally:
        server.shutdown()
        server.server_close()
    assert ask(tmp_path, f"hf:org/name@{COMMIT}", port) == got
    offline = ask(tmp_path, "hf:org/name@main", port)[0]
    assert "cannot be reached" in offline
    assert f"hf:org/name@{COMMIT}" in offline
