"""What trace is worth: frozen thresholds on models that they never saw.

    python benchmarks/trace/evaluate.py ZOO OUT null        every pair of twins of a family, laundered twins, students
    python benchmarks/trace/evaluate.py ZOO OUT positives   the grid of changes, weak to failure
    python benchmarks/trace/evaluate.py ZOO OUT table       the tables, from what the other two wrote

Rows go to OUT/*.jsonl one by one, so a killed evaluation goes on where it was. `peer.py` runs modelDNA on the same folders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import surgery as cut
import torch
from families import FAMILIES, PLAIN, Family
from train import with_adapters

from hermitcrab.errors import HermitcrabError
from hermitcrab.progress import set_quiet
from hermitcrab.trace import digests, generic
from hermitcrab.trace.aligned import align
from hermitcrab.trace.chain import lay
from hermitcrab.trace.depth import by_magnitudes
from hermitcrab.trace.exact import Group, bound
from hermitcrab.trace.exact import examine as examine_exactly
from hermitcrab.trace.model import Model, open_model
from hermitcrab.trace.neurons import blocks
from hermitcrab.trace.null import tables
from hermitcrab.trace.tracing import trace
from hermitcrab.trace.verdict import Evidence, Levels, judge

BASES = 4
BLIND = 4  # of so many pairs of twins one is also aligned blind, which takes most of the time


class Rows:
    """A file of rows, each with a `key`; what is there already is not done again."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.done = {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()

    def add(self, key: str, **row: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **row}) + "\n")
        self.done.add(key)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Held:
    """An opened model with what every comparison of it needs."""

    def __init__(self, folder: Path):
        self.model: Model = open_model(folder)
        with self.model:
            self.blocks = blocks(self.model)
            self.keys = digests.keys_of(self.model)
            self.model.vocabulary()


def measure(a: Held, b: Held, blind: bool = True) -> dict[str, object]:
    """All that a verdict is made from, and the verdict, as `crab trace` comes to it; the kind of relation is not asked."""
    began = time.process_time()
    with a.model, b.model:
        layers, chosen = by_magnitudes(a.model, b.model)
        exact = examine_exactly(a.model, b.model, layers, chosen=chosen)
        exact.groups += generic.examine(a.model, b.model)[0]
        copies = digests.copies(a.keys, b.keys)
        found = align(a.model, b.model, a.blocks, b.blocks, thorough=blind)
        plain = not a.model.structure.layers and not b.model.structure.layers
        channels = lay(a.model, b.model) if plain else None
    counts = {"same": len(copies.same) + len(copies.permuted), "part": len(copies.rows)}
    scores = {key: max((getattr(f, key) for f in found), default=None) for key in ("mean", "best")}
    return {
        "exact": exact.log10_p(), "groups": [[g.name, g.units, round(g.z, 4)] for g in exact.groups], "chosen": chosen,
        "blind": blind, **scores, "channels": None if channels is None else channels.score, **counts,
        "seconds": round(time.process_time() - began, 4),
    }  # fmt: skip


def decided(row: dict) -> dict:
    """A row with its z by group and the verdict that `crab trace` comes to with the shipped table."""
    groups = [Group(name, units, z, bound(z), 0.0) for name, units, z in row["groups"]]
    known = tables()
    scores = {k: row.get(k) for k in ("mean", "best", "channels")}
    decision = judge(Evidence(groups, copies_same=row["same"], copies_part=row["part"], **scores),
                     Levels(1e-6, **known))  # fmt: skip
    return row | {"z": {g.name: g.z for g in groups}, "verdict": decision.verdict, "log10_p": decision.log10_p}


def stacked(zoo: Path, name: str) -> dict[str, torch.Tensor] | None:
    path = zoo / "trained" / f"{name}.pt"
    return torch.load(path) if path.exists() else None


