import errno
from pathlib import Path

import numpy as np
import pytest

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights
from hermitcrab.models.formats.gguf_writer import plan_tensor, write

STEPS = {"Q8_0": (127, 0.5), "Q4_0": (8, 1.0), "Q5_0": (16, 1.0)}  # levels to one side; largest error, in steps
SPANS = {"Q4_1": 15, "Q5_1": 31}  # levels from the smallest to the largest


def values_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * random.uniform(0.001, 3, (*shape[:-1], 1))).astype(np.float32)


def written(path: Path, kind: str, values: dict[str, np.ndarray], head: str = "") -> dict[str, str]:
    planned = [plan_tensor(name, v.shape, kind, name == head) for name, v in values.items()]
    write(path, "llama", {"general.name": "x"}, planned, values.__getitem__)
    return {tensor.name: tensor.dtype for tensor in planned}


def error_bound(kind: str, values: np.ndarray) -> np.ndarray:
    """Largest error of each number, from the definition of its block; the scales themselves are float16."""
    blocks = values.reshape(-1, 32)
    largest = np.abs(blocks).max(1, keepdims=True)
    if kind in STEPS:
        levels, steps = STEPS[kind]
        bound = largest / levels * steps
    else:
        bound = (blocks.max(1, keepdims=True) - blocks.min(1, keepdims=True)) / SPANS[kind] / 2
    return np.broadcast_to(bound + largest * 2.0**-9 + 1e-7, blocks.shape).reshape(values.shape)


@pytest.mark.parametrize("kind", [*STEPS, *SPANS])
def test_every_number_comes_back_within_the_error_of_its_block(tmp_path: Path, kind: str) -> None:
    values = {"blk.0.attn_v.weight": values_of((48, 96)), "zeros.weight": np.zeros((4, 32), np.float32)}
    assert set(written(tmp_path / "m.gguf", kind, values).values()) == {kind}
    weights = open_weights(tmp_path / "m.gguf")
    for name, wanted in values.items():
        assert (np.abs(weights.read(name) - wanted) <= error_bound(kind, wanted)).all()
    assert np.abs(weights.read("blk.0.attn_v.weight") - values["blk.0.attn_v.weight"]).max() > 0


def test_plain_types_lose_what_they_say_and_no_more(tmp_path: Path) -> None:
    values = {"a.weight": values_of((8, 40)), "b.weight": values_of((40,))}
    for kind, relative in (("F32", 0.0), ("F16", 2.0**-11), ("BF16", 2.0**-8)):
        written(tmp_path / f"{kind}.gguf", kind, values)
        weights = open_weights(tmp_path / f"{kind}.gguf")
        assert weights.tensors["a.weight"].dtype == kind
        assert weights.tensors["b.weight"].dtype == "F32"
        assert np.abs(weights.read("a.weight") - values["a.weight"]).max() <= relative * 12 + 1e-7
        assert (weights.read("b.weight") == values["b.weight"]).all()


def test_what_a_type_cannot_hold_stays_wider_and_says_why(tmp_path: Path) -> None:
    values = {
        "token_embd.weight": values_of((4, 64)), "odd.weight": values_of((4, 40)), "norm.weight": values_of((64,)),
        "output.weight": values_of((4, 64)),
    }  # fmt: skip
    assert written(tmp_path / "m.gguf", "Q4_0", values, head="output.weight") == {
        "token_embd.weight": "Q4_0", "odd.weight": "F16", "norm.weight": "F32", "output.weight": "Q8_0",
    }  # fmt: skip
    reasons = [plan_tensor(name, v.shape, "Q4_0", name == "output.weight").reason for name, v in values.items()]
    assert reasons == [None, "row no whole number of Q4_0 blocks, in F16", "vector, in F32", "output head, in Q8_0"]
    assert plan_tensor("output.weight", (4, 64), "Q8_0", True).reason is None
    weights = open_weights(tmp_path / "m.gguf")
    assert {n: i.nbytes for n, i in weights.tensors.items()} == {
        name: plan_tensor(name, v.shape, "Q4_0", name == "output.weight").nbytes for name, v in values.items()
    }


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, "Q8_0", {"a.weight": values_of((8, 64))})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metadata_comes_back_as_it_was_given(tmp_path: Path) -> None:
    told = {"a": "text 寄居蟹", "b": 7, "c": 0.5, "d": True, "e": ["x", "y"], "f": [1, -2], "g": [0.25, -1e6]}
    write(tmp_path / "m.gguf", "qwen3", told, [], {}.__getitem__)
    assert open_weights(tmp_path / "m.gguf").metadata == {"general.architecture": "qwen3", **told}


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [("Q8_0", np.nan, "no numbers"), ("F32", np.inf, "no numbers"), ("F16", 7e4, "beyond what F16"),
     ("Q4_0", -7e4, "beyond what Q4_0")],
)  # fmt: skip
def test_values_that_the_type_cannot_say_are_refused_and_nothing_is_left(
    tmp_path: Path, kind: str, value: float, says: str
) -> None:
    values = values_of((4, 32))
    values[1, 3] = value
    with pytest.raises(HermitcrabError, match=says):
        written(tmp_path / "m.gguf", kind, {"a.weight": values})
    assert not (tmp_path / "m.gguf").exists()


def test_bfloat16_holds_what_float16_cannot(tmp_path: Path) -> None:
    written(tmp_path / "m.gguf", "BF16", {"a.weight": np.full((1, 32), 2.0**17, np.float32)})
    assert open_weights(tmp_path / "m.gguf").read("a.weight").max() == 2.0**17


def test_a_full_disk_has_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("4096 requested and 512 written")  # as numpy says it

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(OSError) as caught:
        written(tmp_path / "m.gguf", "F32", {"a.weight": values_of((4, 32))})
    assert caught.value.errno == errno.ENOSPC
