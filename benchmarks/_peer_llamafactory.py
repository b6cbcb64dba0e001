"""LLaMA-Factory's `sft` stage on the job's rows, by its own entry, with the settings that a recipe of its own would have.

Its rows are text: the first word is the prompt, the rest the answer, so the tokens learnt are those that everyone learns.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _peer_marks import Marks, documents
from llamafactory.train.tuner import run_exp


def main(job: dict[str, Any]) -> None:
    marks = Marks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"instruction": f"w{ids[0]}", "input": "", "output": " ".join([*(f"w{i}" for i in ids[1:-1]), "<eos>"])}
                for ids in documents(job)]  # fmt: skip
        (folder / "rows.json").write_text(json.dumps(rows))
        (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
        run_exp({
            "model_name_or_path": str(Path(job["work"]) / "base"), "stage": "sft", "do_train": True, "finetuning_type": "lora",
            "lora_rank": 16, "lora_alpha": 32, "lora_target": "all", "dataset": "rows", "dataset_dir": str(folder),
            "template": "empty", "cutoff_len": 256, "output_dir": str(folder / "out"), "use_cpu": True, "bf16": True,
            "max_steps": job["warm"] + job["steps"], "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
            "learning_rate": 2e-4, "seed": job["seed"], "disable_gradient_checkpointing": True, **job["arguments"],
        }, callbacks=[marks])  # fmt: skip
    marks.tell(job["warm"])


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
