"""An independent model of a package's configuration, trained from another first draw: what a real twin scores.

    python benchmarks/trace/twin.py PACKAGE OUT [--seed 7] [--steps 150] [--tokens 64]

Tokenizer and configuration are the package's, the text is that of the zoo (novels); AdamW, float32, saved in bfloat16.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import torch
from train import texts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(asked.package), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked.package)
    stream = torch.tensor(tokenizer(texts("austen")[:600_000])["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
    began = time.monotonic()
    for step in range(asked.steps):
        at = int(torch.randint(0, len(stream) - asked.tokens, (1,)))
        rows = stream[at : at + asked.tokens][None]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 6e-4 * min(1.0, (step + 1) / 20)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == asked.steps - 1:
            print(
                f"{time.monotonic() - began:6.0f} s  step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True
            )
    model.to(torch.bfloat16).save_pretrained(asked.out)
    shutil.copy(asked.package / "tokenizer.json", asked.out)


if __name__ == "__main__":
    main()
