"""A real, tiny language model with a tokenizer of its own, made by the libraries themselves; rows to train it on; and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int = 400) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def write_model(folder: Path, architecture: str = "llama", **more: object) -> Path:
    """A folder with a tiny random model of the given `model_type`, as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(
        folder, [f"the weather is {w} and the answer is {a}" for w in ("good", "bad") for a in ("yes", "no")]
    )
    shape = dict(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**shape, **more}))
    for parameter in model.parameters():  # spread the logits, so that comparisons mean something
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def question_rows(count: int, start: int = 0) -> pa.Table:
    words = ("good", "fine", "warm", "bad", "cold", "wet")
    return pa.table({
        "row_id": [f"{i:016x}" for i in range(start, start + count)],
        "source": ["test"] * count,
        "prompt": [f"the weather is {words[i % 6]} at {i}" + " today" * (i % 7) for i in range(start, start + count)],
        "completion": ["yes" if i % 6 < 3 else "no" for i in range(start, start + count)],
    })  # fmt: skip


def read_log(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_idx(folder: Path, name: str, pixels: Any, labels: Any) -> None:
    """uint8 [N, H, W] and [N] as MNIST's two files."""
    import struct

    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape)
    (folder / f"{name}-images").write_bytes(head + pixels.tobytes())
    (folder / f"{name}-labels").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + bytes(labels.tolist()))


def stripes(count: int, seed: int, size: int = 8) -> tuple[Any, Any]:
    """Images of 0 horizontal, 1 vertical and 2 diagonal stripes, noisy; every one is another."""
    import numpy as np

    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.arange(count) % 3
    waves = np.stack([y, x, x + y])[labels] + draw.integers(0, 4, (count, 1, 1))
    noisy = 127 + 80 * np.sin(waves * np.pi / 2) + draw.normal(0, 30, (count, size, size))
    return noisy.clip(0, 255).astype(np.uint8), labels


IMAGE_RECIPE = """
name: shapes
task: image-classification
base: {path: scratch, architecture: {model_type: mlp, hidden_sizes: [16, 8]}, license: MIT, init_seed: 5}
data:
  train: {path: train-images, labels: train-labels, type: idx, format: image-label, license: CC0-1.0,
          values: {label: {"0": flach, "1": 垂直, "2": "diagonal/\\\\"}}}
  split: {validation: 30, test: 60}
train: {method: full, optimizer: adam, learning_rate: 1e-2, steps: 60, batch_size: 16, checkpoint_every: 7, validate_every: 20,
        final_dtype: float32}
evaluate: {baselines: [majority, logistic-regression], against: majority, resamples: 200, noise_rows: 16}
"""


def write_image_project(folder: Path, recipe: str = IMAGE_RECIPE) -> Path:
    """A folder with striped images and a recipe. Returns the recipe's path."""
    write_idx(folder, "train", *stripes(300, 1))
    (folder / "shapes.yaml").write_text(recipe, encoding="utf-8")
    return folder / "shapes.yaml"


RECIPE = """
name: small
task: text-generation
base: {path: base}
data:
  train: {path: rows.csv, license: CC0-1.0}
  split: {validation: 12, test: 24}
train: {method: lora, lora: {rank: 4}, steps: 12, sequence_length: 64, batch_size: 2,
        learning_rate: 5e-3, checkpoint_every: 2, validate_every: 4,
        precision: float32, attention: sdpa, compile: "off"}  # said, so that no probe decides
evaluate: {choices: ["yes", "no"], few_shot: 2, calibrate: true, baselines: [majority, tfidf-logreg], noise_rows: 8, resamples: 200}
"""


def write_project(folder: Path, recipe: str = RECIPE) -> Path:
    """A folder with a base, rows and a recipe, as a user has it. Returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "base")
    rows = question_rows(120)
    lines = [
        "prompt,completion",
        *(f"{p},{c}" for p, c in zip(rows["prompt"].to_pylist(), rows["completion"].to_pylist(), strict=True)),
    ]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "small.yaml").write_text(recipe)
    return folder / "small.yaml"


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """In that folder, with the settings and keys of a user of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        yield


def crab(*arguments: str, capsys: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command line."""
    from hermitcrab.cli import main

    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err
