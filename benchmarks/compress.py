"""What smaller forms of a trained language model lose, and whether writing large files needs memory. Each claim a row.

    python benchmarks/compress.py MODEL --store STORE --json compress.json      # MODEL: a run of that store, as the demo's
    … --rows 320 --openvino --work FOLDER      # a stopped call goes on from there; OpenVINO's forms are in the table too

1. Q8_0: mean KL at most 5e-4 nats and top-1 agreement at least .99, on the task's probes in float32, as it is, calibrated, and with
   the half layers that hurt most in F16 until calibration rows cost at most 2e-4.
2. A calibrated four-bit type beats rounding to the nearest at the same bits: mean KL on probes, and the paired difference of the
   nats of each reference answer, with its interval (negative: calibrated loses less).
3. Writing a GGUF file of 1 GB streams: peak memory of a process that writes it, over that of one that writes a hundredth.

Then the table of all forms, as docs/compressing.md has it. Rows of image models and encoders are those of `_compress_vision.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _measure as m

KL, TOP1 = 5e-4, 0.99
EIGHT, FOUR = ("Q8_0", "Q8_0-calibrated"), ("Q4_0", "Q4_0-calibrated")
BUDGET = 2e-4  # of calibration rows, which are nearer to what was calibrated on than the probes
LARGE, SMALL = 1 << 30, 10 << 20  # bytes of the files that are written


def stream(size: int) -> None:
    """The child of the third claim: writes a file of that size and tells its own peak memory."""
    import numpy as np

    from hermitcrab.compress.speed import peak
    from hermitcrab.models.formats import gguf_writer

    rows, columns = 2048, 4096  # 32 MiB of float32 a tensor
    count = max(1, size // (rows * columns * 2))
    tensors = [gguf_writer.plan_tensor(f"blk.{i}.ffn_up.weight", (rows, columns), "F16", False) for i in range(count)]
    values = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.gguf"
        gguf_writer.write(file, "llama", {"general.name": "large"}, tensors, lambda _: values)
        told = {"bytes": file.stat().st_size, "memory": peak()}
    print(json.dumps(told))


def streaming() -> dict[str, Any]:
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--stream", str(size)], check=True, capture_output=True, text=True
            ).stdout
        )
        for size in (SMALL, LARGE)
    ]
    small, large = (one["memory"] / 2**20 for one in found)
    name = f"writing {found[1]['bytes'] / 1e9:.2f} GB of GGUF, peak memory"
    return {"name": name, "ours": "that file",
            "peer": f"a file of {found[0]['bytes'] / 1e6:.0f} MB", "value": large, "peer_value": small, "unit": "MiB",
            "ratio": large / small,
            "aim": "at most 64 MiB more", "met": large - small < 64}  # fmt: skip


def paired_nats(a: Any, b: Any) -> dict[str, float]:
    """Mean difference of the nats of each reference answer, a minus b, and its 95 % interval (paired bootstrap)."""
    import numpy as np

    one, two = ({row["row_id"]: row["nll"] for row in t.select(["row_id", "nll"]).to_pylist()} for t in (a, b))
    change = np.array([one[row] - two[row] for row in sorted(one)])
    draws = np.random.default_rng(0).integers(0, len(change), (10_000, len(change)))
    low, high = np.quantile(change[draws].mean(1), [0.025, 0.975])
    return {"difference": float(change.mean()), "low": float(low), "high": float(high), "rows": len(change),
            "calibrated": float(np.mean([one[row] for row in one])), "nearest": float(np.mean([two[row] for row in two]))}  # fmt: skip


def measured(
    model: str, store_path: str, rows: int, forms: dict[str, list[str]], max_kl: float | None, place: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries and answers by form, of a run's model on its own test rows; `place`: what a stopped call goes on from."""
    from hermitcrab import compressing
    from hermitcrab.comparing import How, read_on
    from hermitcrab.recipe import Compress, Target
    from hermitcrab.serve.opening import open_model
    from hermitcrab.store import Store

    store = Store(store_path)
    run = compressing.run_of(model, store)
    how = How(rows=rows, unverified=True)
    opened = open_model(model, store, None, True)
    table, about = read_on(f"run:{run}/prepare", store, how)
    target = None if max_kl is None else Target(max_loss=1.0, max_kl=max_kl)
    part = Compress.model_validate({**forms, "rows": rows, "target": target})
    asked = compressing.Asked(how=how)
    work = compressing._measured(opened, part, table, about, run, store, asked, place / "out")
    import pyarrow.parquet as pq

    entries, tables = {"uncompressed": {"speed": work.facts["uncompressed"]}}, {}
    for entry in work.entries:
        name = f"{entry['format']} {entry['type']}"
        entries[name] = {**entry, "speed": work.facts[name]}
        tables[name] = pq.read_table(work.payload / "predictions" / f"{entry['format']}-{entry['type']}.parquet")
    return entries, tables


