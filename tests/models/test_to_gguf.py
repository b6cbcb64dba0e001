"""Folders as training leaves them, written as GGUF and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ggml import CASES, make
from test_tokenizer import TEXTS, byte_level, sentencepiece, write_gguf
from tiny import TEMPLATE, write_model, write_tokenizer
from transformers import AutoModelForCausalLM

from hermitcrab.digest import describe_files
from hermitcrab.errors import HermitcrabError
from hermitcrab.models import to_gguf
from hermitcrab.models.formats import gguf_writer, open_weights
from hermitcrab.models.gguf_tokenizer import CUTS
from hermitcrab.models.load import load_model
from hermitcrab.models.to_gguf import Export, tokenizer_keys
from hermitcrab.models.tokenizer import TextTokenizer, read_tokenizer
from hermitcrab.tasks.text_generation import AWKWARD

ABOUT = {"general.name": "x", "general.license": "Apache-2.0", "general.base_model.count": 1,
         "general.base_model.0.name": "Tiny"}  # fmt: skip


def loaded(path: Path) -> torch.nn.Module:
    return load_model({"files": describe_files(path.parent, [path.name])}, path, torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_f32_comes_back_with_the_same_logits(case: str, tmp_path: Path) -> None:
    model_type, more = CASES[case]
    model = make(model_type, **{"vocab_size": 420, **more})
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model", ["the weather is good"], vocabulary=400)
    Export(tmp_path / "model", ABOUT).write("F32", tmp_path / "m.gguf")
    again = loaded(tmp_path / "m.gguf")
    ids = torch.arange(60).reshape(2, 30)
    assert (again(ids).logits - model(ids).logits).abs().max() < 1e-4
    assert again.config.vocab_size == 420  # more rows than tokens: filled up, as engines expect
    metadata = open_weights(tmp_path / "m.gguf").metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == 420
    assert set(metadata["tokenizer.ggml.token_type"][-5:]) == {to_gguf.UNUSED}


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    Export(tmp_path / "model", ABOUT).write("F32", tmp_path / "m.gguf")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model").model.layers[0].self_attn
    theirs = open_weights(tmp_path / "m.gguf")
    q = ours.q_proj.weight.detach().numpy()  # 4 heads of 8 rows: halves, in llama.cpp neighbors
    assert (theirs.read("blk.0.attn_q.weight")[:4] == q[[0, 4, 1, 5]]).all()
    assert (theirs.read("blk.0.attn_k.weight")[8:12] == ours.k_proj.weight.detach().numpy()[[8, 12, 9, 13]]).all()
    assert (theirs.read("blk.0.attn_v.weight") == ours.v_proj.weight.detach().numpy()).all()


def test_the_metadata_say_license_base_template_and_ends(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    Export(tmp_path / "model", ABOUT).write("Q8_0", tmp_path / "m.gguf")
    found = open_weights(tmp_path / "m.gguf").metadata
    assert ABOUT.items() <= found.items()
    assert found["tokenizer.chat_template"] == TEMPLATE
    ids = {name: found[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert ids == {"bos": 1, "eos": 2, "padding": 0}
    assert [found["tokenizer.ggml.tokens"][i] for i in (1, 2)] == ["<|im_start|>", "<|im_end|>"]
    assert (found["tokenizer.ggml.pre"], found["tokenizer.ggml.add_bos_token"]) == ("gpt-2", False)
    assert (found["general.file_type"], found["llama.vocab_size"]) == (gguf_writer.FILE_TYPES["Q8_0"], 400)


def test_another_reader_reads_it_too(tmp_path: Path) -> None:
    """transformers' own reader of GGUF, which shares nothing with ours."""
    write_model(tmp_path / "model")
    Export(tmp_path / "model", ABOUT).write("F32", tmp_path / "m.gguf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.arange(40).reshape(2, 20)
    assert (peer(ids).logits - model(ids).logits).abs().max() < 1e-4


# Tokenizers


def same_ids(text: TextTokenizer, path: Path) -> TextTokenizer:
    """`text` as a GGUF file has it, after a look at its ids."""
    gguf_writer.write(path, "llama", tokenizer_keys(text), [], {}.__getitem__)
    again = read_tokenizer(path)
    for sample in [*AWKWARD, *TEXTS, "the cat", "  the  cats"]:
        assert again.encode(sample) == text.encode(sample), sample
        assert again.encode(sample, special=True) == text.encode(sample, special=True), sample
        assert again.decode(again.encode(sample)) == text.decode(text.encode(sample))
    assert (again.special, again.chat_template, again.adds_bos) == (text.special, text.chat_template, text.adds_bos)
    return again


@pytest.mark.parametrize("pre", sorted(CUTS))
def test_every_known_cut_is_recognized_by_its_parts(tmp_path: Path, pre: str) -> None:
    vocab, merges, path = byte_level(tmp_path)
    types = [1] * (len(vocab) - 2) + [3, 4]
    ends = {"bos_token_id": len(vocab) - 2, "add_bos_token": True, "chat_template": "{{ messages }}"}
    text = read_tokenizer(write_gguf(path, list(vocab), types, model="gpt2", pre=pre, merges=merges, **ends))
    same_ids(text, tmp_path / "again.gguf")
    named = tokenizer_keys(text)["tokenizer.ggml.pre"]
    assert (CUTS[named].splits, CUTS[named].digits, CUTS[named].nfc) == (
        CUTS[pre].splits,
        CUTS[pre].digits,
        CUTS[pre].nfc,
    )


@pytest.mark.parametrize("more", [{}, {"add_space_prefix": False}, {"add_bos_token": False, "add_eos_token": True}])
def test_a_tokenizer_of_sentencepieces_kind_goes_through_scores(tmp_path: Path, more: dict[str, Any]) -> None:
    same_ids(read_tokenizer(sentencepiece(tmp_path, **more)[1]), tmp_path / "again.gguf")


def test_the_real_tokenizer(smollm2: Path, tmp_path: Path) -> None:
    text = read_tokenizer(smollm2)
    text.save(tmp_path / "saved")
    same_ids(read_tokenizer(tmp_path / "saved"), tmp_path / "again.gguf")
    assert tokenizer_keys(text)["tokenizer.ggml.pre"] == "smollm"


def changed(folder: Path, **parts: Any) -> TextTokenizer:
    write_tokenizer(folder, ["the weather is good"])
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, **parts}))
    return read_tokenizer(folder)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}, "no name"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}}, "no name in GGUF"),
        ({"normalizer": {"type": "Lowercase"}}, "no name in GGUF"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "neither byte-level nor"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<|endoftext|>": 3},
                    "unk_token": "a"}, "added_tokens": []}, "type WordLevel"),
        ({"added_tokens": [{"id": i, "content": c, "single_word": False, "lstrip": i == 1, "rstrip": False, "normalized": False,
                            "special": True} for i, c in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])]},
         "swallows the spaces"),
    ],
)  # fmt: skip
def test_a_tokenizer_without_words_in_gguf_is_refused(tmp_path: Path, parts: dict[str, Any], says: str) -> None:
    with pytest.raises(HermitcrabError, match=says):
        tokenizer_keys(changed(tmp_path, **parts))


# Configurations


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "gpt_neox"}, r"models of type 'gpt_neox' are not written as GGUF \(only llama, qwen2, qwen3\)"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn scaling"),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic scaling"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
         "other bounds"),
    ],
)  # fmt: skip
def test_what_gguf_cannot_say_is_refused_by_name(config: dict[str, Any], says: str) -> None:
    with pytest.raises(HermitcrabError, match=says):
        to_gguf.architecture(config)


def test_a_tensor_without_a_name_and_a_setting_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.0.extra.weight": tensors["model.norm.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(HermitcrabError, match=r"`model\.layers\.0\.extra\.weight` has no name in GGUF"):
        Export(tmp_path, ABOUT)
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 399}))
    with pytest.raises(HermitcrabError, match="vocab_size would be read back as 400, the model has 399"):
        Export(tmp_path, ABOUT).write("F32", tmp_path / "m.gguf")
