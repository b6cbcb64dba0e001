"""Rows into tokens: one rendering, used in training, in evaluation and in serving.

A prompt is rendered and tokenized exactly as a server will do it, and the answer is tokenized on its own behind it, so what
is learnt is what will be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.data.packing import Document
from hermitcrab.digest import digest_bytes, digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import load_text
from hermitcrab.models.tokenizer import TextTokenizer

Message = dict[str, str]


@dataclass(frozen=True)
class Encoder:
    """Text to token ids.

    Attributes:
        encode: text → ids, adding no special token of its own; `decode` goes back, leaving special tokens out.
        render: messages, add_generation_prompt → text; None where no chat template is used.
        eos: the token that ends a text; `ends`: it, and the token that ends a turn where the template has another.
        template_digest: what the record says of the rendering.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    render: Callable[[list[Message], bool], str] | None
    bos: int | None
    eos: int
    pad: int
    template: str | None
    ends: frozenset[int] = frozenset()

    @property
    def template_digest(self) -> str:
        return (
            digest_bytes(self.template.encode())
            if self.template
            else digest_json({"template": "none", "eos": self.eos})
        )

    def prompt(self, messages: list[Message]) -> list[int]:
        """Ids of everything that stands before the answer."""
        if self.render is not None:
            return self.encode(self.render(messages, True))
        text = "\n".join(m["content"] for m in messages)
        return ([] if self.bos is None else [self.bos]) + self.encode(text)

    def answer(self, messages: list[Message], answer: str) -> list[int]:
        """Ids of an answer with the token that ends it."""
        if self.render is None:
            return [*self.encode(answer), self.eos]
        before = self.render(messages, True)
        whole = self.render([*messages, {"role": "assistant", "content": answer}], False)
        if not whole.startswith(before):
            raise HermitcrabError(
                "the chat template does not render an answered conversation as a continuation of its prompt "
                f"(prompt ends {before[-40:]!r}); what is trained would differ from what is served. Set train.template: none"
            )
        ids = self.encode(whole[len(before) :])
        last = next((i for i, token in enumerate(ids) if token in self.ends or token == self.eos), len(ids) - 1)
        return ids[: last + 1]

    def choices(self, messages: list[Message], choices: list[str]) -> list[list[int]]:
        """Ids of each choice as an answer; with the token that ends it only where one choice begins another."""
        answers = [self.answer(messages, choice) for choice in choices]
        bare = [a[:-1] if a[-1] in self.ends else a for a in answers]
        return answers if any(a != b and a == b[: len(a)] for a in bare for b in bare) else bare

    def document(self, row: dict[str, str]) -> Document:
        """A training example. Learnt: the answers and their ends; of plain text, every token but the first."""
        if "text" in row:
            ids = [*([] if self.bos is None else [self.bos]), *self.encode(row["text"]), self.eos]
            learn = [False] + [True] * (len(ids) - 1)
        else:
            ids, learn = [], []
            history: list[Message] = []
            for message in conversation(row):
                if message["role"] == "assistant":
                    before = self.prompt(history)
                    answer = self.answer(history, message["content"])
                    if before[: len(ids)] != ids:
                        raise HermitcrabError(
                            f"row {row['row_id']}: turn {len(history) + 1} does not continue the tokens of the turns before "
                            f"it ({len(ids)} laid down, {len(before)} in the prompt); this template cannot train several "
                            "turns at once. Split the conversation into one row a turn"
                        )
                    learn += [False] * (len(before) - len(ids)) + [True] * len(answer)
                    ids = [*before, *answer]
                history = [*history, message]
        return Document(row["row_id"], np.asarray(ids, np.int32), np.asarray(learn, bool))


def load_encoder(base: dict[str, Any], path: Path, template: str, text: TextTokenizer | None = None) -> Encoder:
    """The encoder of a base. `template`: `chat`, `none`, or `auto` (chat where the base has one). `text`: its tokenizer, where it
    was read already.

    Raises:
        HermitcrabError: the base has no token that ends an answer, or no template where one is asked for.
    """
    text = text or load_text(base, path)
    eos, pad = text.id("eos_token"), text.id("pad_token")
    if eos is None:
        raise HermitcrabError(f"{base['name']}: its tokenizer names no eos_token, so no answer could end")
    if template == "chat" and text.chat_template is None:
        raise HermitcrabError(
            f"{base['name']}: train.template is `chat`, and this base has no chat template; set train.template: none"
        )
    chat = text.chat_template is not None and template != "none"
    ends = {eos}
    if chat:  # Gemma ends a turn by <end_of_turn>, Phi by <|end|>, and both have another eos
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tail = text.encode(text.render(turns, False).removeprefix(text.render(turns[:1], True)))
        special = {i for i, token in text.backend.get_added_tokens_decoder().items() if token.special}
        ends |= {token for token in tail if token in special}
    return Encoder(
        encode=text.encode,
        decode=text.decode,
        render=text.render if chat else None,
        bos=text.id("bos_token") if text.adds_bos else None,
        eos=eos,
        pad=eos if pad is None else pad,
        template=text.chat_template if chat else None,
        ends=frozenset(ends),
    )


def conversation(row: dict[str, str]) -> list[Message]:
    """The messages of a row of either supervised format."""
    if "messages" in row:
        return json.loads(row["messages"])
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
