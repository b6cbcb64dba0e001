"""OpenVINO GenAI's continuous batching, on token ids: from a GGUF file as it is, or from a folder in OpenVINO's own format.

Notable:
- Keys and values are kept in sixteen bits; the library's default is eight, with which the model is not the one that was evaluated.
- Weights of eight bits are computed with in float32: nearer to the reference than the library's bfloat16, and no slower. With four bits
  bfloat16 is a fifth faster, and its rounding is far below that of the weights.
- The cache is as large as all slots at full length need, or as a quarter of the free memory allows. Where it runs out the library
  computes a row again later; a single answer that outgrows all of it is an error here, never a short answer.
- Threads are not pinned to processors: on shared ones that is where they wait.
- The library's tokenizer is only there for its grammars; texts never reach it.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models import ggml
from hermitcrab.models.base import read_config
from hermitcrab.models.formats import open_weights
from hermitcrab.progress import say
from hermitcrab.serve.engine import Logprob, Options, Piece, Spec, check_files
from hermitcrab.serve.engines import schema

BLOCK = 32  # tokens of a block of the cache on a CPU
SHARE = 0.25  # of the memory that is free
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
WIDTHS = {"f32": 4, "bf16": 2, "f16": 2}


class OpenVINO:
    name = "openvino-genai"

    def __init__(self, spec: Spec):
        needs("openvino_genai", "serve")
        import openvino_genai as genai

        self.genai, self.spec, self.slots = genai, spec, spec.slots
        check_files(spec)
        config = configuration(Path(spec.path))
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": spec.cores, "ENABLE_CPU_PINNING": False}
        properties |= EXACT if spec.settings.get("exact") else {"KV_CACHE_PRECISION": "f16"}
        if eight_bits(Path(spec.path)):
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        self.positions = min(spec.positions or 1 << 30, config["max_position_embeddings"])
        blocks = self._blocks(config, WIDTHS[properties["KV_CACHE_PRECISION"]])
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = spec.slots
        scheduler.num_kv_blocks = blocks
        try:
            self.pipeline = genai.ContinuousBatchingPipeline(spec.path, scheduler, "CPU", properties)
        except (RuntimeError, IndexError) as error:  # what its reader says of a file that it does not understand
            why = " ".join(str(error).split())[-200:]
            raise HermitcrabError(
                f"{spec.path}: OpenVINO GenAI cannot load it ({why}); --engine llama.cpp may"
            ) from error
        self.running: dict[int, tuple[Any, Options]] = {}

    def _blocks(self, config: dict[str, Any], width: int) -> int:
        """How many blocks the cache has; fewer positions where not even one answer of full length would fit."""
        import psutil

        size = BLOCK * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * width
        each = -(-self.positions // BLOCK) + 1
        room = self.spec.settings.get("cache_bytes") or psutil.virtual_memory().available * SHARE
        blocks = max(2, min(each * self.slots, int(room // size)))
        self.positions = min(self.positions, (blocks - 1) * BLOCK)
        say(f"cache for {blocks * BLOCK:,} tokens ({blocks * size / 2**20:,.0f} MiB), "
            f"{min(1.0, blocks / (each * self.slots)):.0%} of what {self.slots} answers of full length need")  # fmt: skip
        return blocks

    def add(self, number: int, prompt: list[int], options: Options) -> None:
        import openvino as ov

        config = self._config(options)
        handle = self.pipeline.add_request(number, ov.Tensor(np.array([prompt], np.int64)), config)
        self.running[number] = (handle, options)

    def _config(self, options: Options) -> Any:
        if options.logprobs and (options.logprobs > 1 or not options.greedy):
            raise HermitcrabError(
                f"the engine {self.name} tells the probability of the token that was made, and of no other; ask for "
                "`top_logprobs` of 0, or serve with --engine llama.cpp"
            )
        config = self.genai.GenerationConfig()
        config.max_new_tokens = options.max_tokens
        config.ignore_eos = not self.spec.ends
        if self.spec.ends:
            config.eos_token_id = self.spec.ends[0]
            config.stop_token_ids = set(self.spec.ends)
        config.logprobs = 0 if options.logprobs is None else 1
        if not options.greedy:
            config.do_sample = True
            config.temperature, config.top_p = options.temperature, options.top_p
            seed = secrets.randbits(31) if options.seed is None else options.seed
            config.rng_seed = seed % 2**31
        if options.schema is not None:
            schema.check(options.schema)
            config.structured_output_config = self.genai.StructuredOutputConfig(json_schema=options.schema)
        return config

    def cancel(self, number: int) -> None:
        if number in self.running:
            handle, _ = self.running.pop(number)
            handle.cancel()
        while not self.running and self.pipeline.has_non_finished_requests():
            self.pipeline.step()  # its blocks are given back by a step

    def step(self) -> list[tuple[int, Piece | str]]:
        self.pipeline.step()
        found: list[tuple[int, Piece | str]] = []
        for number, (handle, options) in list(self.running.items()):
            made = self._read(handle, options)
            if made is not None:
                found.append((number, made))
            if isinstance(made, str) or (made and made.finish):
                del self.running[number]
        return found

    def _read(self, handle: Any, options: Options) -> Piece | str | None:
        tokens: list[int] = []
        probs: list[float] = []
        ended = False
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                probs += output.generated_log_probs
                ended = output.finish_reason != self.genai.GenerationFinishReason.NONE
        status = handle.get_status()
        if status == self.genai.GenerationStatus.IGNORED:
            return f"the cache of the engine {self.name} has no room left for this answer"
        if not tokens:
            return None
        finish: Any = None
        if ended or status == self.genai.GenerationStatus.FINISHED:
            finish = "stop" if tokens[-1] in self.spec.ends else "length"
        if options.logprobs is None:
            return Piece(tokens, None, finish)
        told = [Logprob(t, p, [(t, p)][: options.logprobs]) for t, p in zip(tokens, probs, strict=True)]
        return Piece(tokens, told, finish)

    def stats(self) -> dict[str, float]:
        known = self.pipeline.get_metrics()
        return {"kv_cache_usage": known.cache_usage / 100, "kv_cache_bytes": known.cache_size_in_bytes}

    def close(self) -> None:
        for number in list(self.running):
            self.cancel(number)


def eight_bits(path: Path) -> bool:
    """Are the quantized matrices of a GGUF file all of eight bits?"""
    if path.is_dir():
        return False
    weights = open_weights(path)
    kinds = {weights.info(name).dtype for name in weights.tensors if len(weights.info(name).shape) > 1}
    return kinds - {"F32", "F16", "BF16"} == {"Q8_0"}


def configuration(path: Path) -> dict[str, Any]:
    """What of a model's shape decides how large its cache is.

    Raises:
        HermitcrabError: an architecture that this engine does not read, or a shape that is not told.
    """
    config = ggml.configuration(open_weights(path)) if path.is_file() else read_config(path)
    heads = config.get("num_attention_heads", 0)
    known = {
        "num_key_value_heads": heads,
        "head_dim": config.get("hidden_size", 0) // max(1, heads),
        "max_position_embeddings": 2048,
        **{k: v for k, v in config.items() if v is not None},
    }
    for name in ("num_hidden_layers", "num_key_value_heads", "head_dim", "max_position_embeddings"):
        if type(known.get(name)) is not int or known[name] < 1:
            raise HermitcrabError(f"{path}: its configuration does not tell `{name}`")
    return known
