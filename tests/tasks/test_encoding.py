"""What is learnt is what will be asked for: the served prompt's tokens, then the answer's, then its end."""

from __future__ import annotations

import json

import pytest

from hermitcrab.errors import HermitcrabError
from hermitcrab.tasks.encoding import Encoder


def encoder(render=None, bos=None) -> Encoder:
    """Characters as tokens; `$` ends a turn."""
    return Encoder(
        lambda t: [ord(c) for c in t],
        lambda ids: "".join(map(chr, ids)),
        render,
        bos,
        ord("$"),
        0,
        "template" if render else None,
    )


def chat(messages, add_generation_prompt):
    return "".join(f"<{m['role'][0]}>{m['content']}$\n" for m in messages) + ("<a>" if add_generation_prompt else "")


def text(document, learnt_only=False):
    return "".join(chr(t) for t, learn in zip(document.ids, document.learn, strict=True) if learn or not learnt_only)


def test_the_answer_and_its_end_are_learnt_and_nothing_after():
    document = encoder(chat).document({"row_id": "r", "prompt": "good?", "completion": "yes"})
    assert text(document) == "<u>good?$\n<a>yes$"
    assert text(document, learnt_only=True) == "yes$"


def test_without_a_template_prompt_and_answer_stand_as_written():
    document = encoder(bos=ord("^")).document({"row_id": "r", "prompt": "good? ", "completion": "yes"})
    assert text(document) == "^good? yes$"
    assert text(document, learnt_only=True) == "yes$"


def test_every_assistant_turn_is_learnt_once():
    messages = [
        {"role": r, "content": c}
        for r, c in [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    ]
    document = encoder(chat).document({"row_id": "r", "messages": json.dumps(messages)})
    assert text(document) == "<s>s$\n<u>a$\n<a>b$\n<u>c$\n<a>d$"
    assert text(document, learnt_only=True) == "b$d$"


def test_plain_text_is_learnt_but_for_its_first_token():
    document = encoder(bos=ord("^")).document({"row_id": "r", "text": "abc"})
    assert text(document) == "^abc$"
    assert text(document, learnt_only=True) == "abc$"


def test_a_template_that_cannot_be_continued_is_refused():
    def odd(messages, add_generation_prompt):
        return chat(messages, False) + ("<think>" if add_generation_prompt else "")

    with pytest.raises(HermitcrabError, match="does not render an answered conversation as a continuation"):
        encoder(odd).document({"row_id": "r", "prompt": "p", "completion": "c"})


def test_a_template_that_rewrites_earlier_turns_is_refused():
    def forgetful(messages, add_generation_prompt):
        shown = [
            m if i == len(messages) - 1 or m["role"] != "assistant" else {**m, "content": ""}
            for i, m in enumerate(messages)
        ]
        return chat(shown, add_generation_prompt)

    messages = [
        {"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    ]
    with pytest.raises(HermitcrabError, match="row r: turn 4 does not continue"):
        encoder(forgetful).document({"row_id": "r", "messages": json.dumps(messages)})


def test_the_template_digest_tells_templates_apart():
    assert encoder(chat).template_digest != encoder().template_digest
