"""The exams that ship: what the docs say of them holds for every question."""

import re
from collections import Counter

import numpy as np
import pytest

from sciqa.core.errors import InputError
from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.baselines import longest_baseline_scores, overlap_baseline_scores
from sciqa.exam.metrics import metric_rank_range, right_at_first
from sciqa.exam.open_exam import SPLITS
from sciqa.retrieval.load_embedder import load_embedder

TOPICS = {"Biology and health sciences", "Physical sciences", "Mathematics", "Technology"}
KINDS = {"role", "number", "cause", "negation", "comparison", "calculation", "two facts", "description", "property"}
SIZES = {"train": 800, "validation": 150, "test": 300}
DIRECT = {"direct-train": 776, "direct-validation": 126, "direct-test": 231}


@pytest.fixture(scope="module")
def splits():
    return {split: read_exam(split).to_pylist() for split in SPLITS}


@pytest.fixture(scope="module")
def articles():
    return {article["title"]: article["text"] for article in read_articles("demo")}


def questions(splits, names=SPLITS):
    return [question for name in names for question in splits[name]]


def accuracy(rows, score):
    """Return the accuracy of ranking by a function from a question and its options to scores."""
    places = [
        metric_rank_range(np.asarray(score(row, list(answer_options_of(row).values()))), ord(row["answer"]) - ord("A"))
        for row in rows
    ]
    return float(right_at_first(*np.array(places).T).mean())


def test_sizes(splits):
    assert {*SIZES, *DIRECT} == set(SPLITS)
    assert all(len(splits[name]) >= size for name, size in SIZES.items())
    assert {name: len(splits[name]) for name in DIRECT} == DIRECT


def test_several_splits_are_one_exam(splits):
    assert read_exam("validation+direct-validation")["id"].to_pylist() == [
        row["id"] for row in questions(splits, ("validation", "direct-validation"))
    ]
    with pytest.raises(InputError, match=r"validation\+other: no such exam"):
        read_exam("validation+other")


def test_no_question_stands_twice_and_no_article_in_two_splits(splits):
    for column in ("id", "prompt"):
        assert max(Counter(question[column] for question in questions(splits)).values()) == 1
    titles: dict[str, set[str]] = {}
    for name, rows in splits.items():
        for row in rows:
            titles.setdefault(row["title"], set()).add(name.removeprefix("direct-"))
    assert all(len(names) == 1 for names in titles.values())


def test_gold_articles_are_science_articles_of_the_demo_corpus(splits, articles):
    assert {question["title"] for question in questions(splits)} <= set(articles)
    assert {question["topic"] for question in questions(splits)} == TOPICS


def test_four_different_options_and_balanced_letters(splits):
    for rows in splits.values():
        assert all(len(set(answer_options_of(question).values())) == 4 for question in rows)
        letters = Counter(question["answer"] for question in rows)
        assert all(0.2 <= letters[letter] / len(rows) <= 0.3 for letter in "ABCD")


@pytest.mark.parametrize("split", SIZES)
def test_every_question_has_its_kind_and_its_evidence_in_the_article(splits, articles, split):
    kinds = Counter(row["kind"] for row in splits[split])
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 0.05 * len(splits[split])
    for row in splits[split]:
        assert all(sentence in articles[row["title"]] for sentence in row["evidence"].split(" … "))


@pytest.mark.slow
@pytest.mark.parametrize("split", SIZES)
def test_words_length_and_similarity_give_nothing_away(splits, articles, split):
    rows = splits[split]
    embedder = load_embedder("all-MiniLM-L6-v2", 2)
    texts = list({text for row in rows for text in (articles[row["title"]], *answer_options_of(row).values())})
    vectors = dict(zip(texts, embedder.encode(texts), strict=True))

    def overlap(row, options):
        return overlap_baseline_scores(options, articles[row["title"]])

    def similarity(row, options):
        return np.array([vectors[option] for option in options]) @ vectors[articles[row["title"]]]

    for score, low, high in ((overlap, 0.18, 0.38), (similarity, 0.18, 0.42)):
        assert low <= accuracy(rows, score) <= high
        assert accuracy(rows, lambda row, options, score=score: -score(row, options)) <= high
    for sign in (1, -1):
        assert 0.2 <= accuracy(rows, lambda _, options, sign=sign: sign * longest_baseline_scores(options)) <= 0.32


def test_the_direct_questions_can_be_answered_by_counting_words(splits, articles):
    """What their figures must be read beside."""
    scored = accuracy(
        splits["direct-test"], lambda row, options: overlap_baseline_scores(options, articles[row["title"]])
    )
    assert scored > 0.9


def test_of_the_direct_questions_a_tenth_are_instructions_and_half_name_their_article(splits):
    rows = questions(splits, DIRECT)
    assert 0.07 <= np.mean([not row["is_question"] for row in rows]) <= 0.14
    assert all(row["prompt"].endswith("?") == row["is_question"] for row in questions(splits))
    bare = [re.sub(r" \(.*\)", "", row["title"]).lower() for row in rows]
    named = [title in row["prompt"].lower() for title, row in zip(bare, rows, strict=True)]
    assert 0.4 <= np.mean(named) <= 0.6
