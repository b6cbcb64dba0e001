"""datasets + datasketch, a contender of data_pipeline.py: the same steps as Python functions under `map` and `filter`."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars, load_dataset
from datasketch import MinHash, MinHashLSH
from tokenizers import Tokenizer

WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\s\u3400-\u9fff\uf900-\ufaff]+")
SCHEME = MinHash(num_perm=128).scheme
LIMITS = (0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10)


def good(text: str) -> bool:
    """Gopher's length and repetition rules."""
    words = WORD.findall(text)
    if not 50 <= len(words) <= 100_000:
        return False
    total = sum(map(len, words))
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n < 5:
            gram, count = Counter(grams).most_common(1)[0] if grams else ((), 1)
            if count > 1 and count * sum(map(len, gram)) / total > LIMITS[n - 2]:
                return False
            continue
        seen, again, at = set(), 0, 0
        while at < len(grams):
            if grams[at] in seen:
                again += sum(map(len, grams[at]))
                at += n
            else:
                seen.add(grams[at])
                at += 1
        if again / total > LIMITS[n - 2]:
            return False
    return True


def signature(text: str) -> np.ndarray:
    words = WORD.findall(text)
    sketch = MinHash(num_perm=128)
    sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
    return sketch.hashvalues


def main() -> None:
    disable_progress_bars()
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    rows = load_dataset("parquet", data_files=job["corpus"], split="train", cache_dir=str(out / "cache"))
    rows = rows.map(lambda row: {"text": unicodedata.normalize("NFKC", row["text"]).strip()})
    rows = rows.filter(lambda row: good(row["text"]))
    seen = set()

    def new(row: dict) -> bool:
        key = hash(row["text"])
        return not (key in seen or seen.add(key))

    rows = rows.filter(new).sort("id")
    rows = rows.map(lambda row: {"sketch": signature(row["text"])})
    lsh = MinHashLSH(num_perm=128, params=(16, 8))
    kept = []
    for place, sketch in enumerate(rows.with_format("numpy")["sketch"]):
        hashed = MinHash(num_perm=128, hashvalues=sketch, scheme=SCHEME)
        if not lsh.query(hashed):
            lsh.insert(place, hashed)
            kept.append(place)
    rows = rows.select(kept).remove_columns("sketch")
    (out / "kept.txt").write_text("\n".join(rows["id"]))
    began = time.process_time()
    coder, tokens = Tokenizer.from_file(job["tokenizer"] + "/tokenizer.json"), 0
    with open(out / "train.bin", "wb") as file:
        for batch in rows.iter(64):
            for one in coder.encode_batch(batch["text"], add_special_tokens=False):
                file.write(np.array([*one.ids, 0], np.uint16).data)
                tokens += len(one.ids) + 1
    times = {"encode": time.process_time() - began}
    print("\n" + json.dumps({"kept": len(rows), "tokens": tokens, "times": times}))


if __name__ == "__main__":
    main()
