"""The same steps by hand, for the documents of one Parquet file: NFKC, Gopher's rules, exact and near duplicates, a BPE, token ids.

No ledger, no reasons, no splits, no files of rows, all texts in memory. polars reads and normalizes, numba does what is asked of
words, fastokens encodes. Near duplicates are verified by exact Jaccard similarity. It is the bound that a pipeline is held against.

    python _data_hand.py JOB.json      {"corpus": FILE, "out": FOLDER, "vocabulary": N, "threshold": 0.8, "quality": true}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from numba import njit

EMPTY = np.uint64(0)


@njit(cache=True)
def mix(x):
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    return x


@njit(cache=True)
def split(data, start, end, words, sizes):
    """Hashes and byte sizes of the words of one text (a Han character, or a run of non-space); how many."""
    count, began, h, at = 0, -1, np.uint64(14695981039346656037), start
    while at < end:
        c = data[at]
        step = 1 if c < 0x80 else 2 if c < 0xE0 else 3 if c < 0xF0 else 4
        han = step == 3 and 0xE3 <= c <= 0xE9 and not (c == 0xE3 and data[at + 1] < 0x90)
        if c <= 32 or han:
            if began >= 0:
                words[count], sizes[count] = mix(h) | np.uint64(1), at - began
                count, began, h = count + 1, -1, np.uint64(14695981039346656037)
            if han:
                for k in range(step):
                    h = (h ^ np.uint64(data[at + k])) * np.uint64(1099511628211)
                words[count], sizes[count] = mix(h) | np.uint64(1), step
                count, h = count + 1, np.uint64(14695981039346656037)
        else:
            began = at if began < 0 else began
            for k in range(step):
                h = (h ^ np.uint64(data[at + k])) * np.uint64(1099511628211)
        at += step
    if began >= 0:
        words[count], sizes[count] = mix(h) | np.uint64(1), end - began
        count += 1
    return count


@njit(cache=True)
def gram(words, at, n):
    h = words[at]
    for k in range(1, n):
        h = mix(h * np.uint64(0x9E3779B97F4A7C15) + words[at + k])
    return h | np.uint64(1)


@njit(cache=True)
def good(words, sizes, count, table, counts):
    """Gopher's length and repetition rules (arXiv:2112.11446, table A1)."""
    if count < 50 or count > 100_000:
        return False
    total = sizes[:count].sum()
    size = 16
    while size < 2 * count:
        size *= 2
    limits = (0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    for n in range(2, 11):
        if count < n:
            break
        table[:size], counts[:size] = EMPTY, 0
        again, most, longest, at = 0, 1, 0, 0
        while at <= count - n:
            g = gram(words, at, n)
            slot = g & np.uint64(size - 1)
            while table[slot] != EMPTY and table[slot] != g:
                slot = (slot + np.uint64(1)) & np.uint64(size - 1)
            known = table[slot] == g
            table[slot] = g
            counts[slot] += 1
            if n < 5:
                if counts[slot] > most:
                    most, longest = counts[slot], sizes[at : at + n].sum()
                at += 1
            elif known:
                again += sizes[at : at + n].sum()
                at += n
            else:
                at += 1
        if n < 5 and most > 1 and most * longest / total > limits[n - 2]:
            return False
        if n >= 5 and again / total > limits[n - 2]:
            return False
        if most == 1 and again == 0:
            break
    return True


@njit(cache=True)
def pass_one(data, offsets, check, factors, terms, keep, signatures, shingles, first):
    """Rules, unique 5-grams and MinHash of every text, from one split."""
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    words, sizes = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int64)
    room = 16
    while room < 2 * longest:
        room *= 2
    table, counts, total = np.zeros(room, np.uint64), np.zeros(room, np.int64), 0
    for i in range(len(offsets) - 1):
        first[i] = total
        if not keep[i]:
            continue
        count = split(data, offsets[i], offsets[i + 1], words, sizes)
        if check and not good(words, sizes, count, table, counts):
            keep[i] = False
            continue
        n, size = min(5, count), 16
        while size < 2 * count:
            size *= 2
        table[:size] = EMPTY
        for at in range(count - n + 1 if count else 0):
            g = gram(words, at, n)
            slot = g & np.uint64(size - 1)
            while table[slot] != EMPTY and table[slot] != g:
                slot = (slot + np.uint64(1)) & np.uint64(size - 1)
            if table[slot] == EMPTY:
                table[slot] = g
                shingles[total] = g
                total += 1
                value = np.uint32(g >> np.uint64(32))
                for p in range(len(factors)):
                    signatures[i, p] = min(signatures[i, p], np.uint32(value * factors[p] + terms[p]))
    first[len(offsets) - 1] = total
    return total


