"""Answers of a causal language model: by choice (log-likelihood), by generation, or the likelihood of a text.

A prefix that all prompts share (system turn, instruction, examples shown) is computed once and its keys and values are reused.
Rows are batched by length and come back in the order in which they were asked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from hermitcrab.data.packing import Document, pack
from hermitcrab.digest import digest_json
from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import quiet
from hermitcrab.progress import progress
from hermitcrab.recipe import Evaluate
from hermitcrab.tasks import Asking
from hermitcrab.tasks.encoding import Encoder, Message, conversation

if TYPE_CHECKING:
    from hermitcrab.tasks.text_generation import TextGeneration


BATCH = 32  # prompts at once, the default of `evaluate`
FEWEST_POSITIONS = 2048  # where a configuration names no limit (models without positions)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def positions_of(model: Any) -> int:
    """The most tokens that a prompt and its answer may have together."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or FEWEST_POSITIONS


def answer_texts(encoder: Encoder, model: nn.Module, texts: list[str], part: Asking) -> list[dict[str, Any]]:
    """`{input, prediction, score}` and what else is known of each text, in their order.

    Raises:
        HermitcrabError: a text that does not fit the model's positions with its answer.
    """
    model.eval()
    encoder = replace(encoder, render=None) if part.plain_text else encoder
    asked = [[{"role": "user", "content": text}] for text in texts]
    prompts = [encoder.prompt(question) for question in asked]
    if not part.choices:
        _check_room(model, prompts, part.max_new_tokens)
        with quiet():
            made = greedy(encoder, model, prompts, part.max_new_tokens, BATCH)
        return [
            {
                "input": text,
                "prediction": encoder.decode([token for token in ids if token not in encoder.ends]).strip(),
                "score": None,
                "finish_reason": "stop" if ids and ids[-1] in encoder.ends else "length",
                "tokens": len(ids),
            }
            for text, ids in zip(texts, made, strict=True)
        ]
    answers = encoder.choices(asked[0], part.choices)
    _check_room(model, prompts, max(map(len, answers)))
    scores_NC = score_choices(model, prompts, answers, BATCH)
    return [
        {
            "input": text,
            "prediction": part.choices[int(scores_C.argmax())],
            "score": float(scores_C.max()),
            "scores": dict(zip(part.choices, scores_C.tolist(), strict=True)),
        }
        for text, scores_C in zip(texts, scores_NC, strict=True)
    ]


def _check_room(model: nn.Module, prompts: list[list[int]], answer: int) -> None:
    room = positions_of(model)
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise HermitcrabError(f"input {number:,}: has no token")
        if len(prompt) + answer > room:
            raise HermitcrabError(
                f"input {number:,}: {len(prompt):,} tokens and {answer:,} of an answer do not fit the model's "
                f"{room:,} positions"
            )


def questions(rows: pa.Table, shots: pa.Table | None) -> tuple[list[list[Message]], list[str]]:
    """The conversation before the last answer, with the examples shown before it, and the reference answers."""
    shown = [m for row in (shots.to_pylist() if shots else ()) for m in conversation(row) if m["role"] != "system"]
    asked, references = [], []
    for row in rows.to_pylist():
        *before, last = conversation(row)
        system = before[:1] if before and before[0]["role"] == "system" else []
        asked.append([*system, *shown, *before[len(system) :]])
        references.append(last["content"])
    return asked, references


def prompt_digest(prompts: list[list[int]], choices: list[str]) -> str:
    """What was asked, by content: the tokens of every prompt and the choices."""
    return digest_json({"choices": choices, "prompts": prompts})


def asked(task: TextGeneration, rows: pa.Table, part: Evaluate) -> str:
    """The `prompt_digest` of the answers to these rows."""
    if "text" in rows.column_names:
        return prompt_digest([d.ids.tolist() for d in task.documents(rows)], [])
    prompts, _ = cut_prompts([task.encoder.prompt(q) for q in questions(rows, None)[0]], part.sequence_length)
    return prompt_digest(prompts, part.choices)


def cut_prompts(prompts: list[list[int]], length: int) -> tuple[list[list[int]], int]:
    """Prompts longer than `length` lose their beginning; how many did is counted."""
    return [p[-length:] for p in prompts], sum(len(p) > length for p in prompts)


