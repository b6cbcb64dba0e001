"""What the benchmarks of serving share: a model of 100M random weights, a server in a process of its own, and a lean client.

The client speaks HTTP over plain asyncio streams: a thousand of them cost less than the server that is measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

WORDS = ["the", "weather", "in", "a", "house", "by", "sea", "is", "often", "good", "crab", "shell", "and", "other"]


def write_model(
    folder: Path, layers: int = 12, width: int = 768, vocabulary: int = 32_000, dtype: str = "bfloat16"
) -> Path:
    """A llama of random weights, 100M parameters as it stands, and a byte-level tokenizer whose every id is a word."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    names += ["Ġa", *(f"Ġw{i}" for i in range(vocabulary - len(names) - 1))]
    # One merge: OpenVINO reads no GGUF file without any.
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [("Ġ", "a")]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[0]
    )
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=4,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return folder


def write_gguf(folder: Path, kind: str) -> Path:
    """The same model as one file of that type, for the engines that read those."""
    file = folder.parent / f"{folder.name}-{kind}.gguf"
    if not file.exists():
        from hermitcrab.models.to_gguf import Export

        Export(folder, {"general.name": folder.name}).write(kind, file)
    return file


def prompt(number: int, length: int = 12) -> str:
    return " ".join(WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(length)) + f" {number}"


@dataclass
class Server:
    process: subprocess.Popen[str]
    host: str
    port: int
    model: str
    engine: str
    seconds: float
    """From its start to the first moment that it could be asked."""

    @property
    def face(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def cpu(self) -> tuple[float, float]:
        """CPU-seconds of the face and of the engine."""
        face = self.face
        found = [face, *face.children(recursive=True)]
        times = [t.user + t.system for t in (p.cpu_times() for p in found)]
        return times[0], sum(times[1:])

    def memory(self) -> tuple[float, float]:
        """MiB resident, of the face and of the engine."""
        face = self.face
        return face.memory_info().rss / 2**20, sum(p.memory_info().rss for p in face.children(recursive=True)) / 2**20

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def serve(model: str, *arguments: str, log: Path) -> Server:
    began = time.perf_counter()
    command = [sys.executable, "-m", "hermitcrab", "serve", model, "--unverified", "--port", "0", "--json", *arguments]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            told = json.loads(text)
            host, port = told["url"].removeprefix("http://").rsplit(":", 1)
            known = told["models"][0]
            return Server(process, host, int(port), known["name"], known["engine"], time.perf_counter() - began)
    raise SystemExit(f"the server ended with {process.wait()}: {log.read_text()[-1000:]}")


@dataclass
class Got:
    """One answer, as far as it came."""

    status: int = 0
    text: str = ""
    pieces: int = 0
    whole: bool = False
    """Its end was told: `[DONE]` of a stream, a parsed object otherwise."""
    error: str = ""
    retry: str = ""
    first: float = 0.0
    seconds: float = 0.0
    usage: dict[str, int] = field(default_factory=dict)


async def ask(
    server: Server, asked: dict[str, Any], path: str = "/v1/completions", leave_after: int | None = None
) -> Got:
    """One request on a connection of its own; `leave_after` so many pieces it hangs up."""
    got, began = Got(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(server.host, server.port)
    except OSError as error:
        got.error = f"connect: {error}"
        return got
    try:
        body = json.dumps(asked).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readline()
        got.status = int(status.split()[1])
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "retry-after":
                got.retry = value.strip()
        if asked.get("stream") and got.status == 200:
            await _stream(reader, got, began, leave_after)
        else:
            data = json.loads(await reader.read())
            got.whole = True
            got.error = data.get("error", {}).get("code") or ""
            if got.status == 200:
                got.text, got.usage = data["choices"][0]["text"], data["usage"]
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
        got.error = got.error or f"{type(error).__name__}: {error}"
    finally:
        writer.close()
    got.seconds = time.perf_counter() - began
    return got


async def _stream(reader: asyncio.StreamReader, got: Got, began: float, leave_after: int | None) -> None:
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            got.whole = True
            return
        told = json.loads(line[6:])
        if "error" in told:
            got.error = told["error"]["code"] or "error"
            return
        got.usage = told.get("usage") or got.usage
        if told["choices"]:
            got.first = got.first or time.perf_counter() - began
            got.text += told["choices"][0]["text"]
            got.pieces += 1
            if leave_after is not None and got.pieces >= leave_after:
                return
