"""The work that language-model benchmarks give to everyone: a model with a vocabulary of plain words, and texts of known lengths.

Everything follows from one seed. A text of n words is n ids and an end, for every library alike, so no tokenizer decides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = ("<pad>", "<eos>")
LLAMA_100M = {
    "model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 12, "max_position_embeddings": 1024, "tie_word_embeddings": True, "vocab_size": 16384,
}  # fmt: skip
LLAMA_12M = {
    "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 1024, "tie_word_embeddings": True, "vocab_size": 4096,
}  # fmt: skip


def lognormal_lengths(count: int, seed: int, longest: int = 256) -> list[int]:
    """Tokens of each text: median about 80, mean about 99."""
    drawn = np.random.default_rng(seed).lognormal(np.log(79), 0.67, count)
    return np.clip(drawn.round(), 12, longest).astype(int).tolist()


def make(folder: Path, architecture: dict[str, Any], lengths: list[int], seed: int, weights: bool) -> None:
    """`base/` (tokenizer, config, and weights if wanted), `rows/` for us and `documents.json` for the others, below `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "rows").mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "base", architecture["vocab_size"])
    if weights:
        write_weights(folder / "base", architecture, seed)
    rng = np.random.default_rng(seed)
    words = [rng.integers(len(SPECIAL), architecture["vocab_size"], n - 1).tolist() for n in lengths]
    (folder / "documents.json").write_text(json.dumps([[*ids, 1] for ids in words]))
    texts = [" ".join(f"w{i}" for i in ids) for ids in words]
    rows = pa.table(
        {"row_id": [f"{i:016x}" for i in range(len(texts))], "source": ["benchmark"] * len(texts), "text": texts}
    )
    pq.write_table(rows, folder / "rows" / "train.parquet")
    pq.write_table(rows.slice(0, 0), folder / "rows" / "validation.parquet")


def write_tokenizer(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), size))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


def write_weights(folder: Path, architecture: dict[str, Any], seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(**architecture, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
