"""Did it add anything? The derived model beside its base, the base made stronger, and the simple baselines.

The verdict is about the derived model and its base under the same prompts. A skeptic asks next whether a better prompt
would have done as well, so the sentence also gives the result against the strongest base variant (few-shot, label bias
removed), chosen on validation rows; and it names any simple baseline that was not beaten.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate import metrics as metric
from hermitcrab.evaluate.answers import Answers, check_same_rows, read
from hermitcrab.evaluate.metric import FEWER
from hermitcrab.evaluate.statistics import (
    Interval,
    bootstrap_metric,
    bootstrap_weighted,
    group_codes,
    holm,
    mcnemar,
    smallest_effect,
    swap_test,
)
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

BETTER, WORSE, TIED = "better", "worse", "tied"
NO_EVIDENCE = "no evidence of added value"
NOT_COMPARED = "not compared"
SHARED_WORDS = 8


def compare(
    tables: Mapping[str, pa.Table],
    validation: Mapping[str, float] | None = None,
    *,
    metrics: Sequence[str],
    labels: Sequence[str] = (),
    derived: str = "derived",
    base: str = "base",
    prompts: Mapping[str, str] | None = None,
    prompted: bool = True,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    contamination: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    own_prompts: bool = False,
) -> dict[str, Any]:
    """comparison.json: every other model against `derived`, paired by row id.

    Args:
        tables: model → its predictions table. `base (…)` is a variant of the base; `derived (…)` one of the derived
            model, whose rows are checked and which is compared with nothing.
        validation: base variant → its deciding metric on validation rows, by which the strongest is chosen.
        metrics: in order; the first that both `derived` and `base` can give decides the verdict.
        labels: the choices; without them there are no label metrics.
        prompts: model → digest of its prompts; those of `derived` and `base` must be equal, where both were prompted, unless
            `own_prompts` lets each model be asked in its own template, which the sentence then says.
        prompted: `base` is a model that another prompt could have made stronger.

    Raises:
        HermitcrabError: the models did not answer the same rows, each once, with the same references and prompts.
    """
    if derived not in tables:
        raise HermitcrabError(
            f"there are no answers of `{derived}` to compare. Received: {', '.join(tables) or 'none'}"
        )
    answers = {model: read(table, model) for model, table in tables.items()}
    ours = answers.pop(derived)
    check_same_rows([ours, *answers.values()])
    if not len(ours):
        raise HermitcrabError("there are no test rows to compare on")
    asked = prompts or {}
    differ = base in answers and asked.get(derived) != asked.get(base)
    if differ and prompted and not own_prompts:
        raise HermitcrabError(
            f"`{derived}` and `{base}` were asked with different prompts "
            f"({asked.get(derived)} and {asked.get(base)}); a difference would say nothing about the weights"
        )
    pairs, skipped = [], []
    for other in answers.values():
        if other.model.startswith(f"{derived} ("):
            continue
        names, why = _comparable(metrics, ours, other, labels)
        skipped += why
        pairs += _pair(ours, other, names, labels, confidence, resamples, seed)
    for pair, adjusted in zip(pairs, holm([p["p_value"] for p in pairs]), strict=True):
        pair["p_holm"] = adjusted
    result: dict[str, Any] = {
        "verdict": NOT_COMPARED,
        "sentence": f"`{derived}` was compared with no base: what was added is not known.",
        "metric": None,
        "n": len(ours),
        "groups": int(group_codes(ours.groups, len(ours)).max()) + 1,
        "confidence": confidence,
        "method": _method(ours, resamples, seed, any(p["test"] == "bootstrap" for p in pairs)),
        "pairs": pairs,
        "strongest": None,
        "unbeaten": [],
        "gained": [],
        "lost": [],
        "not_compared": skipped,
        "contamination": dict(contamination) if contamination else None,
        "noise_floor": dict(noise) if noise else None,
    }
    name = next((p["metric"] for p in pairs if p["b"] == base), None)
    result["smallest_effect"] = expected_effect(len(ours), name or metrics[0], alpha=1 - confidence)
    if name is None:
        return result
    deciding = {p["b"]: p for p in pairs if p["metric"] == name}
    variants = [m for m in deciding if m == base or m.startswith(f"{base} (")]
    strongest = _strongest(variants, base, name, validation)
    result |= {"metric": name, "verdict": judge(deciding[base], _identical(ours, answers[base], name), confidence)}
    result["gained"], result["lost"] = gained_and_lost(ours, answers[base], name)
    if strongest is not None:
        same = _identical(ours, answers[strongest], name)
        result["strongest"] = {
            "model": strongest,
            "chosen_on": "validation rows",
            "validation": {m: validation[m] for m in variants if validation and m in validation},
            "verdict": judge(deciding[strongest], same, confidence),
        }
    result["unbeaten"] = [m for m in deciding if m not in variants and judge(deciding[m], False, confidence) != BETTER]
    how = "on the same rows" if not prompted else "each in its own template" if differ else "under the same prompt"
    result["sentence"] = _sentence(result, deciding, base, how, prompted)
    return result


def judge(pair: Mapping[str, Any], identical: bool, confidence: float) -> str:
    """The verdict on one pair: a pure function of interval, Holm-adjusted p-value and whether all answers are equal."""
    if identical:
        return TIED
    low, high = pair["low"], pair["high"]
    if low is None or high is None or pair["p_holm"] >= round(1 - confidence, 12) or low <= 0 <= high:
        return NO_EVIDENCE
    return BETTER if (low > 0) != metric.lower_is_better(pair["metric"]) else WORSE


def gained_and_lost(a: Answers, b: Answers, name: str) -> tuple[list[str], list[str]]:
    """Ids of the rows that only `a` answered rightly, and only `b`; sorted. Where no row is right or wrong there are neither."""
    right = metric.find(name).right
    if right is None:
        return [], []
    change = right(a) - right(b)
    return [a.row_ids[i] for i in np.flatnonzero(change > 0)], [a.row_ids[i] for i in np.flatnonzero(change < 0)]


def _identical(a: Answers, b: Answers, name: str) -> bool:
    return metric.find(name).alike(a, b)


def _comparable(
    names: Sequence[str], a: Answers, b: Answers, labels: Sequence[str]
) -> tuple[list[str], list[dict[str, str]]]:
    """Metrics that both models give and that mean the same for both; what falls out, with its reason."""
    both, skipped = [], []
    for name in names:
        known = metric.find(name)
        if not (known.given(a, labels) and known.given(b, labels)):
            continue
        if odd := next((same for same in known.same if not np.array_equal(a.column(same), b.column(same))), None):
            why = f"their {odd} differ"
            if odd == "tokens":
                why = "their tokenizers cut the rows differently; see bits_per_byte"
            skipped.append({"a": a.model, "b": b.model, "metric": name, "reason": why})
        else:
            both.append(name)
    return both, skipped


def _pair(
    a: Answers, b: Answers, names: Sequence[str], labels: Sequence[str], confidence: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One entry a metric; `p_holm` is filled in when all pairs are known."""
    how: dict[str, Any] = {"groups": a.groups, "resamples": resamples, "seed": seed}
    summed, weighted = metric.kinds(names)
    found = _summed(a, b, summed, labels, confidence, how) if summed else {}
    for name in weighted:
        of_a, of_b = (metric.find(name).weighted(answers, labels) for answers in (a, b))  # type: ignore[misc]
        interval, p = bootstrap_weighted(
            lambda w_RN, of_a=of_a, of_b=of_b: of_a(w_RN) - of_b(w_RN),  # type: ignore[misc]
            len(a), confidence=confidence, **{**how, "resamples": min(resamples, FEWER)},
        )  # fmt: skip
        found[name] = interval, p, "bootstrap"
    return [_entry(a, b, name, labels, *found[name]) for name in names]


