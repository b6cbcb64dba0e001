"""A tokenizer that a task learns from its training rows, as it stands in what was fitted: `{"tokenizer": …, "special": …}`.

A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2): every text has ids, in every language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.tokenizer import TextTokenizer, library_errors, read_tokenizer
from hermitcrab.progress import progress

FITTED_AS = {"tokenizer": dict, "special": dict}
VOCABULARY = 8000  # tokens, where `base.architecture` says nothing


def fit(
    texts: Sequence[str],
    base: dict[str, Any],
    path: Path,
    special: Mapping[str, str],
    around: str,
    isolated: str | None = None,
) -> dict[str, Any]:
    """The base's tokenizer, or one of at most `vocab_size` tokens that is learnt from texts.

    Args:
        special: `pad_token`, `eos_token`, … → its text; their ids are the first, in this order.
        around: what stands around a text, as tokenizers' templates say it: `$A </s>`.
        isolated: a regular expression of what no token goes beyond, as BERT has it for Chinese characters. Without it, a text without
            spaces is one long word, and learning takes minutes.
    """
    if base["kind"] != "scratch":
        text = read_tokenizer(path)
        return {"tokenizer": json.loads(text.backend.to_str()), "special": text.special}
    made = _learn(
        texts, base["configuration"].get("vocab_size") or VOCABULARY, list(special.values()), around, isolated
    )
    return {"tokenizer": json.loads(made.to_str()), "special": dict(special)}


def _learn(texts: Sequence[str], most: int, special: list[str], around: str, isolated: str | None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=isolated is None)  # else before each of its parts
    if isolated is not None:
        parts = [pre_tokenizers.Split(Regex(isolated), "isolated"), made.pre_tokenizer]
        made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=most, special_tokens=special, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )  # fmt: skip
    with progress("learning a tokenizer", len(texts), "texts") as bar:

        def told() -> Iterator[str]:
            for text in texts:
                bar.add()
                yield text

        made.train_from_iterator(told(), trainer)
    named = [(token, made.token_to_id(token)) for token in special if token in around.split()]
    made.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    return made


def check(fitted: dict[str, Any], where: str, needed: Sequence[str]) -> None:
    """Refuse (HermitcrabError) what is no tokenizer, or lacks one of these special tokens: a record may be a stranger's."""
    from tokenizers import Tokenizer

    with library_errors(Path(where), "the fitted tokenizer"):
        made = Tokenizer.from_str(json.dumps(fitted["tokenizer"]))
    for name in needed:
        token = fitted["special"].get(name)
        if not isinstance(token, str) or made.token_to_id(token) is None:
            raise HermitcrabError(f"{where}: fitted: the tokenizer has no {name}. Received: {str(token)[:40]}")


def read(fitted: dict[str, Any]) -> TextTokenizer:
    from tokenizers import Tokenizer

    return TextTokenizer(Tokenizer.from_str(json.dumps(fitted["tokenizer"])), fitted["special"], None)