def null(zoo: Path, out: Path, families: list[str]) -> None:
    rows = Rows(out / "null.jsonl")
    for name, family in ((n, f) for n, f in FAMILIES.items() if n in families):
        folders = sorted((zoo / "evaluation").glob(f"{name}-twin-*"))
        if not folders or stacked(zoo, f"evaluation-{name}-twin") is None:
            continue
        students = sorted((zoo / "evaluation").glob(f"{name}-distilled-*"))
        wanted = {f"twin {a.name} {b.name}" for a, b in itertools.combinations(folders, 2)}
        wanted |= {f"student {s.name} {b.name}" for s, b in itertools.product(students, folders[:8])}
        if wanted <= rows.done:
            continue
        held = {f: Held(f) for f in folders}
        for i, (a, b) in enumerate(itertools.combinations(folders, 2)):
            key = f"twin {a.name} {b.name}"
            if key not in rows.done:
                rows.add(
                    key,
                    kind="twin",
                    family=name,
                    a=a.name,
                    b=b.name,
                    **measure(held[a], held[b], blind=i % (BLIND * (5 if family.experts else 1)) == 0),
                )
        for student, b in itertools.product(students, folders[:8]):
            key = f"student {student.name} {b.name}"
            if key not in rows.done:
                row = measure(Held(student), held[b])
                rows.add(
                    key,
                    kind="student",
                    family=name,
                    a=student.name,
                    b=b.name,
                    teacher=student.name[-2:] == b.name[-2:],
                    **row,
                )
        _laundered_twins(zoo, rows, name, family, held, folders)
        print(f"{name}: {len(rows.done)} rows", file=sys.stderr, flush=True)


def _laundered_twins(
    zoo: Path, rows: Rows, name: str, family: Family, held: dict[Path, Held], folders: list[Path]
) -> None:
    p = stacked(zoo, f"evaluation-{name}-twin")
    few = len(folders) < 16
    for i, j in [(i, j) for i in range(6 if few else 10, 12 if few else 16) for j in range(6)]:
        key = f"laundered twin {name} {i} {j}"
        if key not in rows.done:
            with tempfile.TemporaryDirectory() as folder:
                made = cut.write(
                    Path(folder),
                    family,
                    cut.launder(family, cut.one(p, i), 1000 * i + j),
                    folders[i] / "tokenizer.json",
                )
                rows.add(
                    key,
                    kind="laundered twin",
                    family=name,
                    a=f"{i}",
                    b=folders[j].name,
                    **measure(Held(made), held[folders[j]]),
                )


Case = tuple[str, str, Family, dict[str, np.ndarray], dict[str, object]]


