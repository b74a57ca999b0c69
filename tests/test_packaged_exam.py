"""The exam that ships: what the README says of it holds for every question."""

import re
from collections import Counter

import numpy as np
import pytest

from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.exam.metrics import average_precision_at_3
from sciqa.exam.questions import SPLITS, options_of

TOPICS = {"Biology and health sciences", "Physical sciences", "Mathematics", "Technology"}


@pytest.fixture(scope="module")
def splits():
    return {split: read_exam(split).to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def questions(splits):
    return [question for rows in splits.values() for question in rows]


def test_sizes(splits, questions):
    assert len(questions) >= 600
    assert len(splits["train"]) >= 400
    assert len(splits["validation"]) >= 100
    assert len(splits["test"]) >= 100


def test_no_question_stands_twice_and_no_article_in_two_splits(splits, questions):
    for column in ("id", "prompt"):
        assert max(Counter(question[column] for question in questions).values()) == 1
    articles = Counter(title for rows in splits.values() for title in {question["title"] for question in rows})
    assert max(articles.values()) == 1


def test_gold_articles_are_science_articles_of_the_demo_corpus(questions):
    titles = {article["title"] for article in read_articles("demo")}
    assert {question["title"] for question in questions} <= titles
    assert {question["topic"] for question in questions} == TOPICS


def test_four_different_options_and_balanced_letters(splits):
    for rows in splits.values():
        assert all(len(set(options_of(question).values())) == 4 for question in rows)
        letters = Counter(question["answer"] for question in rows)
        assert all(0.2 <= letters[letter] / len(rows) <= 0.3 for letter in "ABCD")


def test_about_a_tenth_are_instructions_and_half_name_their_article(questions):
    assert 0.07 <= np.mean([not question["is_question"] for question in questions]) <= 0.14
    assert all(question["prompt"].endswith("?") == question["is_question"] for question in questions)
    bare = [re.sub(r" \(.*\)", "", question["title"]).lower() for question in questions]
    named = [title in question["prompt"].lower() for title, question in zip(bare, questions, strict=True)]
    assert 0.4 <= np.mean(named) <= 0.6


@pytest.mark.parametrize("sign", [1, -1], ids=["longest", "shortest"])
def test_length_gives_nothing_away(questions, sign):
    ranks = []
    for question in questions:
        lengths = {letter: sign * len(option) for letter, option in options_of(question).items()}
        ranks.append(1 + sum(length > lengths[question["answer"]] for length in lengths.values()))
    chance = (1 + 1 / 2 + 1 / 3) / 4
    assert average_precision_at_3(np.array(ranks)).mean() == pytest.approx(chance, abs=0.08)
    assert np.mean(np.array(ranks) == 1) <= 0.33
