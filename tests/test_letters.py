"""Letters in what a model answers: rules for words, which read from the end, and votes."""

import numpy as np
import pytest

from sciqa.models.letters import (
    ends_with_letter,
    find_letter,
    read_letter,
    scores_by_letter_votes,
)

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
        ("B. Hel", "B"),  # cut off
        ("Let me see.\nB: heli", "B"),
        ("A ir", None),  # without a mark it may be the article
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
        ("The answer is A. No, the answer is B.", "B"),  # the last of two
        ("The answer is B. Or is the answer D?\nAnswer: D", None),  # the last is no option
        ("The answer is D.", None),
        ("The answer is A gas.", None),
        ("I cannot tell.", None),
        ("A or B", None),
        ("<think>The answer is A.", None),  # cut off
        ("Both", None),
        ("Helium is a noble gas.\n\nAnswer: B", "B"),
        ("Iron rusts, so not A.\n**Answer:** B", "B"),
        ("**Final Answer: (B)**", "B"),
        ("### Answer\nB", "B"),
        ("Answer:\n**B. Helium**", "B"),
        ("Answer: <B>", "B"),
        ("answer: `B`", "B"),
        ("Answer: $B$", "B"),
        ("Answer: $\\boxed{B}$.", "B"),
        ("So it is \\boxed{B}", "B"),
        ("Thus \\boxed{\\text{B}}.", "B"),
        ("Thus \\boxed{(C) A noble gas}", "C"),
        ("\\boxed{A} seemed right, but \\boxed{B} is.", "B"),
        ("\\boxed{D}", None),
        ("\\boxed{42}", None),
        ("the answer is (C).", "C"),
        ("THE ANSWER IS B.", "B"),
        ("The answer to the question is B.", "B"),
        ("So the correct option is B, helium.", "B"),
        ("The best choice is\n(B)", "B"),
        ("The answer is not A.", None),
        ("Answer: A, B", None),
        ("Answer: A and C", None),
        ("Answer: A or B", None),
        ("Answer: <letter>", None),
        ("Iron is A, helium is B.", None),
        ("It does not rust, so it must be:\n\n(B)", "B"),
        ("It does not rust.\nhelium", "B"),
        ("</think> B", "B"),
        ("A is iron. The answer is A.</think>\n\nThe answer is B.", "B"),
        ("<seed:think>A</seed:think>B", "B"),
        ("[THINK]A[/THINK]Answer: B", "B"),
        ("<think>A</think>B<think>C", None),  # thinks again, and is cut off
        ("Answer: B\n", "B"),
        ("Answers: B", None),
        ("The incorrect answer is A. Therefore, B is the correct answer.", None),
        ("A tempting but wrong answer is (C). So it must be option B.", None),
        ("The answer is B. A common **wrong** answer is (C).", "B"),
        ("A is not the right answer: A rusts.\nB", "B"),
        ("Answer choice A: rusts.\nAnswer choice B: fits.\nAnswer choice C: vague.\nB", "B"),
        ("Answer (A) rusts, answer B: fits, answer **C** is vague.", None),
        ("The correct answer choice is B.", "B"),
        ("So the right answer (B) fits.", "B"),
        ("Iron is wrong\nAnswer: B. It is inert.", "B"),
    ],
)
def test_letters_are_read_by_strict_rules(answer, letter):
    assert read_letter(answer, OPTIONS) == letter
    if found := find_letter(answer, OPTIONS):
        assert answer[found[1] :].lower().startswith((letter.lower(), OPTIONS[letter].lower()))


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("It rusts.\nAnswer: A\n", True),
        ("**Answer:** (A)\n\n", True),
        ("Final answer: A\n", True),
        ("Answer: A", False),  # the line may go on: "Answer: A noble gas"
        ("It rusts.\n", False),
        ("Answer: iron\n", False),
        ("The answer is A.\n", False),  # no last line yet
        ("<think>\nAnswer: A\n", False),
        ("<think>A?</think>\nAnswer: A\n", True),
    ],
)
def test_a_line_with_the_answer_ends_a_chain(text, ends):
    assert ends_with_letter(text) == ends


def test_options_of_the_same_text_are_no_answer():
    assert read_letter("helium", {"A": "helium", "B": "Helium."}) is None


@pytest.mark.parametrize(("answer", "letter"), [("B", "B"), ("B.", "B"), ("B is wrong, I think.", None), ("", None)])
def test_an_option_of_marks_alone_begins_no_answer(answer, letter):
    assert read_letter(answer, {"A": "+", "B": "*"}) == letter


def test_votes_are_shares():
    scores = scores_by_letter_votes(["A", "B", "A", None, "A"], "ABCD")
    np.testing.assert_allclose(np.exp(scores), [3.25 / 5, 1.25 / 5, 0.25 / 5, 0.25 / 5])
    np.testing.assert_allclose(np.exp(scores_by_letter_votes([None], "AB")), [0.5, 0.5])


def test_equal_votes_are_ranked_by_likelihood_and_unequal_ones_are_not():
    likelihood = np.array([0.0, 0.25, 0.75])
    scores = scores_by_letter_votes(["A", "B", None], "ABC", likelihood)
    np.testing.assert_allclose(np.exp(scores), [(1 + 1 / 6) / 3, (1 + 1 / 6 + 1 / 8) / 3, (1 / 6 + 3 / 8) / 3])
    sure = scores_by_letter_votes(["A"], "AB", np.array([0.0, 1.0]))
    assert sure[0] > sure[1]