def parity_table(entries: dict[str, Any]) -> str:
    """A line a form, as Markdown."""
    lines = ["| form | MB | bits a weight | metric minus uncompressed (95 %) | answers changed | perplexity | mean KL | same token "
             "| largest logit difference | tokens / CPU-s | peak MB |", "|" + " --- |" * 11]  # fmt: skip
    for name, entry in entries.items():
        speed = f"{entry['speed']['per_cpu_second']:.0f} | {entry['speed']['memory'] / 1e6:.0f}"
        if "parity" not in entry:
            lines.append(f"| {name} | | | | | | | | | {speed} |")
            continue
        p = entry["parity"]
        lines.append(f"| {name} | {entry['size'] / 1e6:.1f} | {entry['bits_per_weight']:.2f} | {p['difference']:+.3f} ({p['low']:+.3f} to "
                     f"{p['high']:+.3f}) | {p['flips']} (+{p['gained']} / −{p['lost']}) | {p['perplexity']['difference']:+.3f} | "
                     f"{p['mean_kl']:.2g} | {p['top1_agreement']:.1%} | {p['max_abs_logit_difference']:.2g} | {speed} |")  # fmt: skip
    return "\n".join(lines)


def draw(json_file: Path | None, entries: list[dict[str, Any]]) -> None:
    """The picture of size, loss and speed beside the JSON."""
    from hermitcrab.report.picture import picture

    if json_file is not None and (drawn := picture(entries)) is not None:
        json_file.with_suffix(".svg").write_text(drawn)


def near(name: str, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """How near a form is to the model, as rows; what it weighs and what the task lost beside them."""
    parity = entry["parity"]
    more = {
        "bits_per_weight": entry["bits_per_weight"],
        "size": entry["size"],
        "difference": [parity[k] for k in ("difference", "low", "high")],
    }
    return [
        {"name": f"{name}: {what}", "ours": name, "peer": None, "value": value, "peer_value": None, "unit": unit, "ratio": None,
         "aim": aim, "met": met, **more}
        for what, value, unit, aim, met in (
            ("mean KL on probes", parity["mean_kl"], "nats", f"<= {KL:g}", parity["mean_kl"] <= KL),
            ("the same likeliest token", parity["top1_agreement"], "share", f">= {TOP1:g}", parity["top1_agreement"] >= TOP1),
        )
    ]  # fmt: skip


def main() -> None:
    parser = m.arguments(__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--store", default=".crab/store")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--openvino", action="store_true", help="int8 and int4 of OpenVINO too")
    parser.add_argument("--work", type=Path, default=Path(".crab/compress"), help="what a stopped call goes on from")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        stream(args.stream)
        return
    rows = [streaming()]
    m.write(args.json, rows)
    if args.model:
        count, forms = 40 if args.quick else args.rows, {"gguf": [*([] if args.quick else ["F16"]), *EIGHT, *FOUR]}
        if args.openvino:
            forms["openvino"] = ["int8", "int4"]
        entries, tables = measured(args.model, args.store, count, forms, None, args.work)
        rows += [row for kind in EIGHT for row in near(kind, entries[f"gguf {kind}"])]
        one, two = (entries[f"gguf {kind}"]["parity"] for kind in reversed(FOUR))
        rows.append(
            m.row(
                "four bits, mean KL on probes",
                "Q4_0-calibrated",
                "Q4_0",
                one["mean_kl"],
                two["mean_kl"],
                "nats",
                "<= 1",
            )
        )
        nats = paired_nats(tables["gguf Q4_0-calibrated"], tables["gguf Q4_0"])
        rows.append({"name": f"four bits, nats a reference answer, {nats['rows']} test rows", "ours": "Q4_0-calibrated", "peer": "Q4_0",
                     "value": nats["calibrated"], "peer_value": nats["nearest"], "unit": "nats",
                     "ratio": nats["calibrated"] / nats["nearest"],
                     "aim": "interval of the difference below 0", "met": nats["high"] < 0, "difference": nats})  # fmt: skip
        m.write(args.json, rows)
        print(parity_table(entries), "", sep="\n", flush=True)
        draw(args.json, [entry for entry in entries.values() if "parity" in entry])
        if not args.quick:
            mixed, _ = measured(args.model, args.store, count, {"gguf": ["Q8_0-calibrated"]}, BUDGET, args.work)
            rows += near("Q8_0-calibrated, mixed", mixed["gguf Q8_0-calibrated"])
            m.write(args.json, rows)
            print(parity_table(mixed), "", sep="\n", flush=True)
    print(m.machine())
    for row in rows:
        print(f"{'met' if row['met'] else 'NOT met':7} {row['name']}: {row['ours']} {row['value']:.4g}"
              + (f", {row['peer']} {row['peer_value']:.4g}" if row["peer"] else "") + f" {row['unit']}, aim {row['aim']}")  # fmt: skip


if __name__ == "__main__":
    main()
