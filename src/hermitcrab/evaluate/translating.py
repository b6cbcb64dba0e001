"""Metrics and the baseline of translation: BLEU and chrF as sacrebleu has them, and the translation of the nearest training segment.

Both metrics are functions of counts over rows, which sacrebleu takes and the formulas here only put together, so one resample is a sum.

Shapes: N rows, K sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hermitcrab.errors import needs
from hermitcrab.evaluate.answers import Answers
from hermitcrab.evaluate.baseline import Baseline
from hermitcrab.evaluate.metric import Metric
from hermitcrab.evaluate.statistics import Floats
from hermitcrab.progress import progress

if TYPE_CHECKING:
    import pyarrow as pa

ORDER = 4  # of BLEU's n-grams of tokens
BETA = 2  # recall counts so much more than precision in chrF
PART = 512  # rows whose similarities are held at once


def tokenizer_for(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer: `zh` cuts Chinese into characters, `13a` is its default for all other languages.

    By the references alone, which are the same for all models that are compared.
    """
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in references)
    return "zh" if 2 * chinese > len(references) else "13a"


def _counts(metric: Any, answers: Answers) -> Floats:
    """What sacrebleu counts in each row -> float64 N x K."""
    said = ["" if text is None else str(text) for text in answers.prediction]
    meant = [str(text) for text in answers.reference]
    return np.array(metric._extract_corpus_statistics(said, [meant]), dtype=np.float64)


def bleu_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """Lengths of prediction and reference, n-grams that are right, n-grams: float64 N x (2 + 2 x 4)."""
    made = needs("sacrebleu.metrics", "baselines").BLEU(tokenize=tokenizer_for(answers.reference), force=True)
    return _counts(made, answers)


def bleu(totals_RK: Floats) -> Floats:
    """BLEU (Papineni et al. 2002) from 0 to 100, smoothed as sacrebleu's default `exp`: the n-th precision without a hit is
    1 / 2^n-th of one hit."""
    said_R, meant_R = totals_RK[:, 0], totals_RK[:, 1]
    right_RO, all_RO = totals_RK[:, 2 : 2 + ORDER], totals_RK[:, 2 + ORDER :]
    none_RO = (right_RO == 0) & (all_RO > 0)
    smoothed_RO = np.where(none_RO, 0.5 ** np.cumsum(none_RO, axis=1), right_RO)
    known_R: Any = right_RO.any(axis=1) & (all_RO > 0).all(axis=1)
    precision_RO = np.divide(smoothed_RO, all_RO, out=np.ones_like(all_RO), where=known_R[:, None])
    short_R = np.minimum(0, 1 - np.divide(meant_R, said_R, out=np.ones_like(meant_R), where=said_R > 0))
    return np.where(known_R, 100 * np.exp(short_R + np.log(precision_RO).mean(axis=1)), 0)


def chrf_sums(answers: Answers, labels: Sequence[str]) -> Floats:
    """Character n-grams of prediction, of reference, and in both, for each n up to six: float64 N x 18."""
    return _counts(needs("sacrebleu.metrics", "baselines").CHRF(), answers)


def chrf(totals_RK: Floats) -> Floats:
    """chrF (Popović 2015), from 0 to 100: F of mean precision and mean recall over the orders that both sides have."""
    said_RO, meant_RO, both_RO = totals_RK[:, 0::3], totals_RK[:, 1::3], totals_RK[:, 2::3]
    known_RO = (said_RO > 0) & (meant_RO > 0)
    orders_R = np.maximum(1, known_RO.sum(axis=1))
    precision_R, recall_R = (
        np.divide(both_RO, under_RO, out=np.zeros_like(both_RO), where=known_RO).sum(axis=1) / orders_R
        for under_RO in (said_RO, meant_RO)
    )
    below_R = BETA**2 * precision_R + recall_R
    above_R = (1 + BETA**2) * precision_R * recall_R
    return 100 * np.divide(above_R, below_R, out=np.zeros_like(above_R), where=below_R > 0)


METRICS = (
    Metric(name="bleu", bounded=False, rows=bleu_sums, values=bleu),
    Metric(name="chrf", bounded=False, rows=chrf_sums, values=chrf),
)


def nearest(train: Sequence[str], asked: Sequence[str]) -> tuple[list[int], list[float]]:
    """The training text that is most like each asked one, and how like it is: cosine of TF-IDF of 1- to 4-grams of characters."""
    vectorizer = needs("sklearn.feature_extraction.text", "train").TfidfVectorizer(
        analyzer="char", ngram_range=(1, 4), sublinear_tf=True, dtype=np.float32
    )
    train_ND, asked_MD = vectorizer.fit_transform(train), vectorizer.transform(asked)
    place, like = list[int](), list[float]()
    with progress("nearest segments", len(asked), "rows") as bar:
        for start in range(0, len(asked), PART):
            cosine_MN = (asked_MD[start : start + PART] @ train_ND.T).toarray()
            best_M = cosine_MN.argmax(axis=1)
            place += best_M.tolist()
            like += cosine_MN[np.arange(len(best_M)), best_M].astype(float).tolist()
            bar.add(len(best_M))
    return place, like


def _nearest_segment(task: Any, train: pa.Table, validation: pa.Table, test: pa.Table) -> Baseline:
    """What a translation memory does: the translation of the training segment that is most like the asked one."""
    place, like = nearest(task.texts(train), task.texts(test))
    known = task.answers(train)
    told = {"train_rows": train.num_rows, "median_similarity": float(np.median(like)) if like else None}
    return Baseline([known[i] for i in place], [None] * len(place), told, {"similarity": like})


BASELINES = {"nearest-segment": _nearest_segment}
