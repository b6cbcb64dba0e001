"""What an explanation asks of a model: a number, as a function of one float tensor whose parts have names.

A task says what is varied (embeddings of a text, pixels, numbers of a row), what says nothing in its place, and whose number it is
(the log-probability of the answer that the model gave, nats, or a value). `explaining` does the rest, the same for all.

Shapes: M variants of one input, L tokens, D width, C channels, H height, W width, K answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import quiet

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hermitcrab.tasks import Asking

PATCHES = 7  # a picture is covered by so many patches a side
LONGEST = 32  # tokens of a generated answer that are explained


@dataclass(frozen=True)
class Question:
    """One input, ready to be explained.

    Attributes:
        kind: how its parts are shown: `text`, `image` or `row`.
        given: float [1, …], what the model was given. `plain`: the same shape, what says nothing.
        part: int64, broadcast to `given`: which part each number belongs to, -1 where nothing is explained (a template).
        names: of the parts. `score`: float [M, …] -> float [M], what is explained of M variants.
        answer: what the model said. `number`: in words, what `score` gives.
        picture: uint8 [H, W, C] of an image.
    """

    kind: str
    given: torch.Tensor
    plain: torch.Tensor
    part: torch.Tensor
    names: list[str]
    score: Callable[[torch.Tensor], torch.Tensor]
    answer: str
    number: str
    picture: np.ndarray | None = None


def of_answer(model: Any, ids_L: list[int], user: tuple[int, int], words: list[str], answers: list[list[int]], said: int,
              told: str, over: str) -> Question:  # fmt: skip
    """Of a language model: the tokens from `user[0]` to `user[1]` of a prompt, and the log-probability of one of several answers.

    Args:
        words: the text of each of these tokens.
        answers: token ids of each; with a single one its own likelihood is explained, else its share among them.
    """
    embedded = model.get_input_embeddings()
    device = embedded.weight.device
    with torch.no_grad():
        given_LD = embedded(torch.tensor(ids_L, device=device)).float()
    plain_LD = given_LD.clone()
    plain_LD[user[0] : user[1]] = (
        0  # the mean embedding was tried: a point that no token is near to, whose path says less
    )
    part_L = torch.full((len(ids_L),), -1)
    part_L[user[0] : user[1]] = torch.arange(user[1] - user[0])

    def score(given_MLD: torch.Tensor) -> torch.Tensor:
        of_each = []
        for answer in answers:
            ids_A = torch.tensor(answer, device=device)
            whole = torch.cat([given_MLD, embedded(ids_A).float().expand(len(given_MLD), -1, -1)], 1)
            logits = (
                model(inputs_embeds=whole.to(embedded.weight.dtype), use_cache=False)
                .logits[:, len(ids_L) - 1 : -1]
                .float()
            )
            of_each.append(logits.log_softmax(-1).gather(2, ids_A.expand(len(logits), -1)[..., None]).sum((1, 2)))
        scores_MK = torch.stack(of_each, 1)
        return scores_MK[:, said] if len(answers) == 1 else scores_MK.log_softmax(1)[:, said]

    return Question("text", given_LD[None], plain_LD[None], part_L[None, :, None], words, score, told, over)


def of_prompt(encoder: Any, model: nn.Module, text: str, part: Asking) -> Question:
    """Of a text that `crab predict` would answer: the tokens of the text, not those of the template around it.

    Raises:
        HermitcrabError: the model has no room for it, or says nothing.
    """
    from hermitcrab.tasks.answers import answer_texts, greedy

    encoder = replace(encoder, render=None) if part.plain_text else encoder
    ids = encoder.prompt([{"role": "user", "content": text}])
    said = answer_texts(encoder, model, [text], part)[0]["prediction"]
    if part.choices:
        answers = encoder.choices([{"role": "user", "content": text}], part.choices)
        number, over = part.choices.index(said), "log-probability of the answer among the choices"
    else:
        with quiet():
            made = greedy(encoder, model, [ids], min(part.max_new_tokens, LONGEST), 1)[0]
        if not made:
            raise HermitcrabError("the model says nothing to this text; there is nothing to explain")
        answers, number, over = [made], 0, f"log-probability of the answer's first {len(made)} tokens"
    begin, end = _own(ids, encoder.prompt([{"role": "user", "content": "\u2603"}]))
    words = [encoder.decode([token]) for token in ids[begin:end]]
    return of_answer(model, ids, (begin, end), words, answers, number, said, over)


def _own(ids: list[int], other: list[int]) -> tuple[int, int]:
    """Where a prompt has what another of the same template has not."""
    shared = next((i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))
    behind = next((i for i, (a, b) in enumerate(zip(ids[::-1], other[::-1], strict=False)) if a != b), 0)
    return shared, max(shared + 1, len(ids) - behind)


def of_text(model: Any, ids: list[int], around: list[int], words: list[str], labels: list[str]) -> Question:
    """Of a text classifier: every token of the text; nothing is a token whose embedding is zero.

    Args:
        around: 1 for each token that the base puts around a text, which is not explained.
        words: what each token is in the text.
    """
    embedded = model.get_input_embeddings()
    device = embedded.weight.device
    own_L = torch.tensor(around) == 0
    with torch.no_grad():
        given_LD = embedded(torch.tensor(ids, device=device)).float()
    plain_LD = torch.where(own_L.to(device)[:, None], torch.zeros_like(given_LD), given_LD)
    part_L = torch.where(own_L, own_L.cumsum(0) - 1, -1)

    def logits(given_MLD: torch.Tensor) -> torch.Tensor:
        mask_ML = torch.ones(given_MLD.shape[:2], dtype=torch.int64, device=device)
        found = model(inputs_embeds=given_MLD.to(embedded.weight.dtype), attention_mask=mask_ML).logits
        return found.float().log_softmax(-1)

    with torch.no_grad():
        said = int(logits(given_LD[None])[0].argmax())
    names = [f" {word}" for word, special in zip(words, around, strict=True) if not special]
    return Question("text", given_LD[None], plain_LD[None], part_L[None, :, None], names, lambda x: logits(x)[:, said], labels[said],
                    "log-probability of the label")  # fmt: skip


def of_image(model: nn.Module, pixels_CHW: torch.Tensor, picture: np.ndarray, labels: list[str]) -> Question:
    """Of an image classifier: every pixel, in patches of a seventh of a side; a picture of nothing is the mean of the training pixels."""
    device = next(model.parameters()).device
    _, height, width = pixels_CHW.shape

    def logits(given_MCHW: torch.Tensor) -> torch.Tensor:
        return model(given_MCHW, return_dict=False)[0].float().log_softmax(-1)

    given = pixels_CHW[None].to(device)
    with torch.no_grad():
        said = int(logits(given)[0].argmax())
    row_H, column_W = (torch.arange(n) * min(PATCHES, n) // n for n in (height, width))
    across = int(column_W.max()) + 1
    part_HW = row_H[:, None] * across + column_W[None, :]
    names = [f"patch {i // across + 1}, {i % across + 1}" for i in range(int(part_HW.max()) + 1)]
    return Question("image", given, torch.zeros_like(given), part_HW[None, None], names, lambda x: logits(x)[:, said], labels[said],
                    "log-probability of the label", picture)  # fmt: skip
