"""What filters ask of the bytes of a whole batch at once, so that only suspected texts are looked at one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def utf8(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 of a large_string array without nulls, uint8 [B], and where each text begins and the last one ends, int64 [N + 1]."""
    import numpy as np

    _, offsets, data = text.buffers()
    start_N1 = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    data_B = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return data_B[start_N1[0] : start_N1[-1]], start_N1 - start_N1[0]


def holders(at: np.ndarray, start_N1: np.ndarray) -> np.ndarray:
    """Which texts have something at these bytes: bool [N]."""
    import numpy as np

    found_N = np.zeros(len(start_N1) - 1, bool)
    found_N[np.searchsorted(start_N1, at, side="right") - 1] = True
    return found_N


def replaced(text: pa.Array, new: dict[int, str]) -> pa.Array:
    """The batch with some texts (by place) replaced."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask_N = np.zeros(len(text), bool)
    mask_N[list(new)] = True
    values: Iterable[Any] = (new[i] for i in sorted(new))
    return pc.replace_with_mask(text, pa.array(mask_N), pa.array(list(values), pa.large_string()))
