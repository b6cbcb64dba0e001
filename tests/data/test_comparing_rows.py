"""Near duplicates, repeated lines and contamination, against plain Python."""

import random
import re

import pyarrow.parquet as pq
import pytest
from cleaned import clean, dropped, reasons, texts_in
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.data.fold import fold
from hermitcrab.data.tables import row_id
from hermitcrab.errors import HermitcrabError

WORD = re.compile("[\u3400-\u9fff]|[^\u3400-\u9fff\\s]+")
ENGLISH = [
    f"{a}{b}" for a in ("stone", "river", "cloud", "field", "glass") for b in ("", "s", "ed", "ing", "er", "like")
]
CHINESE = [chr(code) for code in range(0x4E00, 0x4E00 + 300)]


def essay(rng, words, count, space):
    return space.join(rng.choice(words) for _ in range(count))


def edited(rng, text, share, words, space):
    split = WORD.findall(text)
    for i in range(len(split)):
        if rng.random() < share:
            split[i] = rng.choice(words)
    return space.join(split)


def shingles(text, n=5):
    words = WORD.findall(text)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def documents(seed=0, count=120):
    rng, texts = random.Random(seed), []
    for i in range(count):
        words, space = (ENGLISH, " ") if i % 2 else (CHINESE, "")
        text = essay(rng, words, rng.randint(60, 200), space)
        texts += [text, *(edited(rng, text, share, words, space) for share in (0.005, 0.02, 0.05, 0.2)[: i % 5])]
    return texts


def test_near_duplicates_are_those_of_plain_python(tmp_path):
    texts = documents()
    found = clean(tmp_path, texts, clean=["exact-dedup", "near-dedup"])
    sets = {row_id("sha256:train", i): shingles(text) for i, text in enumerate(texts)}
    kept = set(found.tables["train"].column("row_id").to_pylist())
    near = {(a, b) for a in sets for b in sets if a < b and jaccard(sets[a], sets[b]) >= 0.8}
    caught = [pair for pair in near if not set(pair) <= kept]
    assert len(near) > 100
    assert len(caught) >= 0.99 * len(near)
    for row in found.clusters:
        assert row["similarity"] == pytest.approx(jaccard(sets[row["row_id"]], sets[row["kept"]]))
        assert row["similarity"] >= 0.8
        assert row["kept"] in kept or row["filter"] == "exact-dedup"  # that one may have gone as a near duplicate since
        assert row["kept"] < row["row_id"]
    assert len(found.clusters) == len(texts) - len(kept)
    assert {reason for _, reason in reasons(found)} <= {"exact duplicate", "near duplicate"}


def test_a_chain_of_neighbors_drops_nothing_that_is_like_none_that_stays(tmp_path):
    words = [f"w{i}" for i in range(100)]
    chain = [" ".join(words[6 * i :]) + " " + " ".join(f"v{i}{k}" for k in range(6 * i)) for i in range(8)]
    found = clean(tmp_path, chain, clean=["near-dedup"])
    sets = {row_id("sha256:train", i): shingles(text) for i, text in enumerate(chain)}
    kept = found.tables["train"].column("row_id").to_pylist()
    assert 1 < len(kept) < len(chain)
    assert all(max(jaccard(sets[row], sets[other]) for other in kept) >= 0.8 for row in set(sets) - set(kept))
    assert all(jaccard(sets[a], sets[b]) < 0.8 for a in kept for b in kept if a != b)


def test_held_out_rows_stay_and_their_likenesses_go(tmp_path):
    rng = random.Random(3)
    text = essay(rng, ENGLISH, 150, " ")
    found = clean(
        tmp_path, [edited(rng, text, 0.01, ENGLISH, " "), "else"], given={"test": [text]}, clean=["near-dedup"]
    )
    assert texts_in(found) == ["else"]
    assert texts_in(found, "test") == [text]
    assert [(row["kept_split"], row["split"]) for row in found.clusters] == [("test", "train")]


def test_without_verification_a_shared_band_is_enough(tmp_path):
    found = clean(tmp_path, documents(count=40), clean=[{"near-dedup": {"verify": False}}])
    assert found.clusters
    assert {row["similarity"] for row in found.clusters} == {None}


def test_a_text_of_a_few_words_is_compared_as_a_whole(tmp_path):
    found = clean(tmp_path, ["one two", "one two", "one three", "", ""], clean=["near-dedup"])
    assert sorted(texts_in(found)) == ["", "", "one three", "one two"]


def plain_lines(rows, least, paragraphs):
    """Rows by rank; each is its units in order."""
    seen, kept = set(), []
    counts = {}
    for units in rows:
        for unit in units:
            key = unit.strip("\t\n\v\f\r ")
            counts[key] = counts.get(key, 0) + (len(key) >= least)
    for units in rows:
        left = []
        for unit in units:
            key = unit.strip("\t\n\v\f\r ")
            if len(key) >= least and counts[key] > 1 and key in seen:
                continue
            seen.add(key)
            left.append(unit)
        kept.append(left)
    return kept


