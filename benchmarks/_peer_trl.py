"""TRL's SFTTrainer on the job's rows, packed or padded, LoRA by peft."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _peer_marks import Marks, base, documents
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


def main(job: dict[str, Any]) -> None:
    torch.manual_seed(job["seed"])
    rows, marks = Dataset.from_dict({"input_ids": documents(job)}), Marks()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, max_steps=job["warm"] + job["steps"], use_cpu=True, bf16=True, save_strategy="no", report_to=[],
            disable_tqdm=True, learning_rate=2e-4, seed=job["seed"], gradient_checkpointing=False, max_length=256,
            **job["arguments"],
        )  # fmt: skip
        SFTTrainer(
            base(job), arguments, train_dataset=rows, callbacks=[marks],
            processing_class=PreTrainedTokenizerFast.from_pretrained(Path(job["work"]) / "base"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        ).train()  # fmt: skip
    marks.tell(job["warm"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
