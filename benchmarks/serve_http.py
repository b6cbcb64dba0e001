"""What does HTTP cost? The same engine called directly, in its own process, and through `crab serve` by a real client, in turns.

    python benchmarks/serve_http.py [MODEL] [--engine NAME] [--runs 5] [--tokens 128] [--json http.json]

Told for one stream and for eight: tokens a CPU-second of the direct engine and of engine + face; tokens a second of wall time (which
tells who else was on the machine, too); what the first token takes longer; CPU-milliseconds of the face for a request of one token;
seconds from the start of the process to the first moment that it can be asked. The client is a process of its own, and not counted.
Aims: at least .95 of the direct engine at eight streams and .9 at one; 5 ms for the first token; 2 CPU-ms a request; 2 s to start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _serving import ask, prompt, serve, write_gguf, write_model

REQUESTS = 200  # of one token, for the overhead


def direct(model: str, engine: str | None, batch: int, tokens: int, slots: int) -> dict[str, float]:
    """The engine of this model in this process, with nothing around it: called in a process of its own by `main`."""
    from hermitcrab.serve import engines
    from hermitcrab.serve.choosing import choose
    from hermitcrab.serve.engine import Options
    from hermitcrab.serve.opening import open_model
    from hermitcrab.store import Store

    opened = open_model(model, Store(".crab/store"), None, True)
    spec, _ = choose(opened, engine, None, slots)
    made = engines.load(spec)
    encoder: Any = opened.encoder
    prompts = [encoder.encode(prompt(i)) for i in range(batch)]

    def round(count: int, limit: int) -> tuple[float, float, float, int]:
        began, cpu, first, done = time.perf_counter(), time.process_time(), 0.0, 0
        for number in range(count):
            made.add(number, prompts[number], Options(limit))
        left, total = count, 0
        while left:
            for _, piece in made.step():
                if isinstance(piece, str):
                    raise SystemExit(piece)
                first = first or time.perf_counter() - began
                total += len(piece.tokens)
                left -= piece.finish is not None
        done = total
        return time.perf_counter() - began, time.process_time() - cpu, first, done

    round(batch, 8)  # warm
    wall, cpu, _, total = round(batch, tokens)
    first = statistics.median(round(1, 2)[2] for _ in range(9))
    made.close()
    return {
        "tokens_per_second": total / wall,
        "tokens_per_cpu_second": total / cpu,
        "first_token": first,
        "tokens": total,
    }


def direct_in_a_process(args: argparse.Namespace, model: str, batch: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        model,
        "--direct",
        str(batch),
        "--tokens",
        str(args.tokens),
        "--slots",
        str(args.slots),
    ]
    command += ["--engine", args.engine] if args.engine else []
    # As the engine's process is started by the server: threads that wait must not spin.
    known = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=known)
    if ran.returncode:
        raise SystemExit(ran.stderr[-1000:])
    return json.loads(ran.stdout.splitlines()[-1])


async def through(args: argparse.Namespace, model: str, folder: Path) -> dict[str, Any]:
    server = serve(
        model,
        *(["--engine", args.engine] if args.engine else []),
        "--slots",
        str(args.slots),
        log=folder / "server.log",
    )
    try:
        told: dict[str, Any] = {"engine": server.engine, "start": server.seconds}
        asked = {"model": server.model, "stream": True, "max_tokens": args.tokens}
        for batch in (1, 8):
            await asyncio.gather(*(ask(server, {**asked, "prompt": prompt(i), "max_tokens": 8}) for i in range(batch)))
            face, engine = server.cpu()
            began = time.perf_counter()
            got = await asyncio.gather(
                *(
                    ask(server, {**asked, "prompt": prompt(i), "stream_options": {"include_usage": True}})
                    for i in range(batch)
                )
            )
            wall = time.perf_counter() - began
            face, engine = (after - before for after, before in zip(server.cpu(), (face, engine), strict=True))
            total = sum(one.usage["completion_tokens"] for one in got)
            told[str(batch)] = {"tokens_per_second": total / wall, "tokens_per_cpu_second": total / (face + engine),
                                "face_us_a_token": 1e6 * face / total, "tokens": total}  # fmt: skip
        firsts = [(await ask(server, {**asked, "prompt": prompt(0), "max_tokens": 2})).first for _ in range(9)]
        told["first_token"] = statistics.median(firsts)
        face = server.cpu()[0]
        for i in range(REQUESTS):
            await ask(server, {**asked, "prompt": prompt(i % 8), "max_tokens": 1, "stream": False})
        told["face_ms_a_request"] = 1e3 * (server.cpu()[0] - face) / REQUESTS
    finally:
        server.stop()
    return told


def rows(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def row(name: str, ours: float, peer: float | None, unit: str, ratio: float, aim: str, met: bool) -> dict[str, Any]:
        return {"name": name, "ours": ours, "peer": "engine directly", "value": ours, "peer_value": peer, "unit": unit,
                "ratio": ratio, "aim": aim, "met": met}  # fmt: skip

    found = []
    for batch, aim in (("8", 0.95), ("1", 0.9)):
        for what in ("tokens_per_cpu_second", "tokens_per_second"):
            pairs = [(one["http"][batch][what], one["direct"][batch][what]) for one in rounds]
            ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            found.append(row(f"{what}, {batch} streams", ours, peer, what, ratio, f">= {aim}", ratio >= aim))
    https = [one["http"] for one in rounds]
    added = 1e3 * statistics.median(one["http"]["first_token"] - one["direct"]["1"]["first_token"] for one in rounds)
    found.append(row("added to the first token", added, None, "ms", added / 5, "<= 5 ms", added <= 5))
    for name, key, most, unit in (
        ("face, a request of one token", "face_ms_a_request", 2.0, "CPU-ms"),
        ("start", "start", 2.0, "s"),
    ):
        value = statistics.median(one[key] for one in https)
        found.append(row(name, value, None, unit, value / most, f"<= {most:g} {unit}", value <= most))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--engine")
    parser.add_argument("--type", default="Q4_0", help="of the GGUF file that is made of the random weights")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the random model is kept")
    parser.add_argument("--direct", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one round of 32 tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.runs, args.tokens = 1, 32
    if args.direct:
        print(json.dumps(direct(args.model, args.engine, args.direct, args.tokens, args.slots)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        plain = args.model or str(write_model(folder / "model"))
        model = plain if args.model or args.engine == "transformers" else str(write_gguf(Path(plain), args.type))
        rounds = []
        for number in range(args.runs):
            sides = {"direct": {str(batch): direct_in_a_process(args, model, batch) for batch in (1, 8)}}
            rounds.append({**sides, "http": asyncio.run(through(args, model, Path(temporary)))})
            print(f"round {number + 1} of {args.runs}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
            found = rows(rounds)
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"engine: {rounds[0]['http']['engine']}, {len(rounds)} rounds, medians")
    for row in found:
        peer = (
            "" if row["peer_value"] is None else f"  engine directly {row['peer_value']:9.2f}  ratio {row['ratio']:.3f}"
        )
        print(
            f"{row['name']:44} {row['value']:9.2f} {row['unit']}{peer}  aim {row['aim']}  {'met' if row['met'] else 'NOT MET'}"
        )


if __name__ == "__main__":
    main()
