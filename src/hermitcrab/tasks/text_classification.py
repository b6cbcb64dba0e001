"""text-classification: a text in, one of the labels of the training rows out; any text classifier of transformers, on any body.

Notable:
- A base without a head for these labels gets a new one, drawn from the training's seed; its body must fit, tensor by tensor.
- A batch is cut by length into a few groups that are computed apart: next to nothing is computed for padding, and since a loss is a
  sum over rows, nothing else changes.

Shapes: N rows, B batch, L tokens, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.base import read_config
from hermitcrab.models.load import load_text, save_tokenizer
from hermitcrab.models.tokenizer import read_json_file
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe, Train
from hermitcrab.tasks import Asking, Start, Work
from hermitcrab.tasks.classifier import Classifier
from hermitcrab.tasks.examples import Named, alike, padded, place, tensor

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.tasks.explained import Question

TOKEN_BYTES = 4  # of a text, about


class TextExamples(Named):
    """Token ids of every row, of its own length, and its label: int32 [L] each, int64 [N]."""

    def __init__(self, names: list[str], ids: list[np.ndarray], label_N: torch.Tensor):
        self.names, self.ids, self.label_N = names, ids, label_N


class TextClassification(Classifier):
    name = "text-classification"
    formats = ("text-label",)
    kind = "SEQUENCE_CLASSIFICATION"
    reads_text = True
    opens_from = "config.json of a text classifier with id2label, and tokenizer.json"
    baselines = ("majority", "tfidf-logreg")
    exports = ("safetensors",)
    ignored = (
        "report.show_text", "train.template", "train.attention", "train.lora", "evaluate.choices", "evaluate.few_shot",
        "evaluate.calibrate", "evaluate.max_new_tokens", "evaluate.sequence_length",
    )  # fmt: skip

    def __init__(self, start: Start, train: Train):
        super().__init__(start, train)
        self.text = load_text(start.base, start.path)
        pad = self.text.id("pad_token")
        self.pad = 0 if pad is None else pad
        config = start.base.get("configuration") or read_config(start.path)
        positions = config.get("max_position_embeddings") or 512
        told = self.text.settings.get("model_max_length")
        # A recipe that says nothing, and a finished model, go by what the tokenizer says.
        asked = train.sequence_length if "sequence_length" in train.model_fields_set or type(told) is not int else told
        self.most = min(asked, positions)
        if "sequence_length" in train.model_fields_set and asked > positions:
            raise HermitcrabError(
                f"train.sequence_length: {start.base['name']} has {positions:,} positions. Received: {asked:,}"
            )
        self.cut = 0  # texts of the last answers that were longer than a row
        side = train.truncate if "truncate" in train.model_fields_set else self.text.settings.get("truncation_side")
        self.left = side == "left"

    @classmethod
    def opens(cls, path: Path) -> dict[str, Any] | None:
        files = [path / "config.json", path / "tokenizer.json"]
        config = read_json_file(files[0]) if all(file.is_file() for file in files) else {}
        names = config.get("id2label") if isinstance(config, dict) else None
        if not isinstance(names, dict) or not str(config.get("architectures")).count("ForSequenceClassification"):
            return None
        fitted = {"labels": [names.get(str(i)) for i in range(len(names))]}
        cls.check_fitted(fitted, str(files[0]))
        return fitted

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        """Labels in alphabetical order, or a base's own in its order.

        Raises:
            HermitcrabError: the base knows other labels than the rows.
        """
        fitted = super().fit(rows, base, path)
        known = None if base["kind"] == "scratch" else cls.opens(path)
        if known is None:
            return fitted
        if set(known["labels"]) != set(fitted["labels"]):
            raise HermitcrabError(
                f"the base knows other labels than the training rows have: it {known['labels'][:5]}, they {fitted['labels'][:5]}; "
                "rename them with `values`"
            )
        return known

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        found = super().work(recipe, base, rows, test)
        tokens = min(rows["row_bytes"] / TOKEN_BYTES, recipe.train.sequence_length)
        memory = 34 * recipe.train.batch_size * tokens * (base.get("shape") or {}).get("hidden_size", 384) * 6
        return Work(found.parameters, found.working, tokens, tokens, 1, memory)

    def told(self) -> dict[str, Any]:
        return {**super().told(), "sequence_length": self.most, "truncation_side": "left" if self.left else "right"}

    def model(self, dtype: torch.dtype) -> nn.Module:
        from hermitcrab.models.load import load_model

        if self.start.base["kind"] == "scratch":
            return super().model(dtype)
        return load_model(
            self.start.base, self.start.path, dtype, self.kind, self.configured(), new_head=self.part.seed
        )

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        settings = {"model_max_length": self.most, "truncation_side": "left" if self.left else "right"}
        save_tokenizer(self.start.base, self.start.path, folder, settings)

    def encoded(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[bool]]:
        """Ids of each text with the tokens that the base puts around it, and whether it was longer than a row and is cut."""
        most, left = self.most, self.left
        found, cut = list[np.ndarray](), list[bool]()
        with progress("tokens", len(texts), "texts") as bar:
            for start in range(0, len(texts), 1024):
                for one in self.text.backend.encode_batch(list(texts[start : start + 1024]), add_special_tokens=True):
                    ids = one.ids
                    cut.append(len(ids) > most)
                    if cut[-1]:
                        ids = [*ids[:1], *ids[-most + 1 :]] if left else [*ids[: most - 1], ids[-1]]
                    found.append(np.asarray(ids, np.int32))
                bar.add(min(1024, len(texts) - start))
        return found, cut

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[TextExamples, dict[str, Any]]:
        import torch

        policy, most = self.part.truncate, self.most
        ids, cut = self.encoded(rows["text"].to_pylist())
        keep = [i for i in range(len(ids)) if policy != "drop" or not cut[i]]
        ledger.take(len(ids))
        ledger.keep(len(keep))
        ledger.drop(f"longer than {most} tokens", len(ids) - len(keep))
        if policy != "drop":
            ledger.change(f"cut on the {policy}", sum(cut))
        if not keep:
            raise HermitcrabError(
                f"no training row fits train.sequence_length={most:,}; raise it or set train.truncate: right"
            )
        counts = dict.fromkeys(self.fitted["labels"], 0)
        labels = self.answers(rows)
        for i in keep:
            counts[labels[i]] += 1
        names = rows["row_id"].to_pylist()
        label_N = torch.tensor([self.index[labels[i]] for i in keep], dtype=torch.int64)
        found = TextExamples([names[i] for i in keep], [ids[i] for i in keep], label_N)
        return found, {"learnt": len(keep), "labels": counts}

    def positions(self) -> int:
        return self.most

    def product(self) -> tuple[int, int, int]:
        width = (self.start.base.get("shape") or {}).get("hidden_size") or 384
        return max(256, self.part.batch_size * 32), width, width

    def grouped(self, ids: Sequence[np.ndarray]) -> dict[str, Any]:
        """Rows of like length together: ids and mask of each group, int64 [B, L], and where each row stands in all of them."""
        members = alike([len(one) for one in ids])
        back_B = np.argsort(np.concatenate(members), kind="stable")
        return {"groups": [padded([ids[i] for i in some], self.pad) for some in members], "back": tensor(back_B)}

    def batch(self, examples: TextExamples, rows: np.ndarray) -> dict[str, Any]:
        label_B = examples.label_N[rows].to(place())
        return {"label": label_B, **self.grouped([examples.ids[int(row)] for row in rows])}

    def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
        import torch

        found = [model(input_ids=ids_BL, attention_mask=mask_BL).logits for ids_BL, mask_BL in batch["groups"]]
        return torch.index_select(torch.cat(found), 0, batch["back"])

    def outputs_of(self, model: nn.Module, rows: pa.Table) -> torch.Tensor:
        import torch

        model.eval()
        ids, cut = self.encoded(rows["text"].to_pylist())
        self.cut += sum(cut)
        with torch.inference_mode():
            return self.outputs(model, self.grouped(ids))

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """As for every classifier; how many texts were cut is in the table's metadata."""
        self.cut = 0
        found = super().predict(model, rows, part, shots, batch_size)
        return found.replace_schema_metadata({**found.schema.metadata, "prompts_cut": str(self.cut)})

    def question(self, model: nn.Module, one: str, part: Asking) -> Question:
        from hermitcrab.tasks.explained import of_text

        found = self.text.backend.encode(one, add_special_tokens=True)
        ids = self.encoded([one])[0][0].tolist()
        if len(ids) < len(found.ids):
            raise HermitcrabError(
                f"the text has {len(found.ids):,} tokens and would be cut to {len(ids):,}; give a shorter one"
            )
        return of_text(
            model, ids, found.special_tokens_mask, [one[a:b] for a, b in found.offsets], self.fitted["labels"]
        )
