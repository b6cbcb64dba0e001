"""What pruning and healing cost a real fine-tuned model: the run of `recipes/demo.yaml`, cut in several ways, each measured as
`crab run` measures it (paired with the uncompressed model on the same test rows).

    python benchmarks/prune.py RUN --store STORE --work FOLDER --json prune.json [--rows 300] [--only depth-0.8]

A run that is there is taken as it is; nothing of it is made again. A killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

HEAL = {"steps": 20, "learning_rate": 1e-4, "batch_size": 2}
NONE = {"steps": 0}
CASES: dict[str, dict[str, Any]] = {
    "magnitude 30 %": {"method": "magnitude", "keep": 0.7, "heal": NONE},
    "magnitude 50 %": {"method": "magnitude", "keep": 0.5, "heal": NONE},
    "magnitude 50 %, by activations": {"method": "magnitude", "keep": 0.5, "by": "activations", "heal": NONE},
    "depth 0.9": {"method": "depth", "keep": 0.9, "heal": NONE},
    "depth 0.8": {"method": "depth", "keep": 0.8, "heal": NONE},
    "neurons 0.75": {"method": "width", "keep": 0.75, "heal": NONE},
    "heads 0.67": {"method": "width", "keep": 0.67, "parts": ["heads"], "heal": NONE},
    "depth 0.8, healed": {"method": "depth", "keep": 0.8, "heal": HEAL},
    "neurons 0.75, healed": {"method": "width", "keep": 0.75, "heal": HEAL},
    "magnitude 50 %, healed": {"method": "magnitude", "keep": 0.5, "heal": HEAL},
    "neurons 0.75, healed with the teacher": {"method": "width", "keep": 0.75, "heal": {**HEAL, "distill": True}},
    "depth 0.9, healed": {"method": "depth", "keep": 0.9, "heal": HEAL},
    "depth 0.9, healed with the teacher": {"method": "depth", "keep": 0.9, "heal": {**HEAL, "distill": True}},
    "depth 0.8, healed with the teacher": {"method": "depth", "keep": 0.8, "heal": {**HEAL, "distill": True}},
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("run")
    asked.add_argument("--store", type=Path, required=True)
    asked.add_argument("--work", type=Path, required=True)
    asked.add_argument("--json", type=Path)
    asked.add_argument("--rows", type=int, default=300)
    asked.add_argument("--only", action="append")
    asked.add_argument("--quick", action="store_true", help="the first case alone, on 40 rows")
    given = asked.parse_args()
    if given.quick:
        given.rows, given.only = 40, [next(iter(CASES))]
    found = []
    for name, prune in CASES.items():
        if given.only and name not in given.only:
            continue
        began, cpu = time.perf_counter(), time.process_time()
        entry = measure(given, name, prune)
        entry["seconds"], entry["cpu"] = time.perf_counter() - began, time.process_time() - cpu
        found.append(entry)
        print(row(entry), flush=True)
        if given.json:
            given.json.write_text(json.dumps([claim(entry) for entry in found], indent=1))


def measure(given: argparse.Namespace, name: str, prune: dict[str, Any]) -> dict[str, Any]:
    from hermitcrab.compress.work import Compression
    from hermitcrab.errors import HermitcrabError
    from hermitcrab.pipeline import find_run
    from hermitcrab.recipe import Compress, Recipe
    from hermitcrab.references import fetch, resolve
    from hermitcrab.stages import Job
    from hermitcrab.stages.compress import reference_of, slice_of, source_of
    from hermitcrab.store import Store

    store = Store(given.store)
    record, inputs = find_run(given.run, store)
    recipe = Recipe.model_validate(record["recipe"])
    part = slice_of(recipe).model_copy(
        update={"compress": Compress.model_validate({"prune": prune, "rows": given.rows})}
    )
    place = fetch(resolve(recipe.base.path, recipe.base.sha256, store), store)
    job: Any = Job(part=part, inputs=inputs, draft=None, places={recipe.base.path: place}, base=recipe.base)  # type: ignore[arg-type]
    work, payload = given.work / name.replace(" ", "_"), given.work / "payload" / name.replace(" ", "_")
    work.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(payload, ignore_errors=True)  # of a killed call: the files themselves lie in `work`
    payload.mkdir(parents=True, exist_ok=True)
    (given.work / "speed").mkdir(exist_ok=True)
    if not (work / "speed").is_symlink():
        (work / "speed").symlink_to(given.work.resolve() / "speed")  # the uncompressed model is timed once
    made = Compression(source_of(job), reference_of(job), work, payload)
    try:
        made.run()
    except HermitcrabError as error:  # a run stops here; the figures are looked at all the same
        from hermitcrab.compress import asked

        ((form, kind),) = asked(part.compress)
        label = f"{form.format} {kind}"
        _, how, start = made.opened(form, kind)
        pair = made.parity.paired(label, made.parity.answers(label, start))
        return {"name": name, "refused": str(error), "method": how.told, "parity": pair}
    (entry,) = made.entries
    return {"name": name, **entry, "facts": made.facts}


def claim(entry: dict[str, Any]) -> dict[str, Any]:
    """A case as a row: the smaller model beside the one it was cut from; nothing is aimed at."""
    parity = entry["parity"]
    a, b = parity["compressed"], parity["uncompressed"]
    return {"name": entry["name"], "ours": "cut", "peer": "uncut", "value": a, "peer_value": b, "unit": parity["metric"], "ratio": a / b,
            "aim": None, "met": None, "measured": entry}  # fmt: skip


def row(entry: dict[str, Any]) -> str:
    p, told = entry["parity"], entry["method"]
    if "refused" in entry:
        return (
            f"| {entry['name']} | {told['parameters'] / 1e6:.1f} M | {p['compressed']:.3f} | {p['difference']:+.3f} "
            f"({p['low']:+.3f} to {p['high']:+.3f}) | {p['flips']} (+{p['gained']} / -{p['lost']}) | refused: {entry['refused']} |"
        )
    label = f"{entry['format']} {entry['type']}"
    fast, was = entry["facts"][label]["per_cpu_second"], entry["facts"]["uncompressed"]["per_cpu_second"]
    return (
        f"| {entry['name']} | {told['parameters'] / 1e6:.1f} M | {entry['size'] / 2**20:.0f} MiB | {p['compressed']:.3f} | "
        f"{p['difference']:+.3f} ({p['low']:+.3f} to {p['high']:+.3f}) | {p['flips']} (+{p['gained']} / -{p['lost']}) | "
        f"{p['mean_kl']:.3f} | {p['mean_kl_to_base']:.3f} | {p['top1_agreement']:.0%} | {fast / was:.2f} |"
    )


if __name__ == "__main__":
    main()
