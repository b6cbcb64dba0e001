"""translation: a text in, the same in another language out; an encoder-decoder of transformers (Marian and its like).

Notable:
- From scratch, one byte-level BPE for both languages is learnt from the training rows (Sennrich et al. 2016, arXiv:1508.07909): every
  text has ids, and the tokenizer goes with the model as any other. A base brings its own.
- A batch is cut by length into groups that are computed apart: a loss is a sum over tokens, so nothing but the padding changes.
- Answers are found by beam search (transformers' `generate`), and the reference is told in nats beside them.

Shapes: N rows, B batch, S source tokens, T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe
from hermitcrab.tasks import Asking, Loss, Start, Work, vocabulary
from hermitcrab.tasks.base import BaseTask
from hermitcrab.tasks.examples import Named, alike, padded, tensor

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.recipe import Train

PAD, END = "<pad>", "</s>"  # of a tokenizer that is learnt here; PAD also begins every target, as in Marian
BEAMS = 4
TOKEN_BYTES = 4  # of a text, about


class Pairs(Named):
    """Token ids of every row, of its own length: lists of int64 [S] and [T], both closed by END."""

    def __init__(self, names: list[str], source: list[list[int]], target: list[list[int]]):
        self.names, self.source, self.target = names, source, target


class Translation(BaseTask):
    name = "translation"
    formats = ("text-pair",)
    kind = "SEQ_TO_SEQ_CAUSAL_LM"
    metrics = ("bleu", "chrf", "bits_per_byte")
    baselines = ("nearest-segment",)
    fitted_as = vocabulary.FITTED_AS
    ignored = (
        "report.show_text", "train.template", "train.attention", "train.lora", "train.loss", "evaluate.choices", "evaluate.few_shot",
        "evaluate.calibrate", "evaluate.sequence_length", "evaluate.noise_rows",
    )  # fmt: skip

    def __init__(self, start: Start, train: Train):
        super().__init__(start, train)
        self.text = vocabulary.read(self.fitted)
        pad, end = self.text.id("pad_token"), self.text.id("eos_token")
        assert pad is not None
        assert end is not None
        self.pad, self.end = pad, end
        self.most = min(train.sequence_length, self.configuration().get("max_position_embeddings") or 512)

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        """The tokenizer: the base's, or one that is learnt from both sides of the training rows."""
        texts = rows["source_text"].to_pylist() + rows["target_text"].to_pylist()
        return vocabulary.fit(texts, base, path, {"pad_token": PAD, "eos_token": END}, f"$A {END}")

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        vocabulary.check(fitted, where, ("pad_token", "eos_token"))

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        found = super().work(recipe, base, rows, test)
        tokens = min(rows["row_bytes"] / TOKEN_BYTES, 2 * recipe.train.sequence_length)
        memory = 34 * recipe.train.batch_size * tokens * 4096
        return Work(found.parameters, found.working, tokens, tokens * BEAMS, tokens / 2, memory)

    def told(self) -> dict[str, Any]:
        return {**super().told(), "sequence_length": self.most, "beams": BEAMS}

    def configured(self) -> dict[str, Any]:
        if self.start.base["kind"] != "scratch":
            return {}
        return {
            "vocab_size": self.text.backend.get_vocab_size(), "decoder_vocab_size": self.text.backend.get_vocab_size(),
            "pad_token_id": self.pad, "eos_token_id": self.end, "bos_token_id": self.pad, "decoder_start_token_id": self.pad,
            "forced_eos_token_id": None,
        }  # fmt: skip

    def compiled(self, model: nn.Module) -> list[nn.Module]:
        return []  # every group has another shape

    def save(self, model: Any, folder: Path) -> None:
        model.generation_config = self.searched(self.most - 1)
        super().save(model, folder)
        self.text.save(folder)

    # Rows

    def encoded(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Ids of each text, closed by END, at most as many as the model takes; and which were cut."""
        found = [one.ids for one in self.text.backend.encode_batch(list(texts))]
        cut = [len(ids) > self.most for ids in found]
        return [[*ids[: self.most - 1], self.end] if cut[i] else ids for i, ids in enumerate(found)], cut

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Pairs, dict[str, Any]]:
        """Pairs whose sides both fit; others are cut on the right only where `train.truncate` says so."""
        (source, long_source), (target, long_target) = (
            self.encoded(rows[column].to_pylist()) for column in ("source_text", "target_text")
        )
        long = [a or b for a, b in zip(long_source, long_target, strict=True)]
        keep = [i for i in range(rows.num_rows) if self.part.truncate != "drop" or not long[i]]
        ledger.take(rows.num_rows)
        ledger.keep(len(keep))
        ledger.drop(f"longer than {self.most} tokens", rows.num_rows - len(keep))
        if self.part.truncate != "drop":
            ledger.change("cut on the right", sum(long))
        if not keep:
            raise HermitcrabError(
                f"no training row fits {self.most:,} tokens; raise train.sequence_length and max_position_embeddings"
            )
        names = rows["row_id"].to_pylist()
        found = Pairs([names[i] for i in keep], [source[i] for i in keep], [target[i] for i in keep])
        return found, {"learnt": len(keep), "tokens": sum(map(len, found.target))}

    def summary(self, entry: Mapping[str, Any]) -> str:
        return f"{super().summary(entry)}, {entry['tokens']:,} tokens to be said"

    def positions(self) -> int:
        return self.most

    def groups(self, source: Sequence[list[int]], target: Sequence[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
        """Pairs of like length together: int64 `source` [B, S], its `mask`, `given` [B, T] (what the decoder sees), `label` [B, T]."""
        for members in alike([(len(t), len(s)) for s, t in zip(source, target, strict=True)]):
            ids_BS, mask_BS = padded([source[i] for i in members], self.pad)
            label_BT, _ = padded([target[i] for i in members], IGNORE)
            given_BT, _ = padded([[self.pad, *target[i][:-1]] for i in members], self.pad)
            yield {"source": ids_BS, "mask": mask_BS, "given": given_BT, "label": label_BT, "row": tensor(members)}

    def batch(self, examples: Pairs, rows: np.ndarray) -> Any:
        return list(self.groups([examples.source[int(i)] for i in rows], [examples.target[int(i)] for i in rows]))

    def count(self, batch: Any) -> int:
        return sum(int((group["label"] != IGNORE).sum()) for group in batch)

    @staticmethod
    def logits(model: nn.Module, group: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of every target position, float32 [B, T, V]."""
        return model(
            input_ids=group["source"], attention_mask=group["mask"], decoder_input_ids=group["given"], use_cache=False
        ).logits.float()

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Nats of the target tokens, each after those before it."""
        import torch.nn.functional as F

        parts = [
            F.cross_entropy(
                self.logits(model, group).flatten(0, 1), group["label"].flatten(), ignore_index=IGNORE, reduction="sum"
            )
            for group in batch
        ]
        return Loss(sum(parts[1:], parts[0]), self.count(batch))

    # Judging and using

    def outputs_of(self, model: nn.Module, rows: pa.Table) -> torch.Tensor:
        """Logits of the first word of each translation: [N, V]."""
        import torch

        model.eval()
        source, _ = self.encoded(rows["source_text"].to_pylist())
        ids_NS, mask_NS = padded(source, self.pad)
        given_N1 = torch.full((len(source), 1), self.pad, dtype=torch.int64, device=ids_NS.device)
        with torch.inference_mode():
            return self.logits(model, {"source": ids_NS, "mask": mask_NS, "given": given_N1})[:, 0]

    def searched(self, longest: int, **more: Any) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            num_beams=BEAMS, max_new_tokens=max(1, min(longest, self.most - 1)), do_sample=False, early_stopping=True,
            pad_token_id=self.pad, eos_token_id=self.end, decoder_start_token_id=self.pad,
            **more,
        )  # fmt: skip

    def translated(self, model: Any, source: list[list[int]], longest: int, size: int) -> tuple[list[str], list[float]]:
        """Of ids, by beam search, and the mean log-probability of each answer's tokens."""
        import torch

        model.eval()
        order = sorted(range(len(source)), key=lambda i: (len(source[i]), i))
        said, score = [""] * len(source), [0.0] * len(source)
        how = self.searched(longest, return_dict_in_generate=True, output_scores=True)
        with progress("translations", len(source), "rows") as bar, torch.inference_mode():
            for start in range(0, len(order), size):
                members = order[start : start + size]
                ids_BS, mask_BS = padded([source[i] for i in members], self.pad)
                found = model.generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=how)
                for i, ids, one in zip(members, found.sequences.tolist(), found.sequences_scores.tolist(), strict=True):
                    said[i], score[i] = self.text.decode(ids).strip(), one
                bar.add(len(members))
        return said, score

    def nats(
        self, model: nn.Module, source: list[list[int]], meant: list[str], size: int
    ) -> tuple[list[float], list[int], list[int]]:
        """What each reference costs, its tokens and its bytes: of one that is longer than the model can say, those that it could."""
        import torch
        import torch.nn.functional as F

        target, cut = self.encoded(meant)
        sizes = [len((self.text.decode(target[i]) if cut[i] else meant[i]).encode()) for i in range(len(meant))]
        nll = np.zeros(len(source))
        with torch.inference_mode():
            for start in range(0, len(source), size):
                for group in self.groups(source[start : start + size], target[start : start + size]):
                    cost_BT = F.cross_entropy(
                        self.logits(model, group).transpose(1, 2), group["label"], ignore_index=IGNORE, reduction="none"
                    )
                    nll[start + group["row"].cpu().numpy()] = cost_BT.double().sum(dim=1).cpu().numpy()
        return nll.tolist(), list(map(len, target)), sizes

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        return digest_json({"rows": self.texts(rows), "most": part.max_new_tokens, **self.told()})

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """Translations with their scores; `nll`, `tokens` and `bytes` of the references. How many sources were cut is in the metadata."""
        import pyarrow as pa

        size, meant = batch_size or part.batch_size, self.answers(rows)
        source, cut = self.encoded(rows["source_text"].to_pylist())
        said, score = self.translated(model, source, part.max_new_tokens, size)
        nll, tokens, sizes = self.nats(model, source, meant, size)
        table = {
            "row_id": rows["row_id"], "reference": meant, "prediction": said, "score": score, "nll": nll, "tokens": tokens,
            "bytes": sizes,
        }  # fmt: skip
        if "document" in rows.column_names:
            table["document"] = rows["document"]
        return pa.table(table).replace_schema_metadata(
            {"prompt_digest": self.asked(rows, part), "prompts_cut": str(sum(cut))}
        )

    def answer(self, model: nn.Module, inputs: list[Any], part: Asking) -> list[dict[str, Any]]:
        said, score = self.translated(model, self.encoded(inputs)[0], part.max_new_tokens, len(inputs) or 1)
        return [{"input": one, "prediction": said[i], "score": score[i]} for i, one in enumerate(inputs)]
