"""What a task is to the stages and the loop, and the small things that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from hermitcrab.data.ledger import Ledger
    from hermitcrab.recipe import Evaluate, Recipe, Train


@dataclass
class Loss:
    """A sum and a count, so that accumulation, several processes and ragged last batches are exact."""

    sum: torch.Tensor
    count: int


@dataclass(frozen=True)
class Start:
    """Where a model comes from: the record of a base (`base.json`), the place of its files, what was fitted on training rows."""

    base: dict[str, Any]
    path: Path
    seed: int | None = None  # initial weights, for `scratch`
    fitted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What a row costs, for estimates.

    Attributes:
        parameters: of the model; `working`: those of them that take part in matrix products.
        tokens: positions that a row comes to; `asked`: when it is asked; `tokens_a_training_row`: of what a batch counts.
        activation_bytes: of one micro-batch in training.
    """

    parameters: float
    working: float
    tokens: float
    asked: float
    tokens_a_training_row: float
    activation_bytes: float


@dataclass(frozen=True)
class Asking:
    """How a package is asked by `predict`: what it chooses from, whether it goes on with texts, how long an answer may be."""

    choices: list[str]
    plain_text: bool
    max_new_tokens: int


class Examples(Protocol):
    """Everything trained on, ready to be cut into batches by row number."""

    def __len__(self) -> int: ...
    def row_ids(self, rows: Any) -> list[str]: ...