def cases(family: Family, p: cut.Params, q: cut.Params, k: int) -> Iterator[Case]:
    """(group, name, family, parameters, truth) of everything that is made without training. `q`: another twin."""
    f, n = family, family.layers
    for bits in (8, 4, 3, 2):
        yield "quantized", f"int{bits}", f, cut.quantize(p, bits), {"relation": "quantized"}
    for share in (0.3, 0.5, 0.8, 0.9, 0.95):
        yield "pruned", f"prune {share:.0%}", f, cut.prune(p, share), {"relation": "pruned"}
    for size in (0.5, 1.0, 2.0):
        yield "noise", f"noise {size:g}", f, cut.noise(p, size, k), {}
    yield "copy", "copy", f, p, {"relation": "identical"}
    for weight in (0.5, 0.3, 0.1, 0.05, 0.03, 0.01):
        yield "merge", f"merge {weight:.0%}", f, cut.merge(p, q, weight), {"relation": "merged", "weight": weight}
    yield "merge", "slerp 30%", f, cut.slerp(p, q, 0.3), {}
    if f.model_type in PLAIN:
        washed = cut.launder(f, p, 77 + k)
        yield "units", "units relabeled", f, washed, {"relation": "re-packaged"}
        for what, changed, relation in (
            ("int8", cut.quantize(washed, 8), "quantized"),
            ("int4", cut.quantize(washed, 4), "quantized"),
            ("int2", cut.quantize(washed, 2), None),
            ("prune 50%", cut.prune(washed, 0.5), "pruned"),
            ("prune 80%", cut.prune(washed, 0.8), "pruned"),
            ("noise 1", cut.noise(washed, 1.0, k), None),
        ):
            yield "units + " + what, f"units relabeled, {what}", f, changed, {"relation": relation} if relation else {}
        for weight in (0.1, 0.03, 0.01):
            made = cut.launder(f, cut.merge(p, q, weight), 9 + k)
            yield (
                "merge, relabeled",
                f"merge {weight:.0%}, units relabeled",
                f,
                made,
                {"relation": "merged", "weight": weight},
            )
        return
    for rank in (1, 4, 16):
        yield "adapter", f"rank {rank}", f, cut.low_rank(p, rank, k), {"relation": "LoRA-like"}
    same = list(range(n))
    orders = {
        "layer dropped": [0, *same[2:]],
        "layers doubled": [*same[: n - 1], *same[1:]],
        "layers shuffled": [same[-2], 0, same[-1], *same[1:-2]],
    }
    for what, order in orders.items():
        told = {
            "layer dropped": "layers dropped",
            "layers doubled": "layers duplicated",
            "layers shuffled": "layers reordered",
        }[what]
        made, cutp = cut.layers(f, p, order)
        yield "depth", what, made, cutp, {"relation": told, "layers": order}
        yield (
            "depth, laundered",
            f"{what}, laundered",
            made,
            cut.launder(made, cut.scrambled(made, cutp, k), k),
            {"layers": order},
        )
    if not f.experts:
        for share, width in ((0.75, None), (0.5, None), (0.75, 56)):
            made, cutp = cut.narrow(f, p, share, width)
            what = f"{share:.0%} of neurons" + (f", width {width}" if width else "")
            yield "width", what, made, cutp, {"relation": "narrowed", "layers": same}
            if f.gated:
                yield "width, laundered", f"{what}, laundered", made, cut.launder(made, cutp, k), {"layers": same}
    washed = cut.launder(f, p, 77 + k)
    for what in ("neurons", "heads", "residual"):
        yield "laundered", f"laundered {what}", f, cut.launder(f, p, 5 + k, what), {"layers": same}
    yield "laundered", "laundered all", f, washed, {"layers": same}
    hidden = cut.scrambled(f, washed, k)
    yield "laundered", "laundered all, vocabulary scrambled", f, hidden, {"layers": same}
    for what, changed in (
        ("int8", cut.quantize(hidden, 8)),
        ("int4", cut.quantize(hidden, 4)),
        ("int3", cut.quantize(hidden, 3)),
        ("int2", cut.quantize(hidden, 2)),
        ("prune 50%", cut.prune(hidden, 0.5)),
        ("prune 80%", cut.prune(hidden, 0.8)),
        ("noise 0.5", cut.noise(hidden, 0.5, k)),
        ("noise 1", cut.noise(hidden, 1.0, k)),
        ("rank 8", cut.low_rank(hidden, 8, k)),
        ("int4, prune 50%", cut.quantize(cut.prune(hidden, 0.5), 4)),
    ):
        yield "laundered + " + what, f"laundered, scrambled, {what}", f, changed, {"layers": same}
    for weight in (0.1, 0.05, 0.03, 0.01):
        yield (
            "merge, laundered",
            f"merge {weight:.0%}, laundered",
            f,
            cut.launder(f, cut.merge(p, q, weight), 9 + k),
            {"weight": weight},
        )


