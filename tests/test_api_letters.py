"""Letters among the likeliest first tokens of a server: sums over the forms of a token."""

import numpy as np
import pytest

from sciqa.predict.api_letters import api_letter_scores, api_token_letter


@pytest.mark.parametrize(
    ("token", "letter"),
    [
        ("A", "A"),
        (" A", "A"),
        ("▁A", "A"),
        ("ĠA", "A"),
        ("A.", "A"),
        ("(A", "A"),
        ("a", None),
        ("An", None),
        ("", None),
    ],
)
def test_tokens_that_are_letters(token, letter):
    assert api_token_letter(token) == letter


def test_forms_of_a_letter_add_up():
    listed = {"B": np.log(0.3), " B": np.log(0.2), "A": np.log(0.4), "The": np.log(0.06)}
    scores, letter = api_letter_scores(listed, "ABC")
    assert letter == "B"
    np.testing.assert_allclose(np.exp(scores), [0.4, 0.5, 0.04])  # what is left is C's


def test_a_letter_that_is_not_listed_is_no_likelier_than_the_last_that_is():
    scores, _ = api_letter_scores({"B": np.log(0.3), "A": np.log(0.2)}, "ABCD")
    np.testing.assert_allclose(np.exp(scores), [0.2, 0.3, 0.2, 0.2])  # 0.25 each would be left
    scores, _ = api_letter_scores({"B": 0.0, "x": -30.0}, "AB")
    assert np.isfinite(scores).all()
    assert scores[0] <= -30


def test_without_any_letter_all_are_tied():
    scores, letter = api_letter_scores({"The": -0.1, "a": -3.0, "E": -4.0}, "ABCD")
    assert letter is None
    assert scores.tolist() == [0.0] * 4