def shared_prefix(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, leaving at least one of each to be computed."""
    first, last = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(len(p) for p in prompts) - 1)


def batches(lengths: list[int], size: int) -> Iterator[np.ndarray]:
    """Row numbers, longest first: the first batch is the largest, so what does not fit shows at once."""
    order = np.argsort([-n for n in lengths], kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


class Prefix:
    """Keys and values of the shared prefix, computed once for one row and repeated to any batch."""

    def __init__(self, model: nn.Module, ids: list[int]):
        from transformers import DynamicCache

        self.length = len(ids)
        self.cache: Any = DynamicCache(config=model.config)
        if ids:
            model(
                input_ids=torch.tensor([ids], device=device_of(model)),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def repeated(self, rows: int) -> Any:
        cache = copy.deepcopy(self.cache)
        if self.length and rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache


@torch.inference_mode()
def choose(task: TextGeneration, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None,
           size: int) -> pa.Table:  # fmt: skip
    """Log-likelihood (nats) of each choice behind each prompt; the answer is the likeliest."""
    model.eval()
    asked, references = questions(rows, shots)
    if unknown := sorted(set(references) - set(part.choices)):
        raise HermitcrabError(
            f"evaluate.choices does not have {unknown[:3]} (of {len(unknown)}), which are references in the data. "
            f"Received: choices={part.choices}"
        )
    answers = task.encoder.choices(asked[0], part.choices)
    prompts, cut = cut_prompts([task.encoder.prompt(q) for q in asked], part.sequence_length)
    scores_NC = score_choices(model, prompts, answers, size)
    best = scores_NC.argmax(1)
    which = [part.choices.index(r) for r in references]
    table = {
        "row_id": rows["row_id"].to_pylist(),
        "reference": references,
        "prediction": [part.choices[i] for i in best],
        "score": scores_NC.max(1),
        "scores": scores_NC.tolist(),
        "nll": [-scores_NC[i, w] for i, w in enumerate(which)],
        "tokens": [len(answers[w]) for w in which],
        "bytes": [len(r.encode()) for r in references],
    }
    return _finish(table, rows, prompt_digest(prompts, part.choices), cut)


@torch.inference_mode()
def score_choices(model: nn.Module, prompts: list[list[int]], answers: list[list[int]], size: int) -> np.ndarray:
    """Log-likelihood (nats) of each answer behind each prompt, [N, C], in batches of `size`."""
    prefix = Prefix(model, prompts[0][: shared_prefix(prompts)])
    rest = [p[prefix.length :] for p in prompts]
    scores_NC = np.zeros((len(rest), len(answers)))
    with progress("answers", len(rest), "rows") as bar:
        for members in batches([len(r) for r in rest], size):
            scores_NC[members] = _score(model, prefix, [rest[i] for i in members], answers)
            bar.add(len(members))
    return scores_NC


def _score(model: nn.Module, prefix: Prefix, rest: list[list[int]], answers: list[list[int]]) -> np.ndarray:
    """Sums of log-probabilities, [B, C], of prompts that go on behind the shared prefix."""
    B = len(rest)
    device = device_of(model)
    lengths_B = torch.tensor([len(r) for r in rest], device=device)
    cache, mask_BK, logits_BKV = _behind(model, prefix, rest, torch.unique(lengths_B - 1))
    column_B = torch.searchsorted(torch.unique(lengths_B - 1), lengths_B - 1)
    first_BV = logits_BKV[torch.arange(B, device=device), column_B].float().log_softmax(-1)
    scores_BC = torch.stack([first_BV[:, a[0]] for a in answers], 1)
    for c, answer in enumerate(answers):
        n = len(answer) - 1
        if n == 0:
            continue
        if _windowed(model):  # padding between prompt and answer would push the prompt out of the window: no cache here
            whole = [r + answer[:-1] for r in rest]
            keep = torch.arange(int(lengths_B.min()), max(len(r) for r in whole), device=device)
            logits_BKV = _behind(model, prefix, whole, keep)[2]
            logits_BnV = logits_BKV[
                torch.arange(B, device=device)[:, None], lengths_B[:, None] - keep[0] + torch.arange(n, device=device)
            ]
        else:
            more_BK = torch.cat([mask_BK, torch.ones(B, n, dtype=torch.long, device=device)], 1)
            logits_BnV = model(
                input_ids=torch.tensor([answer[:-1]], device=device).expand(B, n),
                attention_mask=more_BK,
                position_ids=prefix.length + lengths_B[:, None] + torch.arange(n, device=device),
                past_key_values=copy.deepcopy(cache),
                use_cache=True,
            ).logits
        logp_BnV = logits_BnV.float().log_softmax(-1)
        scores_BC[:, c] += sum(logp_BnV[:, j, token] for j, token in enumerate(answer[1:]))
    return scores_BC.double().cpu().numpy()


def _behind(
    model: nn.Module, prefix: Prefix, rest: list[list[int]], keep: torch.Tensor
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Run right-padded rows behind the prefix: the cache, its mask [B, P + L], and logits at columns `keep` [B, K, V]."""
    B, L, P = len(rest), max(len(r) for r in rest), prefix.length
    device = device_of(model)
    lengths_B = torch.tensor([len(r) for r in rest], device=device)
    ids_BL = torch.tensor([r + [0] * (L - len(r)) for r in rest], device=device)
    seen_BL = (torch.arange(L, device=device) < lengths_B[:, None]).long()
    mask_BK = torch.cat([torch.ones(B, P, dtype=torch.long, device=device), seen_BL], 1)
    cache = prefix.repeated(B)
    logits_BKV = model(
        input_ids=ids_BL,
        attention_mask=mask_BK,
        position_ids=(P + torch.arange(L, device=device)).expand(B, L),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    ).logits
    return cache, mask_BK, logits_BKV


def _windowed(model: nn.Module) -> bool:
    """Does some layer see only the last so many tokens?"""
    config: Any = model.config
    return bool(getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None))


