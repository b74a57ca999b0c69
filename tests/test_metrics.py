import re
from io import StringIO
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn import metrics as reference

from sciqa.cli_results import _score_table
from sciqa.exam.metrics import (
    average_precision_at_3,
    expected_calibration_error,
    log_loss,
    metric_bootstrap_interval,
    metrics_by_chance,
    position_bias,
    score_metrics,
)
from sciqa.predict.results import _slices


def answer(probabilities, correct):
    return {"scores": np.log(probabilities).tolist(), "probabilities": probabilities, "answer": correct}


def test_average_precision_is_the_reciprocal_rank_of_the_first_three():
    assert average_precision_at_3(np.array([1, 2, 3, 4, 26])).tolist() == [1, 1 / 2, 1 / 3, 0, 0]


def test_random_rankings_of_four_options_score_near_chance():
    ranks = np.random.default_rng(0).integers(1, 5, 20_000)
    assert average_precision_at_3(ranks).mean() == pytest.approx((1 + 1 / 2 + 1 / 3) / 4, abs=0.01)


def test_log_loss_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 50)
    correct = rng.integers(0, 4, 50)
    expected = reference.log_loss(correct, probabilities, labels=range(4))
    assert log_loss(probabilities[np.arange(50), correct]) == pytest.approx(expected)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(60):
        low, high = metric_bootstrap_interval((rng.random(80) < 0.7).astype(float), seed)
        covered += low <= 0.7 <= high
    assert 0.85 <= covered / 60 <= 1


def test_calibration_error_is_zero_when_confidence_is_deserved_and_the_gap_when_it_is_not():
    confidence = np.full(1000, 0.75)
    correct = np.arange(1000) % 4 > 0
    assert expected_calibration_error(confidence, correct) == pytest.approx(0)
    assert expected_calibration_error(confidence, np.zeros(1000)) == pytest.approx(0.75)


def test_score_counts_only_questions_with_an_answer():
    rows = [
        answer([0.9, 0.1], "A"),
        answer([0.2, 0.8], "A"),
        answer([0.5, 0.5], None),
    ]
    figures = score_metrics(rows)
    assert figures["questions"] == 2
    assert figures["map_at_3"] == 0.75
    assert figures["accuracy"] == 0.5
    assert figures["log_loss"] == pytest.approx(-np.log([0.9, 0.2]).mean())
    assert score_metrics(rows[2:]) is None


def test_chance_is_the_mean_over_all_orders_of_the_options():
    for options in range(2, 7):
        ranks = np.array([order.index(0) + 1 for order in permutations(range(options))])
        expected = (np.mean(ranks == 1), average_precision_at_3(ranks).mean())
        assert metrics_by_chance([options] * 3) == pytest.approx(expected)
    rows = [answer([0.25] * 4, "A"), answer([0.9, 0.1], "B"), answer([0.5, 0.5], None)]
    figures = score_metrics(rows)
    assert figures["questions"] == 2
    assert figures["chance_accuracy"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert figures["chance_map_at_3"] == pytest.approx((11 / 24 + 3 / 4) / 2)


def test_every_score_is_shown_with_its_questions_and_beside_chance():
    row = score_metrics([answer([0.4, 0.3, 0.2, 0.1], letter) for letter in "AABCD"]) | {
        "reader": "open-book",
        "seconds": 1.0,
    }
    console = Console(width=150, record=True, file=StringIO())
    console.print(_score_table([row]))
    lines = console.export_text().splitlines()
    assert re.search(r"open-book +│ +5 │", lines[-3])
    assert re.search(r"by chance\) +│ +5 │ +0.458 │ +0.250 │", lines[-2])
    older = {name: value for name, value in row.items() if not name.startswith("chance")}
    console.print(_score_table([older]))
    assert "by chance" not in console.export_text()


def test_questions_without_a_topic_are_in_no_slice_by_topic(tmp_path):
    path = str(tmp_path / "exam.parquet")
    pq.write_table(pa.table({"topic": ["Gases", None], "is_question": [True, True]}), path)
    answers = [answer([0.5, 0.5], "A"), answer([0.9, 0.1], "A")]
    exam = SimpleNamespace(open_table=lambda: pq.ParquetFile(path))
    assert _slices(exam, answers) == {"all": answers, "topic: Gases": answers[:1]}


def test_position_bias_is_the_spread_of_accuracy_by_letter():
    letters = ["A"] * 40 + ["B"] * 20 + ["C"] * 19
    correct = np.array([1.0] * 30 + [0.0] * 10 + [1.0] * 20 + [0.0] * 19)
    assert position_bias(letters, correct) == pytest.approx(1 - 0.75), "too few stand at C to say"
    assert position_bias(letters[:40], correct[:40]) is None


def test_intervals_and_figures_do_not_follow_the_order_of_the_questions():
    rng = np.random.default_rng(0)
    rows = [answer(rng.dirichlet(np.ones(4)).tolist(), letter) for letter in rng.choice(list("ABCD"), 100)]
    rows += [answer([0.25] * 4, letter) for letter in "ABCD"]
    figures, others = score_metrics(rows), score_metrics(rows[::-1])
    assert figures["ties"] == 4
    assert figures == pytest.approx(others, abs=1e-12)
    assert (figures["map_at_3_low"], figures["map_at_3_high"]) == (others["map_at_3_low"], others["map_at_3_high"])


def test_intervals_are_those_of_plain_resampling():
    values = np.random.default_rng(1).choice([0, 1 / 3, 1 / 2, 1], 60)
    rng = np.random.default_rng(2)
    means = [values[rng.integers(0, 60, 60)].mean() for _ in range(10_000)]
    assert metric_bootstrap_interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert metric_bootstrap_interval(values) == metric_bootstrap_interval(values)
    many = np.random.default_rng(3).random(2000)  # all distinct
    assert metric_bootstrap_interval(many) == pytest.approx((many.mean() - 0.0127, many.mean() + 0.0127), abs=0.002)
