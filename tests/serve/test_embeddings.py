"""Vectors of texts, by the official client: those of sentence-transformers' own recipe, worked out by hand on torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")
torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")
from serving import serve
from tiny import write_tokenizer

TEXTS = ["the weather is good", "a", "寄居蟹"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A tiny BERT as sentence-transformers keeps one: the mean over tokens, of length one."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("embeddings") / "p" / "encoder"
    torch.manual_seed(1)
    shape = dict(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertModel(BertConfig(**shape), add_pooling_layer=False).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, ["the weather is good"], 400)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    kinds = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds])
    )
    return folder


@pytest.fixture(scope="module")
def server(encoder: Path):
    made = serve(encoder.parent, "encoder", "--unverified")
    yield made
    assert made.stop() == 0


def expected(encoder: Path, text: str) -> tuple[list[float], int]:
    from transformers import BertModel

    from hermitcrab.models.tokenizer import read_tokenizer

    ids = read_tokenizer(encoder).encode(text, special=True)
    model = BertModel.from_pretrained(encoder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        mean_D = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    return (mean_D / mean_D.norm()).tolist(), len(ids)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_vectors_are_those_of_the_model(server, encoder, form):
    told = server.client.embeddings.create(model="encoder", input=TEXTS, encoding_format=form)
    right = [expected(encoder, text) for text in TEXTS]
    for part, (vector, _) in zip(told.data, right, strict=True):
        if form == "float":
            assert part.embedding == pytest.approx(vector, abs=1e-5)
    if form == "base64":
        found = server.client.embeddings.create(model="encoder", input=TEXTS)  # the client asks for base64 and reads it
        for part, (vector, _) in zip(found.data, right, strict=True):
            assert part.embedding == pytest.approx(vector, abs=1e-5)
    assert told.usage.prompt_tokens == told.usage.total_tokens == sum(count for _, count in right)
    assert [part.index for part in told.data] == [0, 1, 2]


def test_what_an_encoder_cannot_do_is_told(server):
    status, told, headers = server.post("/v1/embeddings", {"model": "encoder", "input": "a"})
    assert (status, headers["X-Model-Digest"]) == (200, server.models[0]["digest"])
    for asked, said in [
        ({"input": "a " * 100}, "tokens; expected 1 to 64"),
        ({"input": ["a", ""]}, "0 tokens"),
        ({"input": [400]}, "there is no token 400"),
        ({"input": []}, "`input`"),
        ({"input": "a", "dimensions": 8}, "`dimensions` is not supported"),
        ({"input": "a", "encoding_format": "int8"}, "`encoding_format`"),
    ]:
        status, told, _ = server.post("/v1/embeddings", {"model": "encoder", **asked})
        assert status == 400
        assert said in told["error"]["message"]
    status, told, _ = server.post("/v1/completions", {"model": "encoder", "prompt": "a"})
    assert (status, "ask /v1/embeddings" in told["error"]["message"]) == (400, True)
    assert server.raw("GET", "/v1/models")[1]["data"][0]["task"] == "feature-extraction"