@torch.inference_mode()
def generate(task: TextGeneration, model: nn.Module, rows: pa.Table, part: Evaluate, shots: pa.Table | None,
             size: int) -> pa.Table:  # fmt: skip
    """Greedy answers, up to `max_new_tokens`, and the likelihood of the reference under the same prompt."""
    model.eval()
    asked, references = questions(rows, shots)
    prompts, cut = cut_prompts([task.encoder.prompt(q) for q in asked], part.sequence_length)
    made = greedy(task.encoder, model, prompts, part.max_new_tokens, size)
    texts = [task.encoder.decode([t for t in ids if t not in task.encoder.ends]).strip() for ids in made]
    stopped = sum(bool(ids) and ids[-1] in task.encoder.ends for ids in made)
    table: dict[str, Any] = {
        "row_id": rows["row_id"].to_pylist(),
        "reference": references,
        "prediction": texts,
        "score": [None] * len(texts),
    }
    if shots is None:
        known = likelihood(task, model, rows, part, size)
        table |= {name: known[name].to_pylist() for name in ("nll", "tokens", "bytes")}
    return _finish(table, rows, prompt_digest(prompts, []), cut, {"not_stopped": len(texts) - stopped})


@torch.inference_mode()
def greedy(encoder: Encoder, model: nn.Module, prompts: list[list[int]], max_new_tokens: int, size: int) -> list[list[int]]:  # fmt: skip
    """The likeliest next tokens behind each prompt, up to and with the token that ends an answer."""
    found: list[list[int]] = [[] for _ in prompts]
    with progress("answers", len(prompts), "rows") as bar:
        for members in batches([len(p) for p in prompts], size):
            L = max(len(prompts[i]) for i in members)
            ids_BL = torch.tensor([[encoder.pad] * (L - len(prompts[i])) + prompts[i] for i in members])
            mask_BL = torch.tensor([[0] * (L - len(prompts[i])) + [1] * len(prompts[i]) for i in members])
            made = model.generate(
                input_ids=ids_BL.to(device_of(model)),
                attention_mask=mask_BL.to(device_of(model)),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(encoder.ends),
                pad_token_id=encoder.pad,
            )[:, L:].tolist()
            for i, ids in zip(members, made, strict=True):
                end = next((n for n, token in enumerate(ids) if token in encoder.ends), len(ids))
                found[i] = ids[: end + 1]
            bar.add(len(members))
    return found


