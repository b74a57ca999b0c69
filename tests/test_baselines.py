"""Shallow baselines: what they score, as readers beside a model and in the check of an exam."""

import json
from pathlib import Path

import numpy as np
import pytest

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.baselines import BASELINES, baseline_scores, baseline_words, overlap_baseline_scores
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.run import RunExamOptions, run_exam

QUESTION = {"prompt": "Which?", "A": "Iron rusts", "B": "The iron, a metal", "C": "of the", "answer": "B"}


def test_overlap_is_the_share_of_different_content_words():
    assert baseline_words("The iron, an Iron-56 nucleus") == {"iron", "56", "nucleus"}
    assert overlap_baseline_scores(["Iron rusts", "iron IRON metal", "of the"], "A metal is iron.").tolist() == [
        0.5,
        1.0,
        0.0,
    ]


def test_longest_counts_characters_and_majority_letters():
    counts = {"C": 5, "A": 1}
    assert np.argmax(baseline_scores("longest", counts)(QUESTION, "")) == 1
    assert np.allclose(np.exp(baseline_scores("majority", counts)(QUESTION, "")), [2 / 9, 1 / 9, 6 / 9])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_baselines_are_readers_of_a_run(tmp_path, cluster, exam_file, small_index):
    common = {"output": str(tmp_path), "exam": exam_file, "shard_questions": 4}
    retrieve(RetrieveOptions(index=f"{small_index}/index", **common))
    contexts = tables.read_table(str(tmp_path / "contexts" / "00000.parquet")).to_pylist()
    questions = [json.loads(line) for line in Path(exam_file).read_text().splitlines()][:4]
    for name in BASELINES:
        made = predict(PredictOptions(reader=name, **common))
        assert made.details["model"] is None
        assert made.details["contexts"] == (str(tmp_path / "contexts") if "overlap" in name else None)
        rows = tables.read_table(f"{made.path}/00000.parquet").to_pylist()
        for question, found, row in zip(questions, contexts, rows, strict=True):
            gold = " ".join(p["text"] for p in found["passages"] if p["title"] == question["title"])
            text = {"overlap": found["context"], "overlap-gold": gold}.get(name, "")
            if name != "majority":
                assert np.allclose(row["scores"], baseline_scores(name, {})(question, text))
                best = [
                    letter
                    for letter, score in zip(answer_options_of(question), row["scores"], strict=True)
                    if score == max(row["scores"])
                ]
                assert row["ranking"][0] in best


def test_baselines_beside_a_blend_keep_their_names(tmp_path, cluster, exam_file, small_index):
    common = {"output": str(tmp_path), "exam": exam_file}
    blend = ("longest", "majority")
    for name in blend:
        predict(PredictOptions(reader=name, **common))
    run_exam(RunExamOptions(index=f"{small_index}/index", blend=blend, **common))
    made = {path.name for path in (tmp_path / "answers").iterdir() if path.name[0] not in "._"}
    assert made == {"blend", *BASELINES}


def test_a_gold_article_that_was_not_found_ties_all_options(tmp_path, cluster, exam_file, small_index):
    rows = [json.loads(line) for line in Path(exam_file).read_text().splitlines()][:2]
    rows[1]["title"] = "Another article"
    common = {"output": str(tmp_path), "exam": write(tmp_path / "exam.jsonl", rows)}
    retrieve(RetrieveOptions(index=f"{small_index}/index", **common))
    found = tables.read_table(f"{predict(PredictOptions(reader='overlap-gold', **common)).path}/00000.parquet")
    assert [len(set(scores)) == 1 for scores in found["scores"].to_pylist()] == [False, True]


def test_an_exam_without_titles_has_no_gold_article(tmp_path, cluster, exam_file, small_index):
    rows = [json.loads(line) for line in Path(exam_file).read_text().splitlines()][:2]
    for row in rows:
        del row["title"]
    common = {"output": str(tmp_path), "exam": write(tmp_path / "exam.jsonl", rows)}
    retrieve(RetrieveOptions(index=f"{small_index}/index", **common))
    with pytest.raises(InputError, match="needs the column `title`"):
        predict(PredictOptions(reader="overlap-gold", **common))
    assert not (tmp_path / "answers").exists()


def test_the_check_scores_an_exam_by_each_baseline(tmp_path):
    rows = [
        {
            "prompt": "Why does iron rust?",
            "context": "Iron takes up oxygen.",
            "A": "It takes up oxygen",
            "B": "It melts",
            "C": "Heat",
            "answer": "A",
        },
        {"prompt": "What melts?", "context": None, "A": "A stone of the moon", "B": "Ice", "C": "Fire", "answer": "B"},
    ]
    options = RunExamOptions(output=str(tmp_path / "run"), exam=write(tmp_path / "exam.jsonl", rows), check=True)
    (summary,) = run_exam(options)
    lines = summary.details["lines"]
    assert "by overlap with the context: accuracy 1.000, MAP@3 1.000 (on 1 questions)" in lines
    assert "by longest option: accuracy 0.500, MAP@3 0.667" in lines
    assert "by shortest option: accuracy 0.500, MAP@3 0.667" in lines
    assert not any("gold" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_the_check_takes_gold_articles_from_the_corpus(tmp_path):
    (summary,) = run_exam(RunExamOptions(exam="direct-validation", check=True, output=str(tmp_path)))
    assert any(line.startswith("by overlap with the gold article") for line in summary.details["lines"])


def test_the_check_takes_gold_articles_from_the_passages_of_a_run(tmp_path, small_index, exam_file):
    options = {"exam": exam_file, "check": True}
    (demo,) = run_exam(RunExamOptions(**options, output=str(tmp_path)))
    (run,) = run_exam(RunExamOptions(**options, output=small_index))
    gold = "by overlap with the gold article: "
    assert [line for line in run.details["lines"] if line.startswith(gold)] == [
        line for line in demo.details["lines"] if line.startswith(gold)
    ]
    assert any(line.startswith(gold) for line in run.details["lines"])
