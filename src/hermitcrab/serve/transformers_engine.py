"""The engine on transformers: `model.generate`, so that answers are those that `evaluate` measured.

Notable:
- Weights are in the precision of their files, which is the one that was evaluated.
- One thread of its own generates, for a pool of OpenMP threads belongs to the thread that made it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from hermitcrab.errors import HermitcrabError
from hermitcrab.models.load import load_model, quiet
from hermitcrab.progress import progress
from hermitcrab.serve.engine import GREEDY_BELOW, Options
from hermitcrab.serve.opening import Opened
from hermitcrab.tasks.answers import device_of, positions_of


class TransformersEngine:
    def __init__(self, opened: Opened):
        self.encoder: Any = opened.encoder
        with progress("loading the model"):
            model = load_model(opened.base, opened.path, getattr(torch, opened.precision))
            self.model: Any = model.to("cuda") if torch.cuda.is_available() else model
        self.positions = positions_of(model)
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self.stops: set[threading.Event] = set()

    def generate(self, prompt: list[int], options: Options) -> Generator[int, None, None]:
        made: SimpleQueue[int | BaseException | None] = SimpleQueue()
        stop = threading.Event()
        self.stops.add(stop)
        done = self.worker.submit(self._generate, prompt, options, made, stop)
        try:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise HermitcrabError(f"generation failed: {type(item).__name__}: {item}") from item
                yield item
        finally:
            stop.set()
            done.result()
            self.stops.discard(stop)

    def _generate(self, prompt: list[int], options: Options, made: SimpleQueue, stop: threading.Event) -> None:
        ids_BL = torch.tensor([prompt], device=device_of(self.model))
        draw: dict[str, Any] = {"do_sample": False}
        if options.temperature >= GREEDY_BELOW:
            # All that a generation_config.json could ask for besides is switched off: what is asked is what is done.
            draw = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p, "top_k": 0,
                    "min_p": None, "typical_p": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}  # fmt: skip
            torch.manual_seed(secrets.randbits(63) if options.seed is None else options.seed)
        try:
            with quiet():
                self.model.generate(
                    input_ids=ids_BL,
                    attention_mask=torch.ones_like(ids_BL),
                    num_beams=1,
                    max_new_tokens=options.max_tokens,
                    eos_token_id=sorted(self.encoder.ends),
                    pad_token_id=self.encoder.pad,
                    streamer=_Hand(made),
                    stopping_criteria=[lambda ids, scores: torch.full((len(ids),), stop.is_set(), device=ids.device)],
                    **draw,
                )
            made.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the tokens are read
            made.put(error)

    def close(self) -> None:
        for stop in list(self.stops):
            stop.set()
        self.worker.shutdown()


class _Hand(BaseStreamer):
    """Hands each token over as it is made; transformers gives it the prompt first."""

    def __init__(self, made: SimpleQueue):
        self.made, self.prompted = made, False

    def put(self, value: torch.Tensor) -> None:
        if self.prompted:
            for token in value.flatten().tolist():
                self.made.put(token)
        self.prompted = True

    def end(self) -> None:
        pass
