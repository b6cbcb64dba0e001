"""What filters ask of the bytes of a whole batch at once, so that only suspected texts are looked at one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


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


def counts(marked_B: np.ndarray, start_N1: np.ndarray) -> np.ndarray:
    """How many bytes of each text are marked: int64 [N]."""
    import numpy as np

    at = np.flatnonzero(marked_B)
    return np.diff(np.searchsorted(at, start_N1))
