"""What most tasks share: a task on top of this says what a row is to a model, what an answer costs, and what is said of it.

What has to be given (docs/adding-a-task.md walks through one):

    name, formats, metrics          class variables
    fit                             what is learnt from training rows before any weight is
    build, or kind and configured   the model: a plain module of one's own, or one of transformers'
    tensors, targets                rows → what the model is given, and what it should have said
    outputs, loss                   a batch → the model's floats, and what they cost: a sum and a count
    columns                         those floats → columns of the predictions
    probe_rows                      inputs of our own, on which a saved model is compared with what was trained

Everything else has a default here that may be overridden: nothing outside `tasks/` asks which task it was.

Shapes: N rows, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.tables import FORMATS, answer, column_kind, question
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe, Train
from hermitcrab.tasks import Asking, Loss, Start, Work, metrics_asked
from hermitcrab.tasks.examples import SENTENCES, Tensors, place

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.evaluate.metric import Metric

OF_PROMPTS = (
    "report.show_text", "train.sequence_length", "train.truncate", "train.template", "train.attention", "train.lora",
    "evaluate.choices", "evaluate.few_shot", "evaluate.calibrate", "evaluate.max_new_tokens", "evaluate.sequence_length",
)  # fmt: skip
"""Keys that mean nothing where no prompt is read."""
PACE = 64  # probes that are answered one by one to see how fast a model is
TYPICAL = 1e6  # parameters of a model whose size is not known yet


class BaseTask:
    """See the head of this module, and `tasks.Task` for what each part is asked for."""

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    """Names, the deciding one first: of `evaluate.metrics.METRICS` or of `own_metrics`."""
    own_metrics: ClassVar[tuple[Metric, ...]] = ()
    """Of a task from outside. Those of our own tasks lie in `evaluate/`, as their baselines do: what measures is in the key of
    `evaluate`, and not of `train`."""
    own_formats: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Format → its columns and what each holds: `text`, `number`, `json` or `bytes`."""
    baselines: ClassVar[tuple[str, ...]] = ()
    """Names, of `evaluate.baselines.BASELINES` or of `own_baselines`."""
    own_baselines: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    """Name → (task class, training, validation and test rows) -> `evaluate.baseline.Baseline`."""
    kind: ClassVar[str] = ""
    """Of transformers' mappings (`MODEL_FOR_…_MAPPING`); of no use to a task that has `build`."""
    reads_text: ClassVar[bool] = False
    prompted: ClassVar[bool] = False
    """Its models are asked by prompts: another prompt could have made a base stronger."""
    opens_from: ClassVar[str] = "packages alone"
    ignored: ClassVar[tuple[str, ...]] = (*OF_PROMPTS, "train.loss", "evaluate.noise_rows")
    compresses: ClassVar[tuple[str, ...]] = ()
    exports: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[str] = "rows"
    distributions: ClassVar[bool] = False
    """Its outputs are logits: models are compared by KL and likeliest answer. Else by the distance of their numbers."""
    noisy: ClassVar[bool] = False
    """Rows are answered again with another batch size, to see the noise floor (`evaluate.noise_rows`)."""
    served: ClassVar[bool] = False
    """`crab serve` takes its packages; the others answer by `crab predict`."""
    why_not_split: ClassVar[str | None] = None
    """Why several processes could not agree with one: batch statistics, in-batch negatives."""
    fitted_as: ClassVar[Mapping[str, Any]] = {}
    """What `fit` gives: each key with its type, which a record is held to."""

    def __init__(self, start: Start, train: Train):
        self.start, self.part, self.fitted = start, train, start.fitted

    # Without a model

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        if "train.lora" in cls.ignored and recipe.train.method != "full":
            raise UsageError(
                f"train.method: {cls.name} trains all weights; set `method: full`. Received: {recipe.train.method}"
            )

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        pass

    @classmethod
    def shots(cls, part: Evaluate, train: pa.Table) -> pa.Table:
        raise UsageError(f"evaluate.few_shot: means nothing to {cls.name}")

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        return {}

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        for key, kind in cls.fitted_as.items():
            if not isinstance(fitted.get(key), kind):
                wanted, found = getattr(kind, "__name__", kind), str(fitted.get(key))[:60]
                raise HermitcrabError(
                    f"{where}: fitted: {key}: expected {wanted}, as {cls.name} fits it. Received: {found}"
                )
        if odd := sorted(fitted.keys() - cls.fitted_as.keys()):
            raise HermitcrabError(f"{where}: fitted: {cls.name} fits no `{odd[0]}`")

    @classmethod
    def opens(cls, path: Path) -> dict[str, Any] | None:
        return None

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[Any]:
        """As the first column of the format: texts, JSON, or the bytes of files, each with a name."""
        from hermitcrab.tasks.inputs import files, jsons, texts

        asked = FORMATS[cls.formats[0]][0]
        if column_kind(asked) == "bytes":
            return list(files(words))
        return jsons(words) if column_kind(asked) == "json" else texts(words, column)

    @classmethod
    def rows_of(cls, inputs: Sequence[Any]) -> pa.Table:
        """Inputs as `read_inputs` gives them, or probes, as rows of which nothing is known but what is asked."""
        import pyarrow as pa

        asked = FORMATS[cls.formats[0]][0]
        rows = [
            one if isinstance(one, dict) and asked in one else {asked: one[1] if isinstance(one, tuple) else one}
            for one in inputs
        ]
        names = [f"input {number}" for number in range(1, len(rows) + 1)]
        columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {asked: None})}
        return pa.table({"row_id": pa.array(names, pa.string()), **columns})

    @classmethod
    def labels(cls, part: Evaluate, fitted: dict[str, Any]) -> list[str]:
        return []

    @classmethod
    def deciding(cls, part: Evaluate, format: str) -> str | None:
        return metrics_asked(cls, part)[0]

    @classmethod
    def texts(cls, rows: pa.Table) -> list[str]:
        """What a row asks: its text, or a digest where it is none, by which copies are found and near copies are not."""
        form = cls.format_of(rows)
        return [question(form, row) for row in rows.to_pylist()]

    @classmethod
    def answers(cls, rows: pa.Table) -> list[Any]:
        form = cls.format_of(rows)
        return [answer(form, row) for row in rows.to_pylist()]

    @classmethod
    def format_of(cls, rows: pa.Table) -> str:
        known = [form for form in cls.formats if FORMATS[form][0] in rows.column_names]
        return next((form for form in known if set(FORMATS[form]) <= set(rows.column_names)), known[0])

    @classmethod
    def features(cls, rows: pa.Table) -> Any:
        return cls.texts(rows)

    @classmethod
    def learnt_features(cls, train: pa.Table, rows: pa.Table) -> tuple[Any, Any]:
        """What baselines learn from and are asked, where features are fitted on the first."""
        return cls.features(train), cls.features(rows)

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        """A row is one position of a model of a million parameters, where its size is not known."""
        parameters = float(base.get("parameters") or TYPICAL)
        return Work(parameters, parameters, 1, 1, 1, rows["train"] * rows["row_bytes"] + 4 * parameters)

    # The model

    @classmethod
    def build(cls, configuration: dict[str, Any], fitted: dict[str, Any]) -> nn.Module:
        """A plain module by `base.architecture` and what was fitted, its weights drawn from torch's generator. In the place of
        `kind` and `configured`."""
        raise NotImplementedError

    def configured(self) -> dict[str, Any]:
        """What the configuration of a transformers model must say besides what its files say."""
        return {}

    @classmethod
    def is_plain(cls) -> bool:
        return cls.build.__func__ is not BaseTask.build.__func__  # type: ignore[attr-defined]

    def configuration(self) -> dict[str, Any]:
        """Of a plain module: as the recipe has it, or config.json of a base."""
        from hermitcrab.models.base import read_config

        base = self.start.base
        return base["configuration"] if base["kind"] == "scratch" else read_config(self.start.path)

    @classmethod
    def drawn(cls, configuration: dict[str, Any], fitted: dict[str, Any], seed: int) -> nn.Module:
        """The model with new weights (float32), a function of `seed` alone."""
        import torch

        from hermitcrab.models.load import init_model

        if not cls.is_plain():
            return init_model({"kind": "scratch", "configuration": configuration, "files": []}, Path(), seed, cls.kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.build(configuration, fitted).float().eval()

    def model(self, dtype: torch.dtype) -> nn.Module:
        from hermitcrab.models.load import init_model, load_into, load_model

        base, path = self.start.base, self.start.path
        scratch = base["kind"] == "scratch"
        if self.is_plain():
            made = self.drawn(self.configuration(), self.fitted, self.start.seed or 0)
            return (made if scratch else load_into(made, base, path)).to(dtype)
        if scratch:
            return init_model(base, path, self.start.seed or 0, self.kind, self.configured()).to(dtype)
        return load_model(base, path, dtype, self.kind, self.configured())

    def save(self, model: Any, folder: Path) -> None:
        from hermitcrab.models.load import quiet, write_module

        if self.is_plain():
            write_module(model, folder, {**self.configuration(), "architectures": [type(model).__name__]})
        else:
            with quiet():
                model.save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        import torch

        from hermitcrab.models.load import peer, read_module

        if self.is_plain():
            return read_module(self.drawn(self.configuration(), self.fitted, 0), folder).float()
        return peer(folder, self.kind, torch.float32)

    def told(self) -> dict[str, Any]:
        return {"preprocessing_digest": digest_json(self.fitted)} if self.fitted else {}

    def attach(self, model: nn.Module) -> None:
        pass

    def compiled(self, model: nn.Module) -> list[nn.Module]:
        return [model]

    # For the loop

    def tensors(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        """What the model is given for these rows (which may have no answers): names → tensors [N, …]."""
        raise NotImplementedError

    def targets(self, rows: pa.Table) -> dict[str, torch.Tensor]:
        """What it should say: names → tensors [N, …]."""
        return {}

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """What an answer is made of: floats [B, …]. Logits [B, K] of a task with `distributions`."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        raise NotImplementedError

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Any, dict[str, Any]]:
        """Every row, made into tensors once."""
        ledger.take(rows.num_rows)
        ledger.keep(rows.num_rows)
        found = Tensors(rows["row_id"].to_pylist(), **self.tensors(rows), **self.targets(rows))
        return found, {"learnt": rows.num_rows}

    def summary(self, entry: Mapping[str, Any]) -> str:
        return f"{entry['name']}: {entry['learnt']:,} of {entry['taken']:,} learnt from"

    def positions(self) -> int:
        return 1

    def product(self) -> tuple[int, int, int]:
        return self.part.batch_size, 256, 256

    def batch(self, examples: Any, rows: np.ndarray) -> Any:
        import torch

        which_B = torch.from_numpy(rows)
        device = place()
        return {name: torch.index_select(values, 0, which_B).to(device) for name, values in examples.columns.items()}

    def count(self, batch: Any) -> int:
        return len(next(iter(batch.values())))

    # For judging and using

    def probe_rows(self) -> list[dict[str, Any]]:
        """Rows without answers, of our own (JSON)."""
        asked = FORMATS[self.formats[0]][0]
        if column_kind(asked) != "text":
            raise NotImplementedError(f"{self.name}: probe_rows")
        return [{asked: text} for text in SENTENCES]

    def probes(self) -> list[Any]:
        return list(self.probe_rows())

    def probe_outputs(self, model: nn.Module, probes: list[Any]) -> torch.Tensor:
        """The outputs (float32) for each probe."""
        return self.outputs_of(model, self.rows_of(probes)).float().cpu()

    def probe_logits(self, model: nn.Module, probes: list[Any]) -> torch.Tensor:
        """The same where they are logits: [N, V]."""
        found = self.probe_outputs(model, probes)
        return found.reshape(-1, found.shape[-1])

    def outputs_of(self, model: nn.Module, rows: pa.Table) -> torch.Tensor:
        """Of rows at once, without a gradient."""
        import torch

        model.eval()
        weight = next(model.parameters())
        inputs = {
            name: values.to(weight.device, weight.dtype if values.is_floating_point() else values.dtype)
            for name, values in self.tensors(rows).items()
        }
        with torch.inference_mode():
            return self.outputs(model, inputs)

    def pace(self, model: nn.Module) -> tuple[int, str]:
        probes = self.probes()
        for number in range(PACE):
            self.probe_outputs(model, [probes[number % len(probes)]])
        return PACE, "rows"

    def inputs(self, rows: pa.Table) -> dict[str, Any]:
        return {f"row {row}": text for row, text in zip(rows["row_id"].to_pylist(), self.texts(rows), strict=True)}

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        return digest_json({"rows": self.texts(rows), **self.told()})

    def columns(self, outputs: torch.Tensor, rows: pa.Table) -> dict[str, list[Any]]:
        """Columns of the predictions of these rows: `prediction`, and `score`, `scores` or others of the task's own. `nll` only where
        the rows have answers."""
        raise NotImplementedError

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        import pyarrow as pa

        size, parts = batch_size or part.batch_size, list[dict[str, list[Any]]]()
        with progress("answers", rows.num_rows, "rows") as bar:
            for start in range(0, rows.num_rows, size):
                some = rows.slice(start, size)
                parts.append(self.columns(self.outputs_of(model, some), some))
                bar.add(some.num_rows)
        columns = {name: [value for one in parts for value in one[name]] for name in (parts[0] if parts else ())}
        table = {"row_id": rows["row_id"], "reference": self.answers(rows), "prediction": [], **columns}
        table.setdefault("score", pa.array([None] * rows.num_rows, pa.float64()))
        if "document" in rows.column_names:
            table.setdefault("document", rows["document"])  # a task may group rows itself
        return pa.table(table).replace_schema_metadata({"prompt_digest": self.asked(rows, part)})

    def answer(self, model: nn.Module, inputs: list[Any], part: Asking) -> list[dict[str, Any]]:
        rows = self.rows_of(inputs)
        columns = self.columns(self.outputs_of(model, rows), rows)
        columns.setdefault("score", [None] * len(inputs))
        return [
            {
                "input": one[0] if isinstance(one, tuple) else one,
                **{name: values[i] for name, values in columns.items()},
            }
            for i, one in enumerate(inputs)
        ]

    def question(self, model: nn.Module, one: Any, part: Asking) -> Any:
        raise UsageError(f"answers of {self.name} cannot be explained so far")
