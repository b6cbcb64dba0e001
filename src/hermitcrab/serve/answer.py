"""Tokens into text as they come: no character is cut, and nothing is told that a stop word would have taken back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from hermitcrab.serve.engine import Logprob, Options, Piece

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)
WINDOW = 24  # ids that are decoded together at most, if characters end among them


class Text:
    """Ids to text, piece by piece. The pieces together are what decoding all ids at once gives.

    A token may hold half a character, and what a token reads may depend on the one before (leading spaces), so each piece
    is the difference of two decodings that begin at the same token, and waits until its last character is whole.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self.ids: list[int] = []
        self.told = 0  # of these ids, so many are in `before`
        self.before = ""

    def push(self, token: int) -> str:
        self.ids.append(token)
        now = self.decode(self.ids)
        if len(now) <= len(self.before) or now.endswith(BROKEN):
            return ""
        piece, self.before = now[len(self.before) :], now
        if len(self.ids) >= WINDOW:
            self.ids = self.ids[self.told :]
            self.before = self.decode(self.ids)
        self.told = len(self.ids)
        return piece

    def rest(self) -> str:
        """What was held back, broken as it is."""
        return self.decode(self.ids)[len(self.before) :]


class Stops:
    """Cuts a text before the first stop word; a tail that may become one is held back."""

    def __init__(self, words: Sequence[str]):
        self.words, self.held, self.hit = words, "", False
        self.longest = max((len(word) for word in words), default=0)

    def push(self, text: str, last: bool = False) -> str:
        if not self.words:
            return text
        text = self.held + text
        places = [place for word in self.words if (place := text.find(word)) >= 0]
        if places:
            self.hit, self.held = True, ""
            return text[: min(places)]
        tails = range(min(self.longest - 1, len(text)), 0, -1)
        held = 0 if last else next((n for n in tails if any(w.startswith(text[-n:]) for w in self.words)), 0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]


@dataclass
class Told:
    """What can be told of an answer since the last time: text, and the likelihood of the tokens made."""

    text: str
    logprobs: list[Logprob] = field(default_factory=list)


class Source(Protocol):
    """As much of a worker as an answer needs."""

    def generate(self, prompt: list[int], options: Options) -> AsyncGenerator[Piece, None]: ...


class Answer:
    """One answer: iterate over what can be told of it; the engine has stopped when this ends, however it ends.

    Afterwards `finish_reason` is `stop` or `length`, and `tokens` counts what was made, the end included.
    """

    def __init__(
        self,
        source: Source,
        decode: Callable[[list[int]], str],
        ends: frozenset[int],
        prompt: list[int],
        options: Options,
        stop: Sequence[str] = (),
    ):
        self.source, self.decode, self.ends = source, decode, ends
        self.prompt, self.options, self.stop = prompt, options, stop
        self.tokens = 0
        self.finish_reason = "length"

    async def told(self) -> AsyncGenerator[Told, None]:
        """An empty text says that tokens were made and nothing can be told yet."""
        text, stops = Text(self.decode), Stops(self.stop)
        pieces: Any = self.source.generate(self.prompt, self.options)
        async with aclosing(pieces):
            async for piece in pieces:
                yield self._piece(piece, text, stops)
                if stops.hit:
                    self.finish_reason = "stop"
                    return
        rest = stops.push(text.rest(), last=True)
        if stops.hit:
            self.finish_reason = "stop"
        if rest:
            yield Told(rest)

    def _piece(self, piece: Piece, text: Text, stops: Stops) -> Told:
        made, logprobs = "", []
        for place, token in enumerate(piece.tokens):
            self.tokens += 1
            if piece.logprobs is not None:
                logprobs.append(piece.logprobs[place])
            if token in self.ends:
                self.finish_reason = "stop"
                break
            made += stops.push(text.push(token))
            if stops.hit:
                break
        if piece.finish == "stop":  # also without a token for it, where a grammar has come to its end
            self.finish_reason = "stop"
        return Told(made, logprobs)
