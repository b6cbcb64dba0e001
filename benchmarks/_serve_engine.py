"""One engine, asked directly in this process: CPU time of all its threads, or the greedy tokens that it makes.

The CPU time of a batch is from the step in which the last of its rows had its first token to the one in which the first row ends.
Every prompt is another, so that no cache of prefixes helps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from _measure import tell

from hermitcrab.digest import describe_files
from hermitcrab.serve import engines
from hermitcrab.serve.engine import Options, Spec

PROMPT = 32  # tokens
SENTENCES = ("The capital of France is", "Once upon a time a crab", "Water boils at a temperature of", "def add(a, b):\n",
             "The largest planet of the solar system is", "For bread one needs", "In 1969,", "La plus grande ville de")  # fmt: skip


def spec_of(job: dict[str, Any]) -> Spec:
    path = Path(job["path"])
    known: dict[str, Any] = {"engine": job["engine"], "path": str(path), "digest": "sha256:0", "slots": 8, "threads": 1, "positions": 1024,
                             "settings": job.get("settings", {})}  # fmt: skip
    if path.is_dir():
        from hermitcrab.models.base import describe
        from hermitcrab.recipe import Base
        from hermitcrab.references import Resolved

        resolved = Resolved(str(path), str(path), "", path, None, "folder")
        base = describe(path, resolved, Base(path=str(path), license="Apache-2.0"))
        return Spec(**known, base=base, precision=job.get("precision", "bfloat16"))
    return Spec(**known, files=describe_files(path.parent, [path.name]))


class Asking:
    def __init__(self, engine: Any):
        self.engine, self.number = engine, 0

    def prompt(self, length: int) -> list[int]:
        """Other tokens each time, from the first one on."""
        self.number += 1
        return [(self.number * 7919 + n * 104729) % 9000 + 300 for n in range(length)]

    def prefill(self, length: int) -> float:
        """Tokens a CPU-second of one prompt."""
        began = time.process_time()
        self.run([self.prompt(length)], 1)
        return length / (time.process_time() - began)

    def decode(self, rows: int, steps: int) -> float:
        """Tokens a CPU-second, of `rows` answers made at once."""
        made = dict.fromkeys(range(self.number + 1, self.number + rows + 1), 0)
        for number in made:
            self.engine.add(number, self.prompt(PROMPT), Options(steps + rows + 2))
        began, before = None, 0
        while max(made.values()) < steps + rows + 2:
            self._step(made)
            if began is None and min(made.values()) > 0:
                began, before = time.process_time(), sum(made.values())
        assert began is not None
        rate = (sum(made.values()) - before) / (time.process_time() - began)
        for number in made:
            self.engine.cancel(number)
        return rate

    def run(self, prompts: list[list[int]], count: int, **options: Any) -> list[list[Any]]:
        """All pieces of each answer."""
        pieces: dict[int, list[Any]] = {}
        for prompt in prompts:
            self.number += 1
            pieces[self.number] = []
            self.engine.add(self.number, prompt, Options(count, **options))
        left = set(pieces)
        while left:
            for number, piece in self.engine.step():
                if isinstance(piece, str):
                    raise RuntimeError(piece)
                pieces[number].append(piece)
                if piece.finish:
                    left.discard(number)
        return list(pieces.values())

    def _step(self, made: dict[int, int]) -> None:
        for number, piece in self.engine.step():
            if isinstance(piece, str):
                raise RuntimeError(piece)
            made[number] += len(piece.tokens)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    spec = spec_of(job)
    began, cpu = time.time(), time.process_time()
    engine: Any = engines.load(spec)
    loaded = {"load": time.process_time() - cpu, "load_wall": time.time() - began}
    asking = Asking(engine)
    if "tokens" in job:
        compare(asking, job)
    else:
        asking.decode(1, 4)  # what is made at the first use
        repeats = range(job["repeats"])
        found = {
            "batch 1": statistics.median(asking.decode(1, job["steps"]) for _ in repeats),
            "batch 8": statistics.median(asking.decode(8, job["steps"]) for _ in repeats),
            "prefill 512": statistics.median(asking.prefill(512) for _ in repeats),
        }
        tell(**found, **loaded)
    sys.stdout.flush()
    engine.close()  # of vLLM: processes that would keep our standard output open
    os._exit(0)  # the library's own threads are not waited for


def compare(asking: Asking, job: dict[str, Any]) -> None:
    """Greedy answers to a few sentences, and by how much the likeliest token led at each step (where the engine tells)."""
    from hermitcrab.models.tokenizer import read_tokenizer

    text = read_tokenizer(Path(job["path"]))
    prompts = [text.encode(sentence) for sentence in SENTENCES]
    probs = {"logprobs": 2} if job["engine"] in ("llama.cpp", "transformers") else {}
    answers = asking.run(prompts, job["tokens"], **probs)
    tokens = [[token for piece in pieces for token in piece.tokens] for pieces in answers]
    margins = [
        [p.top[0][1] - p.top[1][1] if len(p.top) > 1 else 0.0 for piece in pieces for p in piece.logprobs or []]
        for pieces in answers
    ]
    tell(tokens=tokens, margins=margins)


if __name__ == "__main__":
    main()
