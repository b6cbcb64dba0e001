"""Which engine serves a model, by table, and the sentence that says why.

    GGUF         an architecture that OpenVINO GenAI reads → openvino-genai; any other → llama.cpp
    OpenVINO     → openvino-genai
    safetensors  → vllm where its Python is named (`--vllm-python`); else transformers, the reference

Of several GGUF files of a package: the largest of those whose answers were no worse than the model's own; `--type` chooses another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermitcrab.digest import describe_files, digest_json
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.evaluate.metrics import lower_is_better
from hermitcrab.models import ggml
from hermitcrab.models.formats import open_weights
from hermitcrab.models.tokenizer import read_json_file, read_tokenizer
from hermitcrab.serve.engine import Spec, check_files
from hermitcrab.serve.engines import ENGINES
from hermitcrab.serve.opening import RECORD, Opened
from hermitcrab.tasks import load_task

# Engine → what it can load, the best first; the library that must be there, and the extra that brings it.
LOADS = {
    "openvino-genai": (("gguf", "openvino"), "openvino_genai", "serve"),
    "llama.cpp": (("gguf",), "xllamacpp", "serve"),
    "transformers": (("safetensors",), "torch", "train"),
    "vllm": (("safetensors",), None, None),
}
OPENVINO_READS = {
    "F16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
}  # types of matrices in a GGUF file, of those that `compress` writes; tried one by one
FAST_ONNX = "`compress: {onnx: [...]}` in its recipe makes one"
FAST = "`compress: {gguf: [Q8_0]}` in its recipe makes it fast"


@dataclass(frozen=True)
class Form:
    """A model in one format. `tied`: its answers were no worse than the model's own, as far as anybody measured."""

    format: str
    type: str
    path: Path
    files: list[dict[str, Any]]
    tied: bool = True

    @property
    def size(self) -> int:
        return sum(file["size"] for file in self.files)

    @property
    def digest(self) -> str:
        return self.files[0]["sha256"] if len(self.files) == 1 else digest_json(self.files)


def choose(
    opened: Opened,
    engine: str | None = None,
    kind: str | None = None,
    slots: int = 8,
    threads: int = 0,
    settings: dict[str, Any] | None = None,
) -> tuple[Spec, str]:
    """The engine of a package, as its process is told of it, and why it is that one.

    Args:
        engine: the one that was asked for.
        kind: the type of the compressed file that was asked for (`Q4_0`).
        settings: what only one engine knows, as `Spec.settings`; `vllm_python`: where vLLM is installed.

    Raises:
        UsageError: a task that makes no text, an engine or a type that there is not, an engine that does not load this model.
        HermitcrabError: the engine's library is not installed.
    """
    if opened.encoder is None:
        raise UsageError(f"{opened.name}: its task is {opened.task}; it makes no text")
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"--engine {engine}: there is none of that name{did_you_mean(engine, ENGINES)}")
    settings = settings or {}
    found = forms(opened)
    if kind is not None:
        found = [form for form in found if form.type.lower() == kind.lower()]
        if not found:
            types = [form.type for form in forms(opened)]
            raise UsageError(f"--type {kind}: {opened.name} has no file of that type{did_you_mean(kind, types)}")
    name, form, why = _match(opened.name, found, engine, kind is not None, settings)
    return _spec(opened, name, form, slots, threads, settings), why


def _match(model: str, found: list[Form], engine: str | None, typed: bool, settings: dict[str, Any]) -> tuple[str, Form, str]:  # fmt: skip
    if engine is not None:
        formats, _, _ = LOADS[engine]
        form = _best([f for f in found if f.format in formats], typed)
        if form is None:
            raise UsageError(
                f"--engine {engine}: it loads {' or '.join(formats)}, and {model} has {_told(found)}; {FAST}"
            )
        _installed(engine)
        return engine, form, f"{engine} on {form.type}, because --engine asks for it"
    if settings.get("vllm_python") and (plain := _best([f for f in found if f.format == "safetensors"], typed)):
        return "vllm", plain, f"vllm on {plain.type}, because --vllm-python says where it is"
    form = _best([f for f in found if f.format in ("gguf", "openvino")], typed)
    if form is not None:
        for name in ("openvino-genai", "llama.cpp"):
            if form.format in LOADS[name][0] and reads(name, form) and _has(name):
                best = "best for several at once" if name == "openvino-genai" else "reads the most architectures"
                return name, form, f"{name} on {form.type} ({best}); --engine chooses another"
        if form.format == "openvino" or typed or not any(f.format == "safetensors" for f in found):
            _installed("openvino-genai" if form.format == "openvino" else "llama.cpp")
    form = _best([f for f in found if f.format == "safetensors"], typed)
    if form is None:
        raise UsageError(f"{model}: no engine loads {_told(found)}")
    _installed("transformers")
    return "transformers", form, f"transformers, the reference engine, for there is no compressed file to serve; {FAST}"


def choose_encoder(folder: Path, threads: int = 0) -> tuple[Spec, str]:
    """What makes vectors of texts with the encoder in a folder: its ONNX file where there is one, else torch on its safetensors.

    Raises:
        HermitcrabError: it has neither, or the library is not installed.
    """
    found = [path for name in ("model.onnx", "onnx/model.onnx") if (path := folder / name).is_file()]
    if found:
        files = describe_files(found[0].parent, [found[0].name])
        spec = Spec("onnx", str(found[0]), files[0]["sha256"], files, tokenizer=str(folder), threads=threads)
        return spec, f"onnx on {found[0].name}, which needs no torch"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names or not (folder / "config.json").is_file():
        raise HermitcrabError(f"{folder}: expected model.onnx, or config.json and safetensors of an encoder")
    _installed("transformers")
    files = describe_files(folder, [*names, "config.json"])
    spec = Spec(
        "torch", str(folder), digest_json(files), files, tokenizer=str(folder), precision="float32", threads=threads
    )
    return spec, "torch, the reference, for there is no ONNX file"


