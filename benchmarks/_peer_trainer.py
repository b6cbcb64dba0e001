"""transformers' Trainer on the job's rows: full training of a new model, or LoRA by peft on the base that everyone loads.

Under autocast to bfloat16; the frozen base is held in bfloat16 and the adapters in float32, as peft makes them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _peer_marks import IGNORE, Marks, base, documents
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of a batch padded to the longest of them; no mask where nothing is padded."""
    sizes = [len(r["input_ids"]) for r in rows]
    ids = torch.zeros(len(rows), max(sizes), dtype=torch.long)
    labels, seen = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
    for i, (r, n) in enumerate(zip(rows, sizes, strict=True)):
        ids[i, :n] = labels[i, :n] = torch.tensor(r["input_ids"])
        seen[i, :n] = 1
    return {"input_ids": ids, "labels": labels, **({} if min(sizes) == max(sizes) else {"attention_mask": seen})}


def model_of(job: dict[str, Any]) -> Any:
    torch.manual_seed(job["seed"])
    if "scratch" in job:
        config = AutoConfig.for_model(**job["scratch"], bos_token_id=None, eos_token_id=1, pad_token_id=0)
        return AutoModelForCausalLM.from_config(config)
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        base(job), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def main(job: dict[str, Any]) -> None:
    rows, marks = [{"input_ids": ids} for ids in documents(job)], Marks()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=job["warm"] + job["steps"], use_cpu=True, bf16=True, save_strategy="no", report_to=[],
            disable_tqdm=True, learning_rate=2e-4, seed=job["seed"], remove_unused_columns=False, gradient_checkpointing=False,
            **job["arguments"],
        )  # fmt: skip
        Trainer(model_of(job), arguments, data_collator=padded, train_dataset=rows, callbacks=[marks]).train()
    marks.tell(job["warm"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