def positives(zoo: Path, out: Path, families: list[str]) -> None:
    rows = Rows(out / "positives.jsonl")
    folder_root = zoo / "evaluation"
    for k, (name, family) in itertools.product(range(BASES), FAMILIES.items()):
        twins = stacked(zoo, f"evaluation-{name}-twin")
        if twins is None or name not in families:
            continue
        far = k + len(next(iter(twins.values()))) // 2
        base, other = folder_root / f"{name}-twin-{k:02d}", folder_root / f"{name}-twin-{far:02d}"
        for group, what, made, p, truth in cases(family, cut.one(twins, k), cut.one(twins, far), k):
            _case(rows, name, k, group, what, made, p, truth, base, other)
        _trained(rows, zoo, name, family, k, base, other)
        print(f"{name}: {len(rows.done)} rows", file=sys.stderr, flush=True)


def _case(
    rows: Rows,
    name: str,
    k: int,
    group: str,
    what: str,
    made: Family,
    p: cut.Params,
    truth: dict,
    base: Path,
    other: Path,
    tokenizer: Path | None = None,
) -> None:
    key = f"{name} {k} {what}"
    if key in rows.done:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = cut.write(Path(temporary) / "suspect", made, p, tokenizer or base / "tokenizer.json")
        _record(rows, key, name, group, what, truth, folder, [base, other] if "weight" in truth else [base])


def _trained(rows: Rows, zoo: Path, name: str, f: Family, k: int, base: Path, other: Path) -> None:
    """Children that were trained on, as they are, and laundered with int4 or pruning on top."""
    kinds: dict[str, str | None] = {"sft-short": "fine-tuned", "sft": "fine-tuned"}
    kinds |= {f"continued-{times}x": None for times in (1, 3, 10)}
    kinds |= {f"adapter-{rank}": "LoRA-like" for rank in (1, 4, 16)}
    kinds |= {which: "vocabulary replaced" for which in ("vocabulary", "vocabulary-body")}
    for kind, relation in kinds.items():
        child = stacked(zoo, f"evaluation-{name}-{kind}")
        if child is None or k >= len(next(iter(child.values()))):
            continue
        p, truth = cut.one(with_adapters(child), k), {"relation": relation} if relation else {}
        own = zoo / "evaluation" / f"{name}-{kind}-{k:02d}" / "tokenizer.json"
        _case(rows, name, k, kind, kind, f, p, truth, base, other, own)
        if f.model_type in PLAIN:
            washed = cut.launder(f, p, 300 + k)
            _case(rows, name, k, f"{kind}, units relabeled", f"{kind}, units relabeled", f, washed, {}, base, other)
            int8 = cut.quantize(washed, 8)
            _case(
                rows,
                name,
                k,
                f"{kind}, units relabeled, int8",
                f"{kind}, units relabeled, int8",
                f,
                int8,
                {},
                base,
                other,
            )
            continue
        if kind == "continued-10x":
            kept = cut.launder(f, p, 300 + k)
            _case(rows, name, k, f"{kind}, laundered", f"{kind}, laundered, vocabulary kept", f, kept, {}, base, other)
        washed = cut.launder(f, cut.scrambled(f, p, k), 300 + k)
        _case(rows, name, k, f"{kind}, laundered", f"{kind}, laundered", f, washed, {}, base, other)
        for what, q in (("int4", cut.quantize(washed, 4)), ("prune 50%", cut.prune(washed, 0.5))):
            _case(rows, name, k, f"{kind}, laundered, {what}", f"{kind}, laundered, {what}", f, q, {}, base, other)
    if name == "llama":
        child = stacked(zoo, "evaluation-moe-upcycled")
        if child is not None:
            sparse = replace(f, name="moe-upcycled", model_type="mixtral", experts=4)
            p = cut.one(child, k)
            _case(
                rows,
                name,
                k,
                "upcycled",
                "upcycled",
                sparse,
                p,
                {"relation": "experts from a dense model"},
                base,
                other,
            )
            _case(
                rows,
                name,
                k,
                "upcycled, laundered",
                "upcycled, laundered",
                sparse,
                cut.launder(sparse, cut.scrambled(sparse, p, k), k),
                {},
                base,
                other,
            )