def choose_predictor(opened: Opened, threads: int = 0) -> tuple[Any, str]:
    """What answers for a model of a task other than text, by its ONNX file and without torch; None where none is tied.

    Raises:
        UsageError: models of this task are not served.
        HermitcrabError: the file is not the recorded one, or no library is installed that reads it.
    """
    if not load_task(opened.task).served:
        raise UsageError(f"{opened.name}: `crab serve` does not serve {opened.task} yet; `crab predict` answers")
    form = _best([form for form in forms(opened) if form.format == "onnx"], False)
    if form is None or not hasattr(load_task(opened.task), "answer_by"):
        return None, f"torch, the reference, for there is no ONNX file to serve; {FAST_ONNX}"
    from hermitcrab.serve.engines.onnx import OnnxPredictor

    spec = Spec("onnx", str(form.path), form.digest, form.files, threads=threads)
    check_files(spec)
    made = OnnxPredictor(opened.task, opened.start.fitted, form.path, spec.cores)
    made.digest = form.digest
    return made, f"{made.name} on onnx {form.type}, which needs no torch"


def forms(opened: Opened) -> list[Form]:
    """What there is of a model, as its record says."""
    path, base = opened.path, opened.base
    if path.is_file():
        return [Form("gguf", _file_type(path), path, [f for f in base["files"] if f["path"] == path.name])]
    found = [Form("safetensors", opened.precision, path, base["files"])]
    if not (path / RECORD).is_file():
        return found
    for entry in read_json_file(path / RECORD).get("compressed", []):
        try:
            files = [{key: f[key] for key in ("path", "sha256", "size")} for f in entry["files"]]
            kind, type, place = str(entry["format"]), str(entry["type"]), path / entry["file"]
        except (TypeError, KeyError) as error:
            raise HermitcrabError(
                f"{path / RECORD}: expected in `compressed` entries with format, type, file and files. Received: {str(entry)[:80]}"
            ) from error
        if not place.resolve().is_relative_to(path.resolve()):
            raise HermitcrabError(f"{path / RECORD}: `{entry['file'][:80]}` leads out of the package")
        root = place.parent
        inside = [{**f, "path": (path / f["path"]).relative_to(root).as_posix()} for f in files]
        found.append(Form(kind, type, root if kind == "openvino" else place, inside, tied(entry)))
    return found


def tied(entry: dict[str, Any]) -> bool:
    """Were its answers not shown to be worse than the model's own: the interval of the difference covers zero, or is better?"""
    parity = entry.get("parity") or {}
    low, high = parity.get("low"), parity.get("high")
    if low is None or high is None:
        return True
    return low <= 0 if "metric" in parity and lower_is_better(str(parity["metric"])) else high >= 0


def reads(engine: str, form: Form) -> bool:
    """OpenVINO's own reader of GGUF knows the architectures that ours does, and few types; llama.cpp knows them all."""
    if engine != "openvino-genai" or form.format != "gguf":
        return True
    weights = open_weights(form.path)
    matrices = {weights.info(name).dtype for name in weights.tensors if len(weights.info(name).shape) > 1}
    return weights.metadata.get("general.architecture") in ggml.FAMILIES and matrices <= OPENVINO_READS


def _best(found: Iterable[Form], typed: bool) -> Form | None:
    """The largest that is tied; with a type asked for, the largest of it."""
    return max((form for form in found if form.tied or typed), key=lambda form: form.size, default=None)


def _has(engine: str) -> bool:
    module = LOADS[engine][1]
    return module is None or importlib.util.find_spec(module) is not None


def _installed(engine: str) -> None:
    _, module, extra = LOADS[engine]
    if not _has(engine):
        raise HermitcrabError(
            f"the engine {engine} needs `{module}`, which is not installed; run: pip install 'hermitcrab[{extra}]'"
        )


def _told(found: list[Form]) -> str:
    named = [
        f"{form.format} {form.type}{'' if form.tied else ' (its answers were worse; --type takes it)'}"
        for form in found
    ]
    return ", ".join(named)


def _file_type(path: Path) -> str:
    counts = {dtype: count for dtype, count in open_weights(path).dtypes.items() if dtype not in ("F32", "F16")}
    return max(counts, key=lambda dtype: counts[dtype]) if counts else "F16"


def _spec(opened: Opened, engine: str, form: Form, slots: int, threads: int, settings: dict[str, Any]) -> Spec:
    assert opened.encoder is not None
    plain = form.format == "safetensors"
    return Spec(
        engine=engine,
        path=str(form.path),
        digest=opened.base["digest"] if plain else form.digest,
        files=form.files,
        base=opened.base if plain else {},
        tokenizer=None if opened.path.is_file() else str(opened.path),
        precision=opened.precision,
        ends=sorted(opened.encoder.ends),
        pad=opened.encoder.pad,
        vocabulary=opened.base["shape"].get("vocab_size") or read_tokenizer(opened.path).backend.get_vocab_size(),
        slots=slots,
        threads=threads,
        settings=settings,
    )
