"""The plan: what the machine chooses, measured in about two seconds, frozen before the first step, read again on resume.

Nothing of it is in a stage's key: a second run reuses the artifact whatever machine made it, and the record says which.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from hermitcrab.errors import UsageError
from hermitcrab.recipe import Train
from hermitcrab.store import process_cpu

SMALL = 5e7  # operations of a product under which one thread does it alone
PROBE_SECONDS = 0.25  # for each thing that is measured
COMPILE_SECONDS = 35.0  # CPU-seconds that compiling a decoder costs, g++ included, nothing cached (docs/log.md)
# Share of a full fine-tuning step that it saves (docs/log.md); both only decide whether it is tried and measured.
COMPILE_GAIN = 0.1


@dataclass
class Plan:
    precision: str
    attention: str
    compile: bool
    threads: int
    processes: int
    steps: int
    rows_per_step: int
    why: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    first_batch_seconds: float | None = None  # CPU-seconds of the batch that compiles, compilers' processes included
    batch_seconds: dict[str, float] = field(default_factory=dict)  # CPU-seconds of a micro-batch, eager and compiled

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rate(work: Callable[[], object], seconds: float = PROBE_SECONDS) -> float:
    """Calls a second of the whole machine, after one to warm up: the best of three slices, by CPU time.

    Wall time on a shared machine tells who else is there, and chose the slowest kernel for it (docs/log.md).
    """
    work()
    best = 0.0
    for _ in range(3):
        began, cpu, calls = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds / 3 or calls == 0:
            work()
            calls += 1
        best = max(best, calls / max(1e-9, time.process_time() - cpu))
    return best * torch.get_num_threads()


def choose_precision(wanted: str, device: str, product: tuple[int, int, int]) -> tuple[str, str]:
    """bfloat16 where a layer is faster in it, casts included. Never float16 on a CPU (2 against 200 GFLOP/s).

    `product`: rows, and the widths that a layer takes and gives.
    """
    if wanted != "auto":
        return wanted, "as the recipe says"
    if device == "cuda":
        return (
            ("bfloat16", "GPU with bfloat16") if torch.cuda.is_bf16_supported() else ("float32", "GPU without bfloat16")
        )
    rows, taken, given = product
    if 2 * rows * taken * given < SMALL:
        return "float32", "products are too small for bfloat16 to pay for its casts"
    x = torch.ones(rows, taken, requires_grad=True)
    weight = torch.ones(given, taken, requires_grad=True)

    def both_ways(name: str) -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=name == "bfloat16"):
            torch.nn.functional.linear(x, weight).sum().backward()

    rates = {name: rate(partial(both_ways, name)) * 6 * rows * taken * given / 1e9 for name in ("float32", "bfloat16")}
    told = ", ".join(f"{name} {r:.0f} GFLOP/s" for name, r in rates.items())
    return ("bfloat16" if rates["bfloat16"] > 1.2 * rates["float32"] else "float32"), told


def choose_attention(
    wanted: str, model: Any, rows: int, length: int, dtype: torch.dtype, device: str, causal: bool = True
) -> tuple[str, str]:
    """The kernel that is fastest forward and backward on one layer of this model's shape with a causal mask.

    Raises:
        UsageError: the recipe asks for a kernel that would leave out a part of this model's attention.
    """
    config: Any = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not heads and (config is not None or not hasattr(model, "_supports_sdpa")):
        if wanted != "auto":
            named = getattr(config, "model_type", "this model")
            raise UsageError(f"train.attention: {named} has no attention that a kernel could be chosen for")
        return "none", "the model has none"
    if getattr(config, "attn_logit_softcapping", None) or not getattr(model, "_supports_sdpa", False):
        if wanted not in ("auto", "eager"):
            raise UsageError(
                f"train.attention: {wanted} leaves out what {config.model_type} does to its scores; expected auto or eager"
            )
        return "eager", "the only kernel that this architecture has"
    if wanted != "auto":
        return wanted, "as the recipe says"
    if device == "cuda":
        return "sdpa", "GPU"
    hidden = getattr(config, "hidden_size", None)
    if type(heads) is not int or type(hidden) is not int:
        return "sdpa", "its layers are not alike, so none of them was probed"
    if not causal:
        return "sdpa", "what was probed is causal, and this model is not"
    width = getattr(config, "head_dim", None) or hidden // heads
    from hermitcrab.train.attention import KERNELS

    shape = (rows, heads, length, width)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    seen = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, 1, length, length)

    def both_ways(kernel: Any) -> None:
        kernel(q, k, v, seen).sum().backward()

    rates = {name: rate(partial(both_ways, kernel)) for name, kernel in KERNELS.items()}
    told = ", ".join(f"{name} {1000 / r:.1f} ms" for name, r in rates.items())
    return max(rates, key=lambda n: rates[n]), told


def choose_compile(wanted: str, part: Train, step_seconds: float, steps: int, device: str) -> tuple[bool, str]:
    if wanted != "auto":
        return wanted == "on", "as the recipe says"
    if part.method != "full":
        return False, "not for adapters: it gained them 1 % when it was measured (docs/log.md)"
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return False, "no C++ compiler"
    saved = COMPILE_GAIN * step_seconds * steps
    return saved > COMPILE_SECONDS, f"would save about {saved:.0f} CPU-s and cost about {COMPILE_SECONDS:.0f}"


def try_compile(plan: Plan, wanted: str, batch: Callable[[], object], compile: Callable[[], object]) -> None:
    """Compile, measure a micro-batch before and after, and write into `plan` what was found and whether to keep it.

    Args:
        batch: one micro-batch forward and backward.
        compile: has the next `batch` compile.
    """
    eager = cpu_seconds(batch)
    try:
        compile()
        plan.first_batch_seconds = _cpu(batch)
        compiled = cpu_seconds(batch)
    except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own, and there is a way without them
        words = str(error).strip().splitlines() or [""]
        plan.compile, plan.why["compile"] = False, f"it failed: {type(error).__name__}: {words[0][:120]}"
        return
    plan.batch_seconds = {"eager": eager, "compiled": compiled}
    told = f"a micro-batch takes {compiled:.3g} CPU-s, eager {eager:.3g}; compiling took {plan.first_batch_seconds:.3g}"
    if compiled < eager:
        told += (
            f", paid back after {math.ceil((plan.first_batch_seconds - compiled) / (eager - compiled)):,} micro-batches"
        )
    elif wanted == "auto":
        plan.compile, told = False, f"no gain: {told}"
    plan.why["compile"] = told if wanted == "auto" else f"as the recipe says; {told}"


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """CPU-seconds of a call: the least of `repeats`, after one to warm up."""
    work()
    return min(_cpu(work) for _ in range(repeats))


def _cpu(work: Callable[[], object]) -> float:
    began = process_cpu()
    work()
    return process_cpu() - began


def versions() -> dict[str, str]:
    """Of what decides the bits of a training."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    return {"python": platform.python_version(), **libraries}


