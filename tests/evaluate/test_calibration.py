import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.calibration import apply, fit_offsets


def biased(random, n, bias, choices=2, slope=1.0):
    """Scores that rank well but favor some choices; references drawn from what the scores really mean."""
    scores = random.normal(size=(n, choices)) * 2 / slope
    truth = (special.softmax(slope * scores, axis=1).cumsum(axis=1) > random.random((n, 1))).argmax(axis=1)
    return scores + bias, truth


def accuracy(scores, truth):
    return (scores.argmax(axis=1) == truth).mean()


@pytest.mark.parametrize(("bias", "slope"), [([0, 3], 1.0), ([0, 0.1], 50.0), ([2, -1, 0], 1.0)])
def test_label_bias_is_found_and_removed(bias, slope):
    random = np.random.default_rng(0)
    scores, truth = biased(random, 4000, bias, len(bias), slope)
    offsets = fit_offsets(scores, truth)
    assert offsets == pytest.approx(np.mean(bias) - np.array(bias), abs=0.25 / slope)
    fresh, fresh_truth = biased(random, 4000, bias, len(bias), slope)
    unbiased = accuracy(fresh - np.array(bias), fresh_truth)
    assert accuracy(apply(fresh, offsets), fresh_truth) == pytest.approx(unbiased, abs=0.015)


def test_two_choices_give_the_threshold_of_platts_scaling():
    scores, truth = biased(np.random.default_rng(1), 1000, [0, 1.5])
    margin = scores[:, 1:] - scores[:, :1]
    platt = LogisticRegression(C=1e9, tol=1e-9).fit(margin, truth)
    threshold = -platt.intercept_[0] / platt.coef_[0, 0]
    offsets = fit_offsets(scores, truth)
    assert offsets[0] - offsets[1] == pytest.approx(threshold, abs=0.02)


def test_rows_that_separate_and_choices_that_never_occur_stay_finite():
    scores = np.array([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]] * 20)
    offsets = fit_offsets(scores, [1, 0] * 20)
    assert np.isfinite(offsets).all()
    assert accuracy(apply(scores, offsets), np.array([1, 0] * 20)) == 1


def test_scores_that_say_nothing_give_way_to_the_commonest_choice():
    scores = np.random.default_rng(2).normal(size=(500, 2))
    truth = (np.random.default_rng(3).random(500) < 0.8).astype(int)
    assert accuracy(apply(scores, fit_offsets(scores, truth)), truth) >= 0.79
    assert accuracy(apply(np.zeros((5, 2)), fit_offsets(np.zeros((50, 2)), [1] * 40 + [0] * 10)), np.ones(5)) == 1


@pytest.mark.parametrize(
    ("scores", "truth"),
    [([], []), ([[1.0]], [0]), ([[1.0, 2.0]], [2]), ([[1.0, np.inf]], [0]), ([[1.0, 2.0]], [0, 1])],
)
def test_what_cannot_be_fitted_is_refused(scores, truth):
    with pytest.raises(HermitcrabError, match="calibration"):
        fit_offsets(scores, truth)
