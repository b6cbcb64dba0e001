"""The data stages on real documentation: CPU-seconds for the same steps, beside three peers and a script by hand; recall and precision.

    python benchmarks/data_pipeline.py --corpus .crab/corpus --json data.json             (40 MB; --size 265MB, --size 2GB)
    python benchmarks/data_pipeline.py --quick                                            (4 MB, the script by hand alone)

Steps, the same for all: Unicode (NFKC), the length and repetition rules of Gopher, exact duplicates, near duplicates (MinHash of 128
permutations in 16 bands of 8, 5-grams of words, verified by exact Jaccard similarity at 0.8 by us and by the script by hand), and a
byte-level BPE of 32,768 tokens that all of them are given. Corpus and truth: `_corpus.py`. Ours is `collect` and `prepare` as `crab run`
does them, with the ledger, the splits and every file that they leave; the script by hand (`_data_hand.py`) does the steps and no more.

- CPU-seconds are those of the process and of all its children, imports included, as the operating system counts them.
  Peak memory is the largest process.
- `encode` is told apart: what of a peer's time is its tokenizer (they all call tokenizers, we and the script by hand fastokens).
- Recall: of planted near copies whose 5-grams are as similar as 0.8 to those of their original, computed here in plain Python, how many
  do not stand beside it. Precision: of rows that ours dropped as near duplicates, how many are that similar to the row kept.

Peers, each in an environment of its own that is made when asked for: datatrove 0.10.1 (spaCy's words, jieba's for Chinese, run once a
language), py-data-juicer 1.6.1 (its own filters of the same kinds, document_minhash_deduplicator on its words, then a BPE), datasets 5.2.0
with datasketch 2.0.0 (Python functions under `map` and `filter`). None of them verifies a near duplicate.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _corpus
from _data_peers import DATA_JUICER, DATASETS, DATATROVE, HAND
from _measure import HERE, QUIET, arguments, machine, row, table, versions, write

OURS, BY_HAND = "hermitcrab", "script by hand"
PEERS = {
    BY_HAND: (HAND, "_data_hand.py", "<= 1.4"),
    "datasets + datasketch": (DATASETS, "_data_peer_datasets.py", ">= 5"),
    "data-juicer": (DATA_JUICER, "_data_peer_juicer.py", ">= 15"),
    "datatrove": (DATATROVE, "_data_peer_datatrove.py", ">= 20"),
}
REPEATED = (OURS, BY_HAND)  # the slow ones run once
THRESHOLD, VOCABULARY = 0.8, 32_768
CLEAN: list[Any] = [
    {"unicode": {"form": "NFKC", "mojibake": False}},
    {
        "quality": {
            "rules": ["length", "repetition"],
            "repetition": {
                "duplicate_lines": 1.0,
                "duplicate_paragraphs": 1.0,
                "duplicate_line_characters": 1.0,
                "duplicate_paragraph_characters": 1.0,
            },
        }
    },
    "exact-dedup",
    {"near-dedup": {"threshold": THRESHOLD}},
]  # rules of lines are off: the script by hand and two peers have none
WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")


def run(name: str, python: str, script: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run in a fresh process tree: its own last line, with CPU-seconds, wall time and peak memory from outside."""
    slug = re.sub(r"\W+", "-", name)
    out = folder / slug
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (folder / f"{slug}.json").write_text(json.dumps({**job, "out": str(out)}))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or python == sys.executable}
    environment |= {
        **QUIET,
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "1",
        "DO_NOT_TRACK": "true",
    }
    began = time.time()
    with open(folder / f"{slug}.log", "w") as log, open(folder / f"{slug}.out", "w+") as said:
        child = subprocess.Popen(
            [python, str(HERE / script), str(folder / f"{slug}.json")], stdout=said, stderr=log, env=environment
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = [line for line in said if line.startswith("{")]
    if child.returncode or not lines:
        raise RuntimeError(f"{name} ended with status {child.returncode}; see {folder / f'{slug}.log'}")
    told = json.loads(lines[-1])
    told |= {
        "cpu": used.ru_utime + used.ru_stime,
        "wall": time.time() - began,
        "memory": used.ru_maxrss / 1024,
        "out": str(out),
    }
    print(f"{name}: {told['cpu']:.1f} CPU-s, {told['wall']:.0f} s, {told['memory']:,.0f} MiB, kept {told['kept']:,}; {told['times']}",
          file=sys.stderr, flush=True)  # fmt: skip
    return told


def shingles(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(unicodedata.normalize("NFKC", text))
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def similarity(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / max(1, len(a | b))


def texts(corpus: Path, wanted: set[str] | None = None) -> Iterator[tuple[int, str, str]]:
    """Position, id and text of documents."""
    import pyarrow.parquet as pq

    at = 0
    for batch in pq.ParquetFile(corpus).iter_batches(1024, columns=["id", "text"]):
        for identity, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
            if wanted is None or identity in wanted:
                yield at, identity, text
            at += 1


def judged(corpus: Path, truth: dict[str, Any], payload: Path) -> dict[str, Any]:
    """Recall by language and precision of one run of ours, from the files that it left."""
    import pyarrow.parquet as pq

    from hermitcrab.data.tables import row_id
    from hermitcrab.digest import digest_file

    digest = digest_file(corpus)
    named = {row_id(digest, at): identity for at, identity, _ in texts(corpus)}
    kept = {named[one] for name in ("train", "validation", "test")
            for one in pq.read_table(payload / f"{name}.parquet", columns=["row_id"]).column("row_id").to_pylist()}  # fmt: skip
    clusters = pq.read_table(payload / "clusters.parquet").to_pylist()
    near = [(named[c["row_id"]], named[c["kept"]]) for c in clusters if c["filter"] == "near-dedup"]
    copies = truth["copies"]
    wanted = {one for pair in near for one in pair} | {one for k, c in copies.items() for one in (k, c["of"])}
    text = {identity: words for _, identity, words in texts(corpus, wanted)}
    found: dict[str, Any] = {}
    for lang in ("en", "zh"):
        pairs = [(k, c["of"]) for k, c in copies.items() if c["lang"] == lang and c["kind"] == "near"]
        pairs = [pair for pair in pairs if similarity(text[pair[0]], text[pair[1]]) >= THRESHOLD]
        missed = sum(one in kept and other in kept for one, other in pairs)
        found[f"recall {lang}"] = 1 - missed / max(1, len(pairs))
        found[f"pairs {lang}"] = len(pairs)
    equal = [(k, c["of"]) for k, c in copies.items() if c["kind"] != "near"]
    found["equal copies left"] = sum(one in kept and other in kept for one, other in equal)
    found["equal copies"] = len(equal)
    right = [similarity(text[one], text[other]) >= THRESHOLD for one, other in near]
    found["precision"] = sum(right) / max(1, len(right))
    found["near duplicates dropped"] = len(near)
    found["junk left"] = sum(one in kept for one in truth["junk"])
    found["junk"] = len(truth["junk"])
    return found


def tokenizer(folder: Path) -> Path:
    """A byte-level BPE that everyone is given, learnt once from the 40 MB corpus."""
    home = folder / f"bpe-{VOCABULARY}"
    if not (home / "tokenizer_config.json").exists():
        import pyarrow.parquet as pq

        from hermitcrab.data.tokens import END, learn

        corpus = pq.read_table(_corpus.make(folder, "40MB")[0])
        rows = folder / "rows.parquet"
        pq.write_table(corpus.rename_columns(["row_id", "text", "lang"]), rows)
        home.mkdir(exist_ok=True)
        learn(rows, VOCABULARY, 16_000_000).save(str(home / "tokenizer.json"))
        rows.unlink()
        told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
        (home / "tokenizer_config.json").write_text(json.dumps(told))
    return home


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--corpus", type=Path, default=Path(".crab/corpus"), help="where the corpus is kept, or made")
    parser.add_argument("--size", help="40MB (default), 265MB, 2GB, or bytes")
    parser.add_argument(
        "--ray", action="store_true", help="one more run of ours on Ray's workers, its digests beside the native ones"
    )
    args = parser.parse_args()
    size = args.size or ("4000000" if args.quick else "40MB")
    args.corpus.mkdir(parents=True, exist_ok=True)
    corpus, truth_path = (path.absolute() for path in _corpus.make(args.corpus, size))
    work = (args.corpus / f"work-{size}").absolute()
    home = tokenizer(args.corpus).absolute()
    names = args.only or ([BY_HAND] if args.quick or size != "40MB" else list(PEERS))
    job = {"corpus": str(corpus), "tokenizer": str(home), "threshold": THRESHOLD, "quality": True, "clean": CLEAN}
    contenders = {OURS: (sys.executable, "_data_ours.py")}
    print(machine())
    for name in names:
        python = PEERS[name][0].python(args.peers)
        contenders[name] = (python, PEERS[name][1])
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions(python, PEERS[name][0].shown).items())}")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    rows: list[dict[str, Any]] = []
    truth = json.loads(truth_path.read_text())

    def median(name: str, key: str) -> float:
        return statistics.median(one[key] for one in found[name])

    def tell() -> None:
        mine, rows[:] = median(OURS, "cpu"), []
        for name in names:
            if found[name]:
                aim, lower = PEERS[name][2], PEERS[name][2].startswith(">=")
                rows.append(row(f"data {size}: the whole", OURS, name, mine, median(name, "cpu"), "CPU-s", aim, lower))
                theirs = statistics.median(one["times"]["encode"] for one in found[name])
                ours = statistics.median(one["facts"]["encode_cpu"] for one in found[OURS])
                rows.append(row(f"data {size}: of it, encoding", OURS, name, ours, theirs, "CPU-s", None, lower))
                rows.append(row(f"data {size}: without encoding", OURS, name, mine - ours, median(name, "cpu") - theirs, "CPU-s",
                                None, lower))  # fmt: skip
                rows.append(row(f"data {size}: largest process", OURS, name, median(OURS, "memory"), median(name, "memory"), "MiB",
                                None, lower))  # fmt: skip
        prepare = statistics.median(one["times"]["prepare"] for one in found[OURS])
        rows.append(row(f"data {size}: prepare alone, of collect and prepare", OURS, OURS, prepare, mine, "CPU-s"))
        rows.append(row(f"data {size}: peak memory", OURS, "2 GiB", median(OURS, "memory"), 2048, "MiB", "<= 1"))
        digests = {json.dumps(one["digests"], sort_keys=True) for one in found[OURS]}
        rows.append(
            row(f"data {size}: different results of {len(found[OURS])} runs", OURS, "one", len(digests), 1, "", "<= 1")
        )
        write(args.json, rows)

    for number in range(args.runs or (1 if args.quick else 3)):
        order = list(contenders)
        for name in order[number % 2 :] + order[: number % 2]:
            if number and name not in REPEATED:
                continue
            found[name].append(run(name, *contenders[name], job, work))
            if found[OURS]:
                tell()
    told = judged(corpus, truth, Path(found[OURS][-1]["payload"]))
    for lang in ("en", "zh"):
        claim = f"data {size}: near-duplicate recall, {told[f'pairs {lang}']:,} pairs {lang}"
        rows.append(row(claim, OURS, "truth", told[f"recall {lang}"], 1.0, "", ">= 0.99"))
    rows.append(row(f"data {size}: near-duplicate precision, {told['near duplicates dropped']:,} dropped", OURS, "truth",
                    told["precision"], 1.0, "", ">= 1"))  # fmt: skip
    write(args.json, rows)
    if args.ray:
        on_ray = run(f"{OURS}, Ray", *contenders[OURS], {**job, "cluster": "ray://local"}, work)
        native = found[OURS][-1]["digests"]
        same = sum(native.get(name) == digest for name, digest in on_ray["digests"].items())
        rows.append(
            row(f"data {size}: files with one digest, Ray and native", "Ray", "native", same, len(native), "", ">= 1")
        )
        write(args.json, rows)
    print(f"ours: {found[OURS][-1]['kept']:,} documents, {found[OURS][-1]['tokens']:,} tokens; {told}")
    print(table(rows))


if __name__ == "__main__":
    main()
