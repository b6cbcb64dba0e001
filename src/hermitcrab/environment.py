"""The machine that a run stood on: facts beside an artifact, and what `crab doctor` prints."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CORE = (
    "numpy",
    "scipy",
    "numba",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "gguf",
    "pydantic",
    "cryptography",
    "model-signing",
)
EXTRAS = {
    "train": ("torch", "transformers", "peft", "accelerate", "tensorboard", "scikit-learn"),
    "serve": ("fastapi", "uvicorn", "httptools", "prometheus-client", "openvino-genai", "xllamacpp", "llguidance"),
    "ray": ("ray",),
    "hub": ("huggingface-hub",),
    "energy": ("codecarbon",),
    "explain": ("captum",),
    "modelscope": ("modelscope",),
}


def versions(names: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or "unknown"


def describe() -> dict[str, Any]:
    """`environment` of an artifact's facts."""
    packages = versions(("hermitcrab", *CORE, *(n for names in EXTRAS.values() for n in names)))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "packages": {name: found for name, found in packages.items() if found},
    }


def peak_memory() -> int:
    """Bytes of memory that this process had resident at most, so far."""
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def doctor(store: Path) -> dict[str, Any]:
    """Versions, devices, threads, memory, disk, extras, and what is wrong (a list of sentences)."""
    import psutil

    problems: list[str] = []
    core = versions(CORE)
    problems += [
        f"the core library {name} is missing; reinstall hermitcrab" for name, found in core.items() if not found
    ]
    if importlib.util.find_spec("torchvision") is not None and "+cpu" in (versions(("torch",))["torch"] or ""):
        problems.append(
            "torchvision is installed beside a CPU build of torch, which breaks transformers; run: pip uninstall torchvision"
        )
    if importlib.util.find_spec("OpenSSL") is None:
        problems.append("pyOpenSSL is missing, without which model-signing does not import; run: pip install pyOpenSSL")
    extras = {name: versions(names) for name, names in EXTRAS.items()}
    place = next(p for p in [store.absolute(), *store.absolute().parents] if p.exists())
    free = shutil.disk_usage(place).free
    if free < 2 << 30:
        problems.append(
            f"only {free / 2**30:.1f} GiB are free where the store is; models need more. `crab gc` frees what no run needs"
        )
    if not os.access(place, os.W_OK):
        problems.append(f"{place.name} cannot be written to; choose another folder with --store")
    memory = psutil.virtual_memory()
    devices: list[str] = []
    if extras["train"]["torch"]:
        import torch

        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **describe(),
        "devices": devices or ["cpu"],
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "bfloat16": any(flag in _flags() for flag in ("avx512_bf16", "amx_bf16", "bf16")),
        "memory_gib": {"total": round(memory.total / 2**30, 1), "available": round(memory.available / 2**30, 1)},
        "disk_free_gib": round(free / 2**30, 1),
        "extras": {name: {"installed": all(found.values()), "packages": found} for name, found in extras.items()},
        "problems": problems,
    }


def _flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        return set()
    return set()
