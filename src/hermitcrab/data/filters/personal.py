"""personal: values that belong to somebody are written over, or their texts go. Counted by kind; a value itself is told nowhere.

A batch is searched once for all that a value of any kind has to contain (RE2, in Arrow); only texts where it stands are looked at with
the patterns of `patterns`, most of them with a checksum (GB 11643, GB 32100, ISO/IEC 7812). Presidio's recognizers take minutes for
megabytes, so each is asked only for texts with its own hint. Names are looked for by a spaCy model that the user has installed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, ClassVar

from hermitcrab.data.filters import Outcome, Texts
from hermitcrab.data.filters.bytes import replaced
from hermitcrab.data.filters.patterns import LEAST_SCORE, PATTERNS, PRESIDIO, Pattern, recognizer
from hermitcrab.errors import HermitcrabError, UsageError, needs
from hermitcrab.recipe.filters import Personal

LABELS = {
    "person": ("PERSON", "PER"),
    "location": ("GPE", "LOC", "FAC"),
    "organization": ("ORG",),
    "date": ("DATE",),
}  # fmt: skip
NEAR = 24  # characters before a value in which its context may stand
Span = tuple[int, int, str]  # begin, end, kind


class PersonalFilter:
    name: ClassVar[str] = "personal"

    def __init__(self, options: Personal):
        self.options = options
        self.patterns: dict[str, Pattern] = {
            kind: pattern for kind, pattern in PATTERNS.items() if kind in options.find
        }
        self.presidio = {kind: re.compile(PRESIDIO[kind][2]) for kind in options.find if kind in PRESIDIO}
        for kind in self.presidio:
            recognizer(kind)
        self.key = _key(options.key) if options.key else b""
        if options.model is not None:
            _ = self.names

    def __call__(self, texts: Texts) -> Outcome:
        import numpy as np
        import pyarrow.compute as pc

        found, new = Outcome(), dict[int, str]()
        reasons: list[str | None] = [None] * len(texts)
        hit_N = pc.match_substring_regex(texts.text, self.hints).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(hit_N | bool(self.options.entities))
        some, ids = texts.text.take(places), texts.row_id.take(places).to_pylist()
        hinted = {kind: pc.match_substring_regex(some, p.hint).to_pylist() for kind, p in self.patterns.items()}
        for n, (i, row, text) in enumerate(zip(places.tolist(), ids, some.to_pylist(), strict=True)):
            spans = self.spans(text, row, [kind for kind in self.patterns if hinted[kind][n]])
            if not spans:
                continue
            for _, _, kind in spans:
                found.found[kind] += 1
            if self.options.policy == "drop":
                reasons[i] = f"personal data: {spans[0][2]}"
            else:
                new[i] = self.written(text, spans)
        if new:
            found.text = replaced(texts.text, new)
            found.changed["personal data written over"] = len(new)
        if any(reasons):
            found.reasons = reasons
        return found

    @cached_property
    def hints(self) -> str:
        return "|".join([*(p.hint for p in self.patterns.values()), *(PRESIDIO[kind][2] for kind in self.presidio)])

    @cached_property
    def names(self) -> Any:
        """The spaCy model, with no more of it than finds names."""
        try:
            return needs("spacy", "data").load(self.options.model, exclude=["parser", "lemmatizer"])
        except OSError:
            raise UsageError(
                f"data.clean: personal: the spaCy model {self.options.model} is not installed; "
                f"run: python -m spacy download {self.options.model}"
            ) from None

    def spans(self, text: str, row: str, kinds: Iterable[str]) -> list[Span]:
        """Values in a text, in order, none over another; of our own patterns those of `kinds`.

        Raises:
            HermitcrabError: with the row alone, where a library fails; what it says could hold the text.
        """
        taken: list[Span] = []
        for kind in kinds:
            _add(taken, ((*span, kind) for span in _matches(self.patterns[kind], text)))
        try:
            for kind, hint in self.presidio.items():
                if hint.search(text):
                    known, entity = recognizer(kind)
                    results = [r for r in known.analyze(text, [entity]) or [] if r.score >= LEAST_SCORE]
                    _add(taken, ((r.start, r.end, kind) for r in sorted(results, key=lambda r: (r.start, -r.end))))
            if self.options.entities:
                labels = {label: kind for kind in self.options.entities for label in LABELS[kind]}
                named = self.names(text).ents
                _add(taken, ((e.start_char, e.end_char, labels[e.label_]) for e in named if e.label_ in labels))
        except Exception as error:  # noqa: BLE001 - whatever it is, its message could quote the text
            raise HermitcrabError(f"personal: row {row} could not be searched ({type(error).__name__})") from None
        return sorted(taken)

    def written(self, text: str, spans: list[Span]) -> str:
        parts, at = [], 0
        for begin, end, kind in spans:
            parts += [text[at:begin], self.instead(text[begin:end], kind)]
            at = end
        return "".join([*parts, text[at:]])

    def instead(self, value: str, kind: str) -> str:
        if self.options.policy == "mask":
            return re.sub(r"\w", "*", value)
        if self.options.policy == "hash":
            plain = re.sub(r"[\s-]", "", value).lower().encode()
            return f"<{kind}:{hmac.new(self.key, plain, hashlib.sha256).hexdigest()[:16]}>"
        return f"<{kind}>"


def _key(reference: str) -> bytes:
    name = reference.removeprefix("env:")
    value = os.environ.get(name, "")
    if len(value) < 16:
        raise UsageError(
            f"data.clean: personal: the key in the environment variable {name} is "
            f"{'not set' if not value else 'shorter than 16 characters'}; a short key is guessed, and the values with it"
        )
    return value.encode()


def _matches(pattern: Pattern, text: str) -> Iterator[tuple[int, int]]:
    group = "value" if "value" in pattern.regex.groupindex else 0
    for match in pattern.regex.finditer(text):
        if pattern.test is not None and not pattern.test(match[group]):
            continue
        begin, end = match.span(group)
        before = text[max(begin - NEAR, 0) : begin]
        if pattern.context is not None and not pattern.context.search(before):
            continue
        if pattern.unless is None or not pattern.unless.search(before):
            yield begin, end


def _add(taken: list[Span], spans: Iterator[Span]) -> None:
    for begin, end, kind in spans:
        if all(end <= first or last <= begin for first, last, _ in taken):
            taken.append((begin, end, kind))
