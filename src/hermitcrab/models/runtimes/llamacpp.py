"""What llama.cpp itself says comes next, for a GGUF file: the check that another program reads the file as it was meant.

Asked through xllamacpp, whose server listens on a socket that is taken away at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.formats import open_weights

CERTAIN = 1e6  # added to a logit
SPARE = 8  # positions beyond the longest prompt


def next_log_probabilities(path: Path, prompts: list[list[int]], vocabulary: int) -> np.ndarray:
    """Log-probabilities (nats, float64 [N, V]) of the token behind each prompt of token ids; -inf where none was told.

    Raises:
        HermitcrabError: llama.cpp cannot load the file, or answers otherwise than it should.
    """
    drawn = _letter(path)
    server = _server(path, max(map(len, prompts)) + SPARE)
    found = np.full((len(prompts), vocabulary), -np.inf)
    for row, prompt in zip(found, prompts, strict=True):
        for entry in _ask(server, path, prompt, vocabulary, drawn):
            if 0 <= entry["id"] < vocabulary:
                row[entry["id"]] = entry["logprob"]
    return found


def _letter(path: Path) -> int:
    """A token that is one letter. It is what the server has to draw, for it tells nothing of a token that is half a character;
    probabilities are told as they were before."""
    tokens = open_weights(path).metadata.get("tokenizer.ggml.tokens") or []
    for number, token in enumerate(tokens):
        if isinstance(token, str) and len(token) == 1 and token.isascii() and token.isalpha():
            return number
    raise HermitcrabError(f"{path}: has no token that is one letter, so llama.cpp cannot be asked what comes next")


def _server(path: Path, positions: int) -> Any:
    needs("xllamacpp", "compress")
    import xllamacpp

    folder = tempfile.mkdtemp(prefix="crab-")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.hostnames = [f"{folder}/llama.sock"]
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.n_parallel, params.n_ctx = 1, positions
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.fit_params = params.warmup = params.ctx_shift = False
    params.cache_ram_mib, params.verbosity = 0, 0
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise HermitcrabError(f"{path}: llama.cpp cannot load it") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ask(server: Any, path: Path, prompt: list[int], vocabulary: int, drawn: int) -> list[dict[str, Any]]:
    heard: list[Any] = []

    def hear(answer: Any) -> bool:
        heard.append(answer)
        return False

    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "logprobs": vocabulary, "n_probs": vocabulary,
            "logit_bias": [[drawn, CERTAIN]],
            "post_sampling_probs": False, "cache_prompt": False, "stream": False}  # fmt: skip
    server.handle_completions(json.dumps(body).encode(), hear)
    answer = heard[-1] if heard else {}
    answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
    try:
        return list(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, IndexError, TypeError) as error:
        raise HermitcrabError(f"{path}: llama.cpp did not tell what comes next: {str(answer)[:200]}") from error