lines = st.sampled_from(
    [
        "a short one",
        "a line that is long enough to matter",
        "另外一行也足够长了真的足够长了吗",
        "and one more line of that kind",
        "",
    ]
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.lists(lines, min_size=1, max_size=6), min_size=1, max_size=6))
def test_repeated_lines_go_but_for_the_first_of_all(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("l")
    texts = ["\n".join(row) for row in rows]
    found = clean(folder, texts, clean=[{"line-dedup": {"min_characters": 12}}])
    order = sorted(range(len(rows)), key=lambda i: row_id("sha256:train", i))
    wanted = plain_lines([rows[i] for i in order], 12, False)
    expected = {}
    for i, units in zip(order, wanted, strict=True):
        text = "\n".join(units)
        expected[row_id("sha256:train", i)] = text if units == rows[i] or texts[i].endswith("\n") else text.rstrip("\n")
    got = {row["row_id"]: row["text"] for row in found.tables["train"].to_pylist()}
    assert got == {name: text for name, text in expected.items() if text or rows == [] or name in got}
    gone = [row for row, _, reason in dropped(found) if reason == "nothing but repeated lines"]
    assert all(expected[name] == "" for name in gone)
    again = clean(
        folder / "again",
        [text for _, text in sorted(got.items())] or ["x"],
        clean=[{"line-dedup": {"min_characters": 12}}],
    )
    assert sum(row.count("\n") for row in texts_in(again)) == sum(text.count("\n") for text in got.values())


def test_paragraphs_are_what_stands_between_empty_lines(tmp_path):
    notice = "This notice is repeated in every document\nand has two lines."
    texts = [f"first text of its own here\n\n{notice}\n", f"{notice}\n \n\nsecond text of its own here"]
    found = clean(tmp_path, texts, clean=[{"line-dedup": {"unit": "paragraph", "min_characters": 10}}])
    assert sum(notice in text for text in texts_in(found)) == 1
    assert sum("text of its own" in text for text in texts_in(found)) == 2
    assert found.ledger[0]["changed"] == {"changed by line-dedup": 1}
    assert found.cleaning.filters[0]["changed"] == {"lines that went": 1}


def test_lines_of_a_row_that_went_before_keep_nothing(tmp_path):
    line = "the very same line in three rows of this set"
    found = clean(
        tmp_path, [line, line, f"{line}\nand something else that is new"], clean=["exact-dedup", "line-dedup"]
    )
    assert len([text for text in texts_in(found) if line in text]) == 1


def held(text):
    return {"test": [text]}


def test_shared_words_are_found_with_their_place(tmp_path):
    question = "What is the name of the largest river that flows through the old town of Bern?"
    train = [
        "Notes. “what is the NAME, of the largest river that flows through the old town” of Thun",
        "nothing of the kind",
    ]
    found = clean(tmp_path, train, given=held(question), clean=[{"decontaminate": {"ngram": 8}}])
    assert texts_in(found) == ["nothing of the kind"]
    assert reasons(found) == [("train", "shares 8 words with test data")]
    (row,) = found.cleaning.evidence.to_pylist()
    assert (row["split"], row["part"], row["held_out"], row["held_out_split"]) == (
        "train",
        0,
        row_id("sha256:test", 0),
        "test",
    )
    assert (
        fold(train[0][row["begin"] : row["end"]])
        == "what is the name of the largest river that flows through the old town of"
    )
    assert row["words"] == 15


MARK = {"decontaminate": {"ngram": 10, "policy": "mark"}}


def test_marked_rows_stay_and_are_listed_and_stop_stops(tmp_path):
    words = "one two three four five six seven eight nine ten"
    train = [(f"q {words}", f"and again {words}"), ("other", "thing")]
    given = {"test": [(words, "yes")], "validation": [("own words", f"here {words} too")]}
    found = clean(
        tmp_path / "a",
        train,
        given=given,
        format="prompt-completion",
        clean=[MARK],
    )
    assert dropped(found) == []
    rows = found.cleaning.evidence.to_pylist()
    assert [(row["split"], row["part"], row["held_out_split"]) for row in rows] == [
        ("train", 0, "test"), ("train", 1, "test"), ("validation", 1, "test"),
    ]  # fmt: skip
    with pytest.raises(
        HermitcrabError, match=r"2 rows share 10 words in a row with test rows, the first is row [0-9a-f]{16}"
    ):
        clean(
            tmp_path / "b",
            train,
            given=given,
            format="prompt-completion",
            clean=[{"decontaminate": {"ngram": 10, "policy": "stop"}}],
        )


@settings(deadline=None, max_examples=25)
@given(
    train=st.lists(st.lists(st.sampled_from("abcd中"), max_size=30), min_size=1, max_size=5),
    test=st.lists(st.lists(st.sampled_from("abcd中"), max_size=12), min_size=1, max_size=3), n=st.integers(2, 6),
)  # fmt: skip
def test_rows_that_share_words_are_those_of_plain_python(tmp_path_factory, train, test, n):
    texts, held_out = [" ".join(["x", *row]) for row in train], [" ".join(["y", *row]) for row in test]
    found = clean(
        tmp_path_factory.mktemp("c"), texts, given={"test": held_out}, clean=[{"decontaminate": {"ngram": n}}]
    )

    def grams(text):
        words = text.split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    wanted = set().union(*map(grams, held_out))
    assert sorted(texts_in(found)) == sorted(text for text in texts if not grams(text) & wanted)


def test_clusters_and_evidence_are_files_of_the_artifact(tmp_path):
    """What `prepare` writes is held in tests/stages; here, that both are tables that Parquet takes."""
    found = clean(
        tmp_path,
        documents(count=10),
        given=held(documents(count=1)[0]),
        clean=["near-dedup", {"decontaminate": {"ngram": 5}}],
    )
    pq.write_table(found.cleaning.evidence, tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet").num_rows == found.cleaning.evidence.num_rows
