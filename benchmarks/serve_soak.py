"""Does the server hold? A thousand streams at once, then a long soak with memory over time.

    python benchmarks/serve_soak.py [MODEL] [--quick] [--minutes 30] [--streams 1000] [--engine NAME] [--json soak.json]

1. The reference engine (transformers) is served and asked every prompt: these are the right answers.
2. A thousand streams are opened at once. Those past capacity must be refused with 503 and Retry-After; every accepted one must end
   complete. Its text is compared with the engine's own answer to a lone request, and with the reference engine's.
3. For `--minutes` clients ask in every way, right and wrong, and hang up; the memory of face and engine is told every ten seconds.
   It is flat where the last quarter's median is within 5 % (and 20 MiB) of the second's: the first is for warming up.

MODEL: as `crab serve` takes it; without one, a small llama of random float32 weights, as a GGUF file (F32) for any engine but the
reference. `thousand.as_the_reference` counts answers that are the reference's to the letter: engines that compute in other precisions
may differ where two tokens are about as likely. The whole thing ends with status 1 where anything is not as it must be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _serving import Got, Server, ask, prompt, serve, write_gguf, write_model

PROMPTS, TOKENS = 16, 24
EVERY = 10.0  # seconds between two looks at memory


def asked_of(server: Server, number: int, **more: Any) -> dict[str, Any]:
    return {"model": server.model, "prompt": prompt(number % PROMPTS), "max_tokens": TOKENS, "stream": True, **more}


async def lone_answers(server: Server) -> list[str]:
    return [(await ask(server, asked_of(server, i))).text for i in range(PROMPTS)]


async def thousand(server: Server, streams: int, lone: list[str], reference: list[str]) -> dict[str, Any]:
    """All at once, each on a connection of its own."""
    began = time.perf_counter()
    got = await asyncio.gather(*(ask(server, asked_of(server, i)) for i in range(streams)))
    accepted = [(i, one) for i, one in enumerate(got) if one.status == 200]
    refused = [one for one in got if one.status == 503]
    waits = sorted(one.first for _, one in accepted)
    return {
        "streams": streams,
        "accepted": len(accepted),
        "complete": sum(one.whole for _, one in accepted),
        "as_a_lone_one": sum(one.text == lone[i % PROMPTS] for i, one in accepted),
        "as_the_reference": sum(one.text == reference[i % PROMPTS] for i, one in accepted),
        "refused_503": len(refused),
        "refused_with_retry_after": sum(bool(one.retry) for one in refused),
        "anything_else": dict(Counter(f"{one.status} {one.error}" for one in got if one.status not in (200, 503))),
        "first_token_seconds": {"median": statistics.median(waits), "last": waits[-1]} if waits else {},
        "seconds": time.perf_counter() - began,
    }


async def soak(server: Server, seconds: float, lone: list[str], clients: int = 12) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    ends, began = time.monotonic() + seconds, time.monotonic()
    samples: list[tuple[float, float, float]] = []

    async def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < ends:
            number, kind = draw.randrange(PROMPTS), draw.random()
            if kind < 0.45:
                check(await ask(server, asked_of(server, number)), number, "streams")
            elif kind < 0.7:
                check(await ask(server, asked_of(server, number, stream=False)), number, "whole answers")
            elif kind < 0.85:
                await ask(server, asked_of(server, number, max_tokens=200), leave_after=draw.randrange(1, 6))
                counts["hung up"] += 1
            else:
                bad = draw.choice(
                    [{"temprature": 1}, {"prompt": 5}, {"model": "../x"}, {"max_tokens": 10**6}, {"stop": [""]}]
                )
                got = await ask(server, asked_of(server, number) | bad)
                counts["refused"] += got.status in (400, 404)
                if got.status not in (400, 404):
                    wrong.append(f"{bad}: {got.status} {got.error}")

    def check(got: Got, number: int, what: str) -> None:
        if got.status == 503 and got.retry:
            counts["full (503)"] += 1
        elif got.status != 200 or not got.whole:
            wrong.append(f"{what}: {got.status} {got.error}")
        else:
            counts[what] += 1
            counts["as a lone one"] += got.text == lone[number]

    async def watch() -> None:
        while time.monotonic() < ends:
            samples.append((time.monotonic() - began, *server.memory()))
            if len(samples) % 6 == 1:
                print(
                    f"  {samples[-1][0]:6.0f} s  face {samples[-1][1]:7.1f} MiB  engine {samples[-1][2]:8.1f} MiB  {dict(counts)}",
                    file=sys.stderr,
                )
            await asyncio.sleep(min(EVERY, seconds / 12))

    await asyncio.gather(watch(), *(client(i) for i in range(clients)))
    return {
        "seconds": seconds,
        "counts": dict(counts),
        "wrong": wrong[:20],
        "wrong_total": len(wrong),
        "memory": memory(samples),
        "samples": samples,
    }


def memory(samples: list[tuple[float, float, float]]) -> dict[str, Any]:
    """MiB in the second and in the last quarter, and whether that is flat."""
    quarter = len(samples) // 4
    told = {}
    for place, name in ((1, "face"), (2, "engine")):
        early = statistics.median(row[place] for row in samples[quarter : 2 * quarter])
        late = statistics.median(row[place] for row in samples[-quarter:])
        told[name] = {"second_quarter": early, "last_quarter": late, "flat": late - early <= max(20.0, 0.05 * early)}
    return told


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    plain = str(args.model or write_model(folder / "small", layers=4, width=256, vocabulary=4000, dtype="float32"))
    model = plain if args.model or args.engine == "transformers" else str(write_gguf(Path(plain), "F32"))
    engine = ["--engine", args.engine] if args.engine else []
    limits = ["--slots", str(args.slots), "--queue", str(args.queue)]
    reference = serve(plain, "--engine", "transformers", log=folder / "reference.log")
    try:
        right = await lone_answers(reference)
    finally:
        reference.stop()
    server = serve(model, *engine, *limits, log=folder / "server.log")
    try:
        lone = await lone_answers(server)
        print(
            f"{server.engine}: {sum(a == b for a, b in zip(lone, right, strict=True))} of {PROMPTS} lone answers are the reference's",
            file=sys.stderr,
        )
        told = {
            "engine": server.engine,
            "slots": args.slots,
            "queue": args.queue,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }
        told["thousand"] = await thousand(server, args.streams, lone, right)
        print(json.dumps(told["thousand"], indent=1), file=sys.stderr)
        told["soak"] = await soak(server, 60 * (1 if args.quick else args.minutes), lone)
        told["lone_as_reference"] = sum(a == b for a, b in zip(lone, right, strict=True))
        told["survived"] = server.process.poll() is None
    finally:
        server.stop()
    return told


def rows(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What was held, as rows; what is compared with nothing has no peer. The last row carries all that was counted."""
    many, long = told["thousand"], told["soak"]

    def row(name: str, value: float, peer: float | None, unit: str, aim: str, met: bool, **more: Any) -> dict[str, Any]:
        return {"name": name, "ours": told["engine"], "peer": None if peer is None else "as many as there should be", "value": value,
                "peer_value": peer, "unit": unit, "ratio": None if not peer else value / peer, "aim": aim, "met": met, **more}  # fmt: skip

    return [
        row(
            "accepted streams that are complete and right",
            many["complete"],
            many["accepted"],
            "streams",
            "= 1",
            many["complete"] == many["accepted"] > 0,
        ),
        row(
            "refusals that say when to come back",
            many["refused_with_retry_after"],
            many["refused_503"],
            "streams",
            "= 1",
            many["refused_with_retry_after"] == many["refused_503"],
        ),
        row("wrong answers of the soak", long["wrong_total"], None, "answers", "= 0", long["wrong_total"] == 0),
        row(
            "memory is flat",
            sum(part["flat"] for part in long["memory"].values()),
            len(long["memory"]),
            "processes",
            "= 1",
            all(part["flat"] for part in long["memory"].values()),
        ),
        row("the server survived", int(told["survived"]), 1, "servers", "= 1", told["survived"], counted=told),
    ]


def good(told: dict[str, Any]) -> bool:
    many, long = told["thousand"], told["soak"]
    return (
        told["survived"]
        and many["complete"] == many["accepted"] > 0
        and many["refused_with_retry_after"] == many["refused_503"]
        and many["accepted"] + many["refused_503"] == many["streams"]
        and long["wrong_total"] == 0
        and all(part["flat"] for part in long["memory"].values())
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--engine")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--quick", action="store_true", help="a soak of one minute")
    parser.add_argument("--folder", type=Path, help="where the random model and the logs are kept")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * args.streams + 256
    if soft < wanted:
        if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
            raise SystemExit(
                f"{args.streams} streams need {wanted} open files; this process may have {hard} (ulimit -Hn)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with tempfile.TemporaryDirectory() as temporary:
        told = asyncio.run(run(args, args.folder or Path(temporary)))
    if args.json:
        args.json.write_text(json.dumps(rows(told), indent=1) + "\n")
    print(json.dumps({**told, "soak": {k: v for k, v in told["soak"].items() if k != "samples"}}, indent=1))
    print("good" if good(told) else "NOT GOOD")
    return 0 if good(told) else 1


if __name__ == "__main__":
    sys.exit(main())
