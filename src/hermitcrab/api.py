"""hermitcrab from Python: what the verbs of the command line do, with objects that show themselves.

In a terminal an object prints what `crab show` prints; in a notebook it is a piece of HTML that needs nothing else. Failures
are `HermitcrabError`, with the sentence that the command line prints. Heavy libraries are imported by what is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Check, Verification
    from hermitcrab.recipe import Recipe
    from hermitcrab.store import Artifact


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str | Mapping[str, Any],
    store: str | Path = ".crab/store",
    runs: str | Path = "runs",
    key: str | Path | None = None,
) -> Result:
    """Run a recipe: every stage is reused or executed, whatever was killed continues.

    Args:
        recipe: a file, a mapping with the keys of a recipe, or a `Recipe`. Paths in it are as on the command line:
            relative to the working folder.
        overrides: keys to set on top, `"train.epochs=2"` or `{"train.epochs": 2}`; later ones win.
        store: where artifacts live.
        runs: where the run leaves report and package, in a folder with its name.
        key: private key (PEM) to sign with; default: the one of `crab keygen`, made on first use.

    Raises:
        HermitcrabError: a stage failed, or the recipe asks for what is not there (`UsageError`).

    Example:
        >>> result = hermitcrab.run("recipe.yaml", {"train.learning_rate": 5e-4})
        >>> result.comparison["verdict"], result.package
    """
    from hermitcrab.pipeline import Run
    from hermitcrab.recipe import from_value, load
    from hermitcrab.store import Store

    made = load(recipe, overrides) if isinstance(recipe, str | Path) else from_value(recipe, overrides)
    work = Run(made, Store(store), Path(runs))
    work.execute(Path(key) if key is not None else None)
    return Result.of(work.recipe.name, store, work.reused)


def verify(package: str | Path | Result, key: str | Path | None = None) -> Verified:
    """Check a package: every digest, the chain, the signatures, parity and licenses. True in a condition where it holds.

    Args:
        package: its folder, or the result of a run.
        key: public key (PEM) of the signer; without it the signer is not authenticated.
    """
    from hermitcrab.lineage.verify import verify as check

    folder = package.package if isinstance(package, Result) else Path(package)
    return Verified(folder, check(folder, Path(key) if key is not None else None))


def compare(
    base: str | Path | Result,
    derived: str | Path | Result,
    on: str | Path,
    *,
    choices: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    format: str = "prompt-completion",
    type: str = "auto",
    labels: str | Path | None = None,
    metrics: Sequence[str] = (),
    rows: int | None = None,
    max_new_tokens: int = 64,
    key: str | Path | None = None,
    base_key: str | Path | None = None,
    unverified: bool = False,
    store: str | Path = ".crab/store",
) -> Comparison:
    """Two models asked the same rows: paired differences (derived minus base), gained and lost rows, and a sentence.

    Args:
        base, derived: a package's folder, a run's name or folder, the result of a run, or a reference to a model.
        on: a file of rows, or `run:NAME/prepare` for the test rows of a run.
        choices: answers to choose from; default: those that a package records, else answers are generated.
        columns: wanted column → a column of the file, or a text with `{column}` in it.
        format: what a row of the file is: `text`, `prompt-completion`, `messages`, `image-label`.
        type: what the file is, as in a recipe's source; `auto` goes by its ending.
        labels: of images of type `idx`: the file of their labels.
        metrics: the first that both models can give decides; default: all.
        rows: ask only so many; None: all.
        key, base_key: public keys (PEM) of the signers of the two packages.
        unverified: use a package that does not verify all the same.

    Raises:
        HermitcrabError: a package that does not verify, rows that cannot be asked, no such model (`UsageError`).
    """
    from hermitcrab.comparing import How, compare_models
    from hermitcrab.report.terminal import near
    from hermitcrab.store import Store

    def named(model: str | Path | Result) -> str:
        return str(near(model.package) if isinstance(model, Result) else model)

    how = How(
        choices=tuple(choices), columns=dict(columns or {}), format=format, type=type,
        labels=str(labels) if labels is not None else None, metrics=tuple(metrics), rows=rows,
        max_new_tokens=max_new_tokens, key=Path(key) if key is not None else None,
        base_key=Path(base_key) if base_key is not None else None, unverified=unverified,
    )  # fmt: skip
    return Comparison(compare_models(named(base), named(derived), str(on), Store(store), how))


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run.

    Attributes:
        name: of the run.
        folder: where report and package lie.
        facts: everything that the report says, as `crab show --json` tells it.
        artifacts: what each stage left in the store, by stage.
        reused: the stages that were not executed anew.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    reused: Sequence[str] = ()

    @classmethod
    def of(cls, name: str, store: str | Path = ".crab/store", reused: Sequence[str] = ()) -> Result:
        """The result of a run that is in the store already, by its name."""
        from hermitcrab.pipeline import find_run
        from hermitcrab.report.gather import gather
        from hermitcrab.store import Store

        record, artifacts = find_run(name, Store(store))
        return cls(
            name, Path(record["folder"]), gather({**record, "reused": list(reused)}, artifacts), artifacts, reused
        )

    @property
    def package(self) -> Path:
        """The folder that others load, signed."""
        return self.folder / "package"

    def report(self) -> Path:
        """The page of this run: one self-contained HTML file."""
        return self.folder / "report.html"

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Entries `{name, version, value, low, high, n, split, model, prompt_digest}`, as in the package's metrics.json."""
        return self.artifacts["evaluate"].read("metrics.json")

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """Verdict, sentence, pairs, gained and lost rows, as in the package's comparison.json."""
        return self.artifacts["evaluate"].read("comparison.json")

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Every setting that `tune` tried, with its figure on validation rows; empty where nothing was searched."""
        return list(self.facts["trials"])

    @property
    def profile(self) -> list[Path]:
        """Traces that `train.profile` recorded."""
        found = self.facts["profile"]
        return [Path(found["folder"]) / name for name in found["files"]] if found else []

    @property
    def digests(self) -> dict[str, str]:
        """Digest of what each stage left: equal digests are equal bytes."""
        return dict(self.facts["artifacts"])

    @property
    def recipe(self) -> dict[str, Any]:
        """The whole recipe as it ran, with the settings that a search chose."""
        return dict(self.facts["recipe"])

    def verify(self, key: str | Path | None = None) -> Verified:
        """Check the package of this run; `key` is the signer's public key."""
        return verify(self, key)

    def __repr__(self) -> str:
        from hermitcrab.report.terminal import render

        return render(self.facts)

    def _repr_html_(self) -> str:
        from hermitcrab.report.cell import run_cell

        return run_cell(self.facts)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Two models on the same rows. `told` is what `crab compare --json` prints."""

    told: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `tied`, `no evidence of added value` or `not compared`."""
        return self.told["verdict"]

    @property
    def sentence(self) -> str:
        return self.told["sentence"]

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """One entry a metric: both values, the difference with its interval, p-values, gained and lost."""
        return self.told["pairs"]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return self.told["metrics"]

    @property
    def gained(self) -> list[str]:
        """Ids of the rows that only the derived model answered rightly."""
        return self.told["gained"]

    @property
    def lost(self) -> list[str]:
        """Ids of the rows that only the base answered rightly."""
        return self.told["lost"]

    def report(self, path: str | Path) -> Path:
        """Write the comparison as one self-contained HTML file."""
        from hermitcrab.report.cell import write_comparison

        write_comparison(self.told, Path(path))
        return Path(path)

    def __repr__(self) -> str:
        from hermitcrab.report.terminal import render_comparison

        return render_comparison(self.told)

    def _repr_html_(self) -> str:
        from hermitcrab.report.cell import comparison_cell

        return comparison_cell(self.told)


@dataclass(frozen=True, repr=False)
class Verified:
    """What was checked of a package; true where every check passed."""

    folder: Path
    found: Verification

    def __bool__(self) -> bool:
        return self.found.ok

    @property
    def ok(self) -> bool:
        return self.found.ok

    @property
    def authenticated(self) -> bool:
        """The signature is that of the key that was given."""
        return self.found.authenticated

    @property
    def summary(self) -> str:
        return self.found.summary

    @property
    def failures(self) -> list[Check]:
        return self.found.failures

    def __repr__(self) -> str:
        from hermitcrab.report.terminal import render_verification

        return render_verification(self.found)

    def _repr_html_(self) -> str:
        from hermitcrab.report.cell import verification_cell

        return verification_cell(self.folder.name, self.found)
