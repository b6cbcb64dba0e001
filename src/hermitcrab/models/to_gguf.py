"""A model folder in GGUF's words: the inverse of `ggml` and `gguf_tokenizer`, so what is written can be read back. Torch-free.

llama.cpp's own converter knows a tokenizer by the digest of a few encoded sentences and refuses every other. Here the
pre-tokenizer is compared part by part with those that have a name (`gguf_tokenizer.CUTS`); one without a name is refused,
since an engine that cuts text otherwise would serve another model than was evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.models import ggml
from hermitcrab.models.base import read_config
from hermitcrab.models.formats import Weights, gguf_writer, open_weights
from hermitcrab.models.gguf_tokenizer import BYTE, CONTROL, CUTS, NORMAL, UNKNOWN, USER_DEFINED
from hermitcrab.models.tokenizer import TextTokenizer, read_tokenizer

UNUSED = 5  # type of the tokens that fill up to the size of the embedding
NEVER_MERGED = -1e6  # score of a SentencePiece token that no merge makes
NAMES = {theirs: ours for ours, theirs in {**ggml.WHOLE, **ggml.LAYER}.items()}


class Export:
    """One model folder, ready to be written in any type.

    Raises:
        HermitcrabError: an architecture, configuration, tensor or tokenizer that GGUF (or our reader of it) has no words for.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder, self.about = folder, about
        self.weights: Weights = open_weights(folder)
        self.config = read_config(folder)
        self.architecture = architecture(self.config)
        self.names = {self._theirs(name): name for name in self.weights.tensors if not self._tied(name)}
        self.text = read_tokenizer(folder)

    def _tied(self, name: str) -> bool:
        return name == "lm_head.weight" and bool(self.config.get("tie_word_embeddings"))

    def _theirs(self, name: str) -> str:
        match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
        if not match or match[2] not in NAMES or (NAMES[match[2]] in ggml.LAYER) != bool(match[1]):
            raise HermitcrabError(
                f"compress.gguf: the tensor `{name}` has no name in GGUF; only plain models are written"
            )
        return f"{f'blk.{match[1]}.' if match[1] else ''}{NAMES[match[2]]}.{match[3]}"

    def plan(self, kind: str, wider: Mapping[str, str] | None = None) -> list[gguf_writer.Planned]:
        """Every tensor with the type that it gets, in the order of the file. `wider`: tensors that keep another type."""
        head = "output.weight" if "output.weight" in self.names else "token_embd.weight"
        planned = [
            gguf_writer.plan_tensor(theirs, self.weights.info(ours).shape, kind, theirs == head)
            for theirs, ours in self.names.items()
        ]
        for place, tensor in enumerate(planned):
            if wide := (wider or {}).get(tensor.name):
                planned[place] = replace(tensor, dtype=wide, reason=f"hurts most, in {wide}")
        if rope(self.config)["rope_type"] == "llama3":
            planned.append(gguf_writer.Planned(ggml.ROPE_FACTORS, "F32", (head_size(self.config) // 2,)))
        return planned

    def write(
        self,
        kind: str,
        path: Path,
        wider: Mapping[str, str] | None = None,
        pack: Callable[[gguf_writer.Planned, np.ndarray], np.ndarray | None] = lambda *_: None,
    ) -> None:
        """The file of one type."""
        rows = self.weights.info(self.names["token_embd.weight"]).shape[0]
        metadata = {
            **self.about,
            "general.file_type": gguf_writer.FILE_TYPES[kind],
            "general.quantization_version": gguf_writer.QUANTIZATION_VERSION,
            **keys(self.config),
            f"{self.architecture}.vocab_size": rows,
            **tokenizer_keys(self.text, rows),
        }
        gguf_writer.write(path, self.architecture, metadata, self.plan(kind, wider), self._read, pack)
        self._check(path)

    def _read(self, theirs: str) -> np.ndarray:
        """A tensor in the row order of llama.cpp: its rotary embedding pairs neighbors, transformers' pairs halves."""
        if theirs == ggml.ROPE_FACTORS:
            return ggml._llama3_divisors(rope(self.config), head_size(self.config)).astype(np.float32)
        values = self.weights.read(self.names[theirs]).astype(np.float32, copy=False)
        if ggml.FAMILIES[self.architecture].paired_rows and (match := re.search(r"\.attn_([qk])\.", theirs)):
            heads = self.config["num_attention_heads"]
            if match[1] == "k":
                heads = self.config.get("num_key_value_heads") or heads
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        return values

    def _check(self, path: Path) -> None:
        """The configuration, read back, is the one that was written."""
        found = ggml.configuration(open_weights(path))
        wanted = {**self.config, "rope_parameters": rope(self.config)}
        for name, value in found.items():
            if (
                name.endswith("_token_id") or wanted.get(name) is None
            ):  # ids are the tokenizer's, and are checked with it
                continue
            if not _same(value, wanted[name]):
                raise HermitcrabError(
                    f"compress.gguf: {name} would be read back as {value!r}, the model has {wanted[name]!r}"
                )


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, dict):
        return all(_same(value, wanted.get(name)) for name, value in found.items())
    if isinstance(found, float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)


# Configuration


def architecture(config: dict[str, Any]) -> str:
    """GGUF's name of an architecture that can be written and read back.

    Raises:
        HermitcrabError: another one, or a setting that GGUF has no key for.
    """
    kind = config["model_type"]
    names = {family.model_type: name for name, family in ggml.FAMILIES.items()}
    if kind not in names:
        raise HermitcrabError(
            f"compress.gguf: models of type {kind!r} are not written as GGUF (only {', '.join(names)})"
        )
    odd = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "layer_types": any(layer != "full_attention" for layer in config.get("layer_types") or ()),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) != 1.0,
    }
    if wrong := [name for name, refused in odd.items() if refused]:
        raise HermitcrabError(f"compress.gguf: {wrong[0]} is {config[wrong[0]]!r}, which a {kind} in GGUF cannot say")
    rope(config)
    return names[kind]


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters with their type; older configurations have them in two places."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    found = {"rope_theta": config.get("rope_theta") or 10_000.0, **given, "rope_type": kind}
    if kind not in ("default", "linear", "llama3"):
        raise HermitcrabError(f"compress.gguf: {kind} scaling of rotary embeddings is not written as GGUF")
    if kind == "llama3" and any(found.get(name) != value for name, value in ggml.LLAMA3_ROPE.items()):
        raise HermitcrabError("compress.gguf: a llama3 scaling with other bounds than Llama 3's is not written as GGUF")
    return found


