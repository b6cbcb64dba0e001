"""OpenVINO's intermediate representation of a language model: a folder with tokenizer and template beside it.

openvino-genai builds the graph out of a GGUF file in half precision (`enable_save_ov_model`), and NNCF rounds its weights; so no
further exporter is needed, and what GGUF has no words for is refused as there. The representation keeps keys and values in itself.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.compress import Made, Source, Tensor
from hermitcrab.compress.gguf import Gguf, metadata
from hermitcrab.compress.speed import threads
from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.store import read_json, write_json

if TYPE_CHECKING:
    from hermitcrab.recipe import Compress
    from hermitcrab.tasks import Start

MODEL, WEIGHTS, ORIGIN = "openvino_model.xml", "openvino_model.bin", "origin.json"
GRAPH = (
    MODEL,
    WEIGHTS,
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip
GROUP = 64  # weights that share a scale in four bits
BITS = {"f16": 16.0, "int8": 8.0, "int4": 4.5, "int4-calibrated": 4.5}
WIDTHS = {
    "int4_t": 4,
    "uint4_t": 4,
    "int8_t": 8,
    "uint8_t": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float": 32,
}
NAMES = {
    "int4_t": "I4",
    "uint4_t": "U4",
    "int8_t": "I8",
    "uint8_t": "U8",
    "float16": "F16",
    "float32": "F32",
    "float": "F32",
}
FEWEST = 1024  # numbers of a constant that is told as a tensor; smaller ones belong to the graph
LARGEST_ORIGIN = 1 << 16  # bytes


class Openvino:
    format = "openvino"
    runtime = "openvino-genai"

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """What GGUF has no words for, and types that the representation of a language model is not made in here."""
        if wrong := [kind for kind in part.openvino if kind not in BITS]:
            raise HermitcrabError(
                f"compress.openvino: a language model is made in {', '.join(BITS)}; OpenVINO computes each of them in bfloat16 "
                f"where the processor can. Received: {wrong[0]}"
            )
        for module in ("openvino_genai", "nncf"):
            needs(module, "compress")
        Gguf.check(part, base, path)

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        return list(part.openvino)

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        return BITS.get(kind, 16.0)

    def __init__(self, source: Source):
        self.source = source

    def make(self, kind: str, folder: Path) -> Made:
        name = f"{self.source.name}-{kind}"
        half = folder.parent / "half"  # every kind begins with it
        if not (half / MODEL).exists():
            graph(self.source, half)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        told: dict[str, Any] = {"rounding": "nearest"} if kind != "f16" else {"rounding": "none"}
        if kind == "f16":
            for file in (MODEL, WEIGHTS):
                shutil.copyfile(half / file, target / file)
        else:
            told = self._rounded(kind, half, target)
        for file in GRAPH[2:]:
            shutil.copyfile(half / file, target / file)
        for file in BESIDE:
            if (self.source.model / file).exists():
                shutil.copyfile(self.source.model / file, target / file)
        write_json(target / ORIGIN, self.source.about)
        others = sorted(p.name for p in target.iterdir() if p.name not in (MODEL, WEIGHTS))
        files = tuple(f"{name}/{file}" for file in (MODEL, WEIGHTS, *others))
        return Made(files, tuple(tensors(target / MODEL)), told)

    def _rounded(self, kind: str, half: Path, target: Path) -> dict[str, Any]:
        """The graph with its weights rounded, saved."""
        import nncf
        import openvino as ov

        model = ov.Core().read_model(half / MODEL)
        known = {op.get_friendly_name() for op in model.get_ops()}
        modes = nncf.CompressWeightsMode
        told: dict[str, Any] = {"rounding": "nearest"}
        options: dict[str, Any] = {"mode": modes.INT8_ASYM}
        if kind != "int8":
            options = {"mode": modes.INT4_SYM, "group_size": GROUP, "ratio": 1.0, "all_layers": False}
        if kind.endswith("-calibrated"):
            samples = list(self._samples())
            options |= {
                "dataset": nncf.Dataset(samples),
                "subset_size": len(samples),
                "awq": True,
                "scale_estimation": True,
            }
            told = {"rounding": "activation-aware (AWQ), scales estimated", "calibration_rows": len(samples)}
        nncf.set_log_level(40)
        with _quietly():
            rounded = nncf.compress_weights(model, **options)
        for place, op in enumerate(rounded.get_ordered_ops()):
            name = op.get_friendly_name()  # may count what this process did before
            if name not in known and re.fullmatch(r"[A-Za-z]+_\d+", name):
                op.set_friendly_name(f"added/{op.get_type_name().lower()}/{place}")
        ov.save_model(rounded, target / MODEL, compress_to_fp16=False)
        return {**told, "tool": f"nncf {nncf.__version__}"}

    def _samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Training rows as the graph takes them."""
        from hermitcrab.compress.calibration import documents

        for ids in documents(self.source):
            row = np.array([ids], np.int64)
            yield {
                "input_ids": row, "attention_mask": np.ones_like(row), "position_ids": np.arange(len(ids), dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }  # fmt: skip

    def start(self, kind: str, folder: Path, made: Made) -> Start:
        from hermitcrab.tasks import Start

        place = folder / Path(made.files[0]).parent
        described = describe_files(place, sorted(Path(file).name for file in made.files))
        base = {**self.source.base, "kind": "openvino", "name": place.name, "files": described}
        return Start(base, place, None, self.source.start.fitted)

    @staticmethod
    def said(path: Path) -> dict[str, str | None]:
        origin = path.parent / ORIGIN
        if origin.is_symlink() or not origin.is_file() or origin.stat().st_size > LARGEST_ORIGIN:
            raise HermitcrabError(f"{ORIGIN} beside it says nothing of license and base")
        found = read_json(origin)
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise HermitcrabError(f"{ORIGIN} beside it is no mapping of words to texts")
        return found

    @classmethod
    def pace(cls, start: Start) -> Callable[[], tuple[int, str]] | None:
        """In openvino-genai, which serves it."""
        import openvino as ov
        import openvino_genai as genai

        pipeline = genai.LLMPipeline(str(start.path), "CPU", {"INFERENCE_NUM_THREADS": threads()})
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = PACE
        config.ignore_eos = True
        ids = np.arange(100, 100 + PROMPT, dtype=np.int64)[None]
        prompt = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))

        def work() -> tuple[int, str]:
            return len(pipeline.generate(prompt, config).tokens[0]), "tokens"

        return work


