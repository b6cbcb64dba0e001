import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights


def state() -> dict[str, torch.Tensor]:
    shared = torch.randn(3, 4)
    return {"a": shared, "tied": shared, "half": torch.tensor([1.5], dtype=torch.bfloat16), "view": shared.T, "part": shared[1:, 2],
            "counts": torch.arange(5), "flag": torch.tensor([True, False]), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3),
            "wide": torch.randn(2, 2, dtype=torch.float64), "f16": torch.randn(4).half(), "expanded": shared[:1].expand(3, 4)}  # fmt: skip


def test_reads_what_torch_wrote_without_running_it(tmp_path: Path) -> None:
    expected = state()
    torch.save(expected, tmp_path / "pytorch_model.bin")
    weights = open_weights(tmp_path)
    assert weights.format == "pytorch"
    assert set(weights.tensors) == set(expected)
    for name, tensor in expected.items():
        read = torch.from_numpy(weights.read(name))
        assert torch.equal(read, tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)


def test_parameters_and_checkpoints_with_an_optimizer(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    torch.save(
        {"epoch": 3, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.5, "args": ["x"]},
        tmp_path / "m.pt",
    )
    assert set(open_weights(tmp_path).tensors) == set(net.state_dict())
    torch.save({k: torch.nn.Parameter(v) for k, v in state().items() if v.is_floating_point()}, tmp_path / "m.pt")
    assert "a" in open_weights(tmp_path).tensors


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_a_name_that_could_run_is_refused_by_name(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for content in (
        {"a": Hostile(mark)},
        {"a": torch.zeros(2), "b": [Hostile(mark)]},
        torch.nn.Linear(2, 2),
        [torch.zeros(2)],
        {},
    ):
        torch.save(content, tmp_path / "m.pt")
        with pytest.raises(HermitcrabError, match="refused, because this pickle") as caught:
            open_weights(tmp_path / "m.pt")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def repacked(source: Path, target: Path, changes: dict[str, bytes | None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = changes.get(name.split("/", 1)[1], old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def test_a_tensor_beyond_its_storage_or_without_one_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100)}, tmp_path / "good.pt")
    for changes, says in (
        ({"data/0": b"\0" * 40}, "beyond its storage"),
        ({"data/0": None}, "is missing"),
        ({"data.pkl": b"\x80\x02."}, "damaged"),
        ({"byteorder": b"big"}, "big-endian"),
    ):
        with pytest.raises(HermitcrabError, match=says):
            open_weights(repacked(tmp_path / "good.pt", tmp_path / "m.pt", changes))


def test_a_mapping_that_holds_itself_many_times_over_ends(tmp_path: Path) -> None:
    inner: dict[str, object] = {"x": 1}
    for _ in range(40):
        inner = {str(i): inner for i in range(40)}
    torch.save({"t": torch.zeros(1)}, tmp_path / "good.pt")
    repacked(tmp_path / "good.pt", tmp_path / "m.pt", {"data.pkl": pickle.dumps({"model": inner}, 2)})
    with pytest.raises(HermitcrabError, match="refused"):
        open_weights(tmp_path / "m.pt")


@settings(max_examples=80, deadline=None)
@given(at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_pickle_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(state(), folder / "good.pt")
    with zipfile.ZipFile(folder / "good.pt") as archive:
        data = bytearray(archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    data[at % len(data)] = byte
    repacked(folder / "good.pt", folder / "m.pt", {"data.pkl": bytes(data)})
    try:
        weights = open_weights(folder / "m.pt")
        for name in weights.tensors:
            weights.read(name)
    except HermitcrabError as error:
        str(error).encode()
