"""Every task on real data, beside the baseline that a user would otherwise pick: one table, one command.

    python benchmarks/tasks.py --quick                  the short form of each recipe, under a minute each
    python benchmarks/tasks.py --full --only credit     the full form of one
    python benchmarks/tasks.py                          only writes docs/tasks.md again from what is saved

A recipe takes part if it has a line `# short: key=value …`, the overrides of its short form. Figure, baseline, difference and interval
are those of the run's own evaluation (`comparison.json`, `metrics.json`): nothing is measured here. Each row is saved as it ends, and one
whose recipe has not changed is not run again (`--again` does).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hermitcrab.digest import digest_json
from hermitcrab.evaluate.metrics import lower_is_better
from hermitcrab.pipeline import find_run
from hermitcrab.store import Store, write_atomic

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 3600  # seconds of wall time that one run may take
HEAD = """# Tasks

Every task on real data, beside the baseline that a user would otherwise pick. From `python benchmarks/tasks.py {forms}`; figures with their
95 % intervals, differences paired by row (or by the group that `document` names) with Holm's adjustment, all on held-out rows that
nothing else opened. Where the baseline wins, the table says so. CPU-seconds are of the whole run: data, training, evaluation with every
baseline, package.
"""


def recipes() -> dict[str, tuple[Path, list[str]]]:
    """Name → recipe and the overrides of its short form."""
    found = {}
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        if short := re.search(r"^# short: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[path.stem] = path, shlex.split(short[1])
    return found


def about(path: Path) -> str:
    """What a recipe says of itself before anything else."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("# short: "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines)


def run(name: str, path: Path, overrides: list[str], work: Path, prefix: list[str]) -> dict[str, Any]:
    """The row of one run."""
    command = [*prefix, sys.executable, "-m", "hermitcrab", "run", str(path.relative_to(ROOT)), *overrides, f"name={name}",
               "--store", str(work / "store"), "--runs", str(work / "runs"), "--json"]  # fmt: skip
    began = time.monotonic()
    environment = {**os.environ, "XDG_CONFIG_HOME": str(work / "config")}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LONGEST, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: {shlex.join(command)} ended with status {done.returncode}")
    record, artifacts = find_run(name, Store(work / "store"))
    comparison, metrics = (artifacts["evaluate"].read(f"{what}.json") for what in ("comparison", "metrics"))
    deciding = comparison["metric"] or metrics[0]["name"]
    figures = {m["model"]: m for m in metrics if m["name"] == deciding}
    against = record["recipe"]["evaluate"]["against"]
    pairs = {p["b"]: p for p in comparison["pairs"] if p["metric"] == deciding}
    return {
        "task": record["task"], "metric": deciding, "lower_is_better": lower_is_better(deciding), "verdict": comparison["verdict"],
        "figures": {model: {key: m[key] for key in ("value", "low", "high")} for model, m in figures.items()},
        "against": against,
        "differences": {b: {key: p[key] for key in ("difference", "low", "high", "p_holm")} for b, p in pairs.items()},
        "others": {m["name"]: m["value"] for m in metrics if m["model"] == "derived" and m["name"] != deciding},
        "n": next(iter(figures.values()))["n"], "groups": comparison["groups"],
        "cpu_seconds": sum(a.facts["cpu_seconds"] for a in artifacts.values()), "seconds": time.monotonic() - began,
        "parameters": artifacts["train"].read("training.json")["parameters"],
        "architecture": artifacts["collect"].read("base.json")["model_type"],
    }  # fmt: skip


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def interval(figure: dict[str, Any], signed: bool = False) -> str:
    value = figure["difference"] if signed else figure["value"]
    told = f"{value:+.3f}" if signed else number(value)
    if figure["low"] is None:
        return told
    ends = (f"{figure[end]:+.3f}" if signed else number(figure[end]) for end in ("low", "high"))
    return f"{told} [{', '.join(ends)}]"


