import json
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEMPLATE, write_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.gguf_tokenizer import CUTS
from hermitcrab.models.tokenizer import TextTokenizer, read_tokenizer

TEXTS = [
    "Hello world's  12,345.67!\n\n\tdef f(x):\r\n    return x ** 2",
    " leading, trailing \n",
    "naïve café — 寄居蟹住在别的动物留下的壳里。 10𝟘½ Ⅷ 🦀🦀 e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n",
    "DON'T we'll I'M i'd CamelCaseWORDS x_y_z http://a.b/c?d=1&e=2",
    "",
]
MODEL_TYPES = ["llama", "qwen2", "qwen3"]


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> TextTokenizer:
    return read_tokenizer(smollm2)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    vocab, merges, path = byte_level(tmp_path_factory.mktemp("digits"))
    return read_tokenizer(write_gguf(path, list(vocab), [1] * len(vocab), model="gpt2", pre="smollm", merges=merges))


def write_gguf(path: Path, tokens: list[str], types: list[int], **more: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in more.items():
        key = f"tokenizer.ggml.{name}" if name != "chat_template" else "tokenizer.chat_template"
        {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool, list: writer.add_array}[type(value)](
            key, value
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_smollm2_cuts_digits_singly_and_knows_its_special_tokens(smol: TextTokenizer) -> None:
    assert [smol.backend.id_to_token(i) for i in smol.encode("a 123")] == ["a", "Ġ", "1", "2", "3"]
    assert smol.special == {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
    }  # fmt: skip
    assert (smol.id("bos_token"), smol.id("eos_token"), smol.id("mask_token")) == (1, 2, None)
    assert smol.encode("<|im_start|>user\nhi<|im_end|>\n")[0] == 1
    assert not smol.adds_bos
    assert smol.template_digest == "sha256:872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
    assert smol.encode("Hello 1234 wörld's") == [19556, 216, 33, 34, 35, 36, 267, 29989, 400, 506]


@settings(deadline=None, max_examples=100)
@given(text=st.text())
def test_byte_level_text_comes_back(digits: TextTokenizer, text: str) -> None:
    assert digits.decode(digits.encode(text), special=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_the_text(digits: TextTokenizer, text: str) -> None:
    """Also of those that hold no whole character."""
    assert b"".join(digits.bytes_of(token) for token in digits.encode(text)) == text.encode()


def test_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "<0xE5>": 1, "\u2581a": 2, "b": 3}, []))
    text = TextTokenizer(tokenizer, {}, None)
    assert [text.bytes_of(token) for token in (1, 2, 3, 99)] == [b"\xe5", b" a", b"b", b""]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_is_saved_gives_transformers_the_same_ids(smol: TextTokenizer, tmp_path: Path, model_type: str) -> None:
    from transformers import AutoTokenizer

    smol.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    peer, again = AutoTokenizer.from_pretrained(tmp_path), read_tokenizer(tmp_path)
    # Qwen's own class brings the pre-tokenizer of Qwen, whatever the files say; its bases are cut that way anyhow.
    texts = TEXTS if model_type != "qwen2" else [TEXTS[3]]
    for text in texts:
        assert peer(text)["input_ids"] == smol.encode(text, special=True) == again.encode(text, special=True)
        assert peer.decode(smol.encode(text)) == smol.decode(smol.encode(text), special=True)
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (1, 2, 2)
    assert again.special == smol.special
    assert again.chat_template == smol.chat_template
    talk = [{"role": "user", "content": "hi"}]
    assert peer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) == smol.render(talk, True)
    assert peer.model_max_length == 8192


