import random

import pytest

from hermitcrab.errors import HermitcrabError
from hermitcrab.evaluate.baselines import GRID, majority, tfidf_logreg

GOOD, BAD = ["lovely", "warm", "funny", "bright", "moving"], ["dull", "tired", "clumsy", "loud", "empty"]


def reviews(n, seed):
    chance = random.Random(seed)
    labels = [chance.choice(["positive", "negative"]) for _ in range(n)]
    texts = [
        f"a {chance.choice(GOOD if label == 'positive' else BAD)} film about {chance.choice('abcdef')}x"
        for label in labels
    ]
    return texts, labels


def test_majority_answers_the_commonest_label():
    told = majority(["b", "a", "b"], range(4))
    assert told.predictions == ["b"] * 4
    assert told.fitted == {"train_rows": 3, "label": "b", "share_in_training": 2 / 3}


def test_majority_of_a_tie_is_the_first_in_the_alphabet():
    assert majority(["b", "a"], range(1)).predictions == ["a"]


def test_tfidf_logreg_learns_words_and_tells_what_it_was_fitted_on():
    texts, labels = reviews(200, 0)
    held, held_labels = reviews(50, 1)
    asked, truth = reviews(100, 2)
    told = tfidf_logreg(texts, labels, asked, validation_texts=held, validation_labels=held_labels)
    assert told.predictions == truth
    assert all(-0.7 < score <= 0 for score in told.scores)
    assert told.fitted["train_rows"] == 200
    assert told.fitted["validation_rows"] == 50
    assert told.fitted["C"] == GRID[0]  # every setting answers all validation rows: the strongest regularization wins
    assert tfidf_logreg(texts, labels, asked, validation_texts=held, validation_labels=held_labels) == told


def test_tfidf_logreg_without_validation_rows_says_that_nothing_was_chosen():
    texts, labels = reviews(50, 0)
    told = tfidf_logreg(texts, labels, [])
    assert told.predictions == []
    assert told.fitted["C_chosen_on"] == "nothing; the default"


def test_baselines_that_cannot_be_fitted_say_why():
    with pytest.raises(HermitcrabError, match="no training rows"):
        majority([], [])
    with pytest.raises(HermitcrabError, match=r"at least two labels\. Received: a"):
        tfidf_logreg(["x"], ["a"], ["y"])
    with pytest.raises(HermitcrabError, match="empty vocabulary"):
        tfidf_logreg(["!", "?"], ["a", "b"], ["y"])