def _summed(
    a: Answers, b: Answers, names: tuple[str, ...], labels: Sequence[str], confidence: float, how: dict[str, Any]
) -> dict[str, tuple[Interval, float, str]]:
    made = metric.Summed(names, labels)
    a_NK, b_NK = made.rows(a), made.rows(b)
    k = a_NK.shape[1]
    intervals = bootstrap_metric(
        lambda totals: made.values(totals[:, :k]) - made.values(totals[:, k:]),
        np.concatenate([a_NK, b_NK], axis=1), confidence=confidence, **how,
    )  # fmt: skip
    swapped = swap_test(made.values, a_NK, b_NK, **how)
    return {name: (interval, p, "swap") for name, interval, p in zip(names, intervals, swapped, strict=True)}


def _entry(
    a: Answers, b: Answers, name: str, labels: Sequence[str], interval: Interval, p: float, test: str
) -> dict[str, Any]:
    gained, lost = (len(rows) for rows in gained_and_lost(a, b, name))
    known = metric.find(name)
    exact = known.share is not None and known.right is not None and a.groups is None
    limits = metric.as_json(interval)
    return {
        "a": a.model, "b": b.model, "metric": name,
        "a_value": metric.value_of(name, a, labels), "b_value": metric.value_of(name, b, labels),
        "difference": limits["value"], "low": limits["low"], "high": limits["high"],
        "test": "mcnemar" if exact else test,
        "p_value": mcnemar(gained, lost) if exact else p,
        "p_holm": None,
        "gained": gained, "lost": lost,
    }  # fmt: skip


