"""fill-mask: a text with hidden tokens in, those tokens out; an encoder of transformers (BERT and its like), from scratch or gone on with.

Notable:
- From scratch, a byte-level BPE is learnt from the training rows and goes with the model; a text classifier can then be built on it.
- Tokens are hidden as in BERT (Devlin et al. 2019, arXiv:1810.04805): 15 % of a text, of which eight tenths become the mask, one tenth
  another token, one tenth stay. Each row is hidden in `MASKINGS` ways, drawn from its id: runs, processes and resumed
  trainings see the same, and an epoch sees every row so many times.

Shapes: N rows, B batch, L tokens, M hidden tokens, V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe
from hermitcrab.tasks import Asking, Loss, Start, Work, vocabulary
from hermitcrab.tasks.base import BaseTask
from hermitcrab.tasks.examples import padded

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.recipe import Train

SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
MASKS = ("[MASK]", "<mask>")  # as bases call it
HAN = r"\p{Han}"  # each a token of its own
MASKINGS = 4
HIDDEN, MASKED, OTHER = 0.15, 0.8, 0.1
TOKEN_BYTES = 4  # of a text, about


class Maskings:
    """Token ids of every row, of its own length; row i stands at i, i + N, …, hidden in another way each time."""

    def __init__(self, names: list[str], ids: list[np.ndarray]):
        self.names, self.ids = names, ids

    def __len__(self) -> int:
        return len(self.names) * MASKINGS

    def row_ids(self, rows: Any) -> list[str]:
        return [self.names[int(row) % len(self.names)] for row in rows]


class FillMask(BaseTask):
    name = "fill-mask"
    formats = ("text",)
    kind = "MASKED_LM"
    metrics = ("perplexity", "bits_per_byte")
    fitted_as = vocabulary.FITTED_AS
    ignored = (
        "report.show_text", "train.template", "train.attention", "train.lora", "train.loss", "evaluate.choices", "evaluate.few_shot",
        "evaluate.calibrate", "evaluate.max_new_tokens", "evaluate.sequence_length", "evaluate.noise_rows",
    )  # fmt: skip

    def __init__(self, start: Start, train: Train):
        super().__init__(start, train)
        self.text = vocabulary.read(self.fitted)
        backend = self.text.backend
        self.pad, self.mask = self.text.id("pad_token") or 0, backend.token_to_id(mask_of(backend))
        added = backend.get_added_tokens_decoder()
        self.special = {i for i, token in added.items() if token.special}
        self.plain = np.array(sorted(set(backend.get_vocab().values()) - self.special), np.int64)
        self.most = min(train.sequence_length, self.configuration().get("max_position_embeddings") or 512)

    @classmethod
    def fit(cls, rows: pa.Table, base: dict[str, Any], path: Path) -> dict[str, Any]:
        fitted = vocabulary.fit(rows["text"].to_pylist(), base, path, SPECIAL, "[CLS] $A [SEP]", HAN)
        cls.check_fitted(fitted, str(path))  # a base's tokenizer may have no mask
        return fitted

    @classmethod
    def check_fitted(cls, fitted: dict[str, Any], where: str) -> None:
        super().check_fitted(fitted, where)
        vocabulary.check(fitted, where, ("pad_token",))
        if mask_of(vocabulary.read(fitted).backend) is None:
            raise HermitcrabError(f"{where}: fitted: the tokenizer has no mask; expected {' or '.join(MASKS)}")

    @classmethod
    def answers(cls, rows: pa.Table) -> list[Any]:
        return rows["text"].to_pylist()

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        found = super().work(recipe, base, rows, test)
        tokens = min(rows["row_bytes"] / TOKEN_BYTES, recipe.train.sequence_length)
        memory = 34 * recipe.train.batch_size * tokens * 4096
        return Work(found.parameters, found.working, tokens, tokens, tokens * HIDDEN, memory)

    def told(self) -> dict[str, Any]:
        return {**super().told(), "sequence_length": self.most, "maskings": MASKINGS}

    def configured(self) -> dict[str, Any]:
        if self.start.base["kind"] != "scratch":
            return {}
        return {"vocab_size": self.text.backend.get_vocab_size(), "pad_token_id": self.pad}

    def compiled(self, model: nn.Module) -> list[nn.Module]:
        return []  # every batch has another shape

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        self.text.save(folder)

    # Rows

    def encoded(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """Ids of each text with the tokens around it, int64 [L], at most as many as the model takes; and how many texts were cut."""
        found, cut = list[np.ndarray](), 0
        for one in self.text.backend.encode_batch(list(texts)):
            ids = one.ids
            if len(ids) > self.most:
                ids, cut = [*ids[: self.most - 1], ids[-1]], cut + 1
            found.append(np.array(ids, np.int64))
        return found, cut

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[Maskings, dict[str, Any]]:
        ids, cut = self.encoded(rows["text"].to_pylist())
        keep = [i for i, one in enumerate(ids) if self.candidates(one).size]
        ledger.take(len(ids))
        ledger.keep(len(keep))
        ledger.drop("no token to hide", len(ids) - len(keep))
        ledger.change(f"cut to {self.most} tokens", cut)
        if not keep:
            raise HermitcrabError("no training row has a token to hide; expected texts")
        names = rows["row_id"].to_pylist()
        found = Maskings([names[i] for i in keep], [ids[i] for i in keep])
        return found, {"learnt": len(keep), "tokens": sum(map(len, found.ids))}

    def summary(self, entry: Mapping[str, Any]) -> str:
        return f"{super().summary(entry)}, {entry['tokens']:,} tokens, hidden in {MASKINGS} ways"

    def positions(self) -> int:
        return self.most

    def candidates(self, ids_L: np.ndarray) -> np.ndarray:
        """Places of the tokens that may be hidden."""
        return np.flatnonzero([token not in self.special for token in ids_L.tolist()])

    def hidden(self, name: str, ids_L: np.ndarray, way: int) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees, and the label of each place (`IGNORE` where nothing is asked): int64 [L] both."""
        draw = np.random.default_rng([zlib.crc32(name.encode()), way])
        places = self.candidates(ids_L)
        chosen_M = draw.choice(places, min(len(places), max(1, round(HIDDEN * len(places)))), replace=False)
        seen_L, label_L = ids_L.copy(), np.full_like(ids_L, IGNORE)
        label_L[chosen_M] = ids_L[chosen_M]
        share_M = draw.random(len(chosen_M))
        seen_L[chosen_M[share_M < MASKED]] = self.mask
        others = chosen_M[share_M >= 1 - OTHER]
        seen_L[others] = draw.choice(self.plain, len(others))
        return seen_L, label_L

    def together(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        seen_BL, mask_BL = padded([seen for seen, _ in pairs], self.pad)
        return {"seen": seen_BL, "mask": mask_BL, "label": padded([label for _, label in pairs], IGNORE)[0]}

    def batch(self, examples: Maskings, rows: np.ndarray) -> Any:
        n = len(examples.names)
        places = [divmod(int(row), n) for row in rows]
        return self.together([self.hidden(examples.names[i], examples.ids[i], way) for way, i in places])

    def count(self, batch: Any) -> int:
        return int((batch["label"] != IGNORE).sum())

    @staticmethod
    def logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of the hidden tokens alone, row after row, float32 [M, V]: the product with the vocabulary is most of the work, so a head
        that is a module of its own is given nothing but their places."""
        inner = getattr(model, "module", model)  # of several processes
        head = getattr(inner, "cls", None) or getattr(inner, "lm_head", None)
        asked_BL = batch["label"] != IGNORE
        hook = head.register_forward_pre_hook(lambda _, given: (given[0][asked_BL],)) if head is not None else None
        try:
            found = model(input_ids=batch["seen"], attention_mask=batch["mask"]).logits.float()
        finally:
            if hook is not None:
                hook.remove()
        return found if hook is not None else found[asked_BL]

    def loss(self, model: nn.Module, batch: Any) -> Loss:
        """Nats of the hidden tokens."""
        import torch.nn.functional as F

        label_M = batch["label"][batch["label"] != IGNORE]
        return Loss(F.cross_entropy(self.logits(model, batch), label_M, reduction="sum"), len(label_M))

    # Judging and using

    def outputs_of(self, model: nn.Module, rows: pa.Table) -> torch.Tensor:
        """Logits of the first token of each text, hidden: [N, V]."""
        import torch

        model.eval()
        pairs = []
        for ids_L in self.encoded(rows["text"].to_pylist())[0]:
            first = self.candidates(ids_L)[:1]
            seen_L, label_L = ids_L.copy(), np.full_like(ids_L, IGNORE)
            seen_L[first], label_L[first] = self.mask, ids_L[first]
            pairs.append((seen_L, label_L))
        with torch.inference_mode():
            return self.logits(model, self.together(pairs))

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        """The hidden tokens of each row, hidden in its first way: `nll` and `tokens` of them, `bytes` of what they stand for."""
        import pyarrow as pa
        import torch
        import torch.nn.functional as F

        model.eval()
        size, names = batch_size or part.batch_size, rows["row_id"].to_pylist()
        ids, cut = self.encoded(rows["text"].to_pylist())
        made: dict[str, list[Any]] = {name: [] for name in ("reference", "prediction", "nll", "tokens", "bytes")}
        with progress("answers", rows.num_rows, "rows") as bar, torch.inference_mode():
            for start in range(0, rows.num_rows, size):
                some = range(start, min(start + size, rows.num_rows))
                batch = self.together([self.hidden(names[i], ids[i], 0) for i in some])
                logits_MV = self.logits(model, batch)
                label_BL = batch["label"]
                label_M = label_BL[label_BL != IGNORE]
                nll_M = F.cross_entropy(logits_MV, label_M, reduction="none").double()
                sizes = (label_BL != IGNORE).sum(dim=1).tolist()
                parts = (part.split(sizes) for part in (label_M, logits_MV.argmax(dim=-1), nll_M))
                for label, said, nll in zip(*parts, strict=True):
                    made["reference"].append(self.words(label.tolist()))
                    made["prediction"].append(self.words(said.tolist()))
                    made["nll"].append(float(nll.sum()))
                    made["tokens"].append(len(label))
                    made["bytes"].append(sum(len(self.text.bytes_of(i)) for i in label.tolist()))
                bar.add(len(some))
        table = {"row_id": rows["row_id"], **made, "score": [-nll for nll in made["nll"]]}
        if "document" in rows.column_names:
            table["document"] = rows["document"]
        return pa.table(table).replace_schema_metadata(
            {"prompt_digest": self.asked(rows, part), "prompts_cut": str(cut)}
        )

    def words(self, ids: Sequence[int]) -> str:
        return " ".join(self.text.decode([i]).strip() for i in ids)

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        return digest_json({"rows": self.texts(rows), **self.told()})

    def answer(self, model: nn.Module, inputs: list[Any], part: Asking) -> list[dict[str, Any]]:
        """The likeliest token in the place of each mask, and its log-probability."""
        import torch

        word, found = mask_of(self.text.backend), []
        for number, text in enumerate(inputs, 1):
            ids_L = self.encoded([text])[0][0]
            label_L = np.where(ids_L == self.mask, ids_L, IGNORE)
            if not (ids_L == self.mask).any():
                raise UsageError(
                    f"input {number:,}: expected a text with {word} in the place of a token. Received: {text[:60]}"
                )
            model.eval()
            with torch.inference_mode():
                log_p_MV = self.logits(model, self.together([(ids_L, label_L)])).log_softmax(dim=-1)
            best_M = log_p_MV.max(dim=-1)
            said = [self.text.decode([i]).strip() for i in best_M.indices.tolist()]
            found.append({"input": text, "prediction": " ".join(said), "score": float(best_M.values.sum())})
        return found


def mask_of(backend: Any) -> Any:
    """The mask as this tokenizer calls it, None where it has none."""
    return next((mask for mask in MASKS if backend.token_to_id(mask) is not None), None)
