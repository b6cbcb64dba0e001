import json

from cleaned import clean, reasons, texts_in

from hermitcrab.data.tables import row_id


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    return json.dumps([{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])


def pairs(found, split="train"):
    return list(zip(texts_in(found, split, "prompt"), texts_in(found, split, "completion"), strict=True))


def prompts(folder, train, filters, **kw):
    return clean(folder, train, format="prompt-completion", clean=filters, **kw)


def test_normalized_rows_are_counted_and_emptied_ones_dropped(tmp_path):
    found = prompts(
        tmp_path, [(" a ", "x"), ("b", "x"), ("\x07", "x")], ["normalize"], given={"test": [("c\r\n", "y")]}
    )
    assert sorted(pairs(found)) == [("a", "x"), ("b", "x")]
    assert pairs(found, "test") == [("c", "y")]
    assert found.ledger[0]["changed"] == {"normalized": 2}
    assert reasons(found) == [("train", "empty after normalization")]


def test_messages_are_normalized_turn_by_turn(tmp_path):
    found = clean(tmp_path, [chat(" hi\r\n", "hello ")], format="messages", clean=["normalize"])
    assert json.loads(texts_in(found)[0]) == json.loads(chat("hi", "hello"))


def test_of_equal_rows_the_smallest_id_stays_whatever_their_order(tmp_path):
    found = clean(tmp_path, ["same", "other", "same", " same\r\n", "Same"], clean=["exact-dedup"])
    kept = [row["row_id"] for row in found.tables["train"].to_pylist() if row["text"].strip() == "same"]
    assert kept == [min(row_id("sha256:train", i) for i in (0, 2, 3))]
    assert len(texts_in(found)) == 3
    assert reasons(found) == [("train", "exact duplicate")] * 2


def test_prompt_with_two_answers_keeps_one_and_says_so(tmp_path):
    found = prompts(tmp_path, [("q", "yes"), ("q", "no"), ("p", "yes")], ["exact-dedup"])
    assert len(pairs(found)) == 2
    assert reasons(found) == [("train", "same prompt, other completion")]


def test_conversations_are_compared_by_the_turns_before_the_answer(tmp_path):
    talks = [chat("hi", "hello"), chat("hi", "go away"), chat("hi", "hello", "more", "fine")]
    found = clean(tmp_path, talks, format="messages", clean=["exact-dedup"])
    assert len(texts_in(found)) == 2
    assert reasons(found) == [("train", "same prompt, other completion")]


def test_training_row_never_displaces_a_held_out_one(tmp_path):
    given = {"validation": [("v", "x"), ("q", "yes")], "test": [("q", "yes")]}
    found = prompts(tmp_path, [("q", "yes"), ("v", "x"), ("t", "x")], ["exact-dedup"], given=given)
    assert (pairs(found), pairs(found, "validation"), pairs(found, "test")) == (
        [("t", "x")],
        [("v", "x")],
        [("q", "yes")],
    )


def test_images_are_the_same_by_their_bytes(tmp_path):
    found = clean(
        tmp_path,
        [(b"one", "a"), (b"one", "a"), (b"one", "b"), (b"two", "a")],
        format="image-label",
        clean=["exact-dedup"],
    )
    assert len(texts_in(found, "train", "label")) == 2
    assert {reason for _, reason in reasons(found)} <= {"exact duplicate", "same image, other label"}
    assert len(reasons(found)) == 2


def test_case_punctuation_and_whitespace_do_not_hide_contamination(tmp_path):
    given = {"validation": ["great film: really"], "test": ["Good... FILM?"]}
    found = clean(tmp_path, ["“GREAT”  film—really!", "good film"], given=given, clean=["decontaminate"])
    assert texts_in(found) == []
    assert reasons(found) == [("train", "stands in test data"), ("train", "stands in validation data")]


def test_validation_row_that_stands_in_test_data_goes(tmp_path):
    found = clean(tmp_path, ["c"], given={"validation": ["a", "b"], "test": ["A!"]}, clean=["decontaminate"])
    assert texts_in(found, "validation") == ["b"]
    assert texts_in(found, "test") == ["A!"]
    assert reasons(found) == [("validation", "stands in test data")]


def test_a_filter_after_a_comparison_sees_what_is_left(tmp_path):
    """`decontaminate` first, so texts are compared as they came; only then are they normalized, and compared again."""
    found = clean(tmp_path, [" a b", "a b", "c"], clean=["decontaminate", "normalize", "exact-dedup"])
    assert sorted(texts_in(found)) == ["a b", "c"]
    assert reasons(found) == [("train", "exact duplicate")]
