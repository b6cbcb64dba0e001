"""One recipe here, in Daft's threads and on Ray: the same bytes. Killed half-way: the same bytes."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cleaned import clean_files, dropped, texts_in

from hermitcrab.data.engine import Engine
from hermitcrab.data.segment import Piece
from hermitcrab.data.tables import TableWriter, row_id, schema
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Split

CLEAN = [
    "normalize", "exact-dedup", "near-dedup", {"line-dedup": {"min_characters": 20}}, {"decontaminate": {"ngram": 8}},
]  # fmt: skip
SPLIT = Split(validation=20, test=30, seed=1)
WORDS = ["stone", "river", "cloud", "field", "glass", "山", "水", "云", "田", "石"]


def texts(count=600):
    rng, found = random.Random(5), []
    for i in range(count):
        lines = [
            " ".join(rng.choice(WORDS) + str(rng.randint(0, 40)) for _ in range(12)) for _ in range(rng.randint(2, 8))
        ]
        found.append("\n".join(lines))
        if i % 7 == 0:
            found.append(found[rng.randrange(len(found))].replace("1", "2", i % 3))
    return found


def write(folder, listed, groups=6):
    """Rows in several row groups, so that there are several tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    with TableWriter(folder / "train.parquet", schema("text")) as out:
        for place, (number, text) in enumerate(listed):
            out.add({"row_id": row_id("sha256:x", number), "source": "s", "document": None, "text": text})
            if place % (len(listed) // groups) == 0:
                out._flush()
    return {"train": folder / "train.parquet"}


def digests(found):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found.folder.glob("*.parquet"))}


def run(folder, listed, engine=None, **kw):
    paths = write(folder, listed)
    return clean_files(folder, paths, clean=CLEAN, split=SPLIT, take=300, engine=engine or Engine(), **kw)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return run(tmp_path_factory.mktemp("here"), list(enumerate(texts())))


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from data.test_engine import digests, run, texts
from hermitcrab.data.engine import Engine
engine = Engine(address={address!r}, size=1 << 40)
print(engine.name, *digests(run(Path({folder!r}), list(enumerate(texts())), engine)).values())
"""


def elsewhere(folder, address):
    """In a process of its own: Daft has one runner a process."""
    tests = str(Path(__file__).parents[1])
    script = SCRIPT.format(tests=tests, folder=str(folder), address=address)
    source = str(Path(sys.modules["hermitcrab"].__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([source, tests]),
    }
    for _ in range(3):  # Ray gives its own agent 30 seconds to start, which a busy machine may not
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        if "timed out during startup" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()[-4:]


def test_there_is_something_to_compare(here):
    reasons = {reason for _, _, reason in dropped(here)}
    assert {"exact duplicate", "near duplicate", "not drawn: take is 300"} <= reasons
    assert [name for name in ("train", "validation", "test") if texts_in(here, name)] == ["train", "validation", "test"]
    assert pq.read_metadata(here.folder.parent / "train.parquet").num_row_groups >= 6


def test_daft_gives_the_same_bytes(here, tmp_path):
    pytest.importorskip("daft")
    assert elsewhere(tmp_path, None) == ["native", *digests(here).values()]


@pytest.mark.slow
def test_ray_gives_the_same_bytes(here, tmp_path):
    pytest.importorskip("daft")
    pytest.importorskip("ray")
    assert elsewhere(tmp_path, "ray://local") == ["ray", *digests(here).values()]


def test_order_of_the_rows_changes_nothing(here, tmp_path):
    listed = list(enumerate(texts()))
    random.Random(0).shuffle(listed)
    assert digests(run(tmp_path, listed)) == digests(here)


def test_rows_in_are_rows_kept_and_dropped_by_reason(here):
    whole = here.ledger[0]
    assert whole["taken"] == len(texts()) == whole["kept"] + sum(whole["dropped"].values())
    ids = [row for row, _, _ in dropped(here)]
    kept = [row for table in here.tables.values() for row in table.column("row_id").to_pylist()]
    assert sorted([*ids, *kept]) == sorted(row_id("sha256:x", i) for i in range(len(texts())))


def test_what_was_cleaned_is_clean(here, tmp_path):
    """Once more over its own output: nothing goes and nothing changes."""
    paths = {name: here.folder / f"{name}.parquet" for name in here.tables}
    again = clean_files(tmp_path, paths, clean=CLEAN, split=SPLIT)
    assert dropped(again) == []
    assert {name: table.to_pylist() for name, table in again.tables.items()} == {
        name: table.to_pylist() for name, table in here.tables.items()
    }


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [0, 3, 7, 9, 10])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(here, tmp_path, monkeypatch, after):
    whole, done = Engine.each, []

    def each(self, work, pieces, what):
        class Counting:
            def run(self, task, piece):
                if len(done) == after:
                    raise Killed
                done.append(work.run(task, piece))

        whole(self, Counting(), pieces, what)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "each", each)
        with pytest.raises(Killed):
            run(tmp_path, list(enumerate(texts())))
    assert digests(run(tmp_path, list(enumerate(texts())))) == digests(here)


def test_a_task_that_fails_ends_the_run_with_its_own_words(tmp_path):
    pytest.importorskip("daft")
    engine = Engine(size=1 << 40)
    with pytest.raises(HermitcrabError, match=r"trying: .*never-there"):
        engine.each(Failing(), [Piece(0), Piece(1)], "trying")


class Failing:
    def run(self, task, piece):
        Path("never-there").read_bytes()


def test_a_row_id_that_is_none_is_named(tmp_path):
    with TableWriter(tmp_path / "train.parquet", schema("text")) as out:
        out.add({"row_id": "xyz", "source": "s", "document": None, "text": "t"})
    with pytest.raises(HermitcrabError, match=r"row id: expected 16 hex digits\. Received: 'xyz'"):
        clean_files(tmp_path, {"train": tmp_path / "train.parquet"})
