"""LoRA fine-tuning: tokens learnt in a CPU-second, beside transformers' Trainer, TRL and LLaMA-Factory.

    python benchmarks/lora_throughput.py --json lora.json

A llama of 100M parameters with random weights, the same for all; rank 16 on every linear module; texts of log-normal lengths
(median about 80 tokens, at most 256), all of whose tokens but the first are learnt; bfloat16; one thread. Only what is learnt
counts, so padding is lost time. Each peer packs or pads as serves it best on a CPU, with gradient checkpointing off:

- Trainer: batches padded to their longest text; the smallest of the usual batch sizes wastes least. `group_by_length` beside it.
- TRL packs into rows of 256, which its collator lays end to end: four rows become one of 1,024 with dense masked attention, so one
  row at a time, four accumulated, is its best.
- LLaMA-Factory packs (`neat_packing`) with a block-diagonal mask. Its own default has gradient checkpointing on.

Every step of everyone learns about as many tokens as it likes; rates are compared, over the steps after the warm-up.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from _language import LLAMA_100M, lognormal_lengths, make
from _measure import Contender, Environment, alternate, arguments, machine, median, row, table, versions, write

HUGGING_FACE = Environment(
    "huggingface",
    ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2", "trl==1.16.0", "datasets==5.2.0", "numpy==2.4.6"),
    shown=("torch", "transformers", "accelerate", "peft", "trl"),
)  # fmt: skip
LLAMA_FACTORY = Environment(
    "llamafactory",
    ("torch==2.13.0", "llamafactory==0.9.5"),
    without=("torchvision", "torchaudio"),  # wheels built for CUDA, which break every import beside a CPU torch
    stubs=("torchaudio",),  # imported without need
    shown=("torch", "transformers", "accelerate", "peft", "llamafactory"),
)
OURS = "hermitcrab"
UNIT = "tokens learnt / CPU-s"
# name: environment, script, arguments, steps as many times ours (steps of padded batches are smaller, and fill differs more), aim
PEERS: dict[str, tuple[Environment, str, dict[str, Any], float, str | None]] = {
    "Trainer, dynamic padding": (HUGGING_FACE, "_peer_trainer.py", {"per_device_train_batch_size": 4}, 5, ">= 1.7"),
    "TRL, packed": (HUGGING_FACE, "_peer_trl.py",
                    {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, 1, ">= 1.7"),
    "LLaMA-Factory, packed": (LLAMA_FACTORY, "_peer_llamafactory.py",
                              {"packing": True, "neat_packing": True, "per_device_train_batch_size": 4}, 1, ">= 1.4"),
    "Trainer, group_by_length": (HUGGING_FACE, "_peer_trainer.py",
                                 {"per_device_train_batch_size": 10, "train_sampling_strategy": "group_by_length"}, 1, None),
    "LLaMA-Factory, packed, its defaults": (LLAMA_FACTORY, "_peer_llamafactory.py",
                                            {"packing": True, "neat_packing": True, "per_device_train_batch_size": 4,
                                             "disable_gradient_checkpointing": False}, 1, None),
}  # fmt: skip


def main() -> None:
    args = arguments(__doc__).parse_args()
    names = args.only or (["Trainer, dynamic padding"] if args.quick else list(PEERS))
    runs, steps = args.runs or (1 if args.quick else 5), 3 if args.quick else 8
    contenders = [Contender(OURS, sys.executable, "_ours.py")]
    print(machine())
    for name in names:
        environment, script, settings, times, _ = PEERS[name]
        python = environment.python(args.peers)
        contenders.append(Contender(name, python, script, {"arguments": settings, "steps": round(steps * times)}))
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions(python, environment.shown).items())}; {settings}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make(work, LLAMA_100M, lognormal_lengths(600, 0), 0, weights=True)
        job = {"work": folder, "warm": 2, "steps": steps, "seed": 0,
               "train": {"method": "lora", "batch_size": 4, "sequence_length": 256}}  # fmt: skip

        def told(found: dict[str, list[dict[str, Any]]]) -> None:
            ours = median(found[OURS], "rate")
            rows[:] = [
                row(f"lora: {UNIT}", OURS, name, ours, median(found[name], "rate"), UNIT, PEERS[name][4])
                for name in names
            ]
            write(args.json, rows)

        found = alternate(contenders, job, runs, args.peers / "logs" / "lora", told)
    plan = found[OURS][-1]["plan"]
    print(f"{OURS}: {plan['versions']}; {plan['precision']}, attention {plan['attention']}, compile {plan['compile']}")
    print("fill: " + ", ".join(f"{name} {results[-1]['fill']:.2f}" for name, results in found.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