@torch.inference_mode()
def likelihood(task: TextGeneration, model: nn.Module, rows: pa.Table, part: Evaluate, size: int) -> pa.Table:
    """Negative log-likelihood (nats), tokens and UTF-8 bytes of what a model would have to say: the text, or the answers."""
    model.eval()
    task.attach(model)
    whole = task.documents(rows)
    pieces = [(i, piece) for i, document in enumerate(whole) for piece in windows(document, part.sequence_length)]
    owner, documents = np.array([i for i, _ in pieces], np.int64), [piece for _, piece in pieces]
    nll, tokens = np.zeros(len(whole)), np.zeros(len(whole), np.int64)
    with progress("likelihood", len(documents), "pieces") as bar:
        for members in batches([len(d.ids) for d in documents], size):
            longest = len(documents[members[0]].ids)
            one_each = pack_each([documents[i] for i in members], longest, task.encoder.pad)
            labels_BL = torch.from_numpy(one_each.labels_RL)
            wanted_BL = labels_BL >= 0
            logits_NV = task.logits(model, torch.from_numpy(one_each.ids_RL.astype(np.int64)),
                                    torch.from_numpy(one_each.positions_RL.astype(np.int64)), wanted_BL)  # fmt: skip
            loss_N = torch.nn.functional.cross_entropy(logits_NV.float(), labels_BL[wanted_BL], reduction="none")
            row_N = torch.nonzero(wanted_BL)[:, 0]
            sums = torch.zeros(len(members), dtype=torch.double).index_add_(0, row_N, loss_N.double())
            np.add.at(nll, owner[members], sums.numpy())
            np.add.at(tokens, owner[members], wanted_BL.sum(1).numpy())
            bar.add(len(members))
    listed = rows.to_pylist()
    said = [
        r["text"] if "text" in r else "\n".join(m["content"] for m in conversation(r) if m["role"] == "assistant")
        for r in listed
    ]
    table = {
        "row_id": [r["row_id"] for r in listed],
        "reference": said if "text" not in listed[0] else [None] * len(listed),
        "prediction": [None] * len(listed),
        "score": [None] * len(listed),
        "nll": nll,
        "tokens": tokens,
        "bytes": [len(s.encode()) for s in said],
    }
    return _finish(table, rows, prompt_digest([d.ids.tolist() for d in whole], []), len(documents) - len(whole))


def windows(document: Document, length: int) -> list[Document]:
    """A long document in pieces of at most `length` tokens: every learnt token is scored once, behind half a piece of context."""
    size = len(document.ids)
    if size <= length:
        return [document]
    pieces, scored = [], 0
    while scored < size:
        start = max(0, scored - length // 2)
        stop = min(size, start + length)
        learn = document.learn[start:stop].copy()
        learn[: scored - start] = False
        if learn[1:].any() or (scored == 0 and stop == size):
            pieces.append(Document(document.row_id, document.ids[start:stop], learn))
        scored = stop
    return pieces


def pack_each(documents: list[Any], length: int, pad: int) -> Any:
    """One document a row, in the given order."""
    packs = [pack([d], length, pad) for d in documents]
    return type(packs[0])(
        np.concatenate([p.ids_RL for p in packs]),
        np.concatenate([p.labels_RL for p in packs]),
        np.concatenate([p.positions_RL for p in packs]),
        [p.rows[0] for p in packs],
        1.0,
    )


def _finish(
    table: dict[str, Any], rows: pa.Table, digest: str, cut: int, more: dict[str, Any] | None = None
) -> pa.Table:
    """The table of predictions; what holds for all rows goes into its metadata."""
    if "document" in rows.column_names:
        table["document"] = rows["document"].to_pylist()
    told = {"prompt_digest": digest, "prompts_cut": str(cut), **{k: str(v) for k, v in (more or {}).items()}}
    columns = {
        k: pa.array(v, pa.string()) if k in ("reference", "prediction", "document") else v for k, v in table.items()
    }
    columns["score"] = pa.array(table["score"], pa.float64())
    return pa.table(columns).replace_schema_metadata(told)
