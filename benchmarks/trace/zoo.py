"""Builds the zoo: twins by the dozen, and what was trained on from them.

    python benchmarks/trace/zoo.py OUT              the whole zoo, about an hour and a half of one core
    python benchmarks/trace/zoo.py OUT --nano       one small family, under a minute

Two halves that share nothing: `calibration` (novels) makes the null tables, `evaluation` (help
texts; second half of the images) is what is reported, and holds five architectures that the calibration never saw. Within a family all
twins see the same rows in the same order; only the seed of the first draw differs. Whatever exists is kept, so a killed
build goes on. What needs no training (quantizing, pruning, merging, surgery, laundering) is made by `surgery.py` on the fly.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from families import FAMILIES, PLAIN, Family, Parameters, config, folder_tensors, initial, upcycled
from safetensors.torch import save_file
from train import (
    adapted,
    image_and_latent_batches,
    image_batches,
    speech_batches,
    text_batches,
    texts,
    tokenizer,
    tokens,
    train,
    with_adapters,
)

CALIBRATION = ("llama", "gpt2", "cnn-small")
HALVES = {"calibration": ("austen", 24, 10_000), "evaluation": ("help", 40, 20_000)}  # text, seeds, first seed
ONLY_CALIBRATION = ("cnn-small",)
LONGEST = {
    name: 1 for name in ("cnn", "cnn-speech", "lstm", "gan", "llama-deep")
}  # times their training, the others ten
RANKS = (1, 4, 16)  # of trained adapters
FEWER = {"cnn": 26, "llama-deep": 27, "cnn-small": 24, "cnn-speech": 16, "lstm": 16, "gan": 12}  # seeds
SHORTER = {
    "cnn": 2,
    "llama-deep": 2,
    "cnn-small": 4,
    "cnn-speech": 4,
    "lstm": 2,
    "gan": 2,
}  # twins are trained so much less
TENFOLD = 2  # of the bases, those continued for ten times
BASES = 4  # evaluation models of a family from which children are trained
FULL_STEPS, NANO_STEPS = 400, 40


class Zoo:
    """Folders `HALF/FAMILY-KIND-NUMBER`, and `trained/…pt` with the stacked parameters that children start from."""

    def __init__(self, root: Path, steps: int, seeds: int | None = None):
        self.root, self.steps, self.seeds = root, steps, seeds
        (root / "trained").mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def batches(self, f: Family, text: str, seed: int, half: int = 1):
        if f.name == "cnn-speech":
            return speech_batches(seed, self.root / "trained" / "speech.pt")
        if f.model_type == "cnn":
            return image_batches(seed, half)
        if f.model_type == "gan":
            return image_and_latent_batches(seed, half)
        return text_batches(self.stream(text, f.vocabulary, text), seed, f.model_type == "bert")

    def stream(self, text: str, size: int, words: str) -> torch.Tensor:
        """`text` in the tokens learned on the text `words`."""
        path = self.root / "trained" / f"tokens-{text}-{words}-{size}.pt"
        if not path.exists():
            found = tokens(texts(text), tokenizer(texts(words), size, self.root / "tokenizers" / f"{words}-{size}"))
            torch.save(found, path)
        return torch.load(path)

    def make(self, name: str, f: Family, begin, batches, steps: int, rate: float = 3e-3, **more) -> Parameters:
        """Stacked parameters named `name`, trained once."""
        path = self.root / "trained" / f"{name}.pt"
        if path.exists():
            return torch.load(path)
        made = train(f, begin(), batches(), steps, rate, say=lambda text: self.say(f"{name}: {text}"), **more)
        torch.save(made, path)
        return made

    def write(self, f: Family, p: Parameters, half: str, kind: str, words: str, **facts) -> None:
        for k in range(next(iter(p.values())).shape[0]):
            folder = self.root / half / f"{f.name}-{kind}-{k:02d}"
            if (folder / "facts.json").exists():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            save_file(folder_tensors(f, p, k), folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config(f), indent=1))
            if f.model_type not in ("cnn", "gan"):
                shutil.copy(self.root / "tokenizers" / f"{words}-{f.vocabulary}" / "tokenizer.json", folder)
            (folder / "facts.json").write_text(json.dumps({"family": f.name, "kind": kind, "number": k, **facts}))

    def twins(self, half: str, f: Family) -> Parameters:
        text, count, first = HALVES[half]
        seeds = [first + i for i in range(self.seeds or FEWER.get(f.name, count))]
        p = self.make(f"{half}-{f.name}-twin", f, lambda: initial(f, seeds),
                      lambda: self.batches(f, text, 7, int(half == "evaluation")), self.steps // SHORTER.get(f.name, 1))  # fmt: skip
        self.write(f, p, half, "twin", text, seed=first)
        return p

    def children(self, f: Family, p: Parameters, bases: int = BASES, longest: int = 10) -> None:
        """Everything that is trained from the first few evaluation twins, weakest to strongest."""
        base = {name: value[:bases] for name, value in p.items()}

        def onward(kind: str, steps: int, rate: float, seed: int, count: int = bases) -> None:
            start = {name: value[:count] for name, value in base.items()}
            text = f.model_type not in ("cnn", "gan")
            batches = (lambda: text_batches(self.stream("reviews", f.vocabulary, "help"), seed, f.model_type == "bert")) if text else (
                lambda: self.batches(f, "", seed, 0))  # fmt: skip
            made = self.make(f"evaluation-{f.name}-{kind}", f, lambda: start, batches, steps, rate)
            self.write(f, made, "evaluation", kind, "help", parent="twin", steps=steps, rate=rate)

        onward("sft-short", self.steps // 8, 5e-4, 1)
        onward("sft", self.steps // 4, 1e-3, 2)
        onward("continued-1x", self.steps, 3e-3, 3)
        if f.model_type not in PLAIN:
            self.adapters(f, base)
            self.others(f, base, bases)
        if longest >= 3:
            onward("continued-3x", 3 * self.steps, 3e-3, 4)
        if longest >= 10:
            onward("continued-10x", 10 * self.steps, 3e-3, 5, TENFOLD)

    def adapters(self, f: Family, base: Parameters) -> None:
        """Adapters trained beside the frozen model, and merged into it."""
        for rank in RANKS:
            made = self.make(f"evaluation-{f.name}-adapter-{rank}", f, lambda rank=rank: adapted(base, rank, 40 + rank),
                             lambda: text_batches(self.stream("reviews", f.vocabulary, "help"), 11, f.model_type == "bert"),
                             self.steps // 2, trained=lambda n: n.endswith((".A", ".B")), merged=with_adapters)  # fmt: skip
            self.write(f, with_adapters(made), "evaluation", f"adapter-{rank}", "help", parent="twin")

    def others(self, f: Family, base: Parameters, bases: int) -> None:
        """Another vocabulary, with the body frozen and then not; a student of the answers; experts out of the dense model."""
        new = initial(f, [90_000 + i for i in range(bases)])
        vocabulary = ("embed", "head")

        def swapped() -> Parameters:
            return {n: new[n] if n in vocabulary else v for n, v in base.items()}

        frozen = self.make(f"evaluation-{f.name}-vocabulary", f, swapped,
                           lambda: text_batches(self.stream("reviews", f.vocabulary, "reviews"), 6, f.model_type == "bert"),
                           self.steps // 2, trained=lambda n: n in vocabulary)  # fmt: skip
        self.write(f, frozen, "evaluation", "vocabulary", "reviews", parent="twin")
        moved = self.make(f"evaluation-{f.name}-vocabulary-body", f, lambda: frozen,
                          lambda: text_batches(self.stream("reviews", f.vocabulary, "reviews"), 8, f.model_type == "bert"),
                          self.steps // 2, 1e-3)  # fmt: skip
        self.write(f, moved, "evaluation", "vocabulary-body", "reviews", parent="twin")
        student = self.make(f"evaluation-{f.name}-distilled", f, lambda: initial(f, [80_000 + i for i in range(bases)]),
                            lambda: self.batches(f, "help", 9), self.steps, teacher=(f, base))  # fmt: skip
        self.write(f, student, "evaluation", "distilled", "help", teacher="twin")
        if f.name == "llama":
            sparse, begun = upcycled(f, base)
            made = self.make(f"evaluation-{sparse.name}", sparse, lambda: begun,
                             lambda: text_batches(self.stream("reviews", f.vocabulary, "help"), 10, False), self.steps)  # fmt: skip
            self.write(sparse, made, "evaluation", "trained", "help", parent="llama-twin")


def build(root: Path, nano: bool = False, families: list[str] | None = None) -> Zoo:
    torch.set_num_threads(1)
    if nano:
        zoo = Zoo(root, NANO_STEPS, seeds=6)
        f = replace(FAMILIES["llama"], layers=2, width=32, neurons=64, kv_heads=2, vocabulary=300)
        p = zoo.twins("evaluation", f)
        zoo.children(f, p, bases=2, longest=1)
        return zoo
    zoo = Zoo(root, FULL_STEPS)
    chosen = {name: f for name, f in FAMILIES.items() if families is None or name in families}
    for name, f in chosen.items():
        if name not in ONLY_CALIBRATION:
            zoo.twins("evaluation", f)
        if name in CALIBRATION:
            zoo.twins("calibration", f)
    for f in (f for name, f in chosen.items() if name not in ONLY_CALIBRATION):
        zoo.children(f, zoo.twins("evaluation", f), longest=LONGEST.get(f.name, 10))
    return zoo


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--nano", action="store_true")
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES))
    asked = parser.parse_args()
    build(asked.out, asked.nano, asked.families)
