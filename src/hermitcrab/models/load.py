"""Bases as torch models: plain dense weights in fresh memory, read by our own readers from verified files.

Notable:
- Each file is compared with its recorded digest right before it is read, and must still be the same file afterwards.
- transformers' own GGUF loader keeps weights packed in their blocks and cannot train them; here they are unpacked and
  nothing of the quantization stays in the configuration.
- No code of a model is ever run, and a configuration cannot ask for more memory than the weights it came with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.digest import digest_file
from hermitcrab.errors import HermitcrabError
from hermitcrab.models import architectures, ggml
from hermitcrab.models.base import read_config
from hermitcrab.models.formats import PICKLES, Weights, open_weights
from hermitcrab.models.formats.weights import Stamp
from hermitcrab.models.runtimes import RUNTIMES, open_runtime
from hermitcrab.models.tokenizer import TextTokenizer, read_json_file, read_tokenizer
from hermitcrab.progress import progress, say, warn
from hermitcrab.store import write_json

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROBES = ("It's 1,234.5 km\n\n  to  Zürich", "def f(x):\n\treturn x ** 2", "寄居蟹住在壳里。", "IT'LL CamelCase 99")
KINDS = {
    "CAUSAL_LM": "causal language model",
    "IMAGE_CLASSIFICATION": "image classifier",
    "SEQUENCE_CLASSIFICATION": "text classifier",
    "MASKED_LM": "masked language model",
}  # what `skeleton` knows
SLACK = 1.02  # parameters that a configuration may have beyond those in the file


def load_model(
    base: dict[str, Any], path: Path, dtype: torch.dtype, kind: str = "CAUSAL_LM", config: dict[str, Any] | None = None,
    new_head: int | None = None,
) -> PreTrainedModel:  # fmt: skip
    """The model of a base, in `dtype`, in evaluation mode; in a runtime's own format it computes there.

    Args:
        kind: which of transformers' mappings it comes from (`MODEL_FOR_…_MAPPING`).
        config: what its configuration must say besides what the files say.
        new_head: a seed: what stands on the body may be missing, and is drawn from it; another head than this may be left over.

    Raises:
        HermitcrabError: a file that is not the recorded one, or weights that do not fit their configuration.
    """
    with verified(base, path), quiet():
        if base.get("kind") in RUNTIMES:
            return open_runtime(base["kind"], path, dtype)
        weights = open_weights(path)
        if weights.format == "gguf":
            beside = any(file["path"] == "generation_config.json" for file in base["files"])
            values, generation = ggml.configuration(weights), _generation(path.parent) if beside else None
            tensors = _gguf_tensors(weights, values, dtype)
        else:
            values, generation = read_config(path), _generation(path)
            tensors = plain_tensors(weights)
        return _assemble(path, weights, {**values, **(config or {})}, tensors, generation, dtype, kind, new_head)


def init_model(
    base: dict[str, Any], path: Path, seed: int, kind: str = "CAUSAL_LM", config: dict[str, Any] | None = None
) -> PreTrainedModel:
    """A model with new weights (float32), drawn from `seed` alone. `kind` and `config` as for `load_model`."""
    import torch

    with verified(base, path), quiet(), torch.random.fork_rng(devices=[]), library_errors("base.architecture"):
        torch.manual_seed(seed)
        made = _config({**base["configuration"], **(config or {})}, "base.architecture")
        return _model_class(made, "base.architecture", kind)(made).float().eval()


def skeleton(base: dict[str, Any], path: Path) -> PreTrainedModel:
    """The base's architecture without weights: modules and shapes, from its configuration alone.

    Raises:
        HermitcrabError: transformers cannot build it.
    """
    import torch
    import transformers

    if base["kind"] == "scratch":
        values = base["configuration"]
    else:
        values = ggml.configuration(open_weights(path)) if base["kind"] == "gguf" else read_config(path)
    config = _config(values, path)
    classes = [m[type(config)] for k in KINDS if type(config) in (m := getattr(transformers, f"MODEL_FOR_{k}_MAPPING"))]
    if not classes:
        raise HermitcrabError(f"{path}: {config.model_type} is none of: {', '.join(KINDS.values())}")
    named = [made for made in classes if made.__name__ == base["architecture"]]
    with library_errors(path), torch.device("meta"), quiet():
        return (named or classes)[0](config)


def peer(folder: Path, kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """A folder as transformers itself loads it."""
    from transformers import AutoConfig

    values = read_config(folder)
    architectures.register(values["model_type"])
    with quiet(), library_errors(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return _model_class(config, folder, kind).from_pretrained(folder, dtype=dtype, trust_remote_code=False)


def load_into(made: nn.Module, base: dict[str, Any], path: Path) -> nn.Module:
    """A plain module with the verified weights of a base, each tensor in its place.

    Raises:
        HermitcrabError: a file that is not the recorded one, or weights that do not fit the module.
    """
    with verified(base, path):
        return _put(made, plain_tensors(open_weights(path)), path)


def read_module(made: nn.Module, folder: Path) -> nn.Module:
    """A plain module with the weights that `write_module` left, as safetensors itself reads them."""
    from safetensors.torch import load_file

    return _put(made, load_file(folder / "model.safetensors"), folder)


def write_module(model: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """model.safetensors and config.json."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / "model.safetensors"), {"format": "pt"})
    write_json(folder / "config.json", config)


