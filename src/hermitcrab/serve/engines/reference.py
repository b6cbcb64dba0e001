"""The engine on transformers: the reference that every other engine is held against. Correct first, then fast.

Notable:
- Weights are in the precision of their files, which is the one that was evaluated.
- A prompt is read alone, then its row joins the others: keys and values are padded on the left, positions are each row's own.
- Where a model's cache is not plain (windows, states), rows are not joined: each is stepped alone.

Legend: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hermitcrab.models.load import load_model, quiet
from hermitcrab.serve.engine import Logprob, Options, Piece, Spec
from hermitcrab.serve.engines.grammar import Grammars, Rule
from hermitcrab.tasks.answers import positions_of


@dataclass
class Row:
    number: int
    prompt: list[int]
    options: Options
    generator: torch.Generator
    rule: Rule | None = None
    made: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Of the token made last."""
        return len(self.prompt) + len(self.made) - 1


class Transformers:
    name = "transformers"

    def __init__(self, spec: Spec):
        self.spec, self.slots = spec, spec.slots
        torch.set_num_threads(spec.cores)
        with quiet():
            model = load_model(spec.base, Path(spec.path), getattr(torch, spec.precision))
            self.model: Any = model.to("cuda") if torch.cuda.is_available() else model
        self.positions = min(spec.positions or 1 << 30, positions_of(model))
        self.device = next(model.parameters()).device
        self.added: deque[Row] = deque()
        self.groups: list[Group] = []

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.spec.tokenizer, self.model.config.get_text_config().vocab_size, self.spec.ends)

    def add(self, number: int, prompt: list[int], options: Options) -> None:
        rule = None if options.schema is None else self.grammars.rule(options.schema)
        draw = torch.Generator().manual_seed(secrets.randbits(63) if options.seed is None else options.seed)
        self.added.append(Row(number, prompt, options, draw, rule))

    def cancel(self, number: int) -> None:
        self.added = deque(row for row in self.added if row.number != number)
        self._keep(lambda row: row.number != number)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Piece | str]]:
        """One token of every row, and one prompt read."""
        found: list[tuple[int, Piece | str]] = []
        over: set[int] = set()
        for group in self.groups:
            logits_BV = group.forward(self.model, self.device)
            for row, logits_V in zip(group.rows, logits_BV, strict=True):
                found.append((row.number, self._draw(row, logits_V, over)))
        if self.added:
            row = self.added.popleft()
            group, logits_V = self._read(row)
            found.append((row.number, self._draw(row, logits_V, over)))
            self.groups.append(group)
        self._keep(lambda row: row.number not in over)
        self._join()
        return found

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.added.clear()
        self.groups.clear()

    def _read(self, row: Row) -> tuple[Group, torch.Tensor]:
        from transformers import DynamicCache

        cache: Any = DynamicCache(config=self.model.config)
        ids_1L = torch.tensor([row.prompt], device=self.device)
        logits_11V = self.model(input_ids=ids_1L, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return Group([row], cache, [0]), logits_11V[0, -1]

    def _draw(self, row: Row, logits_V: torch.Tensor, over: set[int]) -> Piece:
        logits_V = logits_V.float().cpu()
        rule = row.rule
        held_V = logits_V if rule is None else logits_V.masked_fill(~torch.from_numpy(rule.allowed()), -torch.inf)
        token = draw(held_V, row.options, row.generator)
        if rule is not None:
            rule.take(token)
        row.made.append(token)
        probs = None if row.options.logprobs is None else [logprob(logits_V, token, row.options.logprobs)]
        ended = token in self.spec.ends
        full = len(row.made) >= row.options.max_tokens
        if ended or full:
            over.add(row.number)
        return Piece([token], probs, "stop" if ended else "length" if full else None)

    def _keep(self, wanted: Any) -> None:
        self.groups = [kept for group in self.groups if (kept := group.only([wanted(r) for r in group.rows])).rows]

    def _join(self) -> None:
        if len(self.groups) > 1 and all(group.plain for group in self.groups):
            self.groups = [Group.joined(self.groups, self.model.config)]


class Group:
    """Rows that are stepped together: keys and values [B, heads, L, D], of which row b's first `pads[b]` are padding."""

    def __init__(self, rows: list[Row], cache: Any, pads: list[int]):
        self.rows, self.cache, self.pads = rows, cache, pads

    @property
    def plain(self) -> bool:
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self.cache.layers)

    @property
    def length(self) -> int:
        return self.cache.get_seq_length()

    def forward(self, model: Any, device: torch.device) -> torch.Tensor:
        """Logits [B, V] behind the token that each row made last."""
        B = len(self.rows)
        mask_BL = torch.ones(B, self.length + 1, dtype=torch.long, device=device)
        for b, pad in enumerate(self.pads):
            mask_BL[b, :pad] = 0
        return model(
            input_ids=torch.tensor([[row.made[-1]] for row in self.rows], device=device),
            position_ids=torch.tensor([[row.position] for row in self.rows], device=device),
            attention_mask=mask_BL if any(self.pads) else None,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    def only(self, wanted: list[bool]) -> Group:
        if all(wanted):
            return self
        kept = [b for b, want in enumerate(wanted) if want]
        if not kept:
            return Group([], None, [])
        self.cache.batch_select_indices(torch.tensor(kept))
        cut = min(self.pads[b] for b in kept)
        if cut:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[:, :, cut:], layer.values[:, :, cut:]
        return Group([self.rows[b] for b in kept], self.cache, [self.pads[b] - cut for b in kept])

    @classmethod
    def joined(cls, groups: list[Group], config: Any) -> Group:
        from transformers import DynamicCache

        longest = max(group.length for group in groups)
        cache: Any = DynamicCache(config=config)
        for i in range(len(groups[0].cache.layers)):
            layers = [(group.cache.layers[i], longest - group.length) for group in groups]
            pad = torch.nn.functional.pad
            keys = torch.cat([pad(layer.keys, (0, 0, more, 0)) for layer, more in layers])
            values = torch.cat([pad(layer.values, (0, 0, more, 0)) for layer, more in layers])
            cache.update(keys, values, i)
        pads = [pad + longest - group.length for group in groups for pad in group.pads]
        return cls([row for group in groups for row in group.rows], cache, pads)


def draw(logits_V: torch.Tensor, options: Options, generator: torch.Generator) -> int:
    """The likeliest token, or one drawn from the smallest set of likeliest ones whose probabilities reach `top_p`."""
    if options.greedy:
        return int(logits_V.argmax())
    probs_V = (logits_V.double() / options.temperature).softmax(-1)
    if options.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        sorted_V[before_V >= options.top_p] = 0
        return int(order_V[torch.multinomial(sorted_V, 1, generator=generator)])
    return int(torch.multinomial(probs_V, 1, generator=generator))


def logprob(logits_V: torch.Tensor, token: int, count: int) -> Logprob:
    """Of the drawn token and of the `count` likeliest, before temperature."""
    logp_V = logits_V.log_softmax(-1)
    values, order = logp_V.topk(min(count, len(logp_V)))
    return Logprob(token, float(logp_V[token]), list(zip(order.tolist(), values.tolist(), strict=True)))
