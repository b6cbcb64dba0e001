"""How fast the filters of one text are: megabytes of UTF-8 a CPU-second, in this process, one thread.

    python benchmarks/data_filters.py --json filters.json      (three rounds; --quick: one)

Texts: novels in English (paragraphs), help texts and reviews in Chinese, of the folder that `--data` names. Nothing is compared with
another program here: these filters are one step of `data_pipeline.py`, which has the peers.
"""

from __future__ import annotations

import csv
import gzip
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from _measure import arguments, machine, write

from hermitcrab.data.filters import Texts, make_filter
from hermitcrab.recipe.clean import OPTIONS

BATCH = 1024
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "unicode NFC": ("unicode", {}),
    "unicode NFKC": ("unicode", {"form": "NFKC"}),
    "unicode NFKC + simplified": ("unicode", {"form": "NFKC", "chinese": "simplified"}),
    **{
        f"quality {rule}": ("quality", {"rules": [rule]})
        for rule in ("length", "gopher", "repetition", "fineweb", "c4")
    },
    "quality length + gopher + repetition + fineweb + ratios": (
        "quality",
        {"rules": ["length", "gopher", "repetition", "fineweb", "ratios"]},
    ),
    "language": ("language", {}),
    "personal, 11 kinds": ("personal", {}),
}


def novels(data: Path) -> list[str]:
    with gzip.open(data / "text-austen" / "austen.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    return ["\n".join(lines[i : i + 80]) for i in range(0, len(lines), 80)]


def cells(path: Path, column: int, delimiter: str, together: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = [row[column] for row in list(csv.reader(file, delimiter=delimiter))[1:]]
    return ["\n".join(found[i : i + together]) for i in range(0, len(found), together)]


def speed(name: str, options: dict[str, Any], texts: list[str]) -> float:
    run: Callable[[Texts], Any] = make_filter(name, OPTIONS[name].model_validate(options))
    batches = [Texts(pa.array([str(j) for j in range(i, min(i + BATCH, len(texts)))]), pa.array(texts[i : i + BATCH], pa.large_string()))
               for i in range(0, len(texts), BATCH)]  # fmt: skip
    run(batches[0])  # what is compiled or loaded once
    batches = [Texts(batch.row_id, batch.text) for batch in batches]  # words that were split for it are forgotten
    began = time.process_time()
    for batch in batches:
        run(batch)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data sets")
    args = parser.parse_args()
    sets = {
        "en": novels(args.data),
        "zh": cells(args.data / "translation-en-zh" / "libreoffice-help.tsv.gz", 1, "\t", 40),
        "rev": cells(args.data / "sentiment" / "reviews_zh.csv.gz", 0, ",", 1),
    }
    print(f"{machine()}; " + ", ".join(f"{name}: {sum(len(t.encode()) for t in texts) / 1e6:.1f} MB in {len(texts):,} texts"
                                       for name, texts in sets.items()))  # fmt: skip
    rows: list[dict[str, Any]] = []
    print("| filter | " + " | ".join(sets) + " |\n" + "| --- " * (1 + len(sets)) + "|")
    for told, (name, options) in ASKED.items():
        found = []
        for which, texts in sets.items():
            value = statistics.median(speed(name, options, texts) for _ in range(args.runs or (1 if args.quick else 3)))
            found.append(value)
            rows.append({"name": f"{told}, {which}", "ours": "hermitcrab", "peer": None, "value": value, "peer_value": None,
                         "unit": "MB a CPU-second", "ratio": None, "aim": None, "met": None})  # fmt: skip
            write(args.json, rows)
        print(f"| {told} | " + " | ".join(f"{value:.3g}" for value in found) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
