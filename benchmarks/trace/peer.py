"""modelDNA 0.1.0 on the folders that trace is measured on.

    python benchmarks/trace/peer.py ZOO OUT PEER_PYTHON     PEER_PYTHON: a Python that has `modeldna==0.1.0`

Its own verdict and probability of each pair go to OUT/peer.jsonl; `table` prints them beside ours. Pairs: of every family the
first twins against one another, and base 0 with everything that `evaluate.cases` makes of it and its trained children.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import surgery as cut
import torch
from evaluate import cases, decided, read, stacked
from families import FAMILIES

TWINS = 12  # of a family: 66 pairs
POSITIVE = 0.9  # modelDNA's own threshold for calling a lineage
THEIRS = """
import json, sys
from modeldna.scan import compare_pair
for line in sys.stdin:
    job = json.loads(line)
    try:
        verdict = compare_pair(job["a"], job["b"])[3].to_dict()
        best = [c["probability"] for c in verdict["candidates"] if c["probability"] is not None]
        row = {"verdict": verdict["verdict"], "p": max(best, default=None)}
    except Exception as error:
        row = {"verdict": "ERROR", "p": None, "why": str(error)[:200]}
    print(json.dumps({**job, **row}), flush=True)
"""


def jobs(zoo: Path, room: Path) -> list[dict[str, str]]:
    out = []
    for name, family in FAMILIES.items():
        folders = sorted((zoo / "evaluation").glob(f"{name}-twin-*"))
        twins = stacked(zoo, f"evaluation-{name}-twin")
        if not folders or twins is None:
            continue
        out += [
            {"kind": "twin", "family": name, "what": "twin", "a": str(a), "b": str(b)}
            for a, b in itertools.combinations(folders[:TWINS], 2)
        ]
        for _, what, made, p, _ in cases(family, cut.one(twins, 0), cut.one(twins, 20), 0):
            folder = cut.write(
                room / f"{name}-{what}".replace(" ", "_").replace("%", ""), made, p, folders[0] / "tokenizer.json"
            )
            out.append({"kind": "related", "family": name, "what": what, "a": str(folder), "b": str(folders[0])})
        for child in sorted((zoo / "evaluation").glob(f"{name}-*-00")):
            kind = child.name.removeprefix(f"{name}-").removesuffix("-00")
            if kind not in ("twin", "distilled") and not kind.startswith("gqa"):
                out.append({"kind": "related", "family": name, "what": kind, "a": str(child), "b": str(folders[0])})
    return out


def table(out: Path) -> None:
    rows = read(out / "peer.jsonl")
    ours = {(r["family"], r["what"]): r["verdict"] for r in read(out / "positives.jsonl") if r["key"].split()[1] == "0"}
    twins = [r for r in rows if r["kind"] == "twin"]
    accused = sum((r["p"] or 0) >= POSITIVE for r in twins)
    mine = {(r["a"], r["b"]): decided(r)["verdict"] for r in read(out / "null.jsonl") if r["kind"] == "twin"}
    same = [mine[Path(r["a"]).name, Path(r["b"]).name] for r in twins if (Path(r["a"]).name, Path(r["b"]).name) in mine]
    print(
        f"twins: {len(twins)} pairs, modelDNA calls {accused} related (p ≥ {POSITIVE}); ours {same.count('related')} of {len(same)} of them"
    )
    grouped = defaultdict(list)
    for r in rows:
        if r["kind"] == "related":
            grouped[r["what"]].append(r)
    print("| change | n | modelDNA finds | its verdicts | ours finds |\n| --- | --- | --- | --- | --- |")
    for what, group in grouped.items():
        found = sum((r["p"] or 0) >= POSITIVE for r in group)
        known = [ours.get((r["family"], what)) for r in group]
        told = ", ".join(sorted({r["verdict"] for r in group}))
        print(
            f"| {what} | {len(group)} | {found} | {told} | {sum(k == 'related' for k in known)} of {sum(k is not None for k in known)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("peer", type=Path, nargs="?", help="without it only the table is printed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peer:
        with tempfile.TemporaryDirectory() as room:
            lines = "\n".join(json.dumps(j) for j in jobs(asked.zoo, Path(room)))
            done = subprocess.run(
                [str(asked.peer), "-c", THEIRS], input=lines, capture_output=True, text=True, check=True
            )
        (asked.out / "peer.jsonl").write_text(done.stdout)
    table(asked.out)


if __name__ == "__main__":
    main()
