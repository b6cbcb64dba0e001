"""Texts into vectors, by an encoder: an ONNX file without torch, or safetensors on torch as the reference.

How token states become one vector is what sentence-transformers' files beside the model say: `modules.json`, `1_Pooling/config.json`
and `sentence_bert_config.json`. Without them it is the mean over tokens, scaled to length one.

Shapes: N texts, B batch, S tokens, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermitcrab.errors import HermitcrabError, needs
from hermitcrab.models.tokenizer import read_json_file
from hermitcrab.serve.engine import Spec, check_files
from hermitcrab.serve.engines.onnx import Session

BATCH = 32


@dataclass(frozen=True)
class Pooling:
    mode: str = "mean"  # or `cls`, `max`
    normalize: bool = True
    positions: int = 512

    @classmethod
    def read(cls, folder: Path) -> Pooling:
        """What the files beside a model say.

        Raises:
            HermitcrabError: they ask for a pooling that is not known.
        """
        positions = 512
        if (folder / "config.json").is_file():
            positions = int(read_json_file(folder / "config.json").get("max_position_embeddings", positions))
        if (folder / "sentence_bert_config.json").is_file():
            positions = min(
                positions, int(read_json_file(folder / "sentence_bert_config.json").get("max_seq_length") or positions)
            )
        if not (folder / "modules.json").is_file():
            return cls(positions=positions)
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in read_json_file(folder / "modules.json")]
        unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if unknown:
            raise HermitcrabError(f"{folder / 'modules.json'}: the module {sorted(unknown)[0]} is not known here")
        asked = read_json_file(folder / "1_Pooling" / "config.json")
        modes = [name for name, wanted in asked.items() if name.startswith("pooling_mode_") and wanted is True]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
        if len(modes) != 1 or modes[0] not in known:
            raise HermitcrabError(
                f"{folder / '1_Pooling'}: expected one of {', '.join(known)}. Received: {', '.join(modes)}"
            )
        return cls(known[modes[0]], "Normalize" in kinds, positions)

    def __call__(self, states_BSD: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        """float32 [B, D]."""
        states_BSD = states_BSD.astype(np.float32)
        if self.mode == "cls":
            found_BD = states_BSD[:, 0]
        elif self.mode == "max":
            found_BD = np.where(mask_BS[:, :, None] > 0, states_BSD, -np.inf).max(1)
        else:
            found_BD = (states_BSD * mask_BS[:, :, None]).sum(1) / mask_BS.sum(1, keepdims=True)
        if self.normalize:
            found_BD = found_BD / np.maximum(np.linalg.norm(found_BD, axis=1, keepdims=True), 1e-12)
        return found_BD.astype(np.float32)


class Encoder:
    """What both kinds share. `spec.path` is the model; `spec.tokenizer`, else its folder, has the files that say how to pool."""

    name = "encoder"
    slots = 0

    def __init__(self, spec: Spec):
        check_files(spec)
        path = Path(spec.path)
        self.spec = spec
        self.pooling = Pooling.read(Path(spec.tokenizer) if spec.tokenizer else path if path.is_dir() else path.parent)
        self.positions = self.pooling.positions
        self.load(path)
        self.dimensions = self.embed([[spec.pad]]).shape[1]

    def load(self, path: Path) -> None:
        raise NotImplementedError

    def states(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def embed(self, rows: list[list[int]]) -> np.ndarray:
        """Token ids of N texts, with the tokens that begin and end a text → float32 [N, D].

        Raises:
            HermitcrabError: a text without a token, or with more than there are positions.
        """
        for number, row in enumerate(rows):
            if not 0 < len(row) <= self.positions:
                raise HermitcrabError(f"text {number + 1} has {len(row):,} tokens; expected 1 to {self.positions:,}")
        found: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        for start in range(0, len(order), BATCH):
            members = order[start : start + BATCH]
            longest = max(len(rows[n]) for n in members)
            ids_BS = np.full((len(members), longest), self.spec.pad, np.int64)
            mask_BS = np.zeros_like(ids_BS)
            for b, n in enumerate(members):
                ids_BS[b, : len(rows[n])], mask_BS[b, : len(rows[n])] = rows[n], 1
            states = self.states(ids_BS, mask_BS)
            pooled = self.pooling(states, mask_BS) if states.ndim == 3 else states.astype(np.float32)
            for b, n in enumerate(members):
                found[n] = pooled[b]
        return np.stack(found) if found else np.zeros((0, self.dimensions), np.float32)

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


class OnnxEncoder(Encoder):
    def load(self, path: Path) -> None:
        self.session = Session(
            path, self.spec.cores, self.spec.settings.get("runtime"), bool(self.spec.settings.get("exact"))
        )
        self.name = self.session.name

    def states(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        known = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        return self.session.run({name: known[name] for name in self.session.inputs if name in known})


class TorchEncoder(Encoder):
    name = "torch"

    def load(self, path: Path) -> None:
        needs("torch", "train")
        import torch
        from transformers import AutoModel

        from hermitcrab.models.load import library_errors, quiet

        torch.set_num_threads(self.spec.cores)
        with quiet(), library_errors(path):
            self.model: Any = AutoModel.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=getattr(torch, self.spec.precision)
            ).eval()  # fmt: skip

    def states(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=torch.from_numpy(ids_BS), attention_mask=torch.from_numpy(mask_BS))
        return found.last_hidden_state.float().numpy()
