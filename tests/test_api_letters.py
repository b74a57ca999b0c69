"""Letters in what a server answers: strict rules for words, and sums over the forms of a token."""

import numpy as np
import pytest

from sciqa.predict.api_letters import read_letter, scores_by_tokens, scores_by_votes, token_letter

OPTIONS = {"A": "iron", "B": "helium", "C": "A noble gas"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" (B)\n", "B"),
        ("**B**", "B"),
        ("B.", "B"),
        ("B. Helium", "B"),
        ("B) helium, since it is a noble gas", "B"),
        ("[C]", "C"),
        ("The answer is B.", "B"),
        ("Answer: (B)", "B"),
        ("The correct answer is option **C**, a gas.", "C"),
        ("It rusts.\nFinal answer: A", "A"),
        ("Helium.", "B"),
        ("<think>A? No: the answer is A. Wait.</think>\nB", "B"),
        ("", None),
        ("D", None),  # not an option
        ("b", None),
        ("A noble gas", "C"),  # the article is no letter
        ("A gas that is noble", None),
        ("B. iron", None),  # letter and text disagree
        ("The answer is A. No, the answer is B.", None),
        ("The answer is D.", None),
        ("The answer is A gas.", None),
        ("I cannot tell.", None),
        ("A or B", None),
        ("<think>The answer is A.", None),  # cut off
        ("Both", None),
    ],
)
def test_letters_are_read_by_strict_rules(answer, letter):
    assert read_letter(answer, OPTIONS) == letter


def test_options_of_the_same_text_are_no_answer():
    assert read_letter("helium", {"A": "helium", "B": "Helium."}) is None


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
    assert token_letter(token) == letter


def test_forms_of_a_letter_add_up():
    listed = {"B": np.log(0.3), " B": np.log(0.2), "A": np.log(0.4), "The": np.log(0.06)}
    scores, letter = scores_by_tokens(listed, "ABC")
    assert letter == "B"
    np.testing.assert_allclose(np.exp(scores), [0.4, 0.5, 0.04])  # what is left is C's


def test_a_letter_that_is_not_listed_is_no_likelier_than_the_last_that_is():
    scores, _ = scores_by_tokens({"B": np.log(0.3), "A": np.log(0.2)}, "ABCD")
    np.testing.assert_allclose(np.exp(scores), [0.2, 0.3, 0.2, 0.2])  # 0.25 each would be left
    scores, _ = scores_by_tokens({"B": 0.0, "x": -30.0}, "AB")
    assert np.isfinite(scores).all()
    assert scores[0] <= -30


def test_without_any_letter_all_are_tied():
    scores, letter = scores_by_tokens({"The": -0.1, "a": -3.0, "E": -4.0}, "ABCD")
    assert letter is None
    assert scores.tolist() == [0.0] * 4


def test_votes_are_shares():
    scores = scores_by_votes(["A", "B", "A", None, "A"], "ABCD")
    np.testing.assert_allclose(np.exp(scores), [3.25 / 5, 1.25 / 5, 0.25 / 5, 0.25 / 5])
    np.testing.assert_allclose(np.exp(scores_by_votes([None], "AB")), [0.5, 0.5])
