"""A graph that onnxruntime or OpenVINO computes, called as the torch model that it was made from."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import onnx_writer
from hermitcrab.models.onnx_graphs import graph_of
from hermitcrab.models.runtimes import open_runtime


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                         intermediate_size=48, vocab_size=90, max_position_embeddings=64)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def path(decoder, tmp_path_factory) -> Path:
    return onnx_writer.write(tmp_path_factory.mktemp("d") / "m.onnx", graph_of(decoder, "CAUSAL_LM"), {})[0]


def near(a, b) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) < 1e-4


@torch.inference_mode()
def both(decoder, other) -> None:
    ids = torch.randint(0, 90, (3, 7))
    wanted = decoder(input_ids=ids, use_cache=False).logits
    assert near(other(input_ids=ids, use_cache=False).logits, wanted)
    assert near(other(input_ids=ids, logits_to_keep=1).logits, wanted[:, -1:])
    assert near(other(input_ids=ids, logits_to_keep=torch.tensor([2, 5])).logits, wanted[:, [2, 5]])
    cache = DynamicCache(config=decoder.config)
    first = other(input_ids=ids[:, :4], past_key_values=cache, use_cache=True).logits
    assert cache.get_seq_length() == 4
    later = other(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True).logits
    assert near(torch.cat([first, later], 1), wanted)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]]).expand(3, 7)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    padded = decoder(input_ids=ids, attention_mask=mask, position_ids=places).logits
    assert near(other(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 2:], padded[:, 2:])


def test_a_decoder_in_onnx_with_and_without_tokens_before(decoder, path):
    both(decoder, open_runtime("onnx", path, torch.float32))


def test_the_same_graph_in_openvino(decoder, path, tmp_path):
    pytest.importorskip("openvino")
    from hermitcrab.exporting.onnx_to_openvino import convert
    from hermitcrab.models.runtimes.openvino_graph import OpenvinoGraph

    convert(path, tmp_path / "openvino_model.xml", "f32", {"license": "MIT"})
    both(decoder, OpenvinoGraph(tmp_path / "openvino_model.xml").eval())


def test_what_it_cannot_do_is_said(path, tmp_path):
    model = open_runtime("onnx", path, torch.float32)
    with pytest.raises(HermitcrabError, match="no input `pixel_values`"):
        model(pixel_values=torch.zeros(1))
    with pytest.raises(HermitcrabError, match="cannot be run"):
        model(input_ids=torch.full((1, 3), 10**6))
    (tmp_path / "m.onnx").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HermitcrabError):
        open_runtime("onnx", tmp_path / "m.onnx", torch.float32)
