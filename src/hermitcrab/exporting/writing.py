"""The files of an export, by the writers that `compress` has too, and the same model read back by the program that will run it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import torch

    from hermitcrab.compress import Source
    from hermitcrab.serve.opening import Opened

COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
              "special_tokens_map.json", "chat_template.jinja")  # fmt: skip
LIMITS = {
    "as-is": 1e-9, "F32": 1e-5, "f32": 1e-5, "F16": 1e-3, "BF16": 2e-3, "f16": 1e-3, "Q8_0": 0.02, "int8": 0.05,
    "Q5_1": 0.15, "Q5_0": 0.15, "Q4_1": 0.5, "Q4_0": 0.5, "int4": 0.5,
}  # fmt: skip
"""Mean KL (nats) to the package's model that a type may have: far above what rounding does, far below another model."""
RUNTIMES = {"safetensors": "transformers", "gguf": "llama.cpp", "onnx": "onnxruntime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Written:
    """`files`: of the model, that to open first; `tensors`: how many by dtype; `told`: how it was made."""

    files: tuple[str, ...]
    tensors: dict[str, int]
    told: dict[str, Any]


def write(opened: Opened, target: str, kind: str, folder: Path) -> Written:
    """The model in `folder`, and what its programs want beside it."""
    with progress(f"writing {target} {kind}"):
        if target == "safetensors":
            return _copied(opened, folder)
        from hermitcrab.exporting.record import about

        source = _source(opened, target, kind, about(opened))
        work = folder / ".work" / "made"
        work.mkdir(parents=True)
        made = _made(source, target, kind, work)
        names = tuple(_moved(work / file, folder) for file in made.files)
        shutil.rmtree(work.parent)
    for name in COMPANIONS if target != "gguf" else COMPANIONS[1:2]:
        if (opened.path / name).is_file() and not (folder / name).exists():
            shutil.copyfile(opened.path / name, folder / name)
    counts: dict[str, int] = {}
    for tensor in made.tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
    return Written(names, dict(sorted(counts.items())), made.told)


def _moved(file: Path, folder: Path) -> str:
    """A file of a form, which may lie deeper, in the folder itself."""
    if (folder / file.name).exists():
        raise HermitcrabError(f"two files of the export are named {file.name}")
    os.replace(file, folder / file.name)
    return file.name


def _copied(opened: Opened, folder: Path) -> Written:
    """The weights byte for byte, so that they still are what the package's own signature covers."""
    from hermitcrab.models.formats import open_weights

    names = [file["path"] for file in opened.base["files"] if "/" not in file["path"]]
    for name in dict.fromkeys([*names, *(n for n in COMPANIONS if (opened.path / n).is_file())]):
        shutil.copyfile(opened.path / name, folder / name)
    weights = open_weights(folder)
    first = [file.name for file in weights.files]
    return Written(tuple(first), weights.dtypes, {"copied": "byte for byte"})


def _source(opened: Opened, target: str, kind: str, said: dict[str, str]) -> Source:
    from hermitcrab.compress import Source
    from hermitcrab.data.tables import schema
    from hermitcrab.recipe import Compress, Evaluate

    none = schema("text").empty_table()  # an export has no rows
    return Source(
        model=opened.path, name=opened.name, task=opened.task, start=opened.start, base_start=None, train=opened.train,
        evaluate=Evaluate(choices=opened.choices), compress=Compress.model_validate({target: [kind]}), base=opened.base,
        about=said, calibration=none, validation=none,
    )  # fmt: skip


def _made(source: Source, target: str, kind: str, folder: Path) -> Any:
    from hermitcrab.compress import FORMS, load_form
    from hermitcrab.tasks import load_task

    able = load_task(source.task).compresses
    if target in FORMS and (target in able or target != "openvino"):
        form = load_form(target)
        form.check(source.compress, source.base, source.model)
        return form(source).make(kind, folder)
    from hermitcrab.exporting.onnx_to_openvino import make

    return make(source, kind, folder)


# Loading back


def compare(opened: Opened, target: str, kind: str, folder: Path, written: Written) -> dict[str, Any]:
    """How near the export's answers to the task's probes are to those of the package's model, both in float32.

    Raises:
        HermitcrabError: they are not near, or the program cannot run the files.
    """
    import torch

    from hermitcrab.tasks import load_task, make_task
    from hermitcrab.train.parity import compare as distance

    task = make_task(opened.task, opened.start, opened.train)
    probes = task.probes()
    with progress(f"loading {target} {kind} back"):
        wanted = task.probe_logits(task.model(torch.float32), probes)
        path = folder / written.files[0]
        if target == "gguf":
            wanted, found = _behind_prompts(path, probes, wanted)
        else:
            model = task.reload(folder) if target == "safetensors" else _runtime(target, path)
            found = task.probe_logits(model, probes)
    if found.shape != wanted.shape or not bool(torch.isfinite(found).all()):
        raise HermitcrabError(
            f"{target} {kind}: {RUNTIMES[target]} gives no logits that can be compared: {list(found.shape)}"
        )
    result = distance(wanted, found)
    limit = LIMITS.get(kind, 0.5)
    if load_task(opened.task).reads_text is False and kind == "int8":
        limit = 0.2  # of probes that are no images, few labels can move far
    if not result["mean_kl"] <= limit:
        raise HermitcrabError(
            f"{target} {kind}: read back by {RUNTIMES[target]} it is another model: mean KL {result['mean_kl']:.2e} nats, at most "
            f"{limit:g} for this type; nothing is left"
        )
    return {"runtime": RUNTIMES[target], "n": len(wanted), **result, "tolerance": {"mean_kl": limit}}


def _runtime(target: str, path: Path) -> Any:
    import torch

    from hermitcrab.models.formats.openvino import stateful
    from hermitcrab.models.runtimes import open_runtime

    if target == "openvino" and not stateful(path):
        from hermitcrab.models.runtimes.openvino_graph import OpenvinoGraph

        return OpenvinoGraph(path).eval()
    return open_runtime(target, path, torch.float32)


def _behind_prompts(path: Path, probes: list[list[int]], wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each probe the last position, which is what llama.cpp tells: log-probabilities of the model and of the file."""
    import torch

    from hermitcrab.models.runtimes.llamacpp import next_log_probabilities

    ends = torch.tensor([len(probe) for probe in probes]).cumsum(0) - 1
    model = wanted[ends].log_softmax(-1)
    told = torch.from_numpy(next_log_probabilities(path, probes, model.shape[1])).float()
    never = model.min() - 20  # what is not told is less likely than all that is
    return model, torch.where(torch.isinf(told), never, told)
