"""litgpt's own `pretrain` on the job's rows: bfloat16 autocast and torch.compile, as it always does.

The clock is marked where its loop asks for a batch. When enough is known the loader ends the run: what comes after the last step,
litgpt's final checkpoint, reads this process's command line as if it were its own and fails.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, tell
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.pretrain import setup
from torch.utils.data import DataLoader


class Enough(Exception):
    """Every step that is measured has been run."""


class Rows(DataModule):
    def __init__(self, job: dict[str, Any], clock: Clock):
        super().__init__()
        self.clock, self.wanted = clock, job["warm"] + job["steps"] + 1
        documents = json.loads((Path(job["work"]) / "documents.json").read_text())
        self.rows = [torch.tensor([*ids, 1]) for ids in documents]  # one more, since a row gives inputs and targets

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **kwargs: Any
    ) -> None:
        self.size = batch_size

    def collate(self, rows: list[torch.Tensor]) -> torch.Tensor:
        self.clock.mark()
        if len(self.clock.marks) >= self.wanted:
            raise Enough
        return torch.stack(rows)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, self.size, shuffle=True, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[: self.size], self.size)


def main(job: dict[str, Any]) -> None:
    shape, size, clock = job["scratch"], job["train"]["batch_size"], Clock()
    config = Config(
        name="llama", block_size=256, n_layer=shape["num_hidden_layers"], n_embd=shape["hidden_size"],
        n_head=shape["num_attention_heads"], vocab_size=shape["vocab_size"], padded_vocab_size=shape["vocab_size"],
        intermediate_size=shape["intermediate_size"], norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False,
        parallel_residual=False, rotary_percentage=1.0,
    )  # fmt: skip
    steps = job["warm"] + job["steps"] + 1
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        setup("llama", config, Path(folder), precision="bf16-mixed", data=Rows(job, clock), devices=1, seed=job["seed"],
              train=TrainArgs(global_batch_size=size, micro_batch_size=size, max_tokens=steps * size * 256, max_norm=1.0,
                              lr_warmup_steps=1, tie_embeddings=True, save_interval=None, log_interval=1),
              eval=EvalArgs(interval=10**6, max_iters=1), logger_name="csv")  # fmt: skip
    warm, each = job["warm"], clock.steps()
    labels, seconds = size * 256 * len(each[warm:]), sum(each[warm:])
    tell(rate=labels / seconds, seconds=seconds, labels=labels, steps=len(each[warm:]), warm_seconds=sum(each[:warm]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
