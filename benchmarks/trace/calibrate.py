"""Makes `src/hermitcrab/trace/null.json` from the calibration half of the zoo: aligned scores of independent models.

    python benchmarks/trace/calibrate.py ZOO [--out FILE]

Every pair of twins of a family and every pair of models of different families is one; each score is the largest over all
residual maps (as it stands, shared tokens, blind). Nothing of the evaluation half is read.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from pathlib import Path

from hermitcrab.trace.aligned import align
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    folders = sorted(
        f for f in (asked.zoo / "calibration").iterdir() if "-twin-" in f.name and not f.name.startswith("cnn")
    )
    found = scores(folders)
    names = Counter(f.name.rsplit("-", 2)[0] for f in folders)
    told = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
    table = {
        "models": f"{told}; twins of 0.2 million parameters, same text in the same order, other seeds",
        "statistics": {
            key: {"scores": [[score, count] for score, count in sorted(Counter(f[key] for f in found).items())]} for key in ("mean", "best")
        },
    }  # fmt: skip
    asked.out.write_text(json.dumps(table) + "\n")
    print(
        f"{len(found)} pairs of {told}: largest mean {max(f['mean'] for f in found)}, largest best {max(f['best'] for f in found)}"
    )


if __name__ == "__main__":
    main()
