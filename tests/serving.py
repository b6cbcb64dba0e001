"""A real `crab serve` in a process of its own, and what tests ask it by."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "crab-test-key"
# As `tiny.TEMPLATE` renders a conversation, and with tools as Qwen's template does.
TOOLS_TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Write a call as <tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}
{%- for call in message.tool_calls or [] %}{{ '' if loop.first and not message['content'] else '\n' }}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PATIENCE = 120  # seconds: other programs may have the machine


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path
    key: str | None = None
    models: list[dict[str, Any]] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.partition("://")[2].rsplit(":", 1)
        return host, int(port)

    @property
    def client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=PATIENCE)

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON (or bytes) and headers of one request."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        given = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        given |= {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, body, given | {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(data) if kind == "application/json" else data, answer.headers

    def post(self, path: str, asked: Any) -> tuple[int, Any, Any]:
        return self.raw("POST", path, json.dumps(asked).encode())

    def gauge(self, name: str, **labels: str) -> float:
        """The sum of a metric over the labels that are not given."""
        found = 0.0
        for line in self.raw("GET", "/metrics")[1].decode().splitlines():
            head, _, value = line.rpartition(" ")
            if re.fullmatch(re.escape(name) + r"(\{.*\})?", head) and all(
                f'{k}="{v}"' in head for k, v in labels.items()
            ):
                found += float(value)
        return found

    def until(self, **wanted: float) -> None:
        """Until gauges of vLLM's names have these values."""
        ends = time.monotonic() + PATIENCE
        while {name: self.gauge(f"vllm:num_requests_{name}") for name in wanted} != wanted:
            assert time.monotonic() < ends, wanted
            time.sleep(0.05)

    def until_idle(self) -> None:
        self.until(running=0, waiting=0)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Lines of its log."""
        lines = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        return [told for line in lines if (told := json.loads(line))["event"] == event]

    def until_told(self, event: str) -> dict[str, Any]:
        ends = time.monotonic() + PATIENCE
        while not (found := self.events(event)):
            assert time.monotonic() < ends, f"no {event} in {self.log.read_text()[-2000:]}"
            time.sleep(0.05)
        return found[-1]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def send(self, path: str, asked: Any, connection: socket.socket | None = None) -> socket.socket:
        """A request of which nothing is read yet."""
        body = json.dumps(asked).encode()
        connection = connection or self.connect()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{key}Content-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def serve(folder: Path, *arguments: str, key: str | None = None, **environment: str) -> Server:
    """`crab serve` on a free port; its log is a file beside `folder`."""
    log = folder.parent / f"log-{time.monotonic_ns()}.jsonl"
    known = {**os.environ, "CRAB_TEST_KEY": key or "", **environment}
    command = [sys.executable, "-m", "hermitcrab", "serve", *arguments, "--port", "0", "--json"]
    command += ["--api-key", "env:CRAB_TEST_KEY"] if key else []
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=folder, env=known, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            told = json.loads(text)
            return Server(process, told["url"], log, key, told["models"])
    raise AssertionError(f"the server ended with {process.wait()}: {log.read_text()[-2000:]}")


def until_data(connection: socket.socket) -> bytes:
    """What comes up to and with the first event."""
    found = b""
    while b"data: " not in found:
        more = connection.recv(1 << 16)
        assert more, found
        found += more
    return found


def read_events(connection: socket.socket) -> bytes:
    """All that comes until the other side closes or says that it is done."""
    found = b""
    while b"data: [DONE]" not in found:
        more = connection.recv(1 << 16)
        if not more:
            break
        found += more
    return found