def _put(made: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> nn.Module:
    wanted = made.state_dict()
    shared = {name for name in wanted.keys() - tensors.keys() if _twin(wanted, name, tensors)}
    odd = sorted((wanted.keys() - shared) ^ tensors.keys())
    odd += [name for name in tensors.keys() & wanted.keys() if tensors[name].shape != wanted[name].shape]
    if odd:
        raise HermitcrabError(
            f"{path}: weights and configuration do not fit: {len(odd)} tensors, the first is {odd[0]}"
        )
    made.load_state_dict(tensors, strict=not shared)
    return made.eval()


def _twin(wanted: dict[str, torch.Tensor], name: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Is it a tensor that shares its memory with one that is there?"""
    here = wanted[name].data_ptr()
    return any(wanted[other].data_ptr() == here for other in tensors.keys() & wanted.keys())


def load_text(base: dict[str, Any], path: Path) -> TextTokenizer:
    """The tokenizer of a base, its files verified. Torch-free."""
    with verified(base, path, weights=False):
        return read_tokenizer(path)


def load_tokenizer(base: dict[str, Any], path: Path) -> PreTrainedTokenizerFast:
    """The same as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    text = load_text(base, path)
    with quiet():
        return PreTrainedTokenizerFast(
            tokenizer_object=text.backend, chat_template=text.chat_template, **text.settings, **text.special
        )


def save_tokenizer(base: dict[str, Any], path: Path, folder: Path, settings: dict[str, Any] | None = None) -> None:
    """The base's tokenizer and chat template, written beside a derived model (its config.json first), with `settings` of its own.

    For some model types transformers puts a class of its own in the place of what the files say; where that gives other
    ids than were trained on, it is said.
    """
    from transformers import AutoTokenizer

    text = load_text(base, path)
    text = replace(text, settings={**text.settings, **(settings or {})})
    text.save(folder)
    if not (folder / "config.json").exists():
        return
    with quiet(), library_errors(folder):
        peer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        differs = [
            probe for probe in PROBES if peer(probe, add_special_tokens=False)["input_ids"] != text.encode(probe)
        ]
    if differs:
        warn(
            f"{base['name']}: transformers' {type(peer).__name__} cuts {differs[0]!r} into other tokens than the base's "
            "tokenizer.json, which was trained with; load the tokenizer with PreTrainedTokenizerFast"
        )


@contextmanager
def verified(base: dict[str, Any], path: Path, weights: bool = True) -> Iterator[None]:
    """What is read inside is what the record says: digests before, the same files after.

    `weights=False` leaves out files that hold nothing but weights.
    """
    root = path if path.is_dir() else path.parent
    files = [f for f in base["files"] if weights or not f["path"].endswith((".safetensors", *PICKLES))]
    stamps = {}
    with progress("checking the base", sum(f["size"] for f in files), "bytes") as bar:
        for file in files:
            name, wanted = file["path"], file["sha256"]
            stamps[name] = _stamp(root, name)
            try:
                found = digest_file(root / name, bar.add)
            except OSError as error:
                raise HermitcrabError(f"{root / name}: cannot be read: {error.strerror}") from error
            if found != wanted:
                raise HermitcrabError(
                    f"{root / name}: is not the file that was recorded; it has {found}, expected {wanted}"
                )
    yield
    for name, stamp in stamps.items():
        if _stamp(root, name) != stamp:
            raise HermitcrabError(f"{root / name}: changed while it was being loaded")


def _stamp(root: Path, name: str) -> Stamp:
    try:
        return Stamp.of((root / name).stat())
    except OSError as error:
        raise HermitcrabError(f"{root / name}: a file of the base is gone ({error.strerror})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and advice to its own developers, as it was before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def library_errors(where: object) -> Iterator[None]:
    try:
        yield
    except HermitcrabError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise HermitcrabError(f"{where}: transformers cannot build this model: {why}") from error


def _config(values: dict[str, Any], where: object) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    architectures.register(values["model_type"])
    if values["model_type"] not in CONFIG_MAPPING:
        raise HermitcrabError(f"{where}: transformers has no model type {values['model_type']!r}")
    with library_errors(where):
        return AutoConfig.for_model(**values)


def _model_class(config: Any, where: object, kind: str) -> Any:
    import transformers

    mapping = getattr(transformers, f"MODEL_FOR_{kind}_MAPPING")
    if type(config) not in mapping:
        raise HermitcrabError(
            f"{where}: {config.model_type} is no {KINDS.get(kind, kind.lower().replace('_', ' '))} to transformers"
        )
    return mapping[type(config)]


def _generation(folder: Path) -> Any:
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return None
    with library_errors(folder / "generation_config.json"):
        return GenerationConfig.from_dict(read_json_file(folder / "generation_config.json"))


def _gguf_tensors(weights: Weights, config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Unpacked at once in the dtype that is wanted, so that a whole float32 copy never exists beside it."""
    import torch

    names = ggml.tensor_names(weights)
    found = {}
    with progress("unpacking weights", len(names), "tensors") as bar:
        for name, source in names.items():
            found[name] = torch.from_numpy(ggml.read_tensor(weights, source, config)).to(dtype)
            bar.add()
    return found


def plain_tensors(weights: Weights) -> dict[str, torch.Tensor]:
    """Tensors as the file has them."""
    import torch

    found = {}
    with progress("reading weights", len(weights.tensors), "tensors") as bar:
        for name, info in weights.tensors.items():
            if info.dtype == "BF16":
                raw = torch.from_numpy(weights.raw(name).view(np.int16)).view(torch.bfloat16)
            elif info.dtype == "F16":
                raw = torch.from_numpy(weights.raw(name).view(np.float16))
            else:
                raw = torch.from_numpy(weights.read(name))
            found[name] = raw.reshape(info.shape)
            bar.add()
    return found


def _assemble(
    path: Path,
    weights: Weights,
    values: dict[str, Any],
    tensors: dict[str, Any],
    generation: Any,
    dtype: torch.dtype,
    kind: str,
    new_head: int | None = None,
) -> PreTrainedModel:
    """The model of that configuration with those tensors; each parameter has one, each tensor a place (but for heads, with `new_head`)."""
    import torch

    depth = values.get("num_hidden_layers", 0)
    if type(depth) is int and depth > len(tensors):
        raise HermitcrabError(
            f"{path}: the configuration asks for {depth:,} layers, the weights have {len(tensors):,} tensors"
        )
    config = _config(values, path)
    model_class = _model_class(config, path, kind)
    with library_errors(path):
        with torch.device("meta"):
            asked = list(model_class(config).parameters())
        wanted = sum(p.numel() for p in asked if p.requires_grad)
        fixed = sum(p.numel() for p in asked if not p.requires_grad)  # computed and in no file: Marian's sinusoids
        room = weights.parameters * SLACK + 1024
        if new_head is not None:  # a pooler and a head on the body
            room += 2 * getattr(config, "hidden_size", 0) ** 2 + 1024 * getattr(config, "hidden_size", 0)
        if wanted > room or fixed > room:
            raise HermitcrabError(
                f"{path}: the configuration asks for {wanted + fixed:,} parameters, the weights have {weights.parameters:,}"
            )
        with torch.random.fork_rng(devices=[], enabled=new_head is not None):
            torch.manual_seed(new_head) if new_head is not None else None
            model, told = model_class.from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name) for name in told.get(what, ()))
        if new_head is not None and what != "mismatched_keys":
            left = [name for name in names if _of_body(model, name)]
            if (new := sorted(set(names) - set(left))) and what == "missing_keys":
                say(f"{path.name}: {len(new)} tensors stand on its body and are new: {', '.join(new[:4])}")
            names = left
        if names:
            raise HermitcrabError(
                f"{path}: weights and configuration do not fit: {len(names)} {what.replace('_', ' ')}, as {names[0]}"
            )
    if generation is not None:
        model.generation_config = generation
    _into_fresh_memory(model)
    return model.eval()


def _of_body(model: Any, name: str) -> bool:
    """Is it a tensor of the body that a head stands on? A pooler is part of the head: language models do without."""
    body = f"{model.base_model_prefix}."
    inside = name.removeprefix(body)
    known = {n.partition(".")[0] for n, _ in model.base_model.named_parameters()}
    return inside.partition(".")[0] in known - {"pooler"} and (name.startswith(body) or inside == name)


def _into_fresh_memory(model: PreTrainedModel) -> None:
    """Memory from torch's own allocator: how it is aligned decides the last bit of a product."""
    import torch

    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
