"""distill: a smaller student that learns the derived model's distributions on the recipe's training rows.

    distill/student/   as transformers loads it: model.safetensors, config.json, tokenizer

The loss is in `teaching.py`. A student starts from evenly chosen layers of its teacher (Sanh et al. 2019, arXiv:1910.01108), or from new
weights, whose seed comes from the system and is committed to: such a student has nothing of its teacher's weights, so no test of
weights finds the teacher. The record says who it was.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hermitcrab.compress import folders
from hermitcrab.compress.folders import FolderForm
from hermitcrab.compress.lessons import Lessons
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, did_you_mean
from hermitcrab.store import read_json, write_json

if TYPE_CHECKING:
    from hermitcrab.compress import Made
    from hermitcrab.recipe import Compress
    from hermitcrab.tasks import Start

STUDENT = "student"
FIXED = ("vocab_size", "num_channels", "image_size", "id2label", "label2id", "num_labels", "model_type")
FINAL_BITS = 16.0


class Distill(FolderForm):
    format: ClassVar[str] = "distill"

    @classmethod
    def check(cls, part: Compress, base: dict[str, Any], path: Path) -> None:
        from hermitcrab.compress import anatomy
        from hermitcrab.models.load import skeleton

        if part.distill is None:
            return
        teacher = skeleton(base, path)
        config = smaller(teacher.config.to_dict(), part.distill.architecture)
        if part.distill.start == "depth":
            asked, layers = part.distill.architecture, len(anatomy.layers(teacher))
            count = asked.get("num_hidden_layers")
            if asked.keys() != {"num_hidden_layers"} or type(count) is not int or not 0 < count < layers:
                raise HermitcrabError(
                    "compress.distill.architecture: a student of its teacher's layers has num_hidden_layers of its own, from 1 to "
                    f"{layers - 1}, and nothing else; other shapes need start: new. Received: {asked}"
                )
        else:
            skeleton({"kind": "scratch", "configuration": config, "architecture": base["architecture"]}, path)

    @classmethod
    def kinds(cls, part: Compress) -> list[str]:
        return [STUDENT] if part.distill else []

    @classmethod
    def bits(cls, part: Compress, kind: str) -> float:
        return FINAL_BITS  # a student is smaller than this by its shape, which a recipe alone does not tell

    def make(self, kind: str, folder: Path) -> Made:
        from hermitcrab.compress import learning

        source, asked = self.source, self.source.compress.distill
        assert asked is not None
        work, target = folder / "work", folder / kind
        work.mkdir(exist_ok=True)
        facts: dict[str, Any] = {}
        if asked.start == "depth":
            cut = work / "cut"
            told = learning.once(cut, lambda: self._layers(cut))
            start = learning.start_of(source, cut)
        else:
            start, told, facts = self._new(work)
        learnt = work / "learnt"
        found = learning.learn(source, start, Lessons.of_student(asked), work / "training", learnt, "compress.distill")
        parent = digest_json(source.start.base["files"])
        if not target.exists():
            folders.label(learnt, {**source.about, "teacher": parent, "form": f"distill {kind}"})
            os.replace(learnt, target)
        told = {"start": asked.start, "teacher": {**source.about, "digest": parent}, **told, "learnt": found["told"]}
        return folders.made(target, told, facts | {"plan": found["plan"]})

    def _layers(self, target: Path) -> dict[str, Any]:
        """The teacher with evenly chosen layers, as its files."""
        import torch

        from hermitcrab.compress import anatomy, depth, learning
        from hermitcrab.evaluate.asking import load

        source, asked = self.source, self.source.compress.distill
        assert asked is not None
        task, model = load(source.task, source.start, source.train, "float32")
        layers = len(anatomy.layers(model))
        stays = depth.even(layers, asked.architecture["num_hidden_layers"])
        depth.cut(model, stays)
        learning.saved(task, model.to(getattr(torch, source.train.final_dtype)), target)
        return {"layers": {"kept": stays, "of": layers}, "parameters": sum(p.numel() for p in model.parameters())}

    def _new(self, work: Path) -> tuple[Start, dict[str, Any], dict[str, Any]]:
        """A student with new weights; what is to be told of it, and the seed, which stays here."""
        from hermitcrab.compress import learning
        from hermitcrab.models.base import read_config

        source, asked = self.source, self.source.compress.distill
        assert asked is not None
        path = work / "init.json"
        if not path.exists():
            known = source.init_seed is not None  # the recipe tells it, so nothing is hidden
            write_json(path, {
                "seed": source.init_seed if known else secrets.randbits(53), "nonce": "" if known else secrets.token_hex(16),
            })  # fmt: skip
        seed = read_json(path)
        config = smaller(read_config(source.model), asked.architecture)
        start = learning.start_of(source, source.model, kind="scratch", configuration=config)
        files = [file for file in start.base["files"] if not file["path"].endswith(".safetensors")]
        commitment = "sha256:" + hashlib.sha256(f"{seed['seed']}|{seed['nonce']}".encode()).hexdigest()
        made = type(start)({**start.base, "files": files}, source.model, seed["seed"], start.fitted)
        return made, {"architecture": asked.architecture, "init_commitment": commitment}, {"init": seed}


def smaller(config: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The teacher's configuration with the student's own keys.

    Raises:
        HermitcrabError: a key that the architecture does not have, or that decides what the student is asked.
    """
    for key in asked:
        if key in FIXED:
            raise HermitcrabError(
                f"compress.distill.architecture: {key} is what student and teacher have in common; leave it out"
            )
        if key not in config:
            raise HermitcrabError(
                f"compress.distill.architecture: the teacher's configuration has no `{key}`{did_you_mean(key, config)}"
            )
    if all(config[key] == value for key, value in asked.items()):
        raise HermitcrabError(
            "compress.distill.architecture: the student would have its teacher's shape; name what is smaller, as "
            f"{{{'hidden_sizes: [32]' if 'hidden_sizes' in config else 'num_hidden_layers: 4'}}}"
        )
    return {**config, **asked}
