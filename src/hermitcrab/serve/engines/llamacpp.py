"""llama.cpp's server inside this process, through xllamacpp: continuous batching over a GGUF file, on token ids.

Notable:
- The library speaks HTTP besides; here on a socket whose name is taken away at once, so nobody can reach it.
- Every slot has a cache of its own for a whole answer, so the cache cannot run out under an answer.
- It tells tokens only where their bytes make whole characters: one that stands for a part of a character comes with the next.
  How many it kept to itself is told, and which ones follow from the bytes (`pieces.py`); where they do not, it is counted.
- It ends an answer on any token that its own tables call an end. Where that is none of ours, the answer goes on in a new request.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import open_weights
from hermitcrab.progress import say
from hermitcrab.serve.engine import Logprob, Options, Piece, Spec, check_files
from hermitcrab.serve.engines import schema
from hermitcrab.serve.engines.pieces import Vocabulary
from hermitcrab.serve.engines.queued import Asked, Queued

SPARE = 8  # tokens beyond an answer's limit that are asked for, so that a character that the limit cuts is told
SHARE = 0.25  # of the memory that is free
CERTAIN = 1e6  # added to the logit of a token that must be drawn


class LlamaCpp(Queued):
    name = "llama.cpp"

    def __init__(self, spec: Spec):
        needs("xllamacpp", "serve")
        import xllamacpp

        check_files(spec)
        super().__init__(spec.slots)
        self.spec = spec
        weights = open_weights(Path(spec.path))
        self.vocabulary = Vocabulary(weights.metadata)
        self.positions, self.cached = self._room(weights.metadata)
        folder = tempfile.mkdtemp(prefix="crab-")
        params = xllamacpp.CommonParams()
        params.model.path = spec.path
        params.hostnames = [f"{folder}/llama.sock"]
        params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
        params.n_parallel = spec.slots + 1  # one for what is asked again, below
        params.n_ctx = (self.positions + SPARE) * params.n_parallel
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec.cores
        params.cpuparams.poll = params.cpuparams_batch.poll = 0
        params.cache_ram_mib = 0
        if spec.settings.get("exact"):
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.fit_params = params.warmup = params.ctx_shift = False
        params.special = True  # tokens that stand for no text are spelled too, so that bytes tell them all
        params.verbosity = 0
        try:
            self.server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise HermitcrabError(f"{spec.path}: llama.cpp cannot load it") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _room(self, metadata: dict[str, Any]) -> tuple[int, int]:
        """Positions of a slot, and the bytes of all caches: whole answers where the memory allows it."""
        import psutil

        kind = metadata.get("general.architecture", "")
        get = {name.removeprefix(f"{kind}."): value for name, value in metadata.items() if name.startswith(f"{kind}.")}
        trained = int(get.get("context_length", 2048))
        positions = min(self.spec.positions or 1 << 30, trained)
        heads = get.get("attention.head_count", 1)
        fewer = get.get("attention.head_count_kv", heads)
        width = get.get("embedding_length", 1) // max(1, int(max(heads) if isinstance(heads, list) else heads))
        keys, values = get.get("attention.key_length", width), get.get("attention.value_length", width)
        total = sum(fewer) if isinstance(fewer, list) else fewer * get.get("block_count", 1)
        each = max(1, total * (keys + values) * 2)
        room = self.spec.settings.get("cache_bytes") or psutil.virtual_memory().available * SHARE
        positions = max(1, min(positions, int(room // (each * (self.slots + 1))) - SPARE))
        size = (positions + SPARE) * (self.slots + 1) * each
        say(
            f"cache for {self.slots} answers of {positions:,} tokens ({size / 2**20:,.0f} MiB); trained for {trained:,}"
        )
        return positions, size

    def add(self, number: int, prompt: list[int], options: Options) -> None:
        rule = schema.check(options.schema) if options.schema is not None else None
        self.begin(number, Answer(self, number, prompt, options, rule=rule))

    def stats(self) -> dict[str, float]:
        return {"kv_cache_bytes": self.cached, "tokens_inferred": self.vocabulary.inferred}

    def ask(self, body: dict[str, Any], hear: Any) -> None:
        """One request of the library's own; `hear` is given each answer and says whether that was enough."""
        self.server.handle_completions(json.dumps({**body, "cache_prompt": True}).encode(), hear)


