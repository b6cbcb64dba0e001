"""A model hub on this machine: the HTTP API of the Hugging Face hub as far as its official library speaks it, over a real socket.

Repositories have commits, branches and files; large files go by Git LFS (basic, and in parts), small ones with the commit. Who is
asking matters: tokens have names and rights. What can go wrong on a line or on a hub is switched on by attributes (`Faults`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 200  # bytes from which a file goes by LFS (the real hub: 10 MB, or whatever is no text)
PART = 40_000  # bytes of a part; files above it go in parts
PAGE = 5  # entries of a listing


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # sha256 of what was committed by LFS

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch)
        told = json.dumps([parent, {path: git_oid(data) for path, data in sorted(files.items())}])
        commit = hashlib.sha1(told.encode()).hexdigest()
        self.commits[commit], self.parents[commit], self.branches[branch] = files, parent, commit
        return commit


@dataclass
class Faults:
    break_puts: int = 0  # so many uploads are cut off in their middle
    refuse_puts: bool = False  # uploads are answered by 403, as a signed address that ran out
    fail_puts: int = 0  # so many are answered by 503
    lose_commit_answers: int = 0  # so many commits are made and the answer is lost
    seconds_a_chunk: float = 0.0  # of an upload
    changed: dict[str, bytes] = field(default_factory=dict)  # files that are others once they were committed
    ignored: tuple[str, ...] = ()  # as a .gitignore of the repository says
    stop_at: threading.Event | None = None  # set when the first half of an upload has come; then it waits
    stop_after: int = 0  # uploads that pass before


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    # Plumbing

    def _answer(self, status: int, value: Any = None, **headers: str) -> None:
        data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, {"error": message}, **headers)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _who(self) -> str | None:
        return self.server.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _route(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.parts = [unquote(part) for part in parts.path.strip("/").split("/")]
        self.server.requests[f"{self.command} {parts.path}"] += 1
        if "Authorization" in self.headers and self._who() is None:
            self._body()
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        match self.parts:
            case ["api", "whoami-v2"]:
                who = self._who()
                return (
                    self._answer(200, {"name": who, "type": "user"}) if who else self._refuse(401, None, "who are you?")
                )
            case ["api", "validate-yaml"]:
                return self._validate(json.loads(self._body()))
            case ["api", "repos", "create"]:
                return self._create(json.loads(self._body()))
            case ["api", "models", org, name, *rest]:
                repo = self._repo(f"{org}/{name}", writing=self.command == "POST" and rest[:1] != ["paths-info"])
                return self._api(f"{org}/{name}", repo, rest) if repo else None
            case [org, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                repo = self._repo(f"{org}/{name.removesuffix('.git')}", writing=True)
                return (
                    self._batch(f"{org}/{name.removesuffix('.git')}", repo, json.loads(self._body())) if repo else None
                )
            case ["lfs", org, name, action, oid, *rest]:
                return self._large(self.server.repos[f"{org}/{name}"], f"{org}/{name}", action, oid, rest)
            case [org, name, "resolve", revision, *path]:
                repo = self._repo(f"{org}/{name}", writing=False)
                return self._resolve(f"{org}/{name}", repo, revision, "/".join(path)) if repo else None
        self._refuse(404, "RepoNotFound", "no such page")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def _repo(self, name: str, writing: bool) -> Repo | None:
        """The repository, where who asks may see it, and for `writing` may write it."""
        repo, who = self.server.repos.get(name), self._who()
        if repo is None or (repo.private and who is None) or (repo.private and who == "stranger"):
            self._body()
            self._refuse(404 if who else 401, "RepoNotFound", "Repository not found")
            return None
        if writing and who not in ("owner",):
            self._body()
            self._refuse(403 if who else 401, None, "Forbidden: you must have write access")
            return None
        return repo

    # Repositories

    def _validate(self, asked: dict[str, Any]) -> None:
        if asked["content"].startswith("---"):
            return self._answer(200, {"errors": [], "warnings": []})
        self._answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if self._who() != "owner":
            return self._refuse(403, None, f"You don't have the rights to create a model under {asked['organization']}")
        if name in self.server.repos:
            told = {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            return self._answer(409, told)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repos[name] = Repo(private)
        self.server.repos[name].add("main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def _commit_of(self, repo: Repo, revision: str) -> str | None:
        found = repo.branches.get(revision, revision)
        if found in repo.commits:
            return found
        self._body()
        self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _api(self, name: str, repo: Repo, rest: list[str]) -> None:
        match rest:
            case ["branch", branch]:
                asked = json.loads(self._body() or b"{}")
                if branch in repo.branches:
                    return self._refuse(409, None, "Reference already exists")
                repo.branches[branch] = repo.branches[asked.get("startingPoint", "main")]
                return self._answer(200, {})
            case [] | ["revision", _]:
                commit = self._commit_of(repo, rest[1] if rest else "main")
                if commit:
                    siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
                    self._answer(
                        200,
                        {
                            "id": name,
                            "modelId": name,
                            "sha": commit,
                            "private": repo.private,
                            "siblings": siblings,
                            "tags": [],
                        },
                    )
                return None
            case ["preupload", revision]:
                commit = self._commit_of(repo, revision)
                return self._preupload(repo, commit, json.loads(self._body())) if commit else None
            case ["tree", revision, *_]:
                commit = self._commit_of(repo, revision)
                return self._tree(repo, commit) if commit else None
            case ["paths-info", revision]:
                asked = parse_qs(self._body().decode())["paths"]
                commit = self._commit_of(repo, revision)
                return (
                    self._answer(200, [self._entry(repo, p, d) for p, d in repo.commits[commit].items() if p in asked])
                    if commit
                    else None
                )
            case ["commit", branch]:
                return self._commit(name, repo, branch, [json.loads(line) for line in self._body().splitlines()])
        self._refuse(404, None, "no such page")

    def _entry(self, repo: Repo, path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha256(data).hexdigest()
        told = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        return told | {"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}} if oid in repo.large else told

    def _tree(self, repo: Repo, commit: str) -> None:
        files = sorted(repo.commits[commit].items())
        start = int(self.query.get("cursor", 0))
        more = {}
        if start + PAGE < len(files):
            address = f"{self.server.url}/{'/'.join(quote(part, safe='') for part in self.parts)}?recursive=True&cursor={start + PAGE}"
            more["Link"] = f'<{address}>; rel="next"'
        folders = [{"type": "directory", "path": "adapter", "oid": "0" * 40, "size": 0}] if not start else []
        self._answer(
            200, folders + [self._entry(repo, path, data) for path, data in files[start : start + PAGE]], **more
        )

    def _preupload(self, repo: Repo, commit: str, asked: dict[str, Any]) -> None:
        told = []
        for file in asked["files"]:
            assert len(base64.b64decode(file["sample"])) == min(512, file["size"])
            old = repo.commits[commit].get(file["path"])
            oid = (
                None
                if old is None
                else hashlib.sha256(old).hexdigest()
                if hashlib.sha256(old).hexdigest() in repo.large
                else git_oid(old)
            )
            mode = "lfs" if file["size"] > LARGE else "regular"
            told.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": file["path"] in self.server.faults.ignored,
                    "oid": oid,
                }
            )
        self._answer(200, {"files": told})

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
        head = repo.branches.get(branch)
        if head is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(repo.commits[head])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, head):
                        return self._refuse(412, None, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    data = repo.objects.get(value["oid"])
                    if data is None or len(data) != value["size"]:
                        return self._refuse(
                            422, None, f"LFS pointer pointed to a file that does not exist: {value['path']}"
                        )
                    repo.large.add(value["oid"])
                    files[value["path"]] = data
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        return self._refuse(404, "EntryNotFound", "A file with this name doesn't exist")
        for path, data in self.server.faults.changed.items():
            if path in files:
                repo.large.add(hashlib.sha256(data).hexdigest())
                files[path] = data
        commit = repo.add(branch, files)
        if self.server.faults.lose_commit_answers:
            self.server.faults.lose_commit_answers -= 1
            return self._cut()
        self._answer(
            200,
            {
                "success": True,
                "commitUrl": f"{self.server.url}/{name}/commit/{commit}",
                "commitOid": commit,
                "hookOutput": "",
            },
        )

    # Large files

    def _batch(self, name: str, repo: Repo, asked: dict[str, Any]) -> None:
        assert asked["operation"] == "upload"
        assert "xet" not in asked["transfers"]
        told = []
        for thing in asked["objects"]:
            oid, size = thing["oid"], thing["size"]
            entry: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in repo.objects:
                address = f"{self.server.url}/lfs/{name}"
                if size > PART:
                    parts = {
                        f"{i + 1:05}": f"{address}/part/{oid}/{i + 1}?signature=hidden" for i in range(-(-size // PART))
                    }
                    upload = {
                        "href": f"{address}/complete/{oid}?signature=hidden",
                        "header": {"chunk_size": str(PART), **parts},
                    }
                else:
                    upload = {"href": f"{address}/put/{oid}?signature=hidden"}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{address}/verify/{oid}"}}
            told.append(entry)
        self._answer(200, {"transfer": "basic", "objects": told})

    def _large(self, repo: Repo, name: str, action: str, oid: str, rest: list[str]) -> None:
        pieces = self.server.pieces.setdefault((name, oid), {})
        match action:
            case "put" | "part":
                data = self._received()
                if data is None:
                    return None
                if action == "part":
                    pieces[int(rest[0])] = data
                    return self._answer(200, ETag=f'"{hashlib.md5(data).hexdigest()}"')
                return self._keep(repo, oid, data)
            case "complete":
                asked = json.loads(self._body())
                for part in asked["parts"]:
                    assert part["etag"] == f'"{hashlib.md5(pieces[part["partNumber"]]).hexdigest()}"'
                return self._keep(repo, oid, b"".join(pieces[i] for i in sorted(pieces)))
            case "verify":
                asked = json.loads(self._body())
                good = len(repo.objects.get(oid, b"")) == asked["size"]
                return self._answer(200, {}) if good else self._refuse(404, None, "the object is not there")
            case "get":
                return self._answer(200, repo.objects[oid])
        return self._refuse(404, None, "no such page")

    def _keep(self, repo: Repo, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self._refuse(400, None, "the content does not have that sha256")
        repo.objects[oid] = data
        self._answer(200, {})

    def _received(self) -> bytes | None:
        """The body of an upload, or None where the line broke or the upload was refused."""
        faults, size = self.server.faults, int(self.headers["Content-Length"])
        if faults.refuse_puts or faults.fail_puts:
            self.rfile.read(size)
            faults.fail_puts -= bool(faults.fail_puts)
            self._refuse(403 if faults.refuse_puts else 503, None, "Request has expired")
            return None
        half = self.rfile.read(size // 2)
        self.server.received += len(half)
        if faults.break_puts:
            faults.break_puts -= 1
            self._cut()
            return None
        if faults.stop_at is not None and faults.stop_after:
            faults.stop_after -= 1
        elif faults.stop_at is not None:
            faults.stop_at.set()
            if not self.rfile.read(size - len(half)):  # whoever sent it is killed meanwhile
                self.close_connection = True
                return None
            time.sleep(3600)
        data = bytearray(half)
        while len(data) < size:
            if faults.seconds_a_chunk:
                time.sleep(faults.seconds_a_chunk)
            chunk = self.rfile.read(min(8192, size - len(data)))
            if not chunk:
                self.close_connection = True
                return None
            data += chunk
            self.server.received += len(chunk)
        return bytes(data)

    def _cut(self) -> None:
        """Break the connection at once, as a line does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.wfile = self.rfile = open("/dev/null", "rb")  # noqa: SIM115 - the handler flushes them when it ends

    # Downloads

    def _resolve(self, name: str, repo: Repo, revision: str, path: str) -> None:
        commit = self._commit_of(repo, revision)
        if commit is None:
            return None
        data = repo.commits[commit].get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        oid = hashlib.sha256(data).hexdigest()
        if oid not in repo.large:
            return self._answer(200, data, ETag=f'"{git_oid(data)}"', X_Repo_Commit=commit)
        store = self.server.url.replace("127.0.0.1", "localhost")  # another host, as the real one's store is
        address = f"{store}/lfs/{name}/get/{oid}?signature=hidden"
        self._answer(
            302, None, Location=address, X_Repo_Commit=commit, X_Linked_Etag=f'"{oid}"', X_Linked_Size=str(len(data))
        )


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = {
            "secret-of-the-owner": "owner",
            "secret-of-a-reader": "reader",
            "secret-of-a-stranger": "stranger",
        }
        self.repos: dict[str, Repo] = {}
        self.pieces: dict[tuple[str, str], dict[int, bytes]] = {}
        self.requests: Counter[str] = Counter()
        self.received = 0  # bytes of uploads
        self.faults = Faults()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed or a line that is cut is what is tested."""


@contextmanager
def serving() -> Iterator[HubServer]:
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
