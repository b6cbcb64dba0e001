import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from hermitcrab.data.megatron import TokenFile
from hermitcrab.data.tables import row_id, schema, write_rows
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Split, from_value
from hermitcrab.recipe.data import Tokens
from hermitcrab.stages import Job, prepare
from hermitcrab.stages.prepare import STAGE, Prepare
from hermitcrab.store import Store

CLEAN = ["normalize", "exact-dedup", "decontaminate"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def collected(store, **given):
    """An artifact as `collect` leaves it: `train=[("prompt", "completion"), ...]`."""
    asked = {"inputs": [], "slice": {"rows": digest_json(given)}}
    with store.draft("collect", digest_json(asked), asked) as draft:
        position = 0
        for split, pairs in given.items():
            rows = []
            for prompt, completion in pairs:
                rows.append({"row_id": row_id("sha256:x", position), "source": "s", "document": None,
                             "prompt": prompt, "completion": completion})  # fmt: skip
                position += 1
            write_rows(draft.payload / f"{split}.parquet", rows, schema("prompt-completion"))
        return store.seal(draft)


def prepared(store, artifact, **part):
    whole = {"clean": CLEAN, "normalize": "NFC", "split": Split(validation=2, test=3), "take": None,
             "format": "prompt-completion", **part}  # fmt: skip
    slice = Prepare(**whole)
    asked = {"inputs": [artifact.digest], "slice": slice.model_dump(mode="json")}
    with store.draft("prepare", digest_json(asked), asked) as draft:
        STAGE.run(Job(slice, {"collect": artifact}, draft, {}))
        return store.seal(draft)


def pairs(count, answer="yes"):
    return [(f"question {i}", answer) for i in range(count)]


def rows(artifact, name):
    return pq.read_table(artifact.payload / f"{name}.parquet").to_pylist()


def ledger(artifact):
    return {entry.pop("name"): entry for entry in artifact.read("ledger.json")}


def test_every_row_is_in_a_table_or_dropped_with_a_reason(store):
    given = [*pairs(20), ("question 1", "yes"), ("question 2", "no"), (" question 30 ", "yes"), ("\x01", "yes")]
    artifact = prepared(store, collected(store, train=given), take=10)
    sizes = {name: len(rows(artifact, name)) for name in ("train", "validation", "test")}
    assert sizes == {"train": 10, "validation": 2, "test": 3}
    everything = [row["row_id"] for name in (*sizes, "dropped") for row in rows(artifact, name)]
    assert sorted(everything) == sorted(row_id("sha256:x", i) for i in range(len(given)))
    counts = ledger(artifact)
    assert counts["all rows"]["taken"] == len(given)
    assert counts["all rows"]["dropped"] == {
        "empty after normalization": 1, "exact duplicate": 1, "same prompt, other completion": 1,
        "not drawn: take is 10": 6,
    }  # fmt: skip
    assert sum(counts[f"{name} rows"]["taken"] for name in sizes) == len(given)
    assert {name: counts[f"{name} rows"]["kept"] for name in sizes} == sizes
    assert artifact.facts["split"] == {"test": {"asked": 3, "got": 3}, "validation": {"asked": 2, "got": 2}}


def test_no_prompt_of_held_out_rows_is_trained_on(store):
    given = [*pairs(30), *((f"  QUESTION {i}!", "yes") for i in range(30))]
    artifact = prepared(store, collected(store, train=given, test=[("Question: 7", "yes"), ("new", "no")]))
    train = {row["prompt"].casefold().strip(" !") for row in rows(artifact, "train")}
    held = {row["prompt"].casefold().strip(" !") for row in rows(artifact, "validation")}
    assert not train & held
    assert "question 7" not in train | held
    assert ledger(artifact)["train rows"]["dropped"]["stands in test data"] == 2


def test_without_decontamination_a_leak_stops(store):
    artifact = collected(store, train=pairs(9), test=[("question 3", "yes")])
    with pytest.raises(HermitcrabError, match=r"1 train rows stand in test data too.*add `decontaminate`"):
        prepared(store, artifact, clean=["normalize"])
    assert len(rows(prepared(store, artifact, clean=["exact-dedup"]), "train")) == 6


def test_filters_run_in_the_recipes_order(store):
    artifact = collected(store, train=[("a ", "x"), ("a", "y"), *pairs(9)])
    early = prepared(store, artifact, clean=["decontaminate", "normalize", "exact-dedup"])
    assert {entry["reason"] for entry in rows(early, "dropped")} == {"same prompt, other completion"}
    assert len(rows(early, "train")) + len(rows(early, "validation")) + len(rows(early, "test")) == 10


def test_same_rows_give_the_same_digest_and_another_split_does_not(store, tmp_path):
    given = [*pairs(500), *pairs(20)]
    random.Random(1).shuffle(given)
    again = Store(tmp_path / "again")
    digests = {prepared(s, collected(s, train=given)).digest for s in (store, again)}
    assert len(digests) == 1
    other = prepared(store, collected(store, train=given), split=Split(validation=2, test=3, seed=1))
    assert other.digest not in digests


def test_nothing_to_train_or_to_test_on_says_where_the_rows_went(store):
    with pytest.raises(
        HermitcrabError, match=r"no test row is left of 3 collected rows: 2 train rows kept, 1 validation"
    ):
        prepared(store, collected(store, train=pairs(3)), split=Split(validation=1, test=0))
    artifact = collected(store, train=pairs(2), validation=pairs(1), test=pairs(2))
    with pytest.raises(
        HermitcrabError, match=r"no train row is left of 5 .*: 2 dropped \(train row, exact duplicate\)"
    ):
        prepared(store, artifact)
    with pytest.raises(HermitcrabError, match="the training source has 3 after cleaning"):
        prepared(store, collected(store, train=pairs(3)), split=Split(validation=2, test=1))


def test_row_that_goes_without_a_reason_stops_the_stage(store, monkeypatch):
    whole = prepare.Cleaning.run

    def lossy(self, files):
        census, scratch = whole(self, files)
        census.alive_N[census.ranked()[-1]] = False
        census.reasons.append("")
        census.gone.append((census.id_N[:0], census.split_N[:0], []))
        monkeypatch.setattr(census, "why", lambda: {})
        return census, scratch

    monkeypatch.setattr(prepare.Cleaning, "run", lossy)
    with pytest.raises(HermitcrabError, match="does not balance: taken 9, kept 8, dropped 0"):
        prepared(store, collected(store, train=pairs(9)), clean=["normalize"])


def test_format_of_conversations_goes_through(store):
    asked = {"inputs": [], "slice": {"messages": True}}
    with store.draft("collect", digest_json(asked), asked) as draft:
        talks = [[{"role": "user", "content": f" q{i} "}, {"role": "assistant", "content": "a"}] for i in range(9)]
        write_rows(draft.payload / "train.parquet", (
            {"row_id": row_id("sha256:x", i), "source": "s", "document": None, "messages": json.dumps(talk)}
            for i, talk in enumerate(talks)), schema("messages"))  # fmt: skip
        artifact = store.seal(draft)
    done = prepared(store, artifact, format="messages")
    assert len(rows(done, "test")) == 3
    assert all(json.loads(r["messages"])[0]["content"].startswith("q") for r in rows(done, "train"))


def texts(store, **given):
    """An artifact as `collect` leaves it, of format `text`."""
    asked = {"inputs": [], "slice": {"rows": digest_json(given)}}
    with store.draft("collect", digest_json(asked), asked) as draft:
        for split, listed in given.items():
            rows = [
                {"row_id": row_id(f"sha256:{split}", i), "source": "s", "text": text} for i, text in enumerate(listed)
            ]
            write_rows(draft.payload / f"{split}.parquet", rows, schema("text"))
        return store.seal(draft)


def test_a_row_is_found_in_the_token_file_by_its_place(store):
    made = texts(store, train=[f"ferry number {i} leaves at six" for i in range(60)])
    artifact = prepared(store, made, format="text", tokens=Tokens(vocab_size=280))
    tokenizer = Tokenizer.from_file(str(artifact.payload / "tokens" / "tokenizer.json"))
    counts = {one["split"]: one for one in artifact.read("tokens/tokens.json")["splits"]}
    for name in ("train", "validation", "test"):
        file, listed = TokenFile(artifact.payload / "tokens" / name), rows(artifact, name)
        assert len(file) == len(listed) == counts[name]["documents"]
        assert counts[name]["tokens"] == len(file.ids_T)
        for number, row in enumerate(listed):
            *ids, end = file.document(number).tolist()
            assert tokenizer.decode(ids) == row["text"]
            assert end == 0


def test_a_tokenizer_is_learnt_from_training_rows_alone(store):
    train, test = (
        [f"ferry number {i} leaves at six" for i in range(60)],
        ["qqqqqqqq zzzzzzzz" * 40, "the harbor qqqq zzzz" * 40],
    )
    made = texts(store, train=train, test=test, validation=["jjjjjjjj" * 50])
    artifact = prepared(store, made, format="text", tokens=Tokens(vocab_size=280))
    vocabulary = Tokenizer.from_file(str(artifact.payload / "tokens" / "tokenizer.json")).get_vocab()
    assert any("ferry" in token for token in vocabulary)
    assert not {token for token in vocabulary for pair in ("qq", "zz", "jj") if pair in token}


def test_tokens_are_of_texts_alone():
    recipe = from_value({
        "name": "r", "task": "text-generation", "base": {"path": "b"},
        "data": {"train": {"path": "rows.csv", "license": "MIT", "format": "prompt-completion"}, "tokens": {}},
    })  # fmt: skip
    with pytest.raises(UsageError, match="format `text`"):
        prepare.slice_of(recipe)


def test_images_that_look_alike_go_for_the_first_by_rank(store):
    """Scaled and brighter copies of noise are near duplicates; other noise is none."""
    pytest.importorskip("PIL")
    from PIL import Image, ImageFilter

    from hermitcrab.data.images import encode_png

    def image(number, bright=0):
        noise = np.random.default_rng(number).integers(0, 200, (12, 12)).astype(np.uint8)
        soft = Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
        return encode_png((np.asarray(soft, np.int64) + bright).clip(0, 255).astype(np.uint8).tobytes(), 48, 48)

    asked = {"inputs": [], "slice": {"rows": "images"}}
    given = {"test": [image(0), image(1)], "train": [image(n) for n in range(2, 12)] + [image(0, 9), image(5, 9)]}
    with store.draft("collect", digest_json(asked), asked) as draft:
        for split, images in given.items():
            listed = [{"row_id": row_id(split, i), "source": "s", "document": None, "image": data, "label": "a"}
                      for i, data in enumerate(images)]  # fmt: skip
            write_rows(draft.payload / f"{split}.parquet", listed, schema("image-label"))
        artifact = store.seal(draft)
    made = prepared(
        store, artifact, format="image-label", clean=[{"near-dedup": {"distance": 4}}], split=Split(validation=1)
    )
    gone = rows(made, "dropped")
    assert {row["reason"] for row in gone} == {"near duplicate"}
    assert row_id("train", 10) in {row["row_id"] for row in gone}  # the copy of a test image
    assert len(gone) == 2
    assert len(rows(made, "test")) == 2
    pairs = {row["row_id"]: row for row in rows(made, "clusters")}
    assert pairs[row_id("train", 10)]["kept"] == row_id("test", 0)
    assert all(1 - 4 / 64 <= row["similarity"] <= 1 for row in pairs.values())