def table(rows: dict[str, dict[str, Any]], form: str) -> list[str]:
    lines = [f"\n## {form.capitalize()} form\n",
             "| recipe | task, model | metric | derived | baselines | derived − opponent | verdict | rows | CPU-s |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for key, row in sorted(rows.items()):
        name, _, made = key.partition("/")
        if made != form:
            continue
        others = sorted((m for m in row["figures"] if m != "derived"), key=lambda m: m != row["against"])
        told = "; ".join(f"{m} {interval(row['figures'][m])}" for m in others)
        difference = row["differences"].get(row["against"])
        shown = f"{row['metric']}{' ↓' if row['lower_is_better'] else ''}"
        n = f"{row['n']:,}" + (f" in {row['groups']:,} groups" if row["groups"] < row["n"] else "")
        lines.append(
            f"| [{name}](../recipes/{name}.yaml) | {row['task']}, {row['architecture']} ({row['parameters']:,}) | {shown} | "
            f"{interval(row['figures']['derived'])} | {told} | {interval(difference, True) if difference else '–'} | "
            f"{row['verdict']} against {row['against']} | {n} | {row['cpu_seconds']:,.0f} |"
        )
    return lines


def write(rows: dict[str, dict[str, Any]], out: Path) -> None:
    write_atomic(
        out.with_suffix(".json"), (json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )
    forms = [form for form in ("full", "quick") if any(key.endswith(f"/{form}") for key in rows)]
    lines = [HEAD.format(forms=" ".join(f"--{form}" for form in forms))]
    for form in forms:
        lines += table(rows, form)
    known = recipes()
    names = dict.fromkeys(key.partition("/")[0] for key in sorted(rows))
    lines += [
        "\n## What each recipe is\n",
        *(f"- **{name}**: {about(known[name][0])}" for name in names if name in known),
    ]
    more = [f"- {key.partition('/')[0]} ({key.partition('/')[2]}): " + ", ".join(f"{n} {number(v)}" for n, v in row["others"].items())
            for key, row in sorted(rows.items()) if row["others"]]  # fmt: skip
    lines += ["\n## Other figures of the derived models\n", *more] if more else []
    write_atomic(out, ("\n".join(lines) + "\n").encode())


def claims(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """As the other scripts of this folder give their rows: the derived model beside its opponent. Met: not worse, by the verdict."""
    found = []
    for key, row in sorted(rows.items()):
        mine, peer = row["figures"]["derived"]["value"], row["figures"].get(row["against"], {}).get("value")
        found.append({
            "name": key, "ours": row["architecture"], "peer": row["against"], "value": mine, "peer_value": peer, "unit": row["metric"],
            "ratio": mine / peer if peer else None, "aim": "not worse", "met": row["verdict"] != "worse",
        })  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="the short forms")
    form.add_argument("--full", action="store_true", help="the full forms")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="names of recipes")
    parser.add_argument("--again", action="store_true", help="run rows that are there already")
    parser.add_argument("--work", type=Path, default=Path(".crab/tasks"), help="folder of store and runs")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "tasks.md", help="the table; the rows lie beside it as .json"
    )
    parser.add_argument("--prefix", type=shlex.split, default=[], help="a command that each run is started through")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the rows as JSON, one a comparison with the opponent"
    )
    args = parser.parse_args()
    saved = args.out.with_suffix(".json")
    rows: dict[str, dict[str, Any]] = json.loads(saved.read_text()) if saved.exists() else {}
    known = recipes()
    if unknown := [name for name in args.only if name not in known]:
        parser.error(f"no recipe with a short form is named {unknown[0]}; there are: {', '.join(known)}")
    wanted = (args.only or list(known)) if args.quick or args.full else []
    for name in wanted:
        path, short = known[name]
        overrides, key = (short, f"{name}/quick") if args.quick else ([], f"{name}/full")
        asked = digest_json([path.read_text(encoding="utf-8"), overrides])
        if rows.get(key, {}).get("asked") == asked and not args.again:
            print(f"{key}: done before", file=sys.stderr)
            continue
        print(f"{key}: running", file=sys.stderr, flush=True)
        named = name if args.full else f"{name}-quick"
        rows[key] = {**run(named, path, overrides, args.work.absolute(), args.prefix), "asked": asked}
        write(rows, args.out)
    write(rows, args.out)
    if args.json:
        write_atomic(args.json, (json.dumps(claims(rows), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
