"""Answers, metrics and report of a run, on the packaged models."""

import re

import numpy as np
import pytest
from conftest import QUESTIONS

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.metrics import average_precision_at_3
from sciqa.predict import PredictOptions, predict
from sciqa.predict.sweep_predict import SweepPredictTrial
from sciqa.report import ReportOptions, report
from sciqa.retrieval import RetrieveOptions, retrieve


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_index, exam_file):
    """A run folder with contexts and the answers of every reader."""
    output = str(tmp_path_factory.mktemp("run"))
    retrieve(RetrieveOptions(output=output, index=f"{small_index}/index", exam=exam_file, shard_questions=5))
    for reader in ("open-book", "closed-book", "retrieval"):
        predict(PredictOptions(output=output, exam=exam_file, reader=reader, shard_questions=5))
    return output


@pytest.mark.parametrize("reader", ["open-book", "closed-book", "retrieval"])
def test_answers_are_whole_and_agree_with_the_metrics(run, reader):
    answers = tables.read_table(f"{run}/answers/{reader}").to_pylist()
    exam = tables.read_table(f"{run}/exam.parquet").to_pylist()
    assert [row["id"] for row in answers] == [row["id"] for row in exam]
    for row, question in zip(answers, exam, strict=True):
        assert sorted(row["ranking"]) == list("ABCD")
        assert row["prediction"] == " ".join(row["ranking"][:3])
        assert sum(row["probabilities"]) == pytest.approx(1)
        by_probability = sorted("ABCD", key=lambda letter: -row["probabilities"]["ABCD".index(letter)])
        assert row["ranking"] == by_probability
        assert row["answer"] == question["answer"]
        place = row["ranking"].index(row["answer"]) + 1
        assert row["average_precision"] == average_precision_at_3(np.array(place))
    metrics = tables.read_table(f"{run}/metrics/{reader}.parquet").to_pylist()
    whole = metrics[0]
    assert (whole["slice"], whole["questions"]) == ("all", QUESTIONS)
    assert whole["map_at_3"] == pytest.approx(np.mean([row["average_precision"] for row in answers]))
    assert whole["map_at_3_low"] <= whole["map_at_3"] <= whole["map_at_3_high"]
    assert sum(row["questions"] for row in metrics if row["slice"].startswith("topic: ")) == QUESTIONS


def test_context_helps_the_reader(run):
    figures = {
        reader: tables.read_table(f"{run}/metrics/{reader}.parquet")["map_at_3"][0].as_py()
        for reader in ("open-book", "closed-book")
    }
    assert figures["open-book"] > figures["closed-book"]


def test_a_rerun_keeps_answers_and_other_options_replace_them(run, exam_file):
    common = {"output": run, "exam": exam_file, "reader": "retrieval"}
    assert predict(PredictOptions(**common, shard_questions=5)).made.endswith("kept")
    with pytest.raises(InputError, match="another exam"):
        predict(PredictOptions(**common | {"exam": "test"}))


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        ({"samples": 8}, {"completion": "reasoned"}),
        ({"temperature": 0.7}, {"completion": "reasoned"}),
        ({"seed": 3}, {"engine": "openai", "base_url": "http://localhost:1"}),
        ({"max_tokens": 9}, {"reader": "longest"}),  # a baseline beside a model
        ({"cascade_share": 0.3}, {"cascade": "longest"}),
        ({"cascade_by": "entropy"}, {"cascade": "longest"}),
        ({"shots_by": "similarity"}, {"shots": 1}),
        ({"normalise": "none", "completion": "yes"}, {"completion": "letter"}),
    ],
)
def test_options_without_effect_are_refused(tmp_path, given, effective):
    flag = f"--{next(iter(given)).replace('_', '-')}"
    with pytest.raises(InputError, match=f"^{flag}: "):
        predict(PredictOptions(output=str(tmp_path), **given))
    PredictOptions(**given | effective).check_effects()
    SweepPredictTrial(**given).check_effects()


def test_report_is_one_page_that_needs_no_network(run, exam_file):
    summary = report(ReportOptions(output=run, exam=exam_file, shard_questions=5))
    page = storage.read_bytes(summary.path).decode()
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)
    assert page.count('<details class="q ') == QUESTIONS
    assert page.count('class="option answer"') == QUESTIONS
    assert "gold article" in page
    assert f"<td>by chance</td><td>{QUESTIONS}</td><td>0.458</td><td>0.250</td>" in page
    assert all(reader in page for reader in ("open-book", "closed-book", "retrieval"))


def test_text_of_an_exam_cannot_break_the_page(tmp_path, cluster):
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"id": "1", "prompt": "<script>alert(1)</script>?", "A": "<b>", "B": "&", "answer": null}\n')
    options = {"output": str(tmp_path / "run"), "exam": str(exam)}
    summary = predict(PredictOptions(**options, reader="closed-book"))
    assert summary.details == {}
    page = storage.read_bytes(report(ReportOptions(**options)).path).decode()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
