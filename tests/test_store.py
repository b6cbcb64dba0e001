"""The store: what is sealed stays whole, what is half-made is never seen, one maker of a key at a time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import stat
import time

import pytest

from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.store import Store, disk_errors, write_atomic

KEY = "sha256:" + "ab" * 32
ASKED = {"code": "sha256:0", "slice": {}, "inputs": []}


def make(store: Store, key: str = KEY, text: str = "hello") -> None:
    with store.draft("collect", key, ASKED) as draft:
        (draft.payload / "sub").mkdir()
        (draft.payload / "sub" / "a.txt").write_text(text)
        store.seal(draft)


def test_an_artifact_is_found_again_with_the_digest_of_its_payload(tmp_path):
    store = Store(tmp_path)
    assert store.find(KEY) is None
    make(store)
    found = store.find(KEY)
    assert found is not None
    assert found.digest == digest_json(found.manifest["files"])
    assert [f["path"] for f in found.manifest["files"]] == ["sub/a.txt"]
    assert not (tmp_path / "drafts" / KEY[7:]).exists()


def test_facts_are_no_part_of_the_digest(tmp_path):
    digests = []
    for name, fact in (("one", 1), ("two", 2)):
        store = Store(tmp_path / name)
        with store.draft("collect", KEY, ASKED) as draft:
            draft.write("x.json", {"a": 1})
            draft.facts["host"] = fact
            digests.append(store.seal(draft).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("damage", ["missing", "short", "manifest"])
def test_a_damaged_artifact_is_not_reused_and_is_made_again(tmp_path, damage):
    store = Store(tmp_path)
    make(store)
    file = store.find(KEY).payload / "sub" / "a.txt"
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_text("h")
    else:
        (file.parents[2] / "manifest.json").write_text("{")
    assert store.find(KEY) is None
    make(store)
    assert (store.find(KEY).payload / "sub" / "a.txt").read_text() == "hello"


def test_an_interrupted_draft_keeps_its_work_and_loses_its_payload(tmp_path):
    store = Store(tmp_path)

    def interrupted() -> None:
        with store.draft("train", KEY, ASKED) as draft:
            (draft.payload / "half").write_text("x")
            (draft.work / "plan.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.find(KEY) is None
    with store.draft("train", KEY, ASKED) as draft:
        assert not (draft.payload / "half").exists()
        assert (draft.work / "plan.json").exists()
        artifact = store.seal(draft)
    assert artifact.facts["sessions"] == 2


def _make_slowly(root: str, number: int) -> None:
    store = Store(root)
    with store.lock(KEY, "collect"):
        if store.find(KEY) is None:
            with store.draft("collect", KEY, ASKED) as draft:
                (draft.payload / "who").write_text(str(number))
                with open(f"{root}/made", "a") as file:
                    file.write("x")
                time.sleep(0.3)
                store.seal(draft)


def test_two_runs_at_once_make_a_key_once(tmp_path):
    workers = [
        multiprocessing.get_context("spawn").Process(target=_make_slowly, args=(str(tmp_path), i)) for i in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert (tmp_path / "made").read_text() == "x"


def _hold(root: str) -> None:
    with Store(root).lock(KEY, "collect"):
        open(f"{root}/held", "w").close()
        time.sleep(60)


def test_a_killed_maker_holds_no_lock(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path),))
    worker.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with Store(tmp_path).lock(KEY, "collect"):
        make(Store(tmp_path))
    assert Store(tmp_path).find(KEY) is not None


def test_gc_keeps_what_a_run_refers_to(tmp_path):
    store, other = Store(tmp_path / "store"), "sha256:" + "cd" * 32
    make(store)
    make(store, other)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    store.remember_run("a", {"folder": str(tmp_path / "runs" / "a"), "artifacts": {"collect": KEY}})
    with store.lock(KEY, "x"), store.lock(other, "x"):
        assert store.gc() == []  # somebody is at work on it
    assert len(store.gc(dry=True)) == 1
    assert store.find(other) is not None
    assert [size > 0 for _, size in store.gc()] == [True]
    assert store.find(KEY) is not None
    assert store.find(other) is None
    (tmp_path / "runs" / "a").rmdir()
    store.gc()
    assert store.find(KEY) is None


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
def test_disk_errors_become_one_sentence(number, said):
    with pytest.raises(HermitcrabError, match=said), disk_errors("cannot write to the store"):
        raise OSError(number, os.strerror(number), "x")


def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path):
    """On a real file system that is full: a device that answers ENOSPC to every write."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    store = Store(tmp_path)
    with (
        pytest.raises(HermitcrabError, match="disk is full"),
        store.draft("collect", KEY, ASKED),
        open("/dev/full", "w") as file,
    ):
        file.write("x" * 10_000)
    assert store.find(KEY) is None


def test_a_read_only_store_is_told(tmp_path):
    if os.geteuid() == 0:
        root = tmp_path / "file"
        root.write_text("")  # root may write anywhere; a file where a folder should be stops it as well
        with pytest.raises((HermitcrabError, NotADirectoryError)):
            make(Store(root))
        return
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(HermitcrabError, match="permission denied"):
        make(Store(tmp_path / "store"))


def test_atomic_writes_replace_whole_files(tmp_path):
    file = tmp_path / "a.json"
    write_atomic(file, b"[1]")
    write_atomic(file, b"[2]")
    assert json.loads(file.read_bytes()) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