@dataclass
class Answer(Asked):
    rule: dict[str, Any] | None = None
    heard: int = 0  # tokens that the present request has made
    asked: int = 0  # requests so far
    again: bool = False

    def answer(self) -> None:
        self.again = True
        while self.again and not self.over.is_set():
            self.again, self.heard = False, 0
            self.engine.ask(self._body(), self._hear)
            self.asked += 1

    def _body(self) -> dict[str, Any]:
        o = self.options
        seed = secrets.randbits(32) if o.seed is None else o.seed + 1_000_003 * self.asked
        body = {
            "prompt": self.prompt + self.made, "max_tokens": o.max_tokens - len(self.made) + SPARE, "stream": True,
            "temperature": 0.0 if o.greedy else o.temperature, "top_p": o.top_p, "top_k": 0, "min_p": 0.0, "typical_p": 1.0,
            "repeat_penalty": 1.0, "samplers": ["temperature", "top_p"], "seed": seed % (2**32 - 1),  # the last one means: any
            "n_probs": max(1, o.logprobs or 0), "timings_per_token": True,
        }  # fmt: skip
        if o.logprobs is None:  # only ids are wanted then: no need to sort all of the vocabulary
            body["post_sampling_probs"] = True
        if self.rule is not None:
            body["json_schema"] = self.rule
        return body

    def _hear(self, data: bytes) -> bool:
        try:
            return self.over.is_set() or self._take(json.loads(data))
        except Exception as error:  # noqa: BLE001 - an exception would be lost in the library
            self.tell(f"llama.cpp's answer cannot be read: {type(error).__name__}: {error}")
            return True

    def _take(self, told: dict[str, Any]) -> bool:
        if "error" in told:
            self.tell(f"llama.cpp: {told['error'].get('message', 'failed')}")
            return True
        choice = told["choices"][0]
        entries = (choice.get("logprobs") or {}).get("content") or []
        ended = choice.get("finish_reason") is not None
        count = told["usage"]["completion_tokens"] if ended else told["timings"]["predicted_n"]
        missing = count - self.heard - len(entries)
        self.heard = count
        tokens = [entry["id"] for entry in entries]
        if missing > 0 and not tokens:
            self.tell(f"llama.cpp kept the last {missing} tokens of the answer to itself: they are part of a character")
            return True
        if missing > 0:
            tokens = self.engine.vocabulary.before(bytes(entries[0]["bytes"]), tokens[0], missing) + tokens
        probs = (
            [_logprob(entry, self.options.logprobs) for entry in entries] if self.options.logprobs is not None else None
        )
        if probs is not None and missing > 0:
            probs = [self._ask_again(tokens, n) for n in range(missing)] + probs
        return self._give(tokens, probs, ended)

    def _give(self, tokens: list[int], probs: list[Logprob] | None, ended: bool) -> bool:
        ends = self.engine.spec.ends
        left = self.options.max_tokens - len(self.made)
        stop = next((n for n, token in enumerate(tokens) if token in ends), None)
        keep = min(left, len(tokens) if stop is None else stop + 1)
        self.made += tokens[:keep]
        finish: Any = None
        if stop is not None and stop < left:
            finish = "stop"
        elif len(self.made) >= self.options.max_tokens:
            finish = "length"
        elif ended and self.rule is not None:
            finish = "stop"  # the grammar has come to its end
        elif ended:
            self.again = True
        if keep or finish:
            self.tell(Piece(tokens[:keep], None if probs is None else probs[:keep], finish))
        return finish is not None

    def _ask_again(self, tokens: list[int], n: int) -> Logprob:
        """What the model thought of a token that was not told: behind the same tokens a letter is drawn, for certain,
        and the token is found among what else was likely."""
        vocabulary, wanted = self.engine.vocabulary, self.options.logprobs or 0
        letter = vocabulary.ids[b"a"]
        for count in (max(50, wanted), len(vocabulary.texts)):
            found: list[Any] = []

            def hear(data: bytes, found: list[Any] = found) -> bool:
                found.append(json.loads(data))
                return False

            self.engine.ask({"prompt": self.prompt + self.made + tokens[:n], "max_tokens": 1, "temperature": 0.0, "n_probs": count,
                             "logit_bias": [[letter, CERTAIN]], "stream": False}, hear)  # fmt: skip
            likely = {e["id"]: e["logprob"] for e in found[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
            if tokens[n] in likely:
                return Logprob(tokens[n], likely[tokens[n]], list(likely.items())[:wanted])
        raise HermitcrabError(f"it does not tell the probability of token {tokens[n]}")


def _logprob(entry: dict[str, Any], count: int) -> Logprob:
    top = [(other["id"], other["logprob"]) for other in entry["top_logprobs"][:count]]
    return Logprob(entry["id"], entry["logprob"], top)
