"""Text as it comes: no character is cut, stop words are never told, and the pieces are the whole."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from tiny import write_tokenizer

from hermitcrab.models.tokenizer import read_tokenizer
from hermitcrab.serve.answer import Answer, Stops, Text
from hermitcrab.serve.engine import Options


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, ["the weather is good and the answer is yes"])
    return read_tokenizer(folder)


@pytest.mark.parametrize(
    "text", ["寄居蟹住在别的动物留下的壳里。", "🦀👩‍👩‍👧é\u0301 ok", "plain words, and  spaces \n\tof all kinds", ""]
)
def test_pieces_are_whole_characters_and_together_the_text(tokenizer, text):
    made, ids = Text(tokenizer.decode), tokenizer.encode(text)
    pieces = [made.push(token) for token in ids]
    assert "".join(pieces) == text
    assert made.rest() == ""
    assert not any("\ufffd" in piece for piece in pieces)
    if any(ord(c) > 127 for c in text):
        assert len(ids) > len(text)  # the tokens do cut characters


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 300), max_size=40))
def test_any_tokens_give_what_decoding_them_at_once_gives(tokenizer, ids):
    made = Text(tokenizer.decode)
    assert "".join([*(made.push(token) for token in ids), made.rest()]) == tokenizer.decode(ids)


@given(
    text=st.text("abc", max_size=30),
    words=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    sizes=st.integers(1, 4),
)
def test_stop_words_cut_the_text_however_it_is_cut_into_pieces(text, words, sizes):
    stops, told = Stops(words), ""
    for at in range(0, len(text), sizes):
        told += stops.push(text[at : at + sizes])
        assert not any(word in told for word in words)
        if stops.hit:
            break
    if not stops.hit:
        told += stops.push("", last=True)
    ends = [text.find(word) for word in words if word in text]
    assert stops.hit == bool(ends)
    if not ends:
        assert told == text
    else:  # pieces may end before the earlier of two overlapping words is whole
        assert text.startswith(told)


class Says:
    """An engine that says what it is told to; `closed` tells that it was stopped."""

    positions = 100

    def __init__(self, ids: list[int]):
        self.ids, self.closed = ids, False

    def generate(self, prompt: list[int], options: Options) -> Generator[int, None, None]:
        try:
            yield from self.ids[: options.max_tokens]
        finally:
            self.closed = True


class Letters:
    ends = frozenset({0})

    @staticmethod
    def decode(ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("said", "limit", "stop", "text", "reason", "tokens"),
    [
        ("hello\0", 10, [], "hello", "stop", 6),
        ("hello\0", 5, [], "hello", "length", 5),
        ("hello\0", 10, ["ll"], "he", "stop", 4),
        ("hello\0", 10, ["lo!"], "hello", "stop", 6),
        ("hello", 10, ["o"], "hell", "stop", 5),
        ("\0", 10, [], "", "stop", 1),
    ],
)
def test_an_answer_tells_why_it_ended(said, limit, stop, text, reason, tokens):
    engine = Says([ord(c) for c in said])
    answer = Answer(engine, Letters(), [1], Options(limit), stop)  # type: ignore[arg-type]
    assert "".join(answer) == text
    assert (answer.finish_reason, answer.tokens) == (reason, tokens)
    assert engine.closed


def test_leaving_an_answer_stops_the_engine():
    engine = Says([65] * 50)
    pieces = iter(Answer(engine, Letters(), [1], Options(50)))  # type: ignore[arg-type]
    assert next(pieces) == "A"
    pieces.close()
    assert engine.closed