def _record(
    rows: Rows, key: str, family: str, group: str, what: str, truth: dict, folder: Path, bases: list[Path]
) -> None:
    began = time.process_time()
    try:
        results = trace(folder, bases).results
    except HermitcrabError as error:
        rows.add(key, family=family, group=group, what=what, verdict="refused", why=str(error))
        return
    r = results[0]
    row: dict[str, object] = {"family": family, "group": group, "what": what, "verdict": r.verdict, "log10_p": r.log10_p,
                              "status": r.decision.p_status, "relations": r.relations, "seconds": round(time.process_time() - began, 3),
                              "aligned": r.aligned, "truth": truth}  # fmt: skip
    if len(results) > 1:
        row["main"] = results[1].verdict
        merge = r.details.get("merge") or results[1].details.get("merge")
        if merge and "weight" in truth:
            row["weight_error"] = abs(merge["weights"][str(bases[0])] - truth["weight"])
    if "layers" in truth and r.verdict == "related":
        found = {x["layer"]: x["base_layer"] for x in r.layer_map}
        row["layers_right"] = sum(found.get(i) == j for i, j in enumerate(truth["layers"])) / len(truth["layers"])
    if r.verdict == "related" and "relation" in truth:
        row["relation_right"] = truth["relation"] in r.relations
    rows.add(key, **row)


def wilson(hits: int, count: int) -> tuple[float, float]:
    if not count:
        return 0.0, 1.0
    z, p = 1.96, hits / count
    middle, half = p + z * z / 2 / count, z * np.sqrt(p * (1 - p) / count + z * z / 4 / count**2)
    return max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))


def clustered(rows: list[dict], value: np.ndarray, draws: int = 400) -> tuple[float, float]:
    """95 % interval of a mean over pairs, models resampled: a pair weighs as often as both of its models are drawn."""
    names = sorted({r["a"] for r in rows} | {r["b"] for r in rows})
    place = {n: i for i, n in enumerate(names)}
    a, b = (np.array([place[r[x]] for r in rows]) for x in "ab")
    r = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        count = np.bincount(r.integers(0, len(names), len(names)), minlength=len(names))
        weight = count[a] * count[b]
        if weight.sum():
            found.append((weight * value).sum() / weight.sum())
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def _error_by_seeds(rows: list[dict], z: np.ndarray) -> float:
    """Standard error of a mean of z: families share their seeds, so that their first draws share numbers; under the null the
    sums over one pair of seeds are uncorrelated."""
    sums: dict[tuple[str, str], float] = {}
    for r, value in zip(rows, z, strict=True):
        key = r["a"].rsplit("-", 1)[1], r["b"].rsplit("-", 1)[1]
        sums[key] = sums.get(key, 0.0) + float(value)
    return float(np.sqrt(np.square(list(sums.values())).sum()) / len(z))


