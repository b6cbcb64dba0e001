"""Pretraining from scratch: tokens in a CPU-second, beside transformers' Trainer and litgpt; and how near that is to the limit.

    python benchmarks/pretrain_throughput.py --json pretrain.json

A llama of 12M parameters (6 layers of 384, vocabulary 4,096, tied), batches of 16 rows of 256 tokens, bfloat16 autocast, one
thread. We train by the loop of the train stage with `compile: on`, which `auto` chooses where the planned steps pay for it; what
compiling took, and after how many steps it has paid, is told apart.

- Model FLOPs a token: 6 a parameter of a matrix, and causal attention counted by half. The peak is that of a 2048 x 2048 x 2048
  bfloat16 product, measured in the very process before and after the training; the best counts.
- Overhead of the loop: `_overhead.py`, against a hand-written step on the same model in the same process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _language import LLAMA_12M, make
from _measure import Contender, Environment, alternate, arguments, machine, median, row, run, table, versions, write
from lora_throughput import HUGGING_FACE

LITGPT = Environment(
    "litgpt",
    (
        "torch==2.13.0",
        "litgpt==0.5.13",
        "requests==2.32.5",
    ),  # its command line imports requests and does not ask for it
    without=("torchvision", "torchaudio"),
    shown=("torch", "litgpt", "lightning"),
)
OURS, LENGTH, ROWS = "hermitcrab, compiled", 256, 16
UNIT = "tokens / CPU-s"
PEERS: dict[str, tuple[Environment, str, dict[str, Any], str | None]] = {
    "Trainer": (HUGGING_FACE, "_peer_trainer.py", {"per_device_train_batch_size": ROWS}, ">= 1.3"),
    "litgpt": (LITGPT, "_peer_litgpt.py", {}, None),
    "Trainer, torch_compile": (HUGGING_FACE, "_peer_trainer.py",
                               {"per_device_train_batch_size": ROWS, "torch_compile": True}, None),
}  # fmt: skip


def flops_per_token(shape: dict[str, Any]) -> float:
    """Forward and backward: 6 for each parameter of a matrix product, 12 L T d / 2 for causal attention."""
    d, layers = shape["hidden_size"], shape["num_hidden_layers"]
    matrices = layers * (4 * d * d + 3 * d * shape["intermediate_size"]) + shape["vocab_size"] * d
    return 6 * matrices + 12 * layers * LENGTH * d / 2


def main() -> None:
    args = arguments(__doc__).parse_args()
    names = args.only or (["Trainer"] if args.quick else list(PEERS))
    runs, steps = args.runs or (1 if args.quick else 5), 3 if args.quick else 8
    contenders = [Contender(OURS, sys.executable, "_ours.py")]
    print(machine())
    for name in names:
        environment, script, settings, _ = PEERS[name]
        python = environment.python(args.peers)
        contenders.append(Contender(name, python, script, {"arguments": settings}))
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions(python, environment.shown).items())}; {settings}")
    rows: list[dict[str, Any]] = []
    logs = args.peers / "logs" / "pretrain"
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), LLAMA_12M, [LENGTH] * 640, 0, weights=False)
        job = {"work": folder, "warm": 2, "steps": steps, "seed": 0, "scratch": LLAMA_12M, "peak": True,
               "train": {"method": "full", "batch_size": ROWS, "sequence_length": LENGTH, "compile": "on"}}  # fmt: skip

        def told(found: dict[str, list[dict[str, Any]]]) -> None:
            ours, peak = median(found[OURS], "rate"), median(found[OURS], "peak")
            rows[:] = [
                row(f"pretrain: {UNIT}", OURS, name, ours, median(found[name], "rate"), UNIT, PEERS[name][3])
                for name in names
            ]
            achieved = statistics.median(r["rate"] for r in found[OURS]) * flops_per_token(LLAMA_12M) / 1e9
            rows.append(row("pretrain: share of the bfloat16 peak", OURS, "2048^3 product, same process", achieved, peak / 1e9,
                            "GFLOP/s", ">= 0.65"))  # fmt: skip
            write(args.json, rows)

        found = alternate(contenders, job, runs, logs, told)
        cost = run(Contender("loop overhead", sys.executable, "_overhead.py"),
                   {**job, "steps": 3 if args.quick else 4, "blocks": 1 if args.quick else 6}, logs)  # fmt: skip
    name, hand = "hand-written step", cost["hand"]
    rows.append(row("pretrain: a step of the loop", OURS, name, cost["ours"], hand, "CPU-s", "<= 1.02"))
    rows.append(row("pretrain: what the loop does beside", OURS, name, cost["beside"], hand, "CPU-s", "<= 0.02"))
    write(args.json, rows)
    plan = found[OURS][-1]["plan"]
    print(
        f"{OURS}: {plan['versions']}; {plan['precision']}, attention {plan['attention']} ({plan['why']['attention']})"
    )
    print(f"compile: {plan['why']['compile']}")
    print("CPU-s of session and plan, compiling included, and of the warm-up steps: "
          + ", ".join(f"{r['plan_seconds']:.0f} + {r['warm_seconds']:.1f}" for r in found[OURS]))  # fmt: skip
    print(
        f"loop: {cost['steps']} steps a side; of its overhead {cost['clipping'] * 1000:.1f} ms are the gradient norm and its clipping"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
