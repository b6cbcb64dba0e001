"""prune: a smaller model cut out of the derived one, and healed by a short training on the recipe's training rows.

    prune/<method>-<share that stays>/   as transformers loads it: model.safetensors, config.json, tokenizer

What each method takes out, and whose method it is: `magnitude.py`, `width.py`, `depth.py`. The cut is made first and kept, so a killed
healing goes on from its checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hermitcrab.compress import folders
from hermitcrab.compress.folders import FolderForm
from hermitcrab.compress.lessons import Lessons
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError

if TYPE_CHECKING:
    from hermitcrab.compress import Made
    from hermitcrab.recipe import Compress

FINAL_BITS = 16.0  # of a weight in bfloat16, which most recipes ship


class Prune(FolderForm):
    format: ClassVar[str] = "prune"

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        """Build the base's architecture without its weights and look for what shall be taken out."""
        from hermitcrab.compress import anatomy, width
        from hermitcrab.models.load import skeleton

        asked = part.prune
        if asked is None or asked.method == "magnitude":
            return
        model = skeleton(base, path)
        if asked.method == "depth":
            anatomy.layers(model)
        else:
            width.find(model, asked.parts)

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        return list(_shares(part))

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        whole = part.prune is None or part.prune.method == "magnitude"  # zeros are stored as any other number
        return FINAL_BITS * (1.0 if whole else _shares(part)[kind])

    def make(self, kind: str, folder: Path) -> Made:
        from hermitcrab.compress import learning

        source, asked = self.source, self.source.compress.prune
        assert asked is not None
        keep = _shares(source.compress)[kind]
        work, target = folder / "work", folder / kind
        work.mkdir(exist_ok=True)
        cut = work / "cut"
        told = learning.once(cut, lambda: self._cut(keep, cut))
        facts: dict[str, Any] = {}
        if asked.heal.steps:
            lessons = Lessons.of_healing(asked, tuple(told["zeros"]) if asked.method == "magnitude" else ())
            whole = work / "healed"
            healed = learning.learn(
                source, learning.start_of(source, cut), lessons, work / "training", whole, "compress.prune.heal"
            )
            told, facts = told | {"healed": healed["told"]}, {"plan": healed["plan"]}
        else:
            whole = cut
        if not target.exists():
            folders.label(
                whole, {**source.about, "parent": digest_json(source.start.base["files"]), "form": f"prune {kind}"}
            )
            os.replace(whole, target)
        if asked.method == "magnitude":
            told |= self._sizes(target, told)
        return folders.made(target, told, facts, told.pop("reasons", None))

    def _cut(self, keep: float, target: Path) -> dict[str, Any]:
        """The derived model without what goes, in its final precision; what is to be told of it."""
        import torch

        from hermitcrab.compress import learning
        from hermitcrab.evaluate.asking import load

        source, asked = self.source, self.source.compress.prune
        assert asked is not None
        task, model = load(source.task, source.start, source.train, "float32")
        model = model.cpu()
        before = sum(p.numel() for p in model.parameters())
        told, wanted = getattr(self, f"_{asked.method}")(task, model, keep)
        learning.saved(task, model.to(getattr(torch, source.train.final_dtype)), target)
        if wanted is not None:  # what it computes is proved on the files
            from hermitcrab.compress.width import prove

            cut, again = load(source.task, learning.start_of(source, target), source.train, "float32")
            told["proof"] = prove(wanted, cut.probe_logits(again, cut.probes()), model.config.model_type)
        return {
            "method": asked.method, "keep": keep, "parent": digest_json(source.start.base["files"]),
            "parameters": sum(p.numel() for p in model.parameters()), "parameters_before": before, **told,
        }  # fmt: skip

    def _magnitude(self, task: Any, model: Any, keep: float) -> tuple[dict[str, Any], None]:
        from hermitcrab.compress import magnitude

        asked: Any = self.source.compress.prune
        weights, dense, norms = magnitude.matrices(model), list[str](), None
        if asked.by == "activations":
            norms = magnitude.input_norms(task, model, self.source.calibration)
        if asked.pattern == "2:4":
            zeros, dense = magnitude.prune_2_of_4(weights, norms)
        else:
            zeros = magnitude.prune(weights, 1 - keep, asked.over, norms)
        if not zeros:
            raise HermitcrabError("compress.prune: no matrix of this model can be pruned by magnitude")
        return {
            "pattern": asked.pattern, "over": asked.over, "by": asked.by, "zeros": zeros,
            **({"calibration_rows": self.source.calibration.num_rows} if norms else {}),
            "numbers": sum(weights[name].numel() for name in zeros),
            "reasons": dict.fromkeys(dense, "its inputs cannot be cut into fours"),
        }, None  # fmt: skip

    def _width(self, task: Any, model: Any, keep: float) -> tuple[dict[str, Any], Any]:
        from hermitcrab.compress import width

        asked: Any = self.source.compress.prune
        found = width.find(model, asked.parts)
        kept, told = {}, {}
        for part, bundles in found.items():
            scores = width.importance(task, model, bundles, self.source.calibration)
            kept[part] = width.best(scores, keep)
            units = sum(bundle.units for bundle in bundles)
            stay = sum(map(len, kept[part]))
            if stay == units:
                raise HermitcrabError(
                    f"compress.prune.keep: {keep} of {bundles[0].units} {part} a layer is all of them; expected a smaller share"
                )
            lost = 1 - sum(float(s[k].sum() / s.sum()) for s, k in zip(scores, kept[part], strict=True)) / len(scores)
            told[part] = {"kept": stay, "of": units, "importance_lost": round(lost, 6)}
        width.silence(found, kept)
        wanted = task.probe_logits(model, task.probes())
        width.cut(model, found, kept)
        return {"calibration_rows": self.source.calibration.num_rows, **told}, wanted

    def _depth(self, task: Any, model: Any, keep: float) -> tuple[dict[str, Any], Any]:
        from hermitcrab.compress import anatomy, depth

        layers = len(anatomy.layers(model))
        dropped = layers - depth.kept_of(layers, keep)
        angles = depth.distances(task, model, self.source.calibration, dropped)
        first = min(range(len(angles)), key=angles.__getitem__)
        depth.cut(model, [number for number in range(layers) if not first <= number < first + dropped])
        return {
            "calibration_rows": self.source.calibration.num_rows, "layers": {"kept": layers - dropped, "of": layers},
            "dropped": [first, first + dropped - 1], "angle": angles[first], "angles": [round(a, 6) for a in angles],
        }, task.probe_logits(model, task.probes())  # fmt: skip

    def _sizes(self, target: Path, told: dict[str, Any]) -> dict[str, Any]:
        """What the zeros are worth: nothing in a dense file."""
        from hermitcrab.compress import magnitude

        zeros, bits = sum(told["zeros"].values()), 16 if self.source.train.final_dtype == "bfloat16" else 32
        files = sorted(target.glob("*.safetensors"))
        found = [magnitude.sizes(file) for file in files]
        size = sum(f["file"] for f in found)
        return {
            "zeros": zeros, "zero_share": round(zeros / told["numbers"], 6),
            "bytes": {
                "file": size, "deflated": sum(f["deflated"] for f in found),
                "bitmap": size - zeros * bits // 8 + -(-told["numbers"] // 8),
            },
        }  # fmt: skip


def _shares(part: Compress) -> dict[str, float]:
    """Kind → the share that stays."""
    asked = part.prune
    if asked is None:
        return {}
    if asked.pattern == "2:4":
        return {"magnitude-2of4": 0.5}
    return {f"{asked.method}-{keep:g}": keep for keep in asked.keep}
