"""Every engine against the reference, on the same tiny weights: tokens, probabilities, seeds, grammars, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")

from engine_specs import Running, gguf_spec, running, spec_of

from hermitcrab.errors import HermitcrabError
from hermitcrab.serve.engine import Options

PROMPTS = [[1, 50, 60, 70], [1, 9], [1, *range(100, 140)], [7, 8, 9, 10, 11], [200], [1, 50, 60, 71]]
CHOICE = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def test_greedy_tokens_are_those_of_the_reference_token_by_token(fast: Running, reference: Running) -> None:
    asked = [(prompt, Options(40)) for prompt in PROMPTS]
    expected = [made.tokens for made in reference.ask(*asked)]
    assert [made.tokens for made in fast.ask(*asked)] == expected
    again = fast.ask(*asked)  # the prompts are in the prefix cache now
    assert [made.tokens for made in again] == expected
    assert {made.finish for made in again} == {"length"}


def test_probabilities_are_those_of_the_reference(llamacpp: Running, reference: Running) -> None:
    asked = [(prompt, Options(20, logprobs=5)) for prompt in PROMPTS[:3]]
    for ours, theirs in zip(llamacpp.ask(*asked), reference.ask(*asked), strict=True):
        assert [p.token for p in ours.logprobs] == ours.tokens == theirs.tokens
        for a, b in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=0.02)  # its products are of 16 bits
            assert a.top[0] == (a.token, a.logprob)  # greedy: the likeliest one
            assert [p for _, p in a.top] == sorted((p for _, p in a.top), reverse=True)
            ours_top, theirs_top = dict(a.top), dict(b.top)
            assert all(
                ours_top[t] == pytest.approx(theirs_top[t], abs=0.02) for t in ours_top.keys() & theirs_top.keys()
            )
            assert len(ours_top.keys() & theirs_top.keys()) >= 3
            assert sum(math.exp(p) for _, p in a.top) <= 1 + 1e-6


def test_openvino_tells_the_made_token_alone_and_says_so(openvino: Running, reference: Running) -> None:
    (ours,), (theirs,) = (engine.ask((PROMPTS[0], Options(10, logprobs=0))) for engine in (openvino, reference))
    assert [p.logprob for p in ours.logprobs] == pytest.approx([p.logprob for p in theirs.logprobs], abs=1e-4)
    assert {len(p.top) for p in ours.logprobs} == {0}
    (refused,) = openvino.ask((PROMPTS[0], Options(10, logprobs=3)))
    assert "--engine llama.cpp" in str(refused.error)


def test_seeds_reproduce_and_no_seed_is_fresh(fast: Running) -> None:
    def drawn(seed: int | None) -> list[int]:
        return fast.ask((PROMPTS[0], Options(16, temperature=1.0, seed=seed)))[0].tokens

    together = fast.ask(*[(PROMPTS[0], Options(16, temperature=1.0, seed=seed)) for seed in (3, 3, 4, -7)])
    assert together[0].tokens == together[1].tokens == drawn(3)
    assert len({tuple(made.tokens) for made in together}) == 3
    assert drawn(None) != drawn(None)


def test_top_p_keeps_the_likeliest_alone(fast: Running, reference: Running) -> None:
    (greedy,) = reference.ask((PROMPTS[0], Options(8)))
    (narrow,) = fast.ask((PROMPTS[0], Options(8, temperature=1.0, top_p=1e-6, seed=1)))
    assert narrow.tokens == greedy.tokens


def test_an_end_is_told_with_its_token_and_only_where_it_is_one(gguf: Path, reference: Running) -> None:
    (made,) = reference.ask((PROMPTS[0], Options(12)))
    end = made.tokens[5]
    first = made.tokens.index(end)
    for engine in ("openvino-genai", "llama.cpp"):
        with running(gguf_spec(gguf, engine, ends=[end])) as asked:
            (ours,) = asked.ask((PROMPTS[0], Options(12)))
            (short,) = asked.ask((PROMPTS[0], Options(first, seed=1))) if first else (ours,)
        assert (ours.tokens, ours.finish) == (made.tokens[: first + 1], "stop")
        assert short.finish == ("length" if first else "stop")


@pytest.mark.parametrize("engine", ["openvino-genai", "llama.cpp", "transformers"])
def test_an_answer_satisfies_its_schema(engine: str, gguf: Path, model: Path) -> None:
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(model / "tokenizer.json"))
    ended = 0
    spec = spec_of(model, ends=[2]) if engine == "transformers" else gguf_spec(gguf, engine, ends=[2])
    with running(spec) as asked:
        options = [Options(180, temperature=0.7, seed=seed, schema=json.dumps(CHOICE)) for seed in range(6)]
        for made in asked.ask(*((PROMPTS[n], o) for n, o in enumerate(options))):
            assert made.error is None
            ended += made.finish == "stop"
            if made.finish == "stop":  # a model that has learnt nothing may write spaces up to its limit
                found = json.loads(text.decode(made.tokens))
                assert set(found) == {"answer", "sure"}
                assert found["answer"] in ("yes", "no")
                assert isinstance(found["sure"], bool)
    assert ended >= 2


@pytest.mark.parametrize(
    "schema", [{"type": "objecty"}, {"pattern": "a"}, {"$ref": "#"}, [], {"type": "object", "properties": {"a": 1}}]
)
def test_a_schema_that_is_not_held_to_is_refused_and_nothing_else_suffers(fast: Running, schema: object) -> None:
    wrong, right = fast.ask((PROMPTS[0], Options(5, schema=json.dumps(schema))), (PROMPTS[0], Options(5)))
    assert "schema" in str(wrong.error)
    assert (right.error, len(right.tokens)) == (None, 5)


def test_cancelling_frees_the_slot(fast: Running) -> None:
    expected = fast.ask((PROMPTS[0], Options(6)))[0].tokens

    async def cancel_many() -> None:
        answers = [fast.worker.generate(PROMPTS[n % 3], Options(200)) for n in range(fast.worker.slots)]
        await asyncio.gather(*(anext(answer) for answer in answers))
        for answer in answers:
            await answer.aclose()

    for _ in range(3):
        fast.do(cancel_many())
        assert fast.worker.stats()["running"] == 0
        assert fast.ask((PROMPTS[0], Options(6)))[0].tokens == expected


def test_what_does_not_fit_is_refused(fast: Running) -> None:
    (made,) = fast.ask(([1] * fast.worker.positions, Options(1)))
    assert "do not fit" in str(made.error)


@pytest.mark.parametrize("engine", ["openvino-genai", "llama.cpp"])
def test_a_cache_that_is_too_small_shortens_what_is_taken_never_an_answer(
    engine: str, gguf: Path, reference: Running
) -> None:
    asked = [(prompt, Options(60)) for prompt in PROMPTS]
    expected = [made.tokens for made in reference.ask(*asked)]
    size = 2 * 2 * 2 * 32 * 4  # bytes of a token: two layers, two heads of 32, keys and values, float32
    with running(gguf_spec(gguf, engine, settings={"exact": True, "cache_bytes": size * 32 * 9})) as small:
        assert small.worker.positions <= 256
        for made, wanted in zip(small.ask(*asked), expected, strict=True):
            assert (
                made.tokens == wanted if made.error is None else "room" in str(made.error) or "fit" in str(made.error)
            )


def test_the_engine_dies_in_the_middle_and_the_next_answer_is_right(gguf: Path) -> None:
    pytest.importorskip("xllamacpp")
    with running(gguf_spec(gguf, "llama.cpp")) as asked:
        expected = asked.ask((PROMPTS[0], Options(6)))[0].tokens

        async def kill() -> str:
            answer = asked.worker.generate(PROMPTS[0], Options(200))
            await anext(answer)
            asked.worker.kill()
            try:
                async for _ in answer:
                    pass
            except HermitcrabError as error:
                return str(error)
            return "it ended"

        assert "died in the middle" in asked.do(kill())
        assert asked.ask((PROMPTS[0], Options(6)))[0].tokens == expected
        assert asked.worker.stats()["restarts"] == 1


def test_a_changed_file_is_not_loaded(gguf: Path, tmp_path: Path) -> None:
    for engine in ("openvino-genai", "llama.cpp"):
        spec = gguf_spec(gguf, engine)
        wrong = [{**file, "sha256": "sha256:" + "0" * 64} for file in spec.files]
        with (
            pytest.raises(HermitcrabError, match="is not the file that was recorded"),
            running(gguf_spec(gguf, engine, files=wrong)),
        ):
            pass


def test_pieces_of_characters_are_found_again() -> None:
    from hermitcrab.serve.engines.pieces import Vocabulary, byte_letters, unfinished

    letters = {data[0]: letter for letter, data in byte_letters().items()}
    crab = "🦀".encode()
    texts = ["a", *("".join(letters[b] for b in part) for part in (crab[:2], crab[2:3], crab[3:], crab[:1], crab[1:2]))]
    known = Vocabulary({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": texts})
    assert known.before(crab, 3, 2) == [1, 2]
    assert known.inferred == 0
    assert known.before(crab, 3, 3) == [4, 5, 2]
    with pytest.raises(HermitcrabError, match="no 1 tokens"):
        known.before(crab, 3, 1)
    assert [unfinished(crab[:n]) for n in range(5)] == [False, True, True, True, False]
    ambiguous = Vocabulary(
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [*texts, "".join(letters[b] for b in crab[1:3])]}
    )
    assert ambiguous.before(crab, 3, 2) == [1, 2]
    assert ambiguous.inferred == 2


def test_limits_of_characters_do_not_lose_tokens(llamacpp: Running, reference: Running) -> None:
    for count in range(1, 24):  # wherever the limit cuts a character
        (made,), (wanted,) = (engine.ask((PROMPTS[2], Options(count, logprobs=0))) for engine in (llamacpp, reference))
        assert made.tokens == wanted.tokens
        assert len(made.logprobs) == count
    assert list(itertools.chain(made.tokens))