@njit(cache=True)
def jaccard(a, b):
    """Of two sorted arrays of different numbers."""
    i, j, both = 0, 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            both, i, j = both + 1, i + 1, j + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return both / max(1, len(a) + len(b) - both)


def near(signatures, shingles, first, keep, threshold, rows=8):
    """Of texts that are as similar as `threshold` to an earlier one that stays: False. 16 bands of 8 rows."""
    heads, pairs = np.flatnonzero(keep), []
    for band in range(signatures.shape[1] // rows):
        part = np.ascontiguousarray(signatures[heads, band * rows : (band + 1) * rows]).view(np.void(4 * rows).dtype)[
            :, 0
        ]
        order = np.argsort(part, kind="stable")
        same = np.flatnonzero(part[order][1:] == part[order][:-1])
        starts = np.flatnonzero(np.r_[True, part[order][1:] != part[order][:-1]])
        head = order[starts[np.searchsorted(starts, same + 1, "right") - 1]]
        pairs += list(zip(heads[order[same + 1]], heads[head], strict=True))
        pairs += list(zip(heads[order[same + 1]], heads[order[same]], strict=True))
    ordered: dict[int, np.ndarray] = {}

    def of(i):
        if i not in ordered:
            ordered[i] = np.sort(shingles[first[i] : first[i + 1]])
        return ordered[i]

    for later, earlier in sorted({(max(p), min(p)) for p in pairs if p[0] != p[1]}):
        if keep[later] and keep[earlier] and jaccard(of(later), of(earlier)) >= threshold:
            keep[later] = False


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out, times, began = Path(job["out"]), {}, time.process_time()

    def mark(name: str) -> None:
        nonlocal began
        times[name], began = time.process_time() - began, time.process_time()

    out.mkdir(parents=True, exist_ok=True)
    frame = pl.read_parquet(job["corpus"]).sort("id")
    frame = frame.with_columns(pl.col("text").str.normalize("NFKC").str.replace_all(r"[^\S\n]+", " ").str.strip_chars())
    mark("read")
    keep = np.zeros(len(frame), bool)
    keep[frame.with_row_index("at").unique("text", keep="first", maintain_order=True)["at"].to_numpy()] = True
    text = frame["text"].to_arrow().cast("large_string")
    offsets = np.frombuffer(text.buffers()[1], np.int64)[: len(text) + 1]
    data = np.frombuffer(text.buffers()[2], np.uint8)
    random = np.random.Generator(np.random.PCG64(1))
    factors, terms = (random.integers(0, 2**32, 128, np.uint32) for _ in range(2))
    signatures, first = np.full((len(text), 128), 2**32 - 1, np.uint32), np.zeros(len(text) + 1, np.int64)
    shingles = np.empty(len(data) // 2 + len(text), np.uint64)
    pass_one(data, offsets, job["quality"], factors | np.uint32(1), terms, keep, signatures, shingles, first)
    mark("words")
    near(signatures, shingles, first, keep, job["threshold"])
    mark("near")
    kept = frame.filter(pl.Series(keep))
    (out / "kept.txt").write_text("\n".join(kept["id"]))
    mark("write")
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(job["tokenizer"] + "/tokenizer.json")
    lengths = []
    with open(out / "train.bin", "wb") as file:
        for at in range(0, len(kept), 512):
            ids, ends = tokenizer.encode_batch_flat(kept["text"][at : at + 512].to_list(), split_special_tokens=True)
            ids, ends = np.frombuffer(ids, np.uint32), np.frombuffer(ends, np.uint64).astype(np.int64)
            file.write(np.insert(ids, ends[1:], 0).astype(np.uint16).data)
            lengths.append(np.diff(ends) + 1)
    np.concatenate(lengths).astype(np.int32).tofile(out / "train.lengths")
    mark("encode")
    print("\n" + json.dumps({"kept": len(kept), "tokens": int(np.concatenate(lengths).sum()), "times": times}))


if __name__ == "__main__":
    main()
