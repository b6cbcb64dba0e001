"""What a verification can compute afresh with the models themselves: parity of the merge, and the committed first draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermitcrab.digest import describe_files, tree_files
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.references import fetch, resolve
from hermitcrab.store import Store, read_json
from hermitcrab.tasks import Start, load_task

if TYPE_CHECKING:
    from hermitcrab.lineage.verify import Verification


def recompute_parity(package: Path, reference: str | None, store: Store, found: Verification) -> None:
    """Add to a verification whether base + adapter still are what the package's merged weights say.

    Raises:
        HermitcrabError: the base is not at hand, or is another than the record's.
    """
    import torch

    from hermitcrab.errors import needs
    from hermitcrab.models.base import describe
    from hermitcrab.recipe import Base, Train

    needs("peft", "train")
    from hermitcrab.train import parity

    record = read_json(package / "hermitcrab.json")
    recorded, was = record["parity"], record["base"]
    task_class = load_task(record["task"])
    if not (package / "adapter").is_dir():
        raise UsageError(f"{package}: all weights were trained, so there is no adapter to put on the base again")
    where = resolve(reference or was["uri"], None if reference else _only_digest(was), store)
    path = fetch(where, store)
    base = describe(path, where, Base(path=where.reference, license=was["license"]), task_class.reads_text)
    with found.checking(
        "parity afresh", "model.safetensors", "base + adapter and the merged weights agree, computed afresh"
    ):
        if base["digest"] != was["digest"]:
            raise HermitcrabError(
                f"{where.reference} is another base: {base['digest']}, the record says {was['digest']}"
            )
        weights = [f for f in describe_files(package, tree_files(package)) if "/" not in f["path"]]
        packed = {**base, "kind": "safetensors", "files": weights}
        start, merged_start = (
            Start(b, p, None, record.get("fitted", {})) for b, p in ((base, path), (packed, package))
        )
        task = task_class(start, Train())
        model = task.model(getattr(torch, recorded["base_dtype"]))
        merged = task_class(merged_start, Train()).model(torch.float32)
        now = parity.recompute(task, package, model, merged, recorded["probes"])
        if not parity.within(now, recorded["tolerance"]):
            raise HermitcrabError(f"the merged weights are not base + adapter: {now}, allowed {recorded['tolerance']}")


def attest_seed(package: Path, told: str, found: Verification) -> None:
    """Add to a verification whether the initial weights of the committed seed are in the package's weights.

    Args:
        told: `SEED:NONCE`, `SEED` (where the recipe told it), or a JSON file with `seed` and `nonce`.

    Raises:
        UsageError: the record commits to no seed, or `told` is none.
    """
    from hermitcrab.errors import needs
    from hermitcrab.lineage.verify import Check
    from hermitcrab.trace.seed import attest, read_seed

    record = read_json(package / "hermitcrab.json")
    if "init_commitment" not in record:
        raise UsageError(f"{package}: its record commits to no initial seed; only models trained from scratch have one")
    seed, nonce = read_seed(told)
    needs("torch", "train")
    from hermitcrab.models.base import read_config
    from hermitcrab.models.load import write_module

    def draw(folder: Path, seed: int) -> None:
        task = load_task(record["task"])
        model = task.drawn(read_config(package), record.get("fitted", {}), seed)
        write_module(model, folder, {}) if task.is_plain() else model.save_pretrained(folder)

    result = attest(package, record["init_commitment"], seed, nonce, draw)
    if result.ok:
        found.checks.append(Check("seed", True, "model.safetensors", result.text))
    else:
        found.fail("seed", "model.safetensors", result.text, contradiction=result.committed)


def _only_digest(base: dict[str, Any]) -> str | None:
    """The digest that a `pypi:` or `deb:` reference needs."""
    return base["files"][0]["sha256"] if base["uri"].startswith(("pypi:", "deb:")) else None
