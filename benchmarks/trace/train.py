"""Data and training of the zoo: real text and images, K twins at once, AdamW with warm-up and cosine decay."""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from families import Family, Parameters, logits, loss
from nets import LATENT

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Batch = tuple[torch.Tensor, torch.Tensor]


def texts(name: str) -> str:
    """`austen`, `help` or `reviews`: some three million characters."""
    if name == "austen":
        files = sorted((DATA / "text-austen").rglob("*.txt*"))
        return "\n".join(_read(f) for f in files)[:3_000_000]
    if name == "help":
        files = sorted(p for p in (DATA / "translation-en-zh").rglob("*") if ".tsv" in p.name)
        return "\n".join(line.split("\t")[0] for f in files for line in _read(f).splitlines())[:3_000_000]
    if name == "reviews":
        return _read(DATA / "sentiment" / "reviews_en.csv.gz")[:3_000_000]
    raise ValueError(f"expected austen, help or reviews. Received: {name}")


def _read(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")


def tokenizer(text: str, size: int, folder: Path) -> Path:
    """A byte-level BPE of `size` tokens trained on `text`; written once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        made.train_from_iterator([text[:600_000]], trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "<mask>"],
                                 initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))  # fmt: skip
        made.save(str(path))
    return path


def tokens(text: str, path: Path) -> torch.Tensor:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(path))
    pieces = [text[i : i + 50_000] for i in range(0, min(len(text), 2_000_000), 50_000)]
    return torch.tensor([i for e in made.encode_batch(pieces) for i in e.ids])


def text_batches(stream: torch.Tensor, seed: int, masked: bool, rows: int = 4, length: int = 48) -> Iterator[Batch]:
    """Rows in an order that `seed` alone decides: twins see the same."""
    order = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(0, len(stream) - length - 1, (rows,), generator=order)
        rows_BT = torch.stack([stream[s : s + length + 1] for s in starts])
        if not masked:
            yield rows_BT[:, :-1], rows_BT[:, 1:]
            continue
        x, y = rows_BT[:, :-1].clone(), rows_BT[:, :-1].clone()
        hidden = torch.rand(x.shape, generator=order) < 0.2
        y[~hidden], x[hidden] = -100, 1
        yield x, y


def image_batches(seed: int, half: int, rows: int = 16) -> Iterator[Batch]:
    """Fashion-MNIST, first or second half of the training images."""
    folder = DATA / "fashion-mnist"
    images, labels = (_idx(next(folder.rglob(f"train-{n}*"))) for n in ("images", "labels"))
    images = (images.reshape(-1, 1, 28, 28).float() / 255 - 0.29) / 0.35
    order = torch.Generator().manual_seed(seed)
    while True:
        at = torch.randint(0, 30_000, (rows,), generator=order) + 30_000 * half
        yield images[at], labels[at].long()[:, None]


def image_and_latent_batches(seed: int, half: int) -> Iterator[Batch]:
    order = torch.Generator().manual_seed(seed + 1)
    for images, _ in image_batches(seed, half):
        yield images * 0.35 * 2 - 0.42, torch.randn(len(images), LATENT, generator=order)  # from -1 to 1


def speech_batches(seed: int, held: Path, rows: int = 16) -> Iterator[Batch]:
    """Spoken digits as 40 x 40 log spectrograms of the six speakers."""
    if not held.exists():
        torch.save(_spectrograms(), held)
    images, labels = torch.load(held)
    order = torch.Generator().manual_seed(seed)
    while True:
        at = torch.randint(0, len(images), (rows,), generator=order)
        yield images[at], labels[at][:, None]


def _spectrograms() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = [], []
    with tarfile.open(DATA / "speech-digits" / "recordings.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            if not member.name.endswith(".wav"):
                continue
            with wave.open(archive.extractfile(member)) as file:
                sound = (
                    torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16).float() / 2**15
                )
            sound = torch.nn.functional.pad(sound, (0, max(0, 512 - len(sound))))
            power = torch.stft(sound, 256, 64, window=torch.hann_window(256), return_complex=True).abs().square()
            square = torch.nn.functional.adaptive_avg_pool2d((power + 1e-6).log()[None], (40, 40))
            images.append((square - square.mean()) / square.std())
            labels.append(int(Path(member.name).name[0]))
    return torch.stack(images), torch.tensor(labels)


def _idx(path: Path) -> torch.Tensor:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    dimensions = struct.unpack(">4B", raw[:4])[3]
    return torch.frombuffer(bytearray(raw[4 + 4 * dimensions :]), dtype=torch.uint8)


def train(
    f: Family, p: Parameters, batches: Iterator[Batch], steps: int, rate: float, *,
    trained: Callable[[str], bool] = lambda name: True, teacher: tuple[Family, Parameters] | None = None,
    merged: Callable[[Parameters], Parameters] = lambda p: p,
    say: Callable[[str], None] = lambda text: None,
) -> Parameters:  # fmt: skip
    """`p` after `steps` of AdamW. With a teacher the loss is the divergence from its logits alone. `merged` makes the
    model's parameters of those that are trained (adapters)."""
    p = {name: value.detach().clone().requires_grad_(trained(name)) for name, value in p.items()}
    chosen = [value for value in p.values() if value.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=rate, betas=(0.9, 0.95), weight_decay=0.05, foreach=True)
    for step in range(steps):
        share = min(1.0, (step + 1) / 20) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        batch = next(batches)
        if teacher is None:
            each = loss(f, merged(p), batch)
        else:
            with torch.no_grad():
                goal = torch.softmax(logits(*teacher, batch[0]), -1)
            each = -(goal * torch.log_softmax(logits(f, merged(p), batch[0]), -1)).sum(-1).mean((1, 2))
        each.sum().backward()
        for value in chosen:  # each seed clipped by its own norm of this tensor: no seed touches another
            norm = value.grad.flatten(1).norm(dim=1).clamp(min=1e-12)
            value.grad.mul_((1.0 / norm).clamp(max=1.0).view(-1, *[1] * (value.dim() - 1)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == steps - 1:
            say(f"{f.name} step {step}: loss {each.mean().item():.3f}")
    return {name: value.detach() for name, value in p.items()}


def adapted(p: Parameters, rank: int, seed: int) -> Parameters:
    """`p` with adapters of `rank` beside every matrix of attention and MLP: A drawn, B zero (Hu et al. 2021)."""
    generator, out = torch.Generator().manual_seed(seed), dict(p)
    for name, value in p.items():
        if name[0].isdigit() and value.dim() >= 3 and not name.endswith("router"):
            *lead, rows, columns = value.shape
            out[name + ".A"] = torch.randn(*lead, rank, columns, generator=generator) / math.sqrt(columns)
            out[name + ".B"] = torch.zeros(*lead, rows, rank)
    return out


def with_adapters(p: Parameters) -> Parameters:
    """The model's own parameters, adapters added in."""
    return {
        n: v + p[n + ".B"] @ p[n + ".A"] if n + ".A" in p else v for n, v in p.items() if not n.endswith((".A", ".B"))
    }
