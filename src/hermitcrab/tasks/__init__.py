"""A task is what a row is, which model, which loss, how to predict. One file each; nothing else knows a word of it.

Most are short, on top of `base.BaseTask` or `classifier.Classifier` (docs/adding-a-task.md). Another distribution brings one by an
entry point of the group `hermitcrab.tasks`.

A task's module imports torch where it is used, so that a recipe can be checked without it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.data.tables import register_format
from hermitcrab.digest import digest_file, digest_json
from hermitcrab.errors import HermitcrabError, UsageError, did_you_mean
from hermitcrab.tasks.protocol import Asking, Examples, Loss, Start, Task, Work

if TYPE_CHECKING:
    from hermitcrab.recipe import Evaluate, Recipe, Train

__all__ = [
    "GROUP", "TASKS", "Asking", "Examples", "Loss", "Start", "Task", "Work", "check_recipe", "known", "load_task", "make_task",
    "metrics_asked", "misnamed", "outside_code", "own_metrics", "task_that_opens",
]  # fmt: skip

GROUP = "hermitcrab.tasks"  # of entry points
TASKS = {
    "fill-mask": "hermitcrab.tasks.fill_mask:FillMask",
    "image-classification": "hermitcrab.tasks.image_classification:ImageClassification",
    "recommendation": "hermitcrab.tasks.recommendation:Recommendation",
    "tabular-classification": "hermitcrab.tasks.tabular_classification:TabularClassification",
    "tabular-regression": "hermitcrab.tasks.tabular_regression:TabularRegression",
    "text-classification": "hermitcrab.tasks.text_classification:TextClassification",
    "text-generation": "hermitcrab.tasks.text_generation:TextGeneration",
    "time-series-forecasting": "hermitcrab.tasks.time_series_forecasting:TimeSeriesForecasting",
    "translation": "hermitcrab.tasks.translation:Translation",
}


def known() -> dict[str, str]:
    """Every task with the place of its class: ours, and those that other distributions bring (entry points `hermitcrab.tasks`)."""
    from importlib.metadata import entry_points

    return {**{entry.name: entry.value for entry in entry_points(group=GROUP)}, **TASKS}


def load_task(name: str) -> Any:
    """The class of a task, by its Hugging Face pipeline name. The row formats that it brings are known from here on.

    Raises:
        UsageError: there is none of that name.
        HermitcrabError: one that another distribution brings cannot be imported, or is no task.
    """
    places = TASKS if name in TASKS else known()
    if name not in places:
        raise UsageError(f"no task is named `{name}`{did_you_mean(name, places)}")
    module, _, attribute = places[name].partition(":")
    try:
        task = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise HermitcrabError(f"the task {name} ({places[name]}) cannot be imported: {error}") from error
    if getattr(task, "name", None) != name:
        raise HermitcrabError(f"the task {name} ({places[name]}): its class is named {getattr(task, 'name', None)!r}")
    for form, columns in task.own_formats.items():
        register_format(form, columns)
    return task


def outside_code(name: str) -> str | None:
    """The digest of the code of a task that another distribution brings: it decides what stages leave, and is in their keys."""
    if name in TASKS:
        return None
    file = Path(sys.modules[load_task(name).__module__].__file__ or "")
    top = file.parent if file.name == "__init__.py" or (file.parent / "__init__.py").is_file() else file
    found = sorted(top.rglob("*.py")) if top.is_dir() else [top]
    return digest_json({path.relative_to(top.parent).as_posix(): digest_file(path) for path in found})


def own_metrics() -> dict[str, Any]:
    """Every metric that a task brings, by name."""
    return {metric.name: metric for name in known() for metric in load_task(name).own_metrics}


def task_that_opens(path: Path) -> tuple[Any, dict[str, Any]] | None:
    """The class of the first task whose model lies at `path`, and what was fitted."""
    for name in known():
        task = load_task(name)
        if (fitted := task.opens(path)) is not None:
            return task, fitted
    return None


def make_task(name: str, start: Start, train: Train) -> Task:
    return load_task(name)(start, train)


def metrics_asked(task: Any, part: Evaluate) -> list[str]:
    """What a recipe asks to be measured: its metrics, or all that the task has; the deciding one first."""
    return list(part.metrics or task.metrics)


def misnamed(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names in a recipe that its task does not know: the path of the key, and a sentence."""
    if recipe.task not in known():
        return  # told where the task is loaded
    task = load_task(recipe.task)
    lists: list[tuple[tuple[str, ...], Sequence[str], Sequence[str], str]] = [
        (("evaluate", "metrics"), recipe.evaluate.metrics, task.metrics, "metric"),
        (("evaluate", "baselines"), recipe.evaluate.baselines, task.baselines, "baseline"),
    ]
    if recipe.tune is not None and recipe.tune.metric != "loss":
        lists.append((("tune", "metric"), [recipe.tune.metric], task.metrics, "metric"))
    for path, given, able, what in lists:
        if odd := next((name for name in given if name not in able), None):
            yield path, f"{'.'.join(path)}: {task.name} has no {what} `{odd}`{did_you_mean(odd, able)}"
    for split in ("train", "validation", "test"):
        for source in getattr(recipe.data, split):
            if source.format not in task.formats:
                near = did_you_mean(source.format, task.formats)
                told = f"data.{split}.format: {task.name} takes rows of format {' or '.join(task.formats)}{near}"
                yield ("data", split, "format"), f"{told}. Received: {source.format}"


def check_recipe(recipe: Recipe) -> None:
    """What a recipe asks of its task that the task cannot do.

    Raises:
        UsageError: with the key, what was received, and what is expected.
    """
    task = load_task(recipe.task)
    for _, told in misnamed(recipe):
        raise UsageError(told)
    for key in task.ignored:
        part: Any = recipe
        *parents, last = key.split(".")
        for name in parents:
            part = getattr(part, name)
        if last in part.model_fields_set and getattr(part, last) != type(part).model_fields[last].get_default(
            call_default_factory=True
        ):
            raise UsageError(f"{key}: means nothing to {task.name}; leave it out. Received: {getattr(part, last)}")
    for key in ("gguf", "openvino", "onnx", "prune", "distill"):
        if getattr(recipe.compress, key) and key not in task.compresses:
            able = ", ".join(task.compresses) or "nothing so far"
            raise UsageError(f"compress.{key}: {task.name} can be compressed to: {able}")
    if recipe.cluster.processes > 1 and task.why_not_split:
        raise UsageError(
            f"cluster.processes: {task.name} trains in one process ({task.why_not_split}). Received: {recipe.cluster.processes}"
        )
    task.check(recipe)