def head_size(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def keys(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration under GGUF's keys."""
    name, size, turning = architecture(config), head_size(config), rope(config)
    found = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "rope.freq_base": float(turning["rope_theta"]),
    }
    if turning["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(turning["factor"])}
    return {f"{name}.{key}": value for key, value in found.items()}


# Tokenizer


def tokenizer_keys(text: TextTokenizer, rows: int = 0) -> dict[str, Any]:
    """A tokenizer and its chat template under GGUF's keys, filled up with unused tokens to `rows` of the embedding.

    Raises:
        HermitcrabError: a tokenizer that GGUF has no words for.
    """
    content = json.loads(text.backend.to_str())
    model = content["model"]
    if model["type"] != "BPE" or any(
        model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        raise HermitcrabError(
            f"compress.gguf: a tokenizer of type {model['type']} with these settings is not written as GGUF"
        )
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        found: dict[str, Any] = {"model": "gpt2", "pre": _cut_name(content, steps)}
    else:
        found = {"model": "llama", "pre": "default", "add_space_prefix": _space_prefix(content, steps)}
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in content["added_tokens"]}}
    tokens = [f"[PAD{i}]" for i in range(max(rows, 1 + max(ids.values())))]
    types = [UNUSED] * len(tokens)
    for token, i in ids.items():
        tokens[i], types[i] = token, NORMAL
        if found["model"] == "llama" and token == model.get("unk_token"):
            types[i] = UNKNOWN
        elif found["model"] == "llama" and model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[i] = BYTE
    for token in content["added_tokens"]:
        if any(token.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            raise HermitcrabError(
                f"compress.gguf: the token {token['content']!r} swallows the spaces beside it or wants to stand alone, "
                "which GGUF cannot say"
            )
        if types[token["id"]] == NORMAL:
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    found |= {"tokens": tokens, "token_type": types}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    if found["model"] == "gpt2":
        found["merges"] = [f"{left} {right}" for left, right in merges]
    else:
        ranks = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
        found["scores"] = [ranks.get(token, NEVER_MERGED) for token in tokens]
    for ours, theirs in (
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("pad_token", "padding"),
        ("unk_token", "unknown"),
    ):
        if (i := text.id(ours)) is not None:
            found[f"{theirs}_token_id"] = i
    ends = text.encode("a", special=True)[-1:]
    found |= {"add_bos_token": text.adds_bos, "add_eos_token": bool(ends) and ends == [text.id("eos_token")]}
    named = {f"tokenizer.ggml.{key}": value for key, value in found.items() if value != []}
    return named | ({"tokenizer.chat_template": text.chat_template} if text.chat_template else {})


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step."""
    if part is None:
        return []
    return [step for one in part[inner] for step in _steps(one, inner)] if part["type"] == "Sequence" else [part]


def _cut_name(content: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """The name of a byte-level pre-tokenizer, by its parts."""
    splits, digits, known = [], False, True
    for place, step in enumerate(steps):
        match step:
            case {"type": "Digits", "individual_digits": True} if place == 0:
                digits = True
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
                splits.append(pattern)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(regex)}:
                known = known and regex == (not splits) and place == len(steps) - 1
            case _:
                known = False
    normal = [step["type"] for step in _steps(content.get("normalizer"), "normalizers")]
    whole = bool(content["model"].get("ignore_merges"))
    for name, cut in CUTS.items():
        parts = (cut.splits, cut.digits, ["NFC"] if cut.nfc else [], cut.whole_words)
        if known and parts == (tuple(splits), digits, normal, whole):
            return name
    raise HermitcrabError(
        "compress.gguf: the tokenizer cuts text into words in a way that has no name in GGUF (tokenizer.ggml.pre), so an engine "
        "would read text otherwise than the model learnt it; leave compress.gguf empty"
    )


def _space_prefix(content: dict[str, Any], steps: list[dict[str, Any]]) -> bool:
    """Does a SentencePiece tokenizer put a space before a text?"""
    normal = _steps(content.get("normalizer"), "normalizers")
    match normal, steps:
        case [[{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "content": "▁"}], []]:
            return True
        case [[{"type": "Replace", "content": "▁"}], []]:
            return False
        case [
            [],
            [{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" | "never" as when, "split": False}],
        ]:
            return when == "always"
    raise HermitcrabError(
        "compress.gguf: the tokenizer is neither byte-level nor of SentencePiece's kind; GGUF has no words for it"
    )
