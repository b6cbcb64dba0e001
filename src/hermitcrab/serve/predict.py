"""`crab predict`: answers to texts, as `evaluate` would give them. By choice where the package records choices, else generated."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.readers import flaw
from hermitcrab.data.rows import read_rows
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.recipe import Source
from hermitcrab.serve.engine import Engine
from hermitcrab.serve.opening import Opened


def read_inputs(words: Iterable[str], column: str) -> list[str]:
    """The texts that the words mean: themselves, `-` the lines of standard input, `@FILE` a column of a data file.

    Raises:
        UsageError, HermitcrabError: an empty text, bytes that are no text, a file that cannot be read.
    """
    texts: list[str] = []
    for word in words:
        if word == "-":
            lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").splitlines()
            texts += [_sound(line, f"standard input, line {number:,}") for number, line in enumerate(lines, 1)]
        elif word.startswith("@"):
            texts += _column(word[1:], column)
        else:
            texts.append(_sound(word, f"input {len(texts) + 1:,}"))
    if not texts:
        raise UsageError("there is no input; give texts, `-` for lines of standard input, or @FILE")
    return texts


def _sound(text: str, where: str) -> str:
    if wrong := flaw(text):
        raise UsageError(f"{where}: holds {wrong}; expected UTF-8 text")
    if not text.strip():
        raise UsageError(f"{where}: is empty")
    return text


def _column(name: str, column: str) -> list[str]:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"{name}: no such file")
    # The reader of every source; nothing is made of these rows that a license could bind.
    source = Source(path=name, license="LicenseRef-not-asked", format="text", columns={"text": column})
    return [row["text"] or "" for row in read_rows(source, path, "", name, Ledger("rows"))]


def predict(opened: Opened, engine: Engine, texts: list[str], max_new_tokens: int) -> list[dict[str, Any]]:
    """`{input, prediction, score}` and what else is known of each text, in their order.

    With choices, `score` is the log-likelihood (nats) of the answer, `scores` those of all choices. Without, there is no score;
    `finish_reason` is `stop` or `length`.

    Raises:
        HermitcrabError: a text that does not fit the model's positions with its answer.
    """
    encoder = replace(opened.encoder, render=None) if opened.plain_text else opened.encoder
    questions = [[{"role": "user", "content": text}] for text in texts]
    prompts = [encoder.prompt(question) for question in questions]
    if not opened.choices:
        _check_room(engine, prompts, max_new_tokens)
        made = engine.answers(prompts, max_new_tokens)
        return [
            {
                "input": text,
                "prediction": encoder.decode([token for token in ids if token not in encoder.ends]).strip(),
                "score": None,
                "finish_reason": "stop" if ids and ids[-1] in encoder.ends else "length",
                "tokens": len(ids),
            }
            for text, ids in zip(texts, made, strict=True)
        ]
    answers = encoder.choices(questions[0], opened.choices)
    _check_room(engine, prompts, max(map(len, answers)))
    scores_NC = engine.scores(prompts, answers)
    return [
        {
            "input": text,
            "prediction": opened.choices[int(scores_C.argmax())],
            "score": float(scores_C.max()),
            "scores": dict(zip(opened.choices, scores_C.tolist(), strict=True)),
        }
        for text, scores_C in zip(texts, scores_NC, strict=True)
    ]


def _check_room(engine: Engine, prompts: list[list[int]], answer: int) -> None:
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise HermitcrabError(f"input {number:,}: has no token")
        if len(prompt) + answer > engine.positions:
            raise HermitcrabError(
                f"input {number:,}: {len(prompt):,} tokens and {answer:,} of an answer do not fit the model's "
                f"{engine.positions:,} positions"
            )
