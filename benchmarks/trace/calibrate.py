"""Makes `src/hermitcrab/trace/null.json` from the calibration half of the zoo: aligned scores of independent models.

    python benchmarks/trace/calibrate.py ZOO [--out FILE] [--only blocks|channels]

Blocks: every pair of twins of a family with attention and every pair of models of different families; each score is the
largest over all residual maps (as it stands, shared tokens, blind). Channels: every pair of convolutional twins. Nothing of
the evaluation half is read.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

from hermitcrab.trace.aligned import align
from hermitcrab.trace.chain import lay
from hermitcrab.trace.model import open_model
from hermitcrab.trace.neurons import blocks

OUT = Path(__file__).resolve().parents[2] / "src" / "hermitcrab" / "trace" / "null.json"


def scores(folders: list[Path], across: int = 6) -> list[dict[str, object]]:
    """Of all pairs within a family, and of the first `across` models of each two families."""
    models, held = {}, {}
    for folder in folders:
        model = open_model(folder)
        with model:
            held[folder] = blocks(model)
            model.vocabulary()
        models[folder] = model
    families = sorted({f.name.rsplit("-", 2)[0] for f in folders})
    within = [[f for f in folders if f.name.rsplit("-", 2)[0] == name] for name in families]
    pairs = [p for group in within for p in itertools.combinations(group, 2)]
    pairs += [(a, b) for x, y in itertools.combinations(within, 2) for a in x[:across] for b in y[:across]]
    out = []
    for a, b in pairs:
        with models[a] as left, models[b] as right:
            found = align(left, right, held[a], held[b])
        if found:
            out.append({"a": a.name, "b": b.name, "mean": round(max(f.mean for f in found), 4),
                        "best": round(max(f.best for f in found), 4)})  # fmt: skip
    return out


def channel_scores(folders: list[Path]) -> list[float]:
    """Of all pairs of models without blocks."""
    models = {folder: open_model(folder) for folder in folders}
    out = []
    for a, b in itertools.combinations(folders, 2):
        with models[a] as left, models[b] as right:
            found = lay(left, right)
        if found:
            out.append(round(found.score, 4))
    return out


def entry(values: list[float], folders: list[Path]) -> dict[str, object]:
    names = Counter(f.name.rsplit("-", 2)[0] for f in folders)
    told = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
    return {
        "models": f"{told}; twins of some 0.1 to 0.3 million parameters, same data in the same order, other seeds",
        "scores": [[score, count] for score, count in sorted(Counter(values).items())],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", choices=["blocks", "channels"])
    asked = parser.parse_args()
    folders = sorted(f for f in (asked.zoo / "calibration").iterdir() if "-twin-" in f.name)
    plain = [f for f in folders if f.name.startswith("cnn")]
    blocked = [f for f in folders if f not in plain]
    table = json.loads(asked.out.read_text()) if asked.out.exists() else {"statistics": {}}
    if asked.only != "channels":
        found = scores(blocked)
        for key in ("mean", "best"):
            table["statistics"][key] = entry([f[key] for f in found], blocked)
    if asked.only != "blocks":
        table["statistics"]["channels"] = entry(channel_scores(plain), plain)
    asked.out.write_text(json.dumps({"statistics": table["statistics"]}) + "\n")
    for key, held in table["statistics"].items():
        count = sum(n for _, n in held["scores"])
        print(f"{key}: {count} pairs of {held['models']}: largest {held['scores'][-1][0]}")


if __name__ == "__main__":
    main()