class Task(Protocol):
    """What the stages and the loop call, and nothing else."""

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    """Of the rows that it takes, as `data.tables.FORMATS` names them."""
    kind: ClassVar[str]
    """Of its models, as transformers' mappings say it (`MODEL_FOR_…_MAPPING`)."""
    reads_text: ClassVar[bool]
    """Its models have a tokenizer."""
    prompted: ClassVar[bool]
    """Its models are asked by prompts: another prompt could have made a base stronger."""
    distributions: ClassVar[bool]
    """Its outputs are logits; else models are compared by the distance of their numbers."""
    noisy: ClassVar[bool]
    """Rows are answered again with another batch size, to see the noise floor."""
    served: ClassVar[bool]
    """`crab serve` takes its packages."""
    why_not_split: ClassVar[str | None]
    """Why several processes could not agree with one."""
    opens_from: ClassVar[str]
    """What `opens` looks for, in words."""
    ignored: ClassVar[tuple[str, ...]]
    """Keys of a recipe that mean nothing to it: set, they are refused."""
    baselines: ClassVar[tuple[str, ...]]
    own_baselines: ClassVar[Mapping[str, Callable[..., Any]]]
    own_formats: ClassVar[Mapping[str, Mapping[str, str]]]
    compresses: ClassVar[tuple[str, ...]]
    """Keys of `compress` that it can do."""
    exports: ClassVar[tuple[str, ...]]
    """Formats that its models can be exported to (`exporting.TARGETS`)."""
    metrics: ClassVar[tuple[str, ...]]
    own_metrics: ClassVar[tuple[Any, ...]]
    counts: ClassVar[str]
    """What the ledger of examples counts."""

    # Without a model: what can be told of a recipe and of rows.

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse (UsageError) what could never be right, before anything is fetched."""
        ...

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        """Refuse (HermitcrabError) what the rows rule out, before the training that would have been in vain."""
        ...

    @classmethod
    def shots(cls, part: Evaluate, train: pa.Table) -> pa.Table:
        """`evaluate.few_shot` training rows to show in a prompt (HermitcrabError: there are not so many)."""
        ...

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        """What is learnt from training rows before any weight is, or brought by the base at `path`: labels, sizes, means. JSON."""
        ...

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        """Refuse (HermitcrabError) what `fit` could not have made: a record may be a stranger's."""
        ...

    @classmethod
    def opens(cls, path: Path) -> dict[str, Any] | None:
        """What was `fitted`, of a model of this task that is no package; None where `path` holds none. Only its small files are
        read (HermitcrabError: one of them says what this task does not do)."""
        ...

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[Any]:
        """What a user names as inputs on a command line (UsageError, HermitcrabError)."""
        ...

    @classmethod
    def labels(cls, part: Evaluate, fitted: dict[str, Any]) -> list[str]:
        """The answers that there are; empty where answers are free."""
        ...

    @classmethod
    def deciding(cls, part: Evaluate, format: str) -> str | None:
        """The metric that decides, where the smallest difference that it could show can be told beforehand."""
        ...

    @classmethod
    def texts(cls, rows: pa.Table) -> list[str]:
        """What each row asks, as text: what contamination looks for."""
        ...

    @classmethod
    def answers(cls, rows: pa.Table) -> list[Any]:
        """What each row's answer is: a text, a number, or what else its metrics compare."""
        ...

    @classmethod
    def features(cls, rows: pa.Table) -> Any:
        """What the baselines learn from: texts, or float32 [N, D]."""
        ...

    @classmethod
    def learnt_features(cls, train: pa.Table, rows: pa.Table) -> tuple[Any, Any]:
        """The features of both, fitted on the first."""
        ...

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        """What a row costs, from `base.json` (or its `parameters` and `shape`) and from the rows' number and `row_bytes`. `test` is
        the table of test rows, where there is one yet."""
        ...

    # With a model.

    start: Start

    def __init__(self, start: Start, train: Train): ...

    def told(self) -> dict[str, Any]:
        """What training.json says of how rows became inputs."""
        ...

    def model(self, dtype: torch.dtype) -> torch.nn.Module:
        """The model to start from, in `dtype`."""
        ...

    def attach(self, model: torch.nn.Module) -> None:
        """Whatever the loss needs of the model's insides."""
        ...

    def compiled(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        """The parts that torch.compile is worth being asked for."""
        ...

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """The model with all that another library needs to load it."""
        ...

    def reload(self, folder: Path) -> torch.nn.Module:
        """What `save` left, as that library loads it, in float32."""
        ...

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Examples, dict[str, Any]]:
        """Rows as trained on, and what the ledger should say besides its counts."""
        ...

    def summary(self, entry: Mapping[str, Any]) -> str:
        """A ledger of `examples` in words."""
        ...

    def positions(self) -> int:
        """Positions that the model computes for a row of examples."""
        ...

    def product(self) -> tuple[int, int, int]:
        """The matrix product that training spends itself on: rows, and the widths that a layer takes and gives."""
        ...

    def batch(self, examples: Any, rows: np.ndarray) -> Any:
        """Those rows as tensors."""
        ...

    def count(self, batch: Any) -> int:
        """What the loss of this batch will count."""
        ...

    # Of tasks with `distributions` that can be distilled: what the loss is made of.

    def decisions(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of what the loss of a batch counts, row after row, and their labels: [N, V] and int64 [N], `IGNORE` where nothing
        is learnt."""
        ...

    def cost(self, logits_NV: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        """The sum of the loss over decisions."""
        ...

    def loss(self, model: torch.nn.Module, batch: Any) -> Loss:
        """The cost of a batch's decisions, and their count."""
        ...

    def probes(self) -> list[Any]:
        """Fixed inputs, none of anybody's data, on which a merged or compressed model is compared. JSON."""
        ...

    def probe_outputs(self, model: torch.nn.Module, probes: list[Any]) -> torch.Tensor:
        """What the probes come to, any floats (float32): of a task with `distributions`, its `probe_logits`."""
        ...

    def probe_logits(self, model: torch.nn.Module, probes: list[Any]) -> torch.Tensor:
        """Logits (float32) of every decision that the probes ask for: [N, V]."""
        ...

    def pace(self, model: torch.nn.Module) -> tuple[int, str]:
        """A fixed piece of work, as a user would ask for it one at a time: how many units it came to, and of what (`tokens`)."""
        ...

    def inputs(self, rows: pa.Table) -> dict[str, Any]:
        """What a model is given for these rows, and for a few awkward inputs of our own, each with a name: the same model in
        another format must be given the same."""
        ...

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        """The digest of what `predict` asks of these rows, without asking it."""
        ...

    def predict(self, model: torch.nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """Answers: `row_id, reference, prediction, score` and what else is known of each row."""
        ...

    def answer(self, model: torch.nn.Module, inputs: list[Any], part: Asking) -> list[dict[str, Any]]:
        """`{input, prediction, score}` and what else is known of each of `read_inputs`, as `predict` would answer a row."""
        ...

    def question(self, model: torch.nn.Module, one: Any, part: Asking) -> Any:
        """What an explanation of the answer to one of `read_inputs` asks (`explained.Question`). UsageError: it has none."""
        ...
