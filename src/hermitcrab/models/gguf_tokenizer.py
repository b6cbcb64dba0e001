"""Tokenizers out of GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`). Torch-free.

Notable: a GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) and says no more of it, yet how text is cut before
the merges decides the ids. `CUTS` holds what can be established, from llama.cpp (src/llama-vocab.cpp) and from the
tokenizers that transformers ships. An unknown name is refused: a near miss would train another language than the model
knows, and nothing would show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.models.formats import Weights
from hermitcrab.models.tokenizer import SPECIAL, TextTokenizer, library_errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # types of tokens
LONGEST_PIECE = 256

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}{_END}"
_QWEN2 = rf"{_SHORT}|{_WORDS}|\p{{N}}{_END}"
_QWEN35 = (
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}{_CASED_END}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}{_CASED_END}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Cut:
    """How text is cut before the merges. `splits`: patterns, one after the other; none: GPT-2's own pattern."""

    splits: tuple[str, ...] = ()
    digits: bool = False
    """Each digit on its own, first."""
    nfc: bool = False
    whole_words: bool = False
    """A word that is in the vocabulary is one token whatever the merges say."""
    adds_bos: bool = False
    """Where the file does not say."""


_LLAMA3_CUT = Cut((_LLAMA3,), whole_words=True, adds_bos=True)
_DEEPSEEK3_CUT = Cut((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))
CUTS = {
    "gpt-2": Cut(), "phi-2": Cut(), "mpt": Cut(nfc=True), "olmo": Cut(nfc=True),
    "smollm": Cut(digits=True), "starcoder": Cut(digits=True), "refact": Cut(digits=True),
    "command-r": Cut(digits=True, nfc=True),
    "llama-bpe": _LLAMA3_CUT, "llama3": _LLAMA3_CUT, "llama-v3": _LLAMA3_CUT, "falcon3": _LLAMA3_CUT,
    "pixtral": _LLAMA3_CUT, "lfm2": _LLAMA3_CUT, "dbrx": Cut((_LLAMA3,)), "smaug-bpe": Cut((_LLAMA3,)),
    "glm4": Cut((_LLAMA3,)), "chatglm-bpe": Cut((_LLAMA3,)),
    "qwen2": Cut((_QWEN2,), nfc=True), "deepseek-r1-qwen": Cut((_QWEN2,)), "stablelm2": Cut((_QWEN2,), nfc=True),
    "qwen35": Cut((_QWEN35,), nfc=True),
    "tekken": Cut((_TEKKEN,), whole_words=True, adds_bos=True),
    "gpt-4o": Cut((_GPT4O,)), "llama4": Cut((_GPT4O,)),
    "deepseek-v3": _DEEPSEEK3_CUT,
}  # fmt: skip


def from_gguf(weights: Weights) -> TextTokenizer:
    """Byte-level (`gpt2`) and SentencePiece (`llama`) tokenizers."""
    meta, path = weights.metadata, weights.path
    tokens = _column(weights, "tokens", str)
    types = _column(weights, "token_type", int) or [NORMAL] * len(tokens)
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise HermitcrabError(f"{path}: its vocabulary is empty, has a token twice, or is not as long as its types")
    kind = meta.get("tokenizer.ggml.model")
    with library_errors(path, "its tokenizer"):
        if kind == "gpt2":
            backend, adds_bos = _byte_level(weights, tokens)
        elif kind == "llama":
            backend, adds_bos = _sentencepiece(weights, tokens, types)
        else:
            raise HermitcrabError(f"{path}: tokenizers of kind {kind!r} are not read from GGUF; use safetensors")
        _add_tokens(backend, tokens, types)
        special = _special_tokens(weights, tokens)
        _surround(backend, special, meta, adds_bos)
    if backend.get_vocab_size() != len(tokens):
        raise HermitcrabError(f"{path}: its vocabulary of {len(tokens):,} became {backend.get_vocab_size():,} tokens")
    template = meta.get("tokenizer.chat_template")
    length = meta.get(f"{meta.get('general.architecture')}.context_length")
    settings = {"clean_up_tokenization_spaces": False} | ({"model_max_length": length} if type(length) is int else {})
    return TextTokenizer(backend, special, template if isinstance(template, str) else None, settings)