def test_qwen_cuts_are_those_of_transformers_own_class(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    vocab, merges, path = byte_level(tmp_path)
    ours = read_tokenizer(write_gguf(path, list(vocab), [1] * len(vocab), model="gpt2", pre="qwen2", merges=merges))
    peer = Qwen2Tokenizer(vocab=dict(vocab), merges=[tuple(m.split(" ")) for m in merges])
    for text in TEXTS:
        assert ours.encode(text) == [i for i in peer(text)["input_ids"] if i < len(vocab)]


def byte_level(tmp_path: Path) -> tuple[dict[str, int], list[str], Path]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(TEXTS * 3, trainer)
    content = json.loads(trained.to_str())["model"]
    vocab = dict(sorted(content["vocab"].items(), key=lambda item: item[1]))
    return vocab, [" ".join(m) if isinstance(m, list) else m for m in content["merges"]], tmp_path / "t.gguf"


@pytest.mark.parametrize("pre", sorted(CUTS))
def test_every_known_cut_loses_no_text(tmp_path: Path, pre: str) -> None:
    vocab, merges, path = byte_level(tmp_path)
    read = read_tokenizer(write_gguf(path, list(vocab), [1] * len(vocab), model="gpt2", pre=pre, merges=merges))
    for text in TEXTS:
        composed = normalizers.NFC().normalize_str(text) if CUTS[pre].nfc else text
        assert read.decode(read.encode(text)) == composed


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 1234", ["it", "'s", "Ġ1234"]),
        ("smollm", "it's 1234", ["it", "'s", "Ġ", "1", "2", "3", "4"]),
        ("llama-bpe", "IT'S 1234\n\n", ["IT", "'S", "Ġ", "123", "4", "ĊĊ"]),
        ("qwen2", "IT'S 12(x", ["IT", "'S", "Ġ", "1", "2", "(x"]),
        ("tekken", "aBc 12", ["a", "Bc", "Ġ", "1", "2"]),
        ("gpt-4o", "We'll 1234", ["We'll", "Ġ", "123", "4"]),
        ("deepseek-v3", "1234寄居 (ab", ["123", "4", "å¯Ħå±ħ", "Ġ(", "ab"]),
    ],
)
def test_cuts(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    vocab, merges, path = byte_level(tmp_path)
    read = read_tokenizer(write_gguf(path, list(vocab), [1] * len(vocab), model="gpt2", pre=pre, merges=merges))
    assert [piece for piece, _ in read.backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("pre", "says"), [("smolm", "did you mean `smollm`"), ("default", "does not say how"), (None, "does not say how")]
)
def test_an_unknown_cut_is_refused(tmp_path: Path, pre: str | None, says: str) -> None:
    named = {} if pre is None else {"pre": pre}
    with pytest.raises(HermitcrabError, match=says):
        read_tokenizer(write_gguf(tmp_path / "t.gguf", ["a", "b"], [1, 1], model="gpt2", merges=["a b"], **named))


def test_bos_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocab, merges, path = byte_level(tmp_path)
    tokens = [*vocab, "<s>", "</s>", "<think>"]
    last = len(vocab)
    types = [1] * last + [3, 3, 4]
    common = dict(model="gpt2", merges=merges, bos_token_id=last, eos_token_id=last + 1)
    for pre, more, expected in (
        ("llama-bpe", {}, [last]), ("llama-bpe", {"add_bos_token": False}, []), ("gpt-2", {}, []),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, [last, last + 1]),
    ):  # fmt: skip
        read = read_tokenizer(write_gguf(path, tokens, types, pre=pre, **common, **more))
        assert read.encode("", special=True) == expected
        assert read.adds_bos == (last in expected)
        assert read.encode("<s><think>") == [last, last + 2]
        assert read.decode([last, last + 2]) == "<think>"
        read.save(tmp_path / "saved")
        (tmp_path / "saved" / "config.json").write_text('{"model_type": "llama"}')
        assert AutoTokenizer.from_pretrained(tmp_path / "saved")("")["input_ids"] == expected


