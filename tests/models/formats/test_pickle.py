import pickle
from pathlib import Path

import pytest
import torch

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.formats import open_weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_an_old_state_dict_reads_through_safetensors(tmp_path: Path, cache: Path) -> None:
    shared = torch.randn(3, 4)
    state = {"a": shared, "tied": shared, "half": torch.tensor([1.5], dtype=torch.bfloat16), "view": shared.T}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    weights = open_weights(tmp_path)
    assert weights.format == "safetensors"
    for name, tensor in state.items():
        assert torch.equal(torch.from_numpy(weights.read(name)), tensor.float())
    copies = list(cache.rglob("*.safetensors"))
    before = copies[0].stat().st_mtime_ns
    open_weights(tmp_path)
    assert [c.stat().st_mtime_ns for c in copies] == [before]


def test_a_hostile_pickle_runs_nothing(tmp_path: Path, cache: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"a": Hostile(mark)}))
    torch.save({"a": Hostile(mark)}, tmp_path / "n.pt")
    for name in ("m.pt", "n.pt"):
        with pytest.raises(HermitcrabError, match="refused, because this pickle") as caught:
            open_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04" + b"\0" * 50, pickle.dumps([1, 2])])
def test_what_is_no_mapping_of_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(HermitcrabError, match="refused, because this pickle"):
        open_weights(tmp_path / "m.bin")