def table(out: Path) -> None:
    from scipy.stats import kstest, norm

    rows, found = [decided(r) for r in read(out / "null.jsonl")], read(out / "positives.jsonl")
    twins = [r for r in rows if r["kind"] == "twin"]
    print(
        f"## independent pairs: {len(twins):,} twins of {len({r['a'] for r in twins} | {r['b'] for r in twins})} seeds\n"
    )
    print(
        "| pairs | n | related | cannot tell | no evidence | smallest log10 p (exact) | largest aligned score |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for kind, family in [
        *(("twin", n) for n in FAMILIES),
        ("blind twin", None),
        ("student", None),
        ("laundered twin", None),
    ]:
        part = [r for r in rows if r["kind"] == kind and family in (None, r["family"])]
        if part:
            counts = [sum(r["verdict"] == v for r in part) for v in ("related", "cannot-tell", "no-evidence")]
            scores = [r[k] for r in part for k in ("mean", "channels") if r.get(k) is not None]
            print(f"| {kind} {family or ''} | {len(part):,} | {' | '.join(map(str, counts))} | {min(r['exact'] for r in part):.2f} | "
                  f"{max(scores, default=float('nan')):.3f} |")  # fmt: skip
    print(
        "\n| group of signs | n | mean z ± standard error | sd z | KS against the normal | P(p < .01), normal | P(p < .001), normal | "
        "P(bound < .01) [95 %] | P(bound < .001) [95 %] |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    names = sorted({g for r in twins for g in r["z"]})
    for g in names:
        part = [r for r in twins if g in r["z"]]
        z = np.array([r["z"][g] for r in part])
        p, bound = 2 * norm.sf(np.abs(z)), np.minimum(1, 2 * np.exp(-(z**2) / 2))
        cells = [f"{(p < t).mean():.4f}" for t in (0.01, 0.001)]
        for t in (0.01, 0.001):
            low, high = clustered(part, (bound < t).astype(float))
            cells.append(f"{(bound < t).mean():.4f} [{low:.4f}, {high:.4f}]")
        error = _error_by_seeds(part, z)
        print(
            f"| {g} | {len(z):,} | {z.mean():+.3f} ± {error:.3f} | {z.std():.3f} | {kstest(z, 'norm').pvalue:.3f} | {' | '.join(cells)} |"
        )
    _positives(found, twins)


def _positives(found: list[dict], twins: list[dict]) -> None:
    print(
        f"\n## related pairs: {len(found):,}\n\n"
        "| change | n | found | cannot tell | by exact p | median log10 p | layers right | relation right |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for what in dict.fromkeys(r["what"] for r in found):
        part = [r for r in found if r["what"] == what]
        hit = [r for r in part if r["verdict"] == "related"]
        layers = [r["layers_right"] for r in hit if "layers_right" in r]
        kinds = [r["relation_right"] for r in hit if "relation_right" in r]
        p = sorted(r["log10_p"] for r in hit if r["log10_p"] is not None)
        print(f"| {what} | {len(part)} | {len(hit)} | {sum(r['verdict'] == 'cannot-tell' for r in part)} | "
              f"{sum(r.get('status') == 'exact' for r in hit)} | "
              f"{p[len(p) // 2] if p else float('nan'):.1f} | {_mean(layers)} | {_mean(kinds)} |")  # fmt: skip
    errors = [r["weight_error"] for r in found if "weight_error" in r]
    if errors:
        print(f"\nmerge weights: mean error {np.mean(errors):.4f}, largest {np.max(errors):.4f}, n {len(errors)}")
    layers = [r["layers_right"] for r in found if "layers_right" in r]
    if layers:
        print(f"layer map: {np.mean(layers):.4f} of the layers right over {len(layers)} maps")
    _rates("everything", found, twins)
    print(
        f"abstentions: {sum(r['verdict'] == 'cannot-tell' for r in found)} of {len(found)} related, "
        f"{sum(r['verdict'] == 'cannot-tell' for r in twins)} of {len(twins)} twins"
    )


def _rates(name: str, found: list[dict], twins: list[dict]) -> None:
    """Area under the curve, and related pairs found at fixed shares of twins; verdicts first, then p."""

    def score(r: dict) -> float:
        return -(r["log10_p"] or 0.0) + (1e6 if r["verdict"] == "related" else 0.0)

    a, b = np.array([score(r) for r in found]), np.sort([score(r) for r in twins])
    if len(a) and len(b):
        below, up_to = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
        rates = []
        for rate in (0.01, 0.001):
            hits = int((a > np.quantile(b, 1 - rate)).sum())
            low, high = wilson(hits, len(a))
            rates.append(f"TPR at {rate:.1%} FPR {hits / len(a):.4f} [{low:.4f}, {high:.4f}]")
        print(f"{name} (n = {len(a)}): AUC {((below + up_to) / 2 / len(b)).mean():.5f}, {', '.join(rates)}")


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.2f}" if values else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zoo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", choices=["null", "positives", "table"])
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    if asked.what == "table":
        table(asked.out)
    else:
        {"null": null, "positives": positives}[asked.what](asked.zoo, asked.out, asked.families)
