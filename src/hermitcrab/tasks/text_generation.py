"""text-generation: any causal language model, on texts, prompts with completions, or conversations.

Notable:
- The output head is computed only where a label is: a pre-hook on it gathers those positions, so whatever the model does
  with its logits afterwards (scaling, soft caps) still happens.
- Documents lie packed in rows of one length; positions that restart at 0 tell them apart, and transformers builds the
  block-diagonal mask from that, for every attention kernel and for sliding windows too.

Shapes: B rows, L tokens a row, N labels, V vocabulary, R packed rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.data.ledger import Ledger
from hermitcrab.data.packing import IGNORE, Document, Packed, pack
from hermitcrab.errors import HermitcrabError, UsageError
from hermitcrab.models.formats import is_gguf
from hermitcrab.models.load import quiet, save_tokenizer
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate, Recipe, Train
from hermitcrab.tasks import Asking, Loss, Start, Work, metrics_asked
from hermitcrab.tasks.base import SENTENCES, BaseTask
from hermitcrab.tasks.encoding import Encoder, conversation, load_encoder
from hermitcrab.tasks.inputs import texts

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import nn

    from hermitcrab.tasks.explained import Question

TYPICAL = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 2048,
    "vocab_size": 32000,
}
PACE = 48  # tokens that are generated to see how fast a model is
TOKEN_BYTES = 4.0  # of text, for English; fewer for Chinese, so times for it are lower bounds

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


class TextGeneration(BaseTask):
    name = "text-generation"
    formats = ("prompt-completion", "messages", "text")
    kind = "CAUSAL_LM"
    reads_text = prompted = distributions = noisy = served = True
    opens_from = "a tokenizer.json beside the weights, or a GGUF file"
    ignored = ()
    baselines = ("majority", "tfidf-logreg")
    compresses = ("gguf", "openvino", "prune", "distill")
    exports = ("safetensors", "gguf", "onnx", "openvino")
    counts = "tokens"
    metrics = ("accuracy", "precision", "recall", "f1", "exact_match", "perplexity", "bits_per_byte")

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        part, form = recipe.evaluate, recipe.data.train[0].format
        if recipe.train.loss != "cross-entropy":
            raise UsageError(f"train.loss: {cls.name} learns by cross-entropy. Received: {recipe.train.loss}")
        if not part.choices and (part.few_shot or part.calibrate or part.baselines):
            raise UsageError("evaluate: few_shot, calibrate and baselines need choices. Received: choices=[]")
        if form == "text" and part.choices:
            raise UsageError("evaluate.choices needs rows that ask something; data.train.format is `text`")
        fit = ("perplexity", "bits_per_byte", *(() if form == "text" else ("exact_match",)))
        if not part.choices and part.metrics and not set(part.metrics) & set(fit):
            raise UsageError(
                f"evaluate.metrics: without choices expected one of: {', '.join(fit)}. Received: {part.metrics}"
            )

    @classmethod
    def check_rows(cls, part: Evaluate, splits: Mapping[str, pa.Table]) -> None:
        """References that are no choice, too few examples to show, no validation rows to calibrate on."""
        if not part.choices:
            return
        for name, rows in splits.items():
            if unknown := sorted(set(cls.answers(rows)) - set(part.choices)):
                raise HermitcrabError(
                    f"evaluate.choices does not have {unknown[:3]} (of {len(unknown)}), which are references of {name} rows. "
                    f"Received: choices={part.choices}"
                )
        if part.calibrate and not splits["validation"].num_rows:
            raise HermitcrabError(
                "evaluate.calibrate needs validation rows; set data.split.validation or evaluate.calibrate: false"
            )
        if part.few_shot:
            cls.shots(part, splits["train"])

    @classmethod
    def shots(cls, part: Evaluate, train: pa.Table) -> pa.Table:
        """Training rows to show, by row id, the choices in turn, so that no label is shown more than one time oftener."""
        rows = train.sort_by("row_id")
        said = cls.answers(rows)
        by_choice = {c: [i for i, answer in enumerate(said) if answer == c] for c in part.choices}
        turns = [by_choice[c][i] for i in range(part.few_shot) for c in part.choices if i < len(by_choice[c])]
        if len(turns) < part.few_shot:
            raise HermitcrabError(
                f"evaluate.few_shot asks for {part.few_shot} examples; the training rows have {len(turns)}"
            )
        return rows.take(turns[: part.few_shot])

    @classmethod
    def opens(cls, path: Path) -> dict[str, Any] | None:
        if path.is_dir():
            return {} if (path / "tokenizer.json").exists() or any(path.glob("*.gguf")) else None
        return {} if is_gguf(path) else None

    @classmethod
    def read_inputs(cls, words: Sequence[str], column: str) -> list[str]:
        return texts(words, column)

    @classmethod
    def labels(cls, part: Evaluate, fitted: dict[str, Any]) -> list[str]:
        return part.choices

    @classmethod
    def deciding(cls, part: Evaluate, format: str) -> str | None:
        if format == "text":
            return None
        return metrics_asked(cls, part)[0] if part.choices else "exact_match"

    @classmethod
    def texts(cls, rows: pa.Table) -> list[str]:
        """The text, or all that stands before the answer."""
        listed = rows.to_pylist()
        return [
            row["text"] if "text" in row else "\n".join(message["content"] for message in conversation(row)[:-1])
            for row in listed
        ]

    @classmethod
    def answers(cls, rows: pa.Table) -> list[str]:
        return ["" if "text" in row else conversation(row)[-1]["content"] for row in rows.to_pylist()]

    @classmethod
    def work(cls, recipe: Recipe, base: dict[str, Any], rows: Mapping[str, float], test: Path | None) -> Work:
        """Tokens are bytes by a rule of thumb; activations are those of a decoder (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2)."""
        shape = {**TYPICAL, **base["shape"]}
        hidden, layers, heads = (shape[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        table = shape["vocab_size"] * hidden
        parameters = base["parameters"] or table + layers * (4 * hidden**2 + 3 * hidden * shape["intermediate_size"])
        # A table is looked up, and the head is computed only where a label is: neither costs much.
        working = max(parameters - table, parameters // 4) if base["shape"] else parameters
        length = recipe.train.sequence_length
        micro = recipe.train.batch_size * length
        tokens = rows["row_bytes"] / TOKEN_BYTES
        asked = tokens
        if test is not None and recipe.evaluate.choices:
            asked = max(1.0, tokens - _shared(test) / TOKEN_BYTES)
        activations = 34 * micro * hidden * layers + 6 * micro * length * heads * layers
        return Work(parameters, working, tokens, asked, length, activations)

    def __init__(self, start: Start, train: Train):
        super().__init__(start, train)
        self.encoder: Encoder = load_encoder(start.base, start.path, train.template)
        self.head = HeadWhereLabeled()

    def told(self) -> dict[str, Any]:
        return {"template_digest": self.encoder.template_digest}

    def attach(self, model: nn.Module) -> None:
        """Have the head computed only where a label is."""
        head = model.get_output_embeddings()
        if head is not None and self.head not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(self.head)

    def compiled(self, model: Any) -> list[nn.Module]:
        return list(model.get_decoder().layers)

    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        save_tokenizer(self.start.base, self.start.path, folder)

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

    def summary(self, entry: Mapping[str, Any]) -> str:
        lost = ", ".join(f"{count:,} {reason}" for reason, count in entry["dropped"].items()) or "none"
        return (
            f"{entry['name']}: {entry['learnt']:,} learnt of {entry['kept']:,} kept; dropped: {lost}; "
            f"{entry['end_learnt_share']:.0%} of {entry['examples_kept']:,} examples learn their end; "
            f"{entry['packed_rows']:,} packed rows, {entry['fill']:.0%} full"
        )

    def positions(self) -> int:
        return self.part.sequence_length

    def product(self) -> tuple[int, int, int]:
        """At least what a small decoder has: on smaller ones a probe would measure its own overhead."""
        return max(512, min(2048, self.part.batch_size * self.part.sequence_length)), 1024, 1024

    def batch(self, examples: PackedExamples, rows: np.ndarray) -> Batch:
        import torch

        packed = examples.packed
        return Batch(
            torch.from_numpy(packed.ids_RL[rows].astype(np.int64)),
            torch.from_numpy(packed.labels_RL[rows]),
            torch.from_numpy(packed.positions_RL[rows].astype(np.int64)),
        )

    def count(self, batch: Batch) -> int:
        return int((batch.labels_BL != IGNORE).sum())

    def decisions(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(model.parameters()).device
        wanted_BL = (batch.labels_BL != IGNORE).to(device)
        logits_NV = self.logits(model, batch.ids_BL.to(device), batch.positions_BL.to(device), wanted_BL)
        return logits_NV, batch.labels_BL.to(device)[wanted_BL]

    def cost(self, logits_NV: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (nats)."""
        from hermitcrab.tasks.cross_entropy import summed_cross_entropy

        return summed_cross_entropy(logits_NV, label_N)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        logits_NV, label_N = self.decisions(model, batch)
        return Loss(self.cost(logits_NV, label_N), label_N.numel())

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
        return [self.encoder.prompt([{"role": "user", "content": text}]) for text in SENTENCES]

    def probe_outputs(self, model: nn.Module, probes: list[list[int]]) -> torch.Tensor:
        """Logits (float32) at every position of every probe: [N, V]."""
        import torch

        model.eval()
        device = next(model.parameters()).device
        with torch.inference_mode():
            return torch.cat([
                model(input_ids=torch.tensor([p], device=device), use_cache=False).logits[0].float().cpu() for p in probes
            ])  # fmt: skip

    def pace(self, model: Any) -> tuple[int, str]:
        """Tokens that follow the first probe, one sequence, always so many."""
        import torch

        prompt = torch.tensor([self.probes()[0]], device=next(model.parameters()).device)
        with torch.inference_mode(), quiet():
            made = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=1,
                min_new_tokens=PACE, max_new_tokens=PACE, pad_token_id=self.encoder.pad,
            )  # fmt: skip
        return made.shape[1] - prompt.shape[1], "tokens"

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

    def answer(self, model: nn.Module, inputs: list[str], part: Asking) -> list[dict[str, Any]]:
        """By choice, with the log-likelihood (nats) of each; else generated, and `finish_reason` is `stop` or `length`."""
        from hermitcrab.tasks.answers import answer_texts

        return answer_texts(self.encoder, model, inputs, part)

    def question(self, model: nn.Module, one: str, part: Asking) -> Question:
        """What an explanation of the answer to one text asks."""
        from hermitcrab.tasks.explained import of_prompt

        return of_prompt(self.encoder, model, one, part)


def _shared(path: Path) -> int:
    """Characters that all prompts of a row table begin with: they are computed once."""
    import pyarrow.parquet as pq

    if "prompt" not in pq.read_schema(path).names:
        return 0
    prompts = pq.read_table(path, columns=["prompt"])["prompt"].to_pylist()
    first, last = min(prompts, default=""), max(prompts, default="")
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