def _method(ours: Answers, resamples: int, seed: int, weighted: bool) -> dict[str, str]:
    clustered = ours.groups is not None
    unit = "documents" if clustered else "rows"
    swap = f"paired randomization test, answers swapped within {unit} (`swap`)"
    told = swap if clustered else f"McNemar's exact test for accuracy and exact match (`mcnemar`); else {swap}"
    fewer = ""
    if weighted:
        fewer = f"; {min(resamples, FEWER):,} for what is no function of sums"
        told += "; for what is no function of sums, resamples on the other side of zero, twice (`bootstrap`)"
    return {
        "interval": f"paired bootstrap over {unit}, expanded percentile, {resamples:,} resamples{fewer}, seed {seed}",
        "p_value": told,
        "adjusted": "Holm, over all pairs and metrics",
    }


def _strongest(variants: Sequence[str], base: str, name: str, validation: Mapping[str, float] | None) -> str | None:
    """The base variant that did best on validation rows; the plain base where it ties. None where nothing tells."""
    known = [m for m in variants if validation and m in validation]
    if not known or not validation:
        return None
    sign = -1 if metric.lower_is_better(name) else 1
    return max(known, key=lambda m: (sign * validation[m], m == base))


def expected_effect(
    n: int, name: str, *, discordance: float = 0.2, alpha: float = 0.05, power: float = 0.8
) -> dict[str, Any]:
    """What the sample could show, to be told before the run: `{difference, assumes}`."""
    if metric.find(name).right is None:
        return {"difference": None, "assumes": f"not told for {name}: it depends on how much the rows vary"}
    return {
        "difference": smallest_effect(n, discordance, alpha, power),
        "assumes": f"{n:,} independent rows, exactly one of the two models right on {discordance:.0%} of them, "
        f"a two-sided test at {alpha:.2g} with power {power:.0%}",
    }  # fmt: skip


