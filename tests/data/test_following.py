import pytest

from hermitcrab.data.following import follow
from hermitcrab.data.tables import row_id, schema, write_rows
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.recipe import Split
from hermitcrab.stages import Job
from hermitcrab.stages.prepare import STAGE, Prepare
from hermitcrab.store import Store

TEXT = "a text that is long enough for its n-grams to be told apart from those of any other one"


def rows(texts):
    return [
        {"row_id": row_id("sha256:x", i), "source": "file:a.jsonl", "document": None, "text": text}
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def run(tmp_path):
    store, artifacts = Store(tmp_path), {}
    with store.draft("collect", digest_json("c"), {}) as draft:
        texts = [
            *(f"text {i} " + " ".join(f"w{i}{k}" for k in range(9)) for i in range(20)),
            TEXT,
            f"{TEXT} too",
            f"Noted: {TEXT}",
        ]
        write_rows(draft.payload / "train.parquet", rows(texts), schema("text"))
        draft.write("sources.json", [{
            "uri": "file:a.jsonl", "split": "train", "sha256": "sha256:x", "size": 1, "license": "MIT", "rows_read": 23, "rows_kept": 23,
        }])  # fmt: skip
        artifacts["collect"] = store.seal(draft)
    clean = ["normalize", {"near-dedup": {"threshold": 0.7}}, {"decontaminate": {"ngram": 8}}]
    part = Prepare(clean=clean, normalize="NFC", split=Split(validation=1, test=2), take=None, format="text")
    with store.draft("prepare", digest_json("p"), {}) as draft:
        STAGE.run(Job(part, artifacts, draft, {}))
        artifacts["prepare"] = store.seal(draft)
    return artifacts


def test_a_row_is_followed_to_its_place_or_to_its_reason(run):
    ids = [row_id("sha256:x", i) for i in range(23)]
    kept = [row for row in ids if follow(row, run)["kept"]]
    assert len(kept) == 21
    for i, row in enumerate(ids):
        told = follow(row, run)
        assert told["collected"] == [
            {"split": "train", "source": "file:a.jsonl", "position": i, "sha256": "sha256:x", "license": "MIT"}
        ]
        assert bool(told["kept"]) != bool(told["dropped"])
    (stays,) = {row for row in ids[20:] if row in kept}
    told = follow(stays, run)
    assert sorted(other["row_id"] for other in told["duplicates"]) == sorted(set(ids[20:]) - {stays})
    other = follow(next(row for row in ids[20:] if row != stays), run)
    assert other["dropped"] == [{"split": "train", "reason": "near duplicate"}]
    assert other["duplicate_of"][0]["kept"] == stays
    assert other["duplicate_of"][0]["similarity"] >= 0.7


def test_files_of_the_artifact_are_those_that_were_asked_for(run):
    names = {file["path"] for file in run["prepare"].manifest["files"]}
    assert {"clusters.parquet", "contamination.parquet", "filters.json"} <= names
    assert [entry["name"] for entry in run["prepare"].read("filters.json")] == ["normalize"]
    assert run["prepare"].facts["near-dedup"]["compared"] >= 2


def test_a_row_that_never_was_is_said_to_be_none(run):
    with pytest.raises(HermitcrabError, match="this run has no row 0000"):
        follow("0" * 16, run)
