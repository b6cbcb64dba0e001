"""A training from artifacts to learnt tensors: in this process, or in several that torchrun starts.

The folder holds what a resume needs: job.json (what is trained), plan.json (frozen), checkpoints/, log.jsonl.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from hermitcrab.data.ledger import Ledger
from hermitcrab.errors import Diverged, HermitcrabError
from hermitcrab.progress import progress, say, set_quiet, warn
from hermitcrab.recipe import Train
from hermitcrab.store import read_json, write_json
from hermitcrab.tasks import Start, load_task, make_task
from hermitcrab.train.adapters import adapter_inputs_as_they_are, trainable
from hermitcrab.train.attention import use_attention
from hermitcrab.train.checkpoint import found
from hermitcrab.train.loop import Fit, State
from hermitcrab.train.plan import Plan, choose_precision, make_plan, try_compile, versions

DIVERGED = "diverged"  # a process leaves this file where its failure is one of the settings


@dataclass
class Session:
    """Everything that every process of a training builds for itself, the same in each."""

    folder: Path
    task: Any
    part: Train
    examples: Any
    validation: Any
    ledger: list[dict[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> Session:
        job = read_json(folder / "job.json")
        part = Train.model_validate(job["part"])
        rows = {s: pq.read_table(Path(job["rows"]) / f"{s}.parquet") for s in ("train", "validation")}
        fitted = job.get("fitted")  # a model that is trained on brings what was fitted for it
        if fitted is None:
            fitted = load_task(job["task"]).fit(rows["train"], job["base"], Path(job["path"]))
        task = make_task(job["task"], Start(job["base"], Path(job["path"]), job["seed"], fitted), part)
        ledgers: list[dict[str, Any]] = []
        packed: dict[str, Any] = {}
        for split, table in rows.items():
            packed[split] = None
            if table.num_rows:
                ledger = Ledger(task.counts)
                try:
                    packed[split], told = task.examples(table, ledger)
                except HermitcrabError as error:
                    raise HermitcrabError(f"{split} rows: {error}") from error
                ledgers.append({"name": f"{split} {ledger.unit}", **ledger.as_json(), **told})
        return cls(folder, task, part, packed["train"], packed["validation"], ledgers)

    def start_dtype(self, precision: str) -> str:
        """What the base's weights are loaded in: frozen ones in the working precision, learnt ones in float32."""
        return precision if self.part.method == "lora" else "float32"

    def model(self, precision: str) -> nn.Module:
        """The model, still without adapters."""
        return self.task.model(getattr(torch, self.start_dtype(precision)))

    def plan(self, processes: int) -> tuple[Plan, nn.Module]:
        """The frozen plan of this folder, made now if there is none; and the model that it was made for."""
        path = self.folder / "plan.json"
        if path.exists():
            plan = Plan(**read_json(path))
            if plan.processes != processes:
                warn(
                    f"going on with {plan.processes} processes, as this training began; cluster.processes={processes} is for new ones"
                )
            if (now := versions()) != plan.versions:
                moved = ", ".join(f"{n} {v} → {now[n]}" for n, v in plan.versions.items() if now[n] != v)
                warn(
                    f"this training began with other libraries ({moved}); its result may differ from an undisturbed one"
                )
            return plan, self.model(plan.precision)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision, why = choose_precision(self.part.precision, device, self.task.product())
        model = self.model(precision)
        plan = make_plan(self.task, model, len(self.examples), processes, (precision, why))
        if plan.compile:
            self._try_compile(model, plan)
            model = self.model(precision)  # the trial left its marks on the other one
        write_json(path, plan.as_json())
        return plan, model

    def _try_compile(self, model: nn.Module, plan: Plan) -> None:
        """Compile before the first step and see what it gives; its time is told apart."""
        with progress("compiling"):
            ready = self.ready(model, replace(plan, compile=False))
            fit = Fit(self.task, ready, self.part, plan, self.folder, self.examples, None)
            rows = np.arange(min(len(self.examples), self.part.batch_size))
            batch = self.task.batch(self.examples, rows)
            fit.model.train()

            def both_ways() -> None:
                with fit._autocast():
                    loss = self.task.loss(fit.model, batch).sum
                loss.backward()

            try_compile(plan, self.part.compile, both_ways, lambda: self.compile_parts(model))

    def compile_parts(self, model: nn.Module) -> None:
        """Part by part: layers are alike, so the second one finds the first one's code."""
        for part in self.task.compiled(model):
            part.compile(dynamic=False)

    def ready(self, model: nn.Module, plan: Plan) -> nn.Module:
        """The model as the loop trains it: kernel, adapters, compiled layers."""
        if plan.attention != "none":
            use_attention(model, plan.attention)
        self.task.attach(model)
        if plan.compile:
            self.compile_parts(model)
        if torch.cuda.is_available():
            model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        return trainable(model, self.part)

    def fit(self, model: nn.Module, plan: Plan, mark: Callable[[], None] = lambda: None) -> State:
        torch.set_num_threads(plan.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        fit = Fit(self.task, model, self.part, plan, self.folder, self.examples, self.validation)
        with adapter_inputs_as_they_are(model, plan.precision == "bfloat16"):
            return fit.run(mark)


def launch(folder: Path, processes: int) -> None:
    """Train in `processes` processes under torchrun; afterwards the last checkpoint is complete.

    Raises:
        HermitcrabError: with the sentence of the process that failed.
    """
    say(f"train: {processes} processes")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               "-m", "hermitcrab.train.session", str(folder)]  # fmt: skip
    for name in ("failed.txt", DIVERGED):
        (folder / name).unlink(missing_ok=True)
    threads = str(read_json(folder / "plan.json")["threads"])
    with open(folder / "torchrun.log", "a") as log:
        agent = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONSAFEPATH": "1"},
            text=True,
            preexec_fn=die_with_parent,
        )
        for line in agent.stdout or ():
            log.write(line)
            if line.startswith("  train: "):  # progress of the first process
                say(line.rstrip())
        code = agent.wait()
    if code:
        said = folder / "failed.txt"
        lines = (folder / "torchrun.log").read_text(errors="replace").splitlines()
        tail = [line for line in lines if re.match(r"\S*(\[rank\d+\]: )?\w+Error: ", line)][-1:] or [
            "see torchrun.log in the draft"
        ]
        if (folder / DIVERGED).exists():
            raise Diverged(said.read_text())
        raise HermitcrabError(
            said.read_text() if said.exists() else f"torchrun ended with status {code}: {' '.join(tail)}"
        )
    if not found(folder / "checkpoints"):
        raise HermitcrabError("torchrun ended without a checkpoint")


def die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, so that a killed run leaves nobody writing into its draft."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # prctl(2)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(folder: Path) -> int:
    """One process of several."""
    die_with_parent()
    set_quiet(os.environ.get("RANK") != "0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    try:
        session = Session.open(folder)
        plan = Plan(**read_json(folder / "plan.json"))
        torch.set_num_threads(plan.threads)
        session.fit(session.ready(session.model(plan.precision), plan), plan)
    except HermitcrabError as error:
        (folder / "failed.txt").write_text(str(error))
        if isinstance(error, Diverged):
            (folder / DIVERGED).touch()
        return error.exit_code
    finally:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
