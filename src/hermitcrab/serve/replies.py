"""How an answer is written down: of a conversation or of a text, whole or in pieces, with likelihoods and tool calls."""

from __future__ import annotations

import base64
import json
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hermitcrab.serve.engine import Logprob

DONE = b"data: [DONE]\n\n"
LEAST = -9999.0  # what the API writes for a likelihood of nothing: JSON has no infinity


@dataclass
class Choice:
    """One answer, as far as it is made."""

    index: int
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0
    offset: int = 0


def usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Writer:
    """The objects of one reply.

    Args:
        bytes_of: the bytes that a token stands for.
        likelihoods: whether they were asked for.
    """

    def __init__(self, chat: bool, model: str, digest: str, bytes_of: Callable[[int], bytes], likelihoods: bool):
        self.chat, self.bytes_of, self.likelihoods = chat, bytes_of, likelihoods
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": digest,
        }
        # A piece of text is what is written most often: all but the text is made once.
        whole = event(self._object(".chunk", [self._piece(0, "\0", None, None)]))
        self.before, self.after = whole.split(b'"\\u0000"')

    def whole(self, choices: Sequence[Choice], prompt: int) -> dict[str, Any]:
        return self._object(
            "", [self._whole(choice) for choice in choices], usage=usage(prompt, sum(c.tokens for c in choices))
        )

    def _whole(self, choice: Choice) -> dict[str, Any]:
        end = {"logprobs": self._likelihoods(choice.logprobs, choice), "finish_reason": choice.finish_reason}
        if not self.chat:
            return {"index": choice.index, "text": choice.text, **end}
        message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
        if choice.calls:
            message["tool_calls"] = choice.calls
        return {"index": choice.index, "message": {**message, "refusal": None}, **end}

    def first(self, index: int) -> bytes:
        """Of a conversation: whose answer it is."""
        delta = {"role": "assistant", "content": ""}
        return event(
            self._object(".chunk", [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        )

    def piece(self, choice: Choice, text: str, logprobs: list[Logprob]) -> bytes:
        if choice.index == 0 and not logprobs:
            return self.before + json.dumps(text, ensure_ascii=False).encode() + self.after
        return event(
            self._object(".chunk", [self._piece(choice.index, text, self._likelihoods(logprobs, choice), None)])
        )

    def calls(self, choice: Choice, calls: Sequence[dict[str, Any]]) -> bytes:
        start = len(choice.calls) - len(calls)
        delta = {"tool_calls": [{"index": start + i, **call} for i, call in enumerate(calls)]}
        piece = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}
        return event(self._object(".chunk", [piece]))

    def last(self, choice: Choice, logprobs: list[Logprob]) -> bytes:
        piece = self._piece(choice.index, None, self._likelihoods(logprobs, choice), choice.finish_reason)
        return event(self._object(".chunk", [piece]))

    def count(self, prompt: int, made: int) -> bytes:
        return event(self._object(".chunk", [], usage=usage(prompt, made)))

    def _piece(self, index: int, text: str | None, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        if self.chat:
            what: dict[str, Any] = {"delta": {} if text is None else {"content": text}}
        else:
            what = {"text": text or ""}
        return {"index": index, **what, "logprobs": logprobs, "finish_reason": finish_reason}

    def _object(self, chunk: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, **more}

    def _likelihoods(self, logprobs: list[Logprob], choice: Choice) -> dict[str, Any] | None:
        if not self.likelihoods:
            return None
        if self.chat:
            return {"content": [self._likelihood(told) for told in logprobs], "refusal": None}
        offsets = []
        for told in logprobs:
            offsets.append(choice.offset)
            choice.offset += len(self._name(told.token))
        return {
            "tokens": [self._name(told.token) for told in logprobs],
            "token_logprobs": [max(told.logprob, LEAST) for told in logprobs],
            "top_logprobs": [
                {self._name(token): max(logprob, LEAST) for token, logprob in told.top} for told in logprobs
            ],
            "text_offset": offsets,
        }

    def _likelihood(self, told: Logprob) -> dict[str, Any]:
        top = [self._one(token, logprob) for token, logprob in told.top]
        return {**self._one(told.token, told.logprob), "top_logprobs": top}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": max(logprob, LEAST), "bytes": list(self.bytes_of(token))}

    def _name(self, token: int) -> str:
        """The text of a token; of one that holds no whole character, its bytes, as the API writes them: no two are the same."""
        held = self.bytes_of(token)
        try:
            return held.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in held)


def embeddings(rows: Sequence[Sequence[float]], model: str, prompt: int, form: str) -> dict[str, Any]:
    """The object of /v1/embeddings; `base64` is of float32, little-endian."""

    def vector(row: Sequence[float]) -> Any:
        return list(row) if form == "float" else base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()

    data = [{"object": "embedding", "index": i, "embedding": vector(row)} for i, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": prompt, "total_tokens": prompt}}