def sentencepiece(tmp_path: Path, **more: object) -> tuple[Tokenizer, Path]:
    """A tokenizer of SentencePiece's kind, and the same as a GGUF file holds it: scores, no merges."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False, max_token_length=12
    )
    trained.train_from_iterator([TEXTS[0], TEXTS[4], "the cat sat on the mat and the dog sat on the cat"] * 3, trainer)
    content = json.loads(trained.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in fallback]
    trained = Tokenizer.from_str(json.dumps(content))
    tokens = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    ranks = {m[0] + m[1]: -float(rank) for rank, m in reversed(list(enumerate(content["model"]["merges"])))}
    scores = [ranks.get(token, -1e6) for token in tokens]
    path = write_gguf(
        tmp_path / "s.gguf", tokens, types, model="llama", scores=scores, bos_token_id=1, eos_token_id=2,
        unknown_token_id=0, **more,
    )  # fmt: skip
    return trained, path


def test_sentencepiece_from_scores_gives_the_ids_of_its_merges(tmp_path: Path) -> None:
    trained, path = sentencepiece(tmp_path)
    read = read_tokenizer(path)
    assert read.adds_bos
    for text in [*TEXTS, "the cat", "  the  cats", "caté 🦀"]:
        assert read.encode(text) == trained.encode(text, add_special_tokens=False).ids
        assert read.decode(read.encode(text)) == trained.decode(read.encode(text))
    assert read.encode("<s>the</s>")[0] == 1


def test_sentencepiece_merges_are_those_of_transformers_conversion(tmp_path: Path) -> None:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    _, path = sentencepiece(tmp_path)
    architecture, content, _ = get_gguf_tokenizer(str(path))
    peer = json.loads(convert_gguf_tokenizer(architecture, content)[0].to_str())["model"]
    ours = json.loads(read_tokenizer(path).backend.to_str())["model"]
    byte_like = [m for m in peer["merges"] if m not in ours["merges"]]
    assert ours["vocab"] == peer["vocab"]
    assert byte_like == []


@pytest.mark.parametrize(
    ("tokens", "types", "more", "says"),
    [
        ([], [], {}, "vocabulary is empty|no list"),
        (["a", "a"], [1, 1], {}, "twice"),
        (["a", "b"], [1], {}, "not as long"),
        (["a", "b"], [1, 1], {"merges": ["ab"]}, "no merge"),
        (["a", "b"], [1, 1], {"merges": ["a c"]}, "cannot be used"),
        (["a", "b"], [1, 1], {"merges": ["a b"]}, "cannot be used"),
        (["a", "b"], [1, 1], {"eos_token_id": 2}, "no id of its 2 tokens"),
        (["a", "b"], [1, 1], {"model": "bert"}, "not read from GGUF"),
        (["a", "b"], [1, 1], {"model": "llama"}, "score"),
    ],
)
def test_a_vocabulary_that_lies_is_refused(
    tmp_path: Path, tokens: list[str], types: list[int], more: dict[str, object], says: str
) -> None:
    with pytest.raises(HermitcrabError, match=says):
        read_tokenizer(write_gguf(tmp_path / "t.gguf", tokens, types, **{"model": "gpt2", "pre": "gpt-2", **more}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path, ["the weather is good"])
    return tmp_path


def test_a_folders_tokenizer_is_used_as_it_stands(folder: Path) -> None:
    from transformers import AutoTokenizer

    read, peer = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert read.chat_template == TEMPLATE
    for text in TEXTS:
        assert read.encode(text) == peer(text)["input_ids"]


def change(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))


def test_templates_and_special_tokens_are_found_wherever_they_stand(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert read_tokenizer(folder).chat_template is None
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    change(folder, "tokenizer_config.json", chat_template=named, eos_token={"content": "<|endoftext|>"}, bos_token=None)
    read = read_tokenizer(folder)
    assert read.chat_template == "d"
    assert read.special["eos_token"] == "<|endoftext|>"
    assert "bos_token" not in read.special


def test_a_saved_template_keeps_its_bytes_and_so_its_digest(folder: Path, tmp_path: Path) -> None:
    change(folder, "tokenizer_config.json", chat_template=TEMPLATE.replace("{% endfor %}", "\r\n{% endfor %}"))
    (folder / "chat_template.jinja").unlink()
    first = read_tokenizer(folder)
    first.save(tmp_path / "saved")
    assert read_tokenizer(tmp_path / "saved").template_digest == first.template_digest


def test_damaged_folders_are_refused(folder: Path) -> None:
    change(folder, "tokenizer_config.json", eos_token="<absent>")
    with pytest.raises(HermitcrabError, match="not in the vocabulary"):
        read_tokenizer(folder)
    change(folder, "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]})
    with pytest.raises(HermitcrabError, match="cannot be used"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(HermitcrabError, match="no readable JSON"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(HermitcrabError, match=r"no tokenizer\.json"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").symlink_to("/dev/zero")
    with pytest.raises(HermitcrabError, match="symbolic link"):
        read_tokenizer(folder)
