"""vLLM in a Python of its own (`--vllm-python`), for it pins libraries that nothing else here goes with; spoken to over HTTP.

It listens on a loopback port behind a key that nobody is told. Prompts and answers are token ids both ways; chat templates, texts and
stop words stay above. What it is asked is in the words of its own API (https://docs.vllm.ai, `/v1/completions`).
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models.base import read_config
from hermitcrab.progress import progress
from hermitcrab.serve.engine import Logprob, Options, Piece, Spec, check_files
from hermitcrab.serve.engines import schema
from hermitcrab.serve.engines.queued import Asked, Queued

SLOWEST = 600.0  # seconds that it may take to load
NAME = "model"
DIES = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
GUARD = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
status = subprocess.run(sys.argv[1:]).returncode
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
sys.exit(status if status >= 0 else 128 - status)
"""


class VLLM(Queued):
    name = "vllm"

    def __init__(self, spec: Spec):
        super().__init__(spec.slots)
        self.spec, self.key = spec, secrets.token_hex(32)
        python = spec.settings.get("vllm_python")
        if not python or not os.access(python, os.X_OK):
            raise UsageError(
                f"--vllm-python: expected the Python of the environment that vLLM is in. Received: {python}"
            )
        check_files(spec)
        limit = read_config(Path(spec.path)).get("max_position_embeddings") or 2048
        self.positions = min(spec.positions or 1 << 30, int(limit))
        self.port = _free_port()
        known = {"VLLM_API_KEY": self.key, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        self.process = guarded([python, *self._command()], {**os.environ, **known, "PYTHONPATH": ""})
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _command(self) -> list[str]:
        module = self.spec.settings.get("vllm_module", "vllm.entrypoints.openai.api_server")
        return ["-m", module, "--model", self.spec.path, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port),
                "--dtype", self.spec.precision, "--max-model-len", str(self.positions), "--max-num-seqs", str(self.slots),
                "--enable-prefix-caching", *self.spec.settings.get("vllm_arguments", [])]  # fmt: skip

    def _wait(self) -> None:
        began = time.monotonic()
        with progress("vLLM loads the model"):
            while time.monotonic() - began < SLOWEST:
                if self.process.poll() is not None:
                    raise HermitcrabError(
                        f"vLLM ended with status {self.process.returncode} while it loaded; see what it said above"
                    )
                try:
                    connection = self.connect(5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return
                except OSError:
                    pass
                time.sleep(0.25)
        raise HermitcrabError(f"vLLM did not load the model within {SLOWEST:.0f} s")

    def connect(self, timeout: float | None = None) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def add(self, number: int, prompt: list[int], options: Options) -> None:
        rule = schema.check(options.schema) if options.schema is not None else None
        self.begin(number, Answer(self, number, prompt, options, rule=rule))

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        super().close()
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(10)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Answer(Asked):
    rule: dict[str, Any] | None = None
    connection: http.client.HTTPConnection | None = None
    finished: bool = False

    def stop(self) -> None:
        super().stop()
        if self.connection is not None and self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)  # vLLM drops the request of a client that has gone

    def answer(self) -> None:
        self.connection = self.engine.connect()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.engine.key}"}
        self.connection.request("POST", "/v1/completions", json.dumps(self._body()), headers)
        response = self.connection.getresponse()
        if response.status != 200:
            raise HermitcrabError(f"status {response.status}: {response.read(2000).decode(errors='replace')}")
        for event in events(response):
            if self.over.is_set():
                return
            self._take(event)
            if self.made and self.finished:
                return
        raise HermitcrabError("it ended before the answer did")

    def _body(self) -> dict[str, Any]:
        o, ends = self.options, self.engine.spec.ends
        body: dict[str, Any] = {
            "model": NAME, "prompt": self.prompt, "max_tokens": o.max_tokens, "temperature": 0.0 if o.greedy else o.temperature,
            "top_p": o.top_p, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "stream": True, "return_token_ids": True,
            "ignore_eos": True, "stop_token_ids": ends, "skip_special_tokens": False,
        }  # fmt: skip
        if o.seed is not None:
            body["seed"] = o.seed
        if o.logprobs is not None:
            body |= {"logprobs": o.logprobs, "return_tokens_as_token_ids": True}
        if self.rule is not None:
            body |= {"structured_outputs": {"json": self.rule}, "ignore_eos": False}
        return body

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise HermitcrabError(str(event["error"])[:300])
        for choice in event["choices"]:
            tokens = choice.get("token_ids") or []
            self.made += tokens
            finish = choice.get("finish_reason")
            self.finished = finish is not None
            if tokens or finish:
                probs = (
                    None if self.options.logprobs is None else _logprobs(choice.get("logprobs"), self.options.logprobs)
                )
                self.tell(Piece(tokens, probs, finish))


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Of a stream of server-sent events, until `[DONE]`."""
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if line.startswith(b"data:"):
            yield json.loads(data)


def _logprobs(found: dict[str, Any] | None, count: int) -> list[Logprob]:
    if found is None:
        return []
    rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    told = []
    for token, value, others in rows:
        top = sorted(((_id(name), p) for name, p in (others or {}).items()), key=lambda pair: -pair[1])
        told.append(Logprob(_id(token), value, top[:count]))
    return told


def _id(text: str) -> int:
    return int(text.removeprefix("token_id:"))


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def guarded(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A command in a group of processes that ends with this process, however it ends: vLLM's own workers outlive their parent."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", GUARD, *command], stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent,
        start_new_session=True, env=environment,
    )  # fmt: skip


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIES, signal.SIGTERM)
