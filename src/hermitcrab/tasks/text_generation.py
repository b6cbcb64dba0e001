"""text-generation: any causal language model, on texts, prompts with completions, or conversations.

Notable:
- The output head is computed only where a label is: a pre-hook on it gathers those positions, so whatever the model does
  with its logits afterwards (scaling, soft caps) still happens.
- Documents lie packed in rows of one length; positions that restart at 0 tell them apart, and transformers builds the
  block-diagonal mask from that, for every attention kernel and for sliding windows too.

Shapes: B rows, L tokens a row, N labels, V vocabulary, R packed rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE, Document, Packed, pack
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import init_model, load_model
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Train
from hermitcrab.tasks import Loss, Start
from hermitcrab.tasks.cross_entropy import summed_cross_entropy
from hermitcrab.tasks.encoding import Encoder, conversation, load_encoder

# What a merge or a compression is compared on: sentences of our own, so that no row of anybody's data enters a package.
PROBES = (
    "The ferry leaves the harbor at six, and by seven the mountains are out of sight.",
    "def area(width, height):\n    return width * height",
    "I had expected more from this film: the story is thin, but the two leads carry it well.",
    "Water boils at a lower temperature on a mountain because the air pressure there is lower.",
    "Please send the signed contract back to us before Friday, together with a copy of the invoice.",
    "寄居蟹住在别的动物留下的壳里，没有谁会因此责怪它。",
    "If 3 apples cost 2 dollars, then 12 apples cost 8 dollars.",
    "El tren de las nueve llegó tarde otra vez y nadie en el andén parecía sorprendido.",
)

# Where tokenizers differ: digits, apostrophes, runs of spaces and line ends, marks and scripts of all kinds, special tokens.
AWKWARD = (
    "Hello world's  12,345.67!\n\n\tdef f(x):\r\n    return x ** 2",
    " leading, trailing \n",
    "naïve café — 寄居蟹住在别的动物留下的壳里。 10𝟘½ Ⅷ 🦀🦀 e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<s>[INST]</s>",
    "DON'T we'll I'M i'd CamelCaseWORDS x_y_z http://a.b/c?d=1&e=2",
    "مرحبا بالعالم 123 · שלום · Привет, мир! · नमस्ते दुनिया · 한국어 · ไทย",
    "",
)


@dataclass(frozen=True)
class Batch:
    ids_BL: torch.Tensor  # int64
    labels_BL: torch.Tensor  # int64, IGNORE where nothing is learnt
    positions_BL: torch.Tensor  # int64


class PackedExamples:
    def __init__(self, packed: Packed):
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed)

    def row_ids(self, rows: Any) -> list[str]:
        return [name for row in rows for name in self.packed.rows[int(row)]]


class HeadWhereLabeled:
    """Pre-hook of an output head: keeps the hidden states at the wanted positions only. Idle unless `wanted` is set."""

    wanted: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self.wanted is None:
            return None
        hidden_BLD, *rest = inputs
        return (hidden_BLD[self.wanted].unsqueeze(0), *rest)


class TextGeneration:
    name = "text-generation"

    def __init__(self, start: Start, train: Train):
        self.start, self.part = start, train
        self.encoder: Encoder = load_encoder(start.base, start.path, train.template)
        self.head = HeadWhereLabeled()

    def model(self, dtype: torch.dtype) -> nn.Module:
        if self.start.base["kind"] == "scratch":
            return init_model(self.start.base, self.start.path, self.start.seed or 0).to(dtype)
        return load_model(self.start.base, self.start.path, dtype)

    def attach(self, model: nn.Module) -> None:
        """Have the head computed only where a label is."""
        head = model.get_output_embeddings()
        if head is not None and self.head not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(self.head)

    def documents(self, rows: pa.Table) -> list[Document]:
        found = []
        with progress("tokens", rows.num_rows, "rows") as bar:
            for row in rows.to_pylist():
                found.append(self.encoder.document(row))
                bar.add()
        return found

    def examples(self, rows: pa.Table, ledger: Ledger) -> tuple[PackedExamples, dict[str, Any]]:
        """Tokens packed into rows; the ledger counts tokens.

        Raises:
            HermitcrabError: where no token would be trained.
        """
        length, policy = self.part.sequence_length, self.part.truncate
        documents, ends, longest = [], 0, 0
        kept_rows = 0
        for document in self.documents(rows):
            size = len(document.ids)
            ledger.take(size)
            longest = max(longest, size)
            if size > length and policy == "drop":
                ledger.drop(f"example longer than {length}", size)
                continue
            if size > length:
                cut = slice(size - length, size) if policy == "left" else slice(0, length)
                document = Document(document.row_id, document.ids[cut], document.learn[cut])
                ledger.drop(f"cut on the {policy}", size - length)
            if not document.learn[1:].any():
                ledger.drop("example with nothing to learn left", len(document.ids))
                continue
            ledger.keep(len(document.ids))
            ledger.change("masked (prompt)", int((~document.learn).sum()))
            kept_rows += 1
            ends += bool(document.learn[-1] and int(document.ids[-1]) in self.encoder.ends)
            documents.append(document)
        learnt = sum(int(d.learn[1:].sum()) for d in documents)
        if learnt == 0:
            raise HermitcrabError(
                f"no trainable token: of {rows.num_rows:,} examples none fits sequence_length={length} with truncate={policy}; "
                f"the longest has {longest:,} tokens. Raise train.sequence_length or set train.truncate: left"
            )
        packed = pack(documents, length, self.encoder.pad)
        told = {
            "learnt": learnt,
            "examples": rows.num_rows,
            "examples_kept": kept_rows,
            "packed_rows": len(packed),
            "padding": int(packed.ids_RL.size - ledger.kept),
            "fill": round(packed.fill, 4),
            "end_learnt_share": round(ends / max(1, kept_rows), 4),
        }
        return PackedExamples(packed), told

    def batch(self, examples: PackedExamples, rows: np.ndarray) -> Batch:
        packed = examples.packed
        return Batch(
            torch.from_numpy(packed.ids_RL[rows].astype(np.int64)),
            torch.from_numpy(packed.labels_RL[rows]),
            torch.from_numpy(packed.positions_RL[rows].astype(np.int64)),
        )

    def idle(self, batch: Batch) -> Batch:
        return Batch(batch.ids_BL, torch.full_like(batch.labels_BL, IGNORE), batch.positions_BL)

    def count(self, batch: Batch) -> int:
        return int((batch.labels_BL != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Sum of the cross-entropy (nats) over the labels of the batch, and their number."""
        device = next(model.parameters()).device
        wanted_BL = (batch.labels_BL != IGNORE).to(device)
        target_N = batch.labels_BL.to(device)[wanted_BL]
        logits_NV = self.logits(model, batch.ids_BL.to(device), batch.positions_BL.to(device), wanted_BL)
        return Loss(summed_cross_entropy(logits_NV, target_N), target_N.numel())

    def logits(self, model: nn.Module, ids_BL: torch.Tensor, positions_BL: torch.Tensor,
               wanted_BL: torch.Tensor) -> torch.Tensor:  # fmt: skip
        """Logits at the wanted positions, in row order: [N, V]."""
        self.head.wanted = wanted_BL
        try:
            logits = model(input_ids=ids_BL, position_ids=positions_BL, use_cache=False).logits
        finally:
            self.head.wanted = None
        if logits.shape[:2] == ids_BL.shape:  # a model whose head was not hooked, or hides it
            logits = logits[wanted_BL]
        return logits.reshape(-1, logits.shape[-1])

    def probes(self) -> list[list[int]]:
        """Token ids that merged and compressed models are compared on."""
        return [self.encoder.prompt([{"role": "user", "content": text}]) for text in PROBES]

    def inputs(self, rows: pa.Table) -> dict[str, Any]:
        """Ids of every text of the rows and of the awkward ones, the tokens that begin and end, the template."""
        coder = self.encoder
        found: dict[str, Any] = {repr(text): coder.encode(text) for text in AWKWARD}
        for row in rows.to_pylist():
            texts = [row["text"]] if "text" in row else [m["content"] for m in conversation(row)]
            found[f"row {row['row_id']}"] = [coder.encode(text) for text in texts]
        found["the tokens that begin, end and pad a text"] = [coder.bos, coder.eos, coder.pad, *sorted(coder.ends)]
        return {**found, "the chat template": coder.template_digest}

    def asked(self, rows: pa.Table, part: Evaluate) -> str:
        from hermitcrab.tasks.answers import asked

        return asked(self, rows, part)

    def predict(self, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None = None,
                batch_size: int | None = None) -> pa.Table:  # fmt: skip
        from hermitcrab.tasks.answers import choose, generate, likelihood

        size = batch_size or part.batch_size
        if "text" in rows.column_names:
            return likelihood(self, model, rows, part, size)
        if part.choices:
            return choose(self, model, rows, part, shots, size)
        return generate(self, model, rows, part, shots, size)
