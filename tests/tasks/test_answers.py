"""Answers: batched, padded and with a shared prefix computed once, they are those of one plain forward pass a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")

from tiny import question_rows, write_model

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.base import describe
from hermitcrab.recipe import Base, Evaluate, Train
from hermitcrab.references import resolve
from hermitcrab.store import Store
from hermitcrab.tasks import Start, make_task
from hermitcrab.tasks.answers import batches, questions, shared_prefix


@pytest.fixture(scope="module", params=["llama", "mistral", "gpt_neox"])
def task(request, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param, **({"sliding_window": 16} if request.param == "mistral" else {}))
    return open_task(folder)


def open_task(folder: Path, **train: Any) -> Any:
    base = describe(folder, resolve(str(folder), None, Store(folder / "store")), Base(path=str(folder)))
    made = make_task("text-generation", Start(base, folder), Train(**train))
    made.loaded = made.model(torch.float32)
    return made


def plain_score(task: Any, messages: list[dict[str, str]], answer: list[int]) -> float:
    prompt = task.encoder.prompt(messages)
    with torch.no_grad():
        logits = task.loaded(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + i, t] for i, t in enumerate(answer)))


@pytest.mark.parametrize("choices", [["yes", "no"], ["yes", "no", "a longer answer"], ["no", "no answer"]])
@pytest.mark.parametrize("shots", [0, 2])
def test_choices_are_scored_as_by_one_plain_pass_a_row(task, choices, shots):
    rows = question_rows(11)
    rows = rows.set_column(3, "completion", pa.array([choices[i % len(choices)] for i in range(11)]))
    shown = rows.slice(0, shots) if shots else None
    found = task.predict(task.loaded, rows.slice(shots), Evaluate(choices=choices, batch_size=4), shown)
    asked, _ = questions(rows.slice(shots), shown)
    answers = [task.encoder.answer(asked[0], c)[:-1] for c in choices]
    if choices == ["no", "no answer"]:
        answers = [[*a, task.encoder.eos] for a in answers]
    for row, messages in zip(found.to_pylist(), asked, strict=True):
        wanted = [plain_score(task, messages, a) for a in answers]
        assert row["scores"] == pytest.approx(wanted, abs=2e-3)
        assert row["prediction"] == choices[max(range(len(choices)), key=lambda c: row["scores"][c])]
        assert row["nll"] == pytest.approx(-row["scores"][choices.index(row["reference"])])
    assert found["row_id"].to_pylist() == rows["row_id"].to_pylist()[shots:]


def test_the_likelihood_of_rows_is_that_of_one_plain_pass_each(task):
    rows = question_rows(9)
    found = task.predict(task.loaded, rows, Evaluate(batch_size=4, max_new_tokens=4))
    for row, messages, text in zip(found.to_pylist(), *questions(rows, None), strict=True):
        answer = task.encoder.answer(messages, text)
        assert row["nll"] == pytest.approx(-plain_score(task, messages, answer), abs=2e-3)
        assert row["tokens"] == len(answer)
        assert row["bytes"] == len(text.encode())


def test_generated_answers_are_those_of_each_row_alone(task):
    rows = question_rows(7)
    found = task.predict(task.loaded, rows, Evaluate(batch_size=3, max_new_tokens=5))
    for row, messages in zip(found.to_pylist(), questions(rows, None)[0], strict=True):
        prompt = torch.tensor([task.encoder.prompt(messages)])
        alone = task.loaded.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=5,
            eos_token_id=task.encoder.eos,
            pad_token_id=task.encoder.pad,
        )[0, prompt.shape[1] :].tolist()
        ids = alone[: alone.index(task.encoder.eos)] if task.encoder.eos in alone else alone
        assert row["prediction"] == task.encoder.decode(ids).strip()


def test_plain_text_is_scored_whole(task):
    rows = pa.table(
        {
            "row_id": ["a", "b"],
            "source": ["s", "s"],
            "text": ["the weather is good", "the answer is no and the weather is bad"],
        }
    )
    found = task.predict(task.loaded, rows, Evaluate())
    for row, text in zip(found.to_pylist(), rows["text"].to_pylist(), strict=True):
        ids = [*task.encoder.encode(text), task.encoder.eos]
        ids = ids if task.encoder.bos is None else [task.encoder.bos, *ids]
        with torch.no_grad():
            loss = task.loaded(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
        assert row["nll"] == pytest.approx(float(loss) * (len(ids) - 1), rel=1e-4)
        assert row["bytes"] == len(text.encode())


def test_a_reference_that_is_no_choice_is_refused(task):
    with pytest.raises(HermitcrabError, match=r"evaluate.choices does not have \['no'\]"):
        task.predict(task.loaded, question_rows(6), Evaluate(choices=["yes", "maybe"]))


def test_the_same_questions_have_the_same_prompt_digest_and_others_another(task):
    part = Evaluate(choices=["yes", "no"])
    first, again, other = (
        task.predict(task.loaded, rows, part).schema.metadata[b"prompt_digest"]
        for rows in (question_rows(5), question_rows(5), question_rows(6))
    )
    assert first == again != other


def test_long_prompts_are_cut_on_the_left_and_counted(task):
    found = task.predict(task.loaded, question_rows(6), Evaluate(choices=["yes", "no"], sequence_length=12))
    assert int(found.schema.metadata[b"prompts_cut"]) == 6


def test_prefix_and_batches():
    assert shared_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2, 9]]) == 2
    assert shared_prefix([[1, 2], [1, 2]]) == 1  # something is left to be computed
    assert shared_prefix([[1], [2, 3]]) == 0
    assert [b.tolist() for b in batches([3, 9, 9, 1], 2)] == [[1, 2], [0, 3]]
