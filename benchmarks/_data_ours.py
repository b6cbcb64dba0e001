"""One run of ours, a contender of data_pipeline.py: collect and prepare (with tokens) as `crab run` does them, in one process.

python _data_ours.py JOB.json      {"corpus", "out", "tokenizer": FOLDER, "clean": [...], "stages", "cluster"}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from _measure import tell

from hermitcrab.digest import digest_file
from hermitcrab.pipeline import Run, stage_named
from hermitcrab.recipe import from_value
from hermitcrab.store import Store


def cpu() -> float:
    """Of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def recipe(job: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": "corpus", "task": "text-generation", "use": "research",
        "base": {"path": "scratch", "tokenizer": job["tokenizer"], "license": "Apache-2.0",
                 "architecture": {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                                  "intermediate_size": 128}},
        "data": {"train": {"path": job["corpus"], "license": "LicenseRef-Debian-documentation", "format": "text"},
                 "clean": job["clean"], "split": {"validation": 64, "test": 64}},
        "evaluate": {"metrics": ["perplexity"]},
    }  # fmt: skip
    if job.get("tokens", True):
        told["data"]["tokens"] = {"tokenizer": "base"}
    if job.get("cluster"):
        told["cluster"] = {"address": job["cluster"]}
    return told


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    run = Run(from_value(recipe(job)), Store(out / "store"), out / "run")
    run.resolve()
    times = {}
    for name in ("collect", "prepare"):
        began, wall = cpu(), time.time()
        made = run.ensure(stage_named(name))
        times[name], times[f"{name} wall"] = cpu() - began, time.time() - wall
    payload = made.payload
    tokens = json.loads((payload / "tokens" / "tokens.json").read_text()) if job.get("tokens", True) else None
    digests = {
        path.relative_to(payload).as_posix(): digest_file(path) for path in sorted(payload.rglob("*")) if path.is_file()
    }
    spent = made.facts.get("tokens", {})
    facts = {
        "encode_cpu": sum(one["cpu_seconds"] for one in spent.values()),
        "tokens": spent,
        "engine": made.facts.get("engine"),
    }
    tell(times=times, payload=str(payload), digests=digests, facts=facts,
         kept=sum(s["documents"] for s in tokens["splits"]) if tokens else 0,
         tokens=sum(s["tokens"] for s in tokens["splits"]) if tokens else 0)  # fmt: skip


if __name__ == "__main__":
    main()
