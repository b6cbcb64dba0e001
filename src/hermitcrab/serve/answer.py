"""Tokens into text as they come: no character is cut, and nothing is told that a stop word would have taken back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from hermitcrab.serve.engine import Engine, Options
from hermitcrab.tasks.encoding import Encoder

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Text:
    """Ids to text, piece by piece. The pieces together are what decoding all ids at once gives.

    A token may hold half a character, and what a token reads may depend on the one before (leading spaces), so each piece
    is the difference of two decodings that begin at the same token, and waits until its last character is whole.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self.ids: list[int] = []
        self.told = 0  # of these ids, so many are in `before`

    def push(self, token: int) -> str:
        self.ids.append(token)
        before, now = self.decode(self.ids[: self.told]), self.decode(self.ids)
        if now.endswith(BROKEN) or len(now) <= len(before):
            return ""
        self.ids, self.told = self.ids[self.told :], len(self.ids) - self.told
        return now[len(before) :]

    def rest(self) -> str:
        """What was held back, broken as it is."""
        return self.decode(self.ids)[len(self.decode(self.ids[: self.told])) :]


class Stops:
    """Cuts a text before the first stop word; a tail that may become one is held back."""

    def __init__(self, words: Sequence[str]):
        self.words, self.held, self.hit = words, "", False

    def push(self, text: str, last: bool = False) -> str:
        text = self.held + text
        places = [place for word in self.words if (place := text.find(word)) >= 0]
        if places:
            self.hit, self.held = True, ""
            return text[: min(places)]
        longest = max((len(word) for word in self.words), default=0)
        tails = range(min(longest - 1, len(text)), 0, -1)
        held = 0 if last else next((n for n in tails if any(w.startswith(text[-n:]) for w in self.words)), 0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]


class Answer:
    """One answer: iterate over its text; an empty piece says that a token was made and nothing can be told yet.

    Afterwards `finish_reason` is `stop` or `length`, and `tokens` counts what was made, the end included.
    """

    def __init__(self, engine: Engine, encoder: Encoder, prompt: list[int], options: Options, stop: Sequence[str] = ()):
        self.engine, self.encoder = engine, encoder
        self.prompt, self.options, self.stop = prompt, options, stop
        self.tokens = 0
        self.finish_reason = "length"

    def __iter__(self) -> Generator[str, None, None]:
        text, stops = Text(self.encoder.decode), Stops(self.stop)
        ids = self.engine.generate(self.prompt, self.options)
        try:
            for token in ids:
                self.tokens += 1
                if token in self.encoder.ends:
                    self.finish_reason = "stop"
                    break
                yield stops.push(text.push(token))
                if stops.hit:
                    break
        finally:
            ids.close()
        if not stops.hit:
            yield stops.push(text.rest(), last=True)
        if stops.hit:
            self.finish_reason = "stop"
