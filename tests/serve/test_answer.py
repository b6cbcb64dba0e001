"""Text as it comes: no character is cut, stop words are never told, and the pieces are the whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from tiny import write_tokenizer

from hermitcrab.models.tokenizer import read_tokenizer
from hermitcrab.serve.answer import Answer, Stops, Text
from hermitcrab.serve.engine import Options, Piece


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
    """A source that says what it is told to, in pieces of a size; `closed` tells that it was stopped."""

    def __init__(self, ids: list[int], size: int = 1):
        self.ids, self.size, self.closed = ids, size, False

    async def generate(self, prompt: list[int], options: Options) -> AsyncGenerator[Piece, None]:
        try:
            ids = self.ids[: options.max_tokens]
            for at in range(0, len(ids), self.size):
                yield Piece(ids[at : at + self.size])
        finally:
            self.closed = True


def letters(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def answer_of(source: Says, limit: int, stop: list[str]) -> Answer:
    return Answer(source, letters, frozenset({0}), [1], Options(limit), stop)


async def text_of(answer: Answer) -> str:
    return "".join([told.text async for told in answer.told()])


@pytest.mark.parametrize("size", [1, 3])
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
def test_an_answer_tells_why_it_ended(said, limit, stop, text, reason, tokens, size):
    source = Says([ord(c) for c in said], size)
    answer = answer_of(source, limit, stop)
    assert asyncio.run(text_of(answer)) == text
    assert (answer.finish_reason, answer.tokens) == (reason, tokens)
    assert source.closed


def test_an_answer_may_end_without_a_token_for_it():
    class Ends(Says):
        async def generate(self, prompt: list[int], options: Options) -> AsyncGenerator[Piece, None]:
            yield Piece([ord("{")])
            yield Piece([ord("}")], None, "stop")

    answer = answer_of(Ends([]), 9, [])
    assert asyncio.run(text_of(answer)) == "{}"
    assert (answer.finish_reason, answer.tokens) == ("stop", 2)


def test_leaving_an_answer_stops_the_engine():
    async def leave(source: Says) -> str:
        told = answer_of(source, 50, []).told()
        first = await anext(told)
        await told.aclose()
        return first.text

    source = Says([65] * 50)
    assert asyncio.run(leave(source)) == "A"
    assert source.closed
