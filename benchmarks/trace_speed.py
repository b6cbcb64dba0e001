"""How fast is Tier 1? Against reading the two files once from the page cache, with as many threads, in the same run.

    python benchmarks/trace_speed.py FOLDER [--peer PYTHON] [--runs 5] [--gb 1] [--quick] [--json FILE]

Makes a pair of bfloat16 models of a gigabyte each in FOLDER (kept), warms the page cache, then alternates plain reads and
Tier 1 (every exact test on every weight), each in a process of its own, and prints medians. `--peer`: a Python that has
modeldna 0.1.0, which is run on the same pair. Aim: Tier 1 within 1.5x of the read, under 1 GiB of memory; --sample under 2 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _measure as m
import numpy as np

WIDTH, NEURONS, HEADS, KV, VOCABULARY = 2048, 5504, 16, 4, 8000


def make(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """A base and a child that moved by a tenth of its spread. Written tensor by tensor."""
    d, h, kv = WIDTH, NEURONS, WIDTH // HEADS * KV
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, d),
        "lm_head.weight": (VOCABULARY, d),
        "model.norm.weight": (d,),
    }
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * d) / (2 * d * d + 2 * d * kv + 3 * d * h)))
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {
            at + "self_attn.q_proj.weight": (d, d),
            at + "self_attn.k_proj.weight": (kv, d),
            at + "self_attn.v_proj.weight": (kv, d),
            at + "self_attn.o_proj.weight": (d, d),
            at + "mlp.gate_proj.weight": (h, d),
            at + "mlp.up_proj.weight": (h, d),
            at + "mlp.down_proj.weight": (d, h),
            at + "input_layernorm.weight": (d,),
            at + "post_attention_layernorm.weight": (d,),
        }
    header, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * 2
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    places = folder / "speed-base", folder / "speed-child"
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": d,
        "intermediate_size": h,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(config))
    if all(
        (p / "model.safetensors").exists() and (p / "model.safetensors").stat().st_size == 8 + len(text) + at
        for p in places
    ):
        return places
    base, child = (open(p / "model.safetensors", "wb") for p in places)  # noqa: SIM115 - both stay open side by side
    for file in (base, child):
        file.write(len(text).to_bytes(8, "little") + text)
    r = np.random.default_rng(0)
    for shape in shapes.values():
        x = r.standard_normal(shape, np.float32) * 0.02 + (1 if len(shape) == 1 else 0)
        base.write((x.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        x = (x + 0.002 * r.standard_normal(shape, np.float32)).astype(np.float32)
        child.write((x.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    base.close()
    child.close()
    return places


def read_once(paths: list[Path]) -> None:
    """Both files from front to back, in the chunks and with the threads of Tier 1."""
    from hermitcrab.trace.compare import CHUNK, threads

    jobs = [(p, at) for p in paths for at in range(0, p.stat().st_size, 64 * CHUNK)]

    def one(job: tuple[Path, int]) -> None:
        buffer = np.empty(CHUNK, np.uint8)
        descriptor = os.open(job[0], os.O_RDONLY)
        for at in range(job[1], job[1] + 64 * CHUNK, CHUNK):
            os.preadv(descriptor, [buffer], at)
        os.close(descriptor)

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(one, jobs))


def work(what: str, suspect: Path, base: Path) -> dict[str, float]:
    """In a process of its own: seconds, CPU-seconds and peak memory of the work alone (compiled and imported before)."""
    from hermitcrab.trace import exact
    from hermitcrab.trace.compare import threads
    from hermitcrab.trace.model import open_model

    files = [p / "model.safetensors" for p in (suspect, base)]

    def tier_one() -> float:
        with open_model(suspect) as a, open_model(base) as b:
            return exact.examine(a, b, {i: i for i in range(a.structure.layers)}).log10_p()

    with open_model(suspect) as a, open_model(base) as b:
        exact.examine(a, b, {0: 0}, rows=4)  # compiles
    began, cpu = time.perf_counter(), time.process_time()
    p = tier_one() if what == "tier1" else read_once(files) or 0.0
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "threads": threads(), "log10_p": p,
            "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="three rounds of a quarter of a gigabyte each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--work", choices=["read", "tier1"])
    asked = parser.parse_args()
    if asked.quick:
        asked.gb, asked.runs = 0.25, 3
    base, child = make(asked.folder, asked.gb)
    if asked.work:
        print(json.dumps(work(asked.work, child, base)))
        return
    found: dict[str, list[dict[str, float]]] = {"read": [], "tier1": []}
    for _ in range(asked.runs):
        for what in found:
            out = subprocess.run(
                [sys.executable, __file__, str(asked.folder), "--gb", str(asked.gb), "--work", what],
                capture_output=True,
                text=True,
                check=True,
            )
            found[what].append(json.loads(out.stdout))
    middle = {w: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for w, rows in found.items()}
    size = sum((p / "model.safetensors").stat().st_size for p in (base, child)) / 1e9
    print(f"pair of {size:.2f} GB, {middle['read']['threads']:.0f} threads, medians of {asked.runs}, alternating")
    for what, row in middle.items():
        print(
            f"{what:6} {row['seconds']:.3f} s, {row['cpu']:.3f} CPU-s, {size / row['seconds']:.1f} GB/s, {row['mib']:.0f} MiB at most"
        )
    for key in ("seconds", "cpu"):
        ratios = [t[key] / r[key] for t, r in zip(found["tier1"], found["read"], strict=True)]
        print(
            f"ratio of {key}: {statistics.median(ratios):.2f} (of single runs {min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"log10 p {middle['tier1']['log10_p']:.0f}")
    rows = [
        m.row(f"Tier 1 on {size:.2f} GB, {unit}", "every exact test", "reading both files once", middle["tier1"][key], middle["read"][key],
              unit, "<= 1.5")
        for key, unit in (("seconds", "seconds"), ("cpu", "CPU-seconds"))
    ]  # fmt: skip
    rows.append({"name": "memory at most", "ours": "every exact test", "peer": None, "value": middle["tier1"]["mib"], "peer_value": None,
                 "unit": "MiB", "ratio": None, "aim": "<= 1024 MiB", "met": middle["tier1"]["mib"] <= 1024})  # fmt: skip
    sample = _whole(
        "crab trace --sample",
        [sys.executable, "-m", "hermitcrab", "trace", str(child), str(base), "--sample", "--quiet"],
    )
    rows.append({"name": "crab trace --sample", "ours": "from start to end", "peer": None, "value": sample, "peer_value": None,
                 "unit": "seconds", "ratio": None, "aim": "<= 2 seconds", "met": sample <= 2})  # fmt: skip
    m.write(asked.json, rows)
    if asked.peer:
        _whole("modeldna compare", [str(asked.peer.parent / "modeldna"), "compare", str(child), str(base), "--json"])
        _whole(
            "modeldna compare --full",
            [str(asked.peer.parent / "modeldna"), "compare", str(child), str(base), "--json", "--full"],
        )


def _whole(name: str, command: list[str]) -> float:
    """Seconds of a command from start to end, the better of two (the first may compile)."""
    best = None
    for _ in range(2):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        best = took if best is None else min(best, took)
    print(f"{name}: {best[0]:.2f} s, {best[1]:.2f} CPU-s")
    return best[0]


if __name__ == "__main__":
    main()