def _column(weights: Weights, name: str, kind: type) -> list[Any]:
    values = weights.metadata.get(f"tokenizer.ggml.{name}", [])
    if not isinstance(values, list) or not all(type(v) is kind for v in values):
        raise HermitcrabError(f"{weights.path}: tokenizer.ggml.{name} is no list of {kind.__name__}")
    return values


def _byte_level(weights: Weights, tokens: list[str]) -> tuple[Any, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = weights.metadata.get("tokenizer.ggml.pre")
    if name not in CUTS:
        near = did_you_mean(str(name), CUTS) if name not in (None, "default") else ""
        raise HermitcrabError(
            f"{weights.path}: its pre-tokenizer (tokenizer.ggml.pre) is {name!r}, which does not say how text is cut "
            f"into words{near}; use the model's release in safetensors, or a newer conversion"
        )
    cut, ids = CUTS[name], {token: i for i, token in enumerate(tokens)}
    merges = []
    for line in _column(weights, "merges", str):
        at = line.find(" ", 1)
        if at < 0:
            raise HermitcrabError(f"{weights.path}: {line[:40]!r} is no merge of two tokens")
        merges.append((line[:at], line[at + 1 :]))
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=cut.whole_words))
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.splits))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, cut.adds_bos


def _sentencepiece(weights: Weights, tokens: list[str], types: list[int]) -> tuple[Any, bool]:
    """SentencePiece BPE: the merge of the best score first, which is a merge list in order of scores.

    As transformers' own conversion (convert_slow_tokenizer.py), with a space before each text.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = weights.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise HermitcrabError(f"{weights.path}: tokenizer.ggml.scores does not score every token")
    ids = {token: i for i, token in enumerate(tokens)}
    merges = []
    for token, kind, score in zip(tokens, types, scores, strict=True):
        if kind == NORMAL and len(token) <= LONGEST_PIECE:
            halves = [(token[:i], token[i:]) for i in range(1, len(token))]
            known = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
            merges += [(score, *pair) for pair in sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    pairs = [(left, right) for _, left, right in merges]
    backend = Tokenizer(
        models.BPE(vocab=ids, merges=pairs, unk_token=unknown, fuse_unk=True, byte_fallback=BYTE in types)
    )
    prefix = weights.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return backend, True


def _add_tokens(backend: Any, tokens: list[str], types: list[int]) -> None:
    """Control tokens and tokens of the user are matched whole, before anything is cut."""
    from tokenizers import AddedToken

    for wanted, special in (((UNKNOWN, CONTROL), True), ((USER_DEFINED,), False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in wanted and token
        ]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)


def _special_tokens(weights: Weights, tokens: list[str]) -> dict[str, str]:
    special = {}
    for name, key in zip(SPECIAL, ("bos", "eos", "padding", "unknown"), strict=True):
        index = weights.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None or index == -1:  # how some writers say that there is none
            continue
        if type(index) is not int or not 0 <= index < len(tokens):
            raise HermitcrabError(f"{weights.path}: {name} is {index!r}, which is no id of its {len(tokens):,} tokens")
        special[name] = tokens[index]
    return special


def _surround(backend: Any, special: dict[str, str], meta: dict[str, Any], adds_bos: bool) -> None:
    """Put bos before and eos behind every text, where the file says so."""
    from tokenizers import processors

    before = "bos_token" in special and meta.get("tokenizer.ggml.add_bos_token", adds_bos) is True
    behind = "eos_token" in special and meta.get("tokenizer.ggml.add_eos_token", False) is True
    if not before and not behind:
        return
    start, end = special.get("bos_token", ""), special.get("eos_token", "")

    def around(name: str) -> list[str]:
        return [*([start] if before else []), name, *([end] if behind else [])]

    used = {token for token, wanted in ((start, before), (end, behind)) if wanted}
    backend.post_processor = processors.TemplateProcessing(
        single=around("$A"),
        pair=around("$A") + [f"{part}:1" for part in around("$B")],
        special_tokens=[(token, backend.token_to_id(token)) for token in sorted(used)],
    )
