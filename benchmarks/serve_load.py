"""How long does a first token take where many ask at once? `crab serve` beside llama.cpp's own server and vLLM's, in turns.

    python benchmarks/serve_load.py [--vllm PYTHON] [--streams 8 16] [--runs 3] [--json load.json]

SmolLM2-135M, made as `serve.py` makes it: one Q4_0 file for `crab serve` and for llama.cpp, the same weights in bfloat16 for vLLM, which
loads no such file (PYTHON: of an environment with vLLM; eager, for compiling takes minutes here). So many clients ask one prompt after
another, no two alike, of about a hundred tokens, for 48 tokens each; every server may make as many answers at once as there are clients.
The first answer of each client warms up.

Told: wall time to the first token (median, and the ninth of ten), tokens a second, tokens a CPU-second of the server's processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _measure as m
from _serving import WORDS, Server, ask, serve
from serve import prepare

TOKENS, ANSWERS, POSITIONS = 48, 3, 512
CORES = len(os.sched_getaffinity(0))


def ours(paths: dict[str, str], engine: str, streams: int, log: Path) -> Server:
    return serve(paths["Q4_0"], "--engine", engine, "--slots", str(streams), log=log)


def llamacpp(paths: dict[str, str], streams: int, log: Path) -> Server:
    script = Path(__file__).with_name("_peer_llamacpp_server.py")
    began = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen([sys.executable, str(script), paths["Q4_0"], str(streams), str(POSITIONS), str(CORES)],
                                   stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env={**os.environ, "OMP_WAIT_POLICY": "passive"})  # fmt: skip
    assert process.stdout is not None
    address = next((line for line in process.stdout if line.startswith("http")), "")
    if not address:
        raise SystemExit(f"llama.cpp's server did not start: {log.read_text()[-1000:]}")
    host, port = address.strip().removeprefix("http://").rsplit(":", 1)
    return Server(process, host, int(port), "model", "llama.cpp's server", time.perf_counter() - began)


def vllm(python: str, paths: dict[str, str], streams: int, log: Path) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", paths["safetensors"], "--served-model-name", "model",
               "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", "--max-model-len", str(POSITIONS),
               "--max-num-seqs", str(streams), "--enforce-eager"]  # fmt: skip
    known = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    known |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    began = time.perf_counter()
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, text=True, env=known)
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return Server(process, "127.0.0.1", port, "model", "vLLM's server", time.perf_counter() - began)
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"vLLM's server did not start: {log.read_text()[-1000:]}")


def prompt(number: int) -> str:
    """Another from its first word on, so that no cache of beginnings helps."""
    return f"{number} " + " ".join(WORDS[(number * 11 + i * (3 + number % 7)) % len(WORDS)] for i in range(95))


async def load(server: Server, streams: int, seed: int) -> dict[str, float]:
    async def client(number: int, answers: int, first: int) -> list[Any]:
        return [
            await ask(server, {"model": server.model, "prompt": prompt(seed + number + streams * (first + i)), "max_tokens": TOKENS,
                               "temperature": 0, "stream": True, "stream_options": {"include_usage": True}})
            for i in range(answers)
        ]  # fmt: skip

    await asyncio.gather(*(client(n, 1, 0) for n in range(streams)))
    began, cpu = time.perf_counter(), sum(server.cpu())
    got = [one for several in await asyncio.gather(*(client(n, ANSWERS, 1) for n in range(streams))) for one in several]
    wall, cpu = time.perf_counter() - began, sum(server.cpu()) - cpu
    if wrong := next((one for one in got if one.status != 200 or not one.whole), None):
        raise SystemExit(f"{server.engine}: {wrong}")
    made = sum(one.usage["completion_tokens"] for one in got)
    firsts = sorted(one.first for one in got)
    return {"first": statistics.median(firsts), "first_p90": firsts[int(0.9 * len(firsts))], "per_second": made / wall,
            "per_cpu_second": made / cpu, "tokens": made, "load": os.getloadavg()[0]}  # fmt: skip


def one(start: Callable[..., Server], streams: int, seed: int, log: Path) -> dict[str, float]:
    server = start(streams=streams, log=log)
    try:
        return {**asyncio.run(load(server, streams, seed)), "start": server.seconds}
    finally:
        server.stop()


TOLD = {"first": "s", "first_p90": "s", "per_second": "tokens a second", "per_cpu_second": "tokens a CPU-second"}


def rows(streams: int, found: dict[str, list[dict[str, float]]], mine: list[str]) -> list[dict[str, Any]]:
    """Ours that answers soonest beside each peer."""
    known = {name: results for name, results in found.items() if results}
    best = min((n for n in known if n in mine), key=lambda n: m.median(known[n], "first"), default="")
    made = []
    for peer in (name for name in known if name not in mine and best):
        for what, unit in TOLD.items():
            soon = what.startswith("first")
            told = m.row(f"{streams} streams, {what}", best, peer, m.median(known[best], what), m.median(known[peer], what), unit,
                         ">= 1" if what == "first" else None, soon)  # fmt: skip
            made.append({**told, "rounds": known})
    return made


def main() -> int:
    parser = m.arguments(__doc__)
    parser.add_argument("--work", type=Path, default=Path(".crab/serve"), help="where models are made")
    parser.add_argument("--smollm2", type=Path, metavar="FILE", help="the GGUF file, where it is here already")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 16])
    parser.add_argument(
        "--vllm", metavar="PYTHON", help="of an environment with vLLM; without: llama.cpp's server alone"
    )
    options = parser.parse_args()
    work = options.work.absolute()
    (work / "logs").mkdir(parents=True, exist_ok=True)
    paths = prepare(work, True, options.smollm2)["SmolLM2-135M"]
    mine: dict[str, Callable[..., Server]] = {
        f"crab serve, {engine} Q4_0": lambda engine=engine, **k: ours(paths, engine, **k)
        for engine in ("openvino-genai", "llama.cpp")
    }
    peers: dict[str, Callable[..., Server]] = {"llama.cpp's server, Q4_0": lambda **k: llamacpp(paths, **k)}
    if options.vllm:
        peers["vLLM's server, bfloat16"] = lambda **k: vllm(options.vllm, paths, **k)
    contenders = {**mine, **peers}
    if options.only:
        contenders = {name: start for name, start in contenders.items() if any(word in name for word in options.only)}
    told: list[dict[str, Any]] = []
    for streams in options.streams:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for number in range(options.runs or (1 if options.quick else 3)):
            for name, start in contenders.items():
                result = one(
                    start, streams, 1000 * number, work / "logs" / f"load-{name.split(',')[0].replace(' ', '-')}.log"
                )
                found[name].append(result)
                print(
                    f"{streams} streams, round {number + 1}, {name}: {json.dumps(result)}", file=sys.stderr, flush=True
                )
            m.write(options.json, told + rows(streams, found, list(mine)))
        told += rows(streams, found, list(mine))
    print(f"{m.machine()}\n\n{m.table(told)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
