"""What a stage took in energy: measured where the machine tells it, else estimated by CodeCarbon where that is installed, and said so.

Measured: the counter of the processor package (RAPL) and those of the GPUs (NVML). The estimate is CodeCarbon's, without a network: the
processor's rated power by its load, and a constant for memory.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

MOST_WATTS = 500  # of one processor package
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


class Meter:
    """Runs from its making until `told` or the end of the `with`."""

    def __init__(self) -> None:
        self.began, self.before, self.gpus = time.time(), counter(), gpu_millijoules()
        self.tracker = _tracker() if self.before is None else None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracker is not None:
            self.tracker.stop()

    def told(self, sessions: int) -> dict[str, Any]:
        """`{joules, method}`, and `estimated: true` where it is no measurement. `sessions`: how often the stage was begun."""
        found = between(self.before, counter(), time.time() - self.began, sessions)
        if self.tracker is not None:
            found = _estimated(self.tracker, found, sessions)
        after = gpu_millijoules()
        if found["joules"] is not None and not found.get("estimated") and self.gpus is not None and after is not None:
            found = {
                "joules": found["joules"] + (after - self.gpus) / 1e3,
                "method": found["method"] + "; NVML, all GPUs",
            }
        return found


def counter() -> int | None:
    """Microjoules of the processor package since some point, or None where the machine does not tell."""
    try:
        return int(RAPL.read_text())
    except (OSError, ValueError):
        return None


def gpu_millijoules() -> int | None:
    """Of all GPUs since their driver was loaded, or None where there are none that tell."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(device) for device in devices) if devices else None
    except pynvml.NVMLError:
        return None


def between(before: int | None, after: int | None, seconds: float, sessions: int) -> dict[str, Any]:
    """Joules of the whole processor package, or null with the reason.

    The counter starts again at `max_energy_range_uj`; a stage long enough for that at `MOST_WATTS` is not told.
    """
    if before is None or after is None:
        return {"joules": None, "method": "unknown: this machine has no readable energy counter"}
    if sessions > 1:
        return {"joules": None, "method": "unknown: the stage was stopped and went on in another session"}
    try:
        around = int(RAPL.with_name("max_energy_range_uj").read_text())
    except (OSError, ValueError):
        around = 0
    if after < before or seconds * MOST_WATTS * 1e6 > around:
        return {"joules": None, "method": "unknown: the energy counter may have started again meanwhile"}
    return {"joules": (after - before) / 1e6, "method": "RAPL, whole processor package, other programs included"}


def _tracker() -> Any:
    """CodeCarbon's, started; None where it is not installed."""
    if importlib.util.find_spec("codecarbon") is None:
        return None
    logging.disable(logging.CRITICAL)  # it greets before it reads its own level
    try:
        from codecarbon import OfflineEmissionsTracker

        # The country decides grams of carbon dioxide, which are not told; energy does not depend on it.
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            tracking_mode="process",
            save_to_file=False,
            log_level="critical",
            allow_multiple_runs=True,
        )
        tracker.start()
    finally:
        logging.disable(logging.NOTSET)
    return tracker


def _estimated(tracker: Any, found: dict[str, Any], sessions: int) -> dict[str, Any]:
    from importlib.metadata import version

    tracker.stop()
    data = tracker.final_emissions_data
    if sessions > 1:
        return {"joules": None, "method": "unknown: the stage was stopped and went on in another session"}
    if data is None:
        return found
    known = f"CodeCarbon {version('codecarbon')}"
    method = f"estimated by {known} from rated power and the load of this process and its children, not measured"
    return {"joules": float(data.energy_consumed) * 3.6e6, "method": method, "estimated": True}