def _sentence(
    result: Mapping[str, Any], deciding: Mapping[str, Mapping[str, Any]], base: str, how: str, prompted: bool
) -> str:
    pair, strongest, verdict = deciding[base], result["strongest"], result["verdict"]
    name = result["metric"]
    lower = " (lower is better)" if metric.lower_is_better(name) else ""
    rows = f"{result['n']:,} rows" + (f" in {result['groups']:,} documents" if result["groups"] < result["n"] else "")
    told = (
        f"{verdict[0].upper()}{verdict[1:]}: {name}{lower} of {pair['a']} {_number(pair['a_value'])} against {base} "
        f"{_number(pair['b_value'])} {how}: {_difference(pair)}, Holm {_p(pair['p_holm'])}, {rows}"
    )
    if verdict == TIED:
        told += "; every answer is the same"
    if not prompted:
        pass
    elif strongest is None:
        told += "; whether a stronger prompt of the base would do as well was not measured"
    elif strongest["model"] == base:
        told += "; no other base variant did better on validation rows" if len(strongest["validation"]) > 1 else ""
    else:
        other = deciding[strongest["model"]]
        told += (
            f"; against the strongest base variant, {other['b']} ({_number(other['b_value'])}; chosen on validation "
            f"rows), {_difference(other)}, Holm {_p(other['p_holm'])}: {strongest['verdict']}"
        )
    for model in result["unbeaten"]:
        other = deciding[model]
        told += f"; {model} ({_number(other['b_value'])}) is not beaten: {_difference(other)}"
    if result["contamination"] and result["contamination"]["exact"]:
        told += f"; {result['contamination']['exact']:,} test rows stand in the training data"
    return told + "."


def _number(value: float) -> str:
    return f"{value:.3f}"


def _difference(pair: Mapping[str, Any]) -> str:
    if pair["low"] is None or pair["high"] is None:
        return f"{pair['difference']:+.3f} [interval unknown: too few independent rows]"
    return f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


# Languages written without spaces: each character counts as a word.
_SPACELESS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def contamination(train_texts: Iterable[str], test_texts: Sequence[str]) -> dict[str, Any]:
    """How many test rows the training data has seen: the whole text, or any run of eight words.

    Texts are compared case-folded, without punctuation and spaces. Overlap of word n-grams is the usual test (Brown et
    al. 2020, arXiv:2005.14165, appendix C; eight words as in Chowdhery et al. 2022, arXiv:2204.02311, section 8). It
    finds copies, not paraphrases.

    Returns: `{n, train_rows, exact, ngram, words, short}`; `short` are test rows of fewer than eight words, which no
    n-gram can tell.
    """
    whole: dict[tuple[str, ...], list[int]] = {}
    grams: dict[tuple[str, ...], set[int]] = {}
    short = 0
    for i, text in enumerate(test_texts):
        words = tuple(_words(text))
        whole.setdefault(words, []).append(i)
        short += len(words) < SHARED_WORDS
        for start in range(len(words) - SHARED_WORDS + 1):
            grams.setdefault(words[start : start + SHARED_WORDS], set()).add(i)
    exact: set[int] = set()
    shared: set[int] = set()
    train_rows = 0
    with progress("contamination", unit="rows") as bar:
        for text in train_texts:
            train_rows += 1
            words = tuple(_words(text))
            exact.update(whole.get(words, ()))
            for start in range(len(words) - SHARED_WORDS + 1):
                shared.update(grams.get(words[start : start + SHARED_WORDS], ()))
            bar.add()
    return {
        "n": len(test_texts), "train_rows": train_rows, "exact": len(exact), "ngram": len(shared),
        "words": SHARED_WORDS, "short": short,
    }  # fmt: skip


def noise_floor(
    scores_a: Sequence[float], scores_b: Sequence[float], predictions_a: Sequence[str], predictions_b: Sequence[str]
) -> dict[str, Any]:
    """The same rows answered twice, with other batch sizes: `{n, max_score_difference, flips}`."""
    if not len(scores_a) == len(scores_b) == len(predictions_a) == len(predictions_b):
        raise HermitcrabError(
            "the noise floor needs the same rows answered twice. Received: "
            f"{len(scores_a)} and {len(scores_b)} scores, {len(predictions_a)} and {len(predictions_b)} predictions"
        )
    difference = float(np.abs(np.subtract(scores_a, scores_b)).max(initial=0.0))
    return {
        "n": len(predictions_a),
        "max_score_difference": difference if math.isfinite(difference) else None,
        "flips": sum(a != b for a, b in zip(predictions_a, predictions_b, strict=True)),
    }