def choose_threads(processes: int, product: tuple[int, int, int]) -> tuple[int, str]:
    """All cores, shared out; one where products are so small that threads wait for each other longer than they compute."""
    if 2 * math.prod(product) < SMALL:
        return 1, f"products of {2 * math.prod(product) / 1e6:.0f} million operations are too small to share out"
    return max(1, (os.cpu_count() or 1) // processes), "every core"


def make_plan(task: Any, model: Any, rows: int, processes: int, precision: tuple[str, str]) -> Plan:
    """Probe the machine for this work.

    Args:
        task: with its part of the recipe.
        model: as loaded (heads, widths and size are asked of it).
        rows: rows in an epoch.
        precision: as chosen, and why.
    """
    part: Train = task.part
    device = "cuda" if torch.cuda.is_available() else "cpu"
    per_step = part.batch_size * part.accumulate
    steps = part.steps or max(1, math.ceil(part.epochs * rows / per_step))
    threads, why_threads = choose_threads(processes, task.product())
    torch.set_num_threads(threads)
    dtype = getattr(torch, precision[0])
    attention, why_attention = choose_attention(
        part.attention, model, part.batch_size, part.sequence_length, dtype, device, causal=task.prompted
    )
    parameters = sum(p.numel() for p in model.parameters())
    step_seconds = (
        6 * parameters * per_step * task.positions() / (1e11 * (2 if precision[0] == "bfloat16" else 1))
    )  # CPU-seconds
    compiled, why_compile = choose_compile(part.compile, part, step_seconds, steps, device)
    return Plan(
        precision[0], attention, compiled, threads, processes, steps, per_step,
        {"precision": precision[1], "attention": why_attention, "compile": why_compile, "threads": why_threads},
        versions(),
    )  # fmt: skip
