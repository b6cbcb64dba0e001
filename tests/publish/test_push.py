"""`crab push` against a hub on this machine: what arrives is the package, whatever breaks on the way; what is secret stays so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from fake_hub import HubServer, Repo, git_oid
from tiny import crab

from hermitcrab.errors import UsageError
from hermitcrab.lineage.verify import verify
from hermitcrab.publish import hide, parse_target, read_token

OWNER = "secret-of-the-owner"


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Pusher:
    """The command line as a user with a token has it; `start` in a process of its own, else in this one."""

    def __init__(self, hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
        self.hub, self.home, self.patch, self.capsys = hub, home, monkeypatch, capsys

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.home),
            "NO_PROXY": "127.0.0.1,localhost",
            "THE_TOKEN": OWNER,
        }
        return subprocess.Popen(
            [sys.executable, *arguments], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __call__(
        self, package: Path, *arguments: str, to: str = "hf:org/model", token: str = OWNER
    ) -> tuple[int, dict[str, Any], str]:
        from huggingface_hub import constants

        self.patch.setenv("THE_TOKEN", token)
        self.patch.setattr(
            constants, "ENDPOINT", self.hub.url
        )  # as HF_ENDPOINT sets it when the library is first imported
        status, out, err = crab(
            "push", str(package), to, "--json", "--token", "env:THE_TOKEN", *arguments, capsys=self.capsys
        )
        for secret in (token, "signature=hidden"):
            assert secret not in out + err
        return status, json.loads(out) if out else {}, err


@pytest.fixture
def push(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pusher:
    return Pusher(hub, tmp_path / "hf-home", monkeypatch, capsys)


DOWNLOAD = """
import os, sys, huggingface_hub
os.environ["HF_TOKEN"] = os.environ["THE_TOKEN"]
huggingface_hub.snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3])
"""


def test_what_is_downloaded_is_the_package_and_verifies(package, hub, push, tmp_path):
    status, told, _ = push(package)
    assert status == 0
    assert told["private"] is hub.repos["org/model"].private is True
    assert sorted(told["sent"]) == sorted(files_of(package))
    assert (told["skipped"], told["unchanged"], told["removed"]) == ([], [], [])
    assert told["bytes_sent"] == sum(len(data) for data in files_of(package).values())
    assert hub.repos["org/model"].branches["main"] == told["commit"]
    assert any("/complete/" in request for request in hub.requests)  # the weights went in parts
    asked = push.start("-c", DOWNLOAD, "org/model", told["commit"], str(tmp_path / "got"))
    _, said = asked.communicate(timeout=120)
    assert asked.returncode == 0, said[-2000:]
    got = files_of(tmp_path / "got")
    assert {path: data for path, data in got.items() if path in files_of(package)} == files_of(package)
    result = verify(tmp_path / "got")
    assert result.ok, [check.message for check in result.failures]
    assert any("not signed" in check.message for check in result.checks)
    (tmp_path / "got" / "more.txt").write_text("x")
    assert not verify(tmp_path / "got").ok


def test_a_second_push_sends_nothing_and_a_changed_file_alone_goes_again(package, hub, push):
    _, first, _ = push(package)
    before = hub.received
    status, told, _ = push(package)
    assert (status, told["sent"], told["bytes_sent"], told["commit"]) == (0, [], 0, first["commit"])
    assert hub.received == before
    repo = hub.repos["org/model"]
    repo.add("main", {**repo.commits[first["commit"]], "config.json": b"{}"})  # somebody changed it there
    status, told, _ = push(package)
    assert (status, told["sent"]) == (0, ["config.json"])
    assert repo.commits[told["commit"]]["config.json"] == (package / "config.json").read_bytes()
    assert repo.parents[told["commit"]] != first["commit"]


def test_a_dry_run_makes_nothing(package, hub, push):
    status, told, _ = push(package, "--dry-run")
    assert (status, told["commit"], len(told["sent"])) == (0, None, len(files_of(package)))
    assert hub.repos == {}


def test_a_line_that_breaks_is_taken_up_again(package, hub, push):
    hub.faults.break_puts, hub.faults.fail_puts = 1, 1
    status, told, said = push(package)
    assert status == 0
    assert told["bytes_sent"] > sum(len(data) for data in files_of(package).values())  # what broke off went twice
    assert hub.repos["org/model"].commits[told["commit"]].items() >= files_of(package).items()
    assert "Retrying" in said


def test_what_had_arrived_before_a_failure_is_not_sent_again(package, hub, push):
    weights = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    hub.faults.refuse_puts = True
    status, _, said = push(package)
    assert status == 1
    assert "403" in said
    assert "same command goes on" in said or "right to write" in said
    hub.faults.refuse_puts = False
    hub.repos["org/model"].objects[weights] = (package / "model.safetensors").read_bytes()
    status, told, _ = push(package)
    assert status == 0
    assert told["skipped"] == ["model.safetensors"]
    assert "model.safetensors" not in told["sent"]
    assert told["bytes_skipped"] == (package / "model.safetensors").stat().st_size
    assert not any(f"/part/{weights}" in request for request in hub.requests)


def test_killed_in_the_middle_of_a_file_it_goes_on(package, hub, push):
    hub.faults.stop_at, hub.faults.stop_after = threading.Event(), 4
    killed = push.start("-m", "hermitcrab", "push", str(package), "hf:org/model", "--token", "env:THE_TOKEN")
    assert hub.faults.stop_at.wait(60)
    killed.kill()
    out, err = killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert OWNER not in out + err
    hub.faults.stop_at = None
    repo = hub.repos["org/model"]
    assert list(repo.commits[repo.branches["main"]]) == [".gitattributes"]
    arrived = {oid for oid, data in repo.objects.items() if len(data)}
    assert len(arrived) == 4
    hub.requests.clear()
    status, told, _ = push(package)
    assert status == 0
    assert repo.commits[told["commit"]].items() >= files_of(package).items()
    assert len(told["skipped"]) == 4
    assert {hashlib.sha256((package / path).read_bytes()).hexdigest() for path in told["skipped"]} == arrived
    assert not any(oid in request for oid in arrived for request in hub.requests)


def test_a_commit_whose_answer_is_lost_is_found_by_the_next_try(package, hub, push):
    hub.faults.lose_commit_answers = 1
    status, _, said = push(package)
    assert status == 1
    assert "the same command goes on" in said
    status, told, _ = push(package)
    assert (status, told["sent"], told["skipped"]) == (0, [], [])
    assert len(hub.repos["org/model"].commits) == 2


def test_a_slow_hub_is_waited_for(package, hub, push):
    hub.faults.seconds_a_chunk = 0.02
    status, told, _ = push(package)
    assert status == 0
    assert told["commit"]


@pytest.mark.parametrize(
    ("token", "status", "said"),
    [
        ("another-token", 2, "does not accept the token in THE_TOKEN (401)"),
        ("secret-of-a-reader", 1, "the token in THE_TOKEN may not do this (403)"),
    ],
)
def test_who_may_not_is_told_so(token, status, said, package, hub, push):
    found, _, told = push(package, token=token)
    assert found == status
    assert said in told
    assert hub.repos == {}


def test_a_repository_that_is_anothers_is_not_written(package, hub, push):
    hub.repos["org/model"] = Repo(private=True)
    hub.repos["org/model"].add("main", {".gitattributes": b"x"})
    status, _, told = push(package, token="secret-of-a-reader")
    assert status == 1
    assert "403" in told
    assert "write access" in told
    assert len(hub.repos["org/model"].commits) == 1


def test_nothing_is_shown_to_everybody_but_by_public(package, hub, push):
    hub.repos["org/model"] = Repo(private=False)
    hub.repos["org/model"].add("main", {".gitattributes": b"x"})
    status, _, said = push(package)
    assert status == 2
    assert "is public, and everybody would see this" in said
    status, told, _ = push(package, "--public")
    assert (status, told["private"]) == (0, False)
    status, told, _ = push(package, "--public", to="hf:org/new")
    assert (status, hub.repos["org/new"].private) == (0, False)
    _, _, _ = push(package, to="hf:org/hidden")
    status, told, said = push(package, "--public", to="hf:org/hidden")
    assert "is private and stays so" in said
    assert told["private"] is True
    assert hub.repos["org/hidden"].private is True


def test_files_in_the_way_stop_it_until_they_are_taken_out(package, hub, push):
    repo = hub.repos["org/model"] = Repo(private=True)
    repo.add("main", {".gitattributes": b"x", "pytorch_model.bin": b"old"})
    escape = repo.add("evil", {".gitattributes": b"x", "a\x1b[2J": b"x"})
    status, _, said = push(package, to="hf:org/model@evil")
    assert status == 2
    assert escape in repo.commits
    assert "\x1b" not in said
    status, _, said = push(package)
    assert status == 2
    assert "pytorch_model.bin" in said
    assert hub.received == 0
    status, told, _ = push(package, "--remove")
    assert (status, told["removed"]) == (0, ["pytorch_model.bin"])
    assert sorted(repo.commits[told["commit"]]) == sorted([".gitattributes", *files_of(package)])


def test_another_branch_is_made_and_the_first_stays(package, hub, push):
    status, told, _ = push(package, to="hf:org/model@v1.0")
    assert status == 0
    repo = hub.repos["org/model"]
    assert repo.branches["v1.0"] == told["commit"]
    assert list(repo.commits[repo.branches["main"]]) == [".gitattributes"]


def test_a_new_branch_begins_as_the_first_one_is(package, hub, push):
    push(package)
    status, told, _ = push(package, to="hf:org/model@copy")
    assert (status, told["sent"]) == (0, [])
    repo = hub.repos["org/model"]
    repo.add("main", {**repo.commits[repo.branches["main"]], "old.bin": b"x"})
    status, _, said = push(package, to="hf:org/model@v2")
    assert status == 2
    assert "old.bin" in said
    assert "v2" not in repo.branches
    status, told, _ = push(package, "--remove", to="hf:org/model@v2")
    assert (status, told["sent"], told["removed"]) == (0, [], ["old.bin"])
    assert "old.bin" in repo.commits[repo.branches["main"]]


@pytest.mark.parametrize("fault", ["changed", "ignored"])
def test_a_hub_that_holds_something_else_is_found_out(fault, package, hub, push):
    if fault == "changed":
        hub.faults.changed = {"model.safetensors": b"other bytes"}
    else:
        hub.faults.ignored = ("config.json",)
    status, _, said = push(package)
    assert status == 1
    assert "what the hub holds is not what was sent" in said
    assert ("model.safetensors (is another)" if fault == "changed" else "config.json (is missing)") in said


def test_a_package_that_does_not_verify_is_not_sent_but_aloud(package, hub, push, tmp_path):
    copy = shutil.copytree(package, tmp_path / "p")
    (copy / "config.json").write_text('{"a": 1}')
    status, _, said = push(copy)
    assert status == 1
    assert "config.json: changed after signing" in said
    assert hub.repos == {}
    status, told, said = push(copy, "--unverified")
    assert (status, told["verified"]) == (0, False)
    assert "It is used because of --unverified" in said


def test_two_files_of_equal_bytes_arrive(package, hub, push, tmp_path):
    copy = shutil.copytree(package, tmp_path / "p")
    shutil.copyfile(copy / "model.safetensors", copy / "again.safetensors")
    status, told, _ = push(copy, "--unverified")
    assert status == 0
    assert hub.repos["org/model"].commits[told["commit"]].items() >= files_of(copy).items()


# Forms


@pytest.mark.parametrize(
    "to",
    ["hf:name", "hf:org/name/x", "hf:../x", "hf:org/..", "http://u:secret@host/x", "hf:org/a b", "gh:org/name", "hf:org/name.git",
     "hf:org/name@", "hf:org/name@../x", "hf:org/name@--x", "hf:org/name@" + "a" * 40],
)  # fmt: skip
def test_a_target_has_one_form(to):
    with pytest.raises(UsageError) as refused:
        parse_target(to)
    assert "secret" not in str(refused.value)


def test_modelscope_is_refused_by_name():
    with pytest.raises(UsageError, match="does not push to ModelScope yet"):
        parse_target("ms:org/name")


def test_a_token_is_named_never_given(monkeypatch):
    monkeypatch.setenv("T", " tok \n")
    assert read_token("env:T") == ("T", "tok")
    for where in ("hf_abcdef", "env:", "env:a b", "file:x"):
        with pytest.raises(UsageError, match="expected env:NAME") as refused:
            read_token(where)
        assert "hf_abcdef" not in str(refused.value)
    monkeypatch.setenv("T", "")
    with pytest.raises(UsageError, match="T holds no token"):
        read_token("env:T")
    monkeypatch.setenv("T", "pass word")
    with pytest.raises(UsageError, match="other text"):
        read_token("env:T")


def test_messages_hold_neither_token_nor_signed_address():
    said = hide("PUT https://u:p@host.example/a/b?X-Amz-Signature=abc with Bearer tok", "tok")
    assert said == "PUT https://host.example/a/b with Bearer …"
    assert "\x1b" not in hide("a\x1b[2Jb", "tok")


def test_the_digest_of_git(tmp_path):
    from hermitcrab.packaged import File
    from hermitcrab.publish.files import git_digest

    (tmp_path / "a").write_bytes(b"Hello, World!")
    file = File("a", hashlib.sha256(b"Hello, World!").hexdigest(), 13)
    assert git_digest(tmp_path / "a", file) == git_oid(b"Hello, World!") == "b45ef6fec89518d314f546fd6c3025367b721684"