PROMPT, PACE = 24, 48  # tokens given and generated to see how fast a model is


def graph(source: Source, folder: Path) -> None:
    """The graph in half precision, with its tokenizer, whole or not at all."""
    from hermitcrab.models.to_gguf import Export

    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    file = beside / "model.gguf"
    Export(source.model, metadata(source.about)).write("F16", file)
    child = [sys.executable, "-m", "hermitcrab.compress.openvino_graph", str(file)]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        why = " ".join(done.stderr.split())[-300:] or f"exit status {done.returncode}"
        raise HermitcrabError(f"compress.openvino: openvino-genai cannot read the model as GGUF: {why}")
    file.unlink()
    if missing := [name for name in GRAPH if not (beside / name).exists()]:
        raise HermitcrabError(f"compress.openvino: openvino-genai left no {missing[0]}")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)


def tensors(path: Path) -> Iterator[Tensor]:
    """Every weight of the graph at `path`, its scales and offsets counted in its bits."""
    import openvino as ov

    constants = {}
    for op in ov.Core().read_model(path).get_ops():
        if op.get_type_name() == "Constant":
            kind = re.findall(r"'(\w+)'", str(op.get_element_type()))[0]
            constants[op.get_friendly_name()] = (kind, tuple(op.get_output_shape(0)))
    for name, (kind, shape) in sorted(constants.items()):
        if name.endswith(("/scale", "/zero_point")) or math.prod(shape) < FEWEST or kind not in WIDTHS:
            continue
        size, bits = math.prod(shape), float(WIDTHS[kind] * math.prod(shape))
        for more in ("/scale", "/zero_point"):
            if name + more in constants:
                kind_of, shape_of = constants[name + more]
                bits += WIDTHS[kind_of] * math.prod(shape_of)
        yield Tensor(name, NAMES.get(kind, kind), shape, bits / size)


class _quietly:
    """What libraries print on standard output and standard error is not for the user; progress is ours."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self.kept = [os.dup(number) for number in (1, 2)]
        nothing = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nothing, number)
        os.close(nothing)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), self.kept, strict=True):
            os.dup2(old, number)
            os.close(old)
