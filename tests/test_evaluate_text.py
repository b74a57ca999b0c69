"""Free answers to held-out instructions: figures by hand, paired intervals, and the step from end to end."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_jsonl
from tiny import tiny_folder

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.instructions import read_instructions
from sciqa.exam.metrics import metric_bootstrap_interval
from sciqa.generate import EvaluateTextOptions, evaluate_text
from sciqa.generate.distractors import read_distractor_questions
from sciqa.generate.text_answers import WriteTextAnswers
from sciqa.generate.text_metrics import (
    FIGURES,
    normalised_tokens,
    rouge_scores,
    text_metric_rows,
    text_scores,
    token_f1,
)


def test_token_f1_and_exact_match_are_nearly_those_of_squad():
    assert normalised_tokens(" The  cat's A-hat, an ox!") == ["cats", "ahat", "ox"]
    assert token_f1("a noble gas", "The gas, noble") == 1.0
    assert token_f1("helium is a gas", "helium") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("gas gas", "gas") == pytest.approx(2 / 3)
    assert (token_f1("", "gas"), token_f1("the", "The"), token_f1("gas", "metal")) == (0.0, 1.0, 0.0)
    assert text_scores("The gas.", "gas") == {"token_f1": 1.0, "exact_match": 1.0, "words": 2.0}
    assert text_scores("", "gas") == {"token_f1": 0.0, "exact_match": 0.0, "words": 0.0}


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        *[("", "A", 0), ("a.", "A", 1), ("the", "A", 0), ("<", ">", 0), ("<", "<", 1), ("3.5", "35", 0)],
        *[("-5", "5", 0), ("\u22125", "-5.", 1), ("1e-5", "1e5", 0), ("x < 5", "x > 5", 0), ("1/2", "12", 0)],
        ("1,000", "1000", 1),
    ],
)
def test_letters_signs_and_numbers_are_compared_as_they_are(answer, reference, right):
    scores = text_scores(answer, reference)
    assert scores["exact_match"] == right
    assert (scores["token_f1"] == 1) == right


def test_rouge_counts_stems_and_their_order():
    (row,) = rouge_scores(["cats sitting on the mat"], ["the cat sits on a mat"])
    # Stems: cat sit on the mat, and the cat sit on a mat.
    assert row["rouge1"] == pytest.approx(2 * 5 / (5 + 6))
    assert row["rouge2"] == pytest.approx(2 * 2 / (4 + 5))
    assert row["rougeL"] == pytest.approx(2 * 4 / (5 + 6))
    assert rouge_scores(["", "x"], ["y", "X."]) == [
        dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.0),
        {"rouge1": 1.0, "rouge2": 0.0, "rougeL": 1.0},
    ]


def test_gains_are_paired():
    drawn = np.random.default_rng(0).random(40)
    base = [dict.fromkeys(FIGURES, value) for value in drawn]
    tuned = [dict.fromkeys(FIGURES, value + 0.1) for value in drawn]
    rows = text_metric_rows({"base": base, "tuned": tuned})
    assert [row["figure"] for row in rows] == [name for name in FIGURES for _ in range(2)]
    first, second = rows[:2]
    assert (first["low"], first["high"]) == metric_bootstrap_interval(drawn)
    assert (first["gain"], second["answers"]) == (None, 40)
    # All answers gain as much, whatever the spread between instructions.
    assert [second[name] for name in ("gain", "gain_low", "gain_high")] == pytest.approx([0.1] * 3)
    assert second["high"] - second["low"] > 0.1


def test_instructions_are_read_and_checked(tmp_path):
    path = tmp_path / "held.jsonl"
    write_jsonl(path, [{"instruction": "Name a gas. ", "output": "Helium"}])
    row = {"id": "1", "instruction": "Name a gas.", "input": "", "output": "Helium"}
    assert read_instructions(str(path)) == [row]
    for rows, said in (
        ([row, row | {"id": "2", "output": " "}], "held.jsonl, row 2, column 'output': empty, text expected"),
        ([{"prompt": "?", "A": "a"}], "row 1, column 'instruction': nothing given, text expected"),
        ([row | {"input": ["x"]}], "row 1, column 'input'"),
        ([row, row], "held.jsonl, row 2, column 'id': '1' is that of row 1 of"),
    ):
        write_jsonl(path, rows)
        with pytest.raises(InputError) as error:
            read_instructions(str(path))
        assert said in str(error.value)


@pytest.mark.parametrize("read", [read_instructions, read_distractor_questions])
def test_an_id_of_0_is_one(tmp_path, read):
    row = {"instruction": "Name a gas.", "output": "Helium"}
    pd.DataFrame([row | {"id": number} for number in (0.0, 1.0, None)]).to_parquet(tmp_path / "held.parquet")
    assert [row["id"] for row in read(str(tmp_path / "held.parquet"))] == ["0.0", "1.0", "3"]


@pytest.fixture
def tiny_run(tmp_path, embedder):
    """Options of a run with a tiny model, three instructions and the tiny embedder."""
    rows = [{"id": f"i{n}", "instruction": text, "output": "Helium is a gas."} for n, text in enumerate("abc")]
    write_jsonl(tmp_path / "held.jsonl", rows)
    about = {"output": str(tmp_path / "run"), "embedder": str(embedder), "text": str(tmp_path / "held.jsonl")}
    return about | {"model": tiny_folder(tmp_path / "llama", "llama"), "reply_tokens": 6, "precision": "float32"}


def test_an_answer_that_is_the_reference_has_full_marks(tiny_run, tmp_path):
    options = EvaluateTextOptions(**tiny_run)
    writer = options.writer_arguments("cpu", 1) | {"adapter": None}
    worker = WriteTextAnswers(str(tmp_path / "answers"), writer, options.embed_on("cpu", 1), "")
    rows = read_instructions(options.text)
    read = []
    for number in (0, 1):
        assert worker({"part": {"number": number, "rows": rows}})["answers"] == 3
        read.append(tables.read_table(f"{tmp_path}/answers/{number:05d}.parquet").to_pylist())
        rows = [row | {"output": made["answer"] or "."} for row, made in zip(rows, read[-1], strict=True)]
    assert [row["answer"] for row in read[0]] == [row["answer"] for row in read[1]]
    assert all(0 < row["tokens"] <= 6 for row in read[0])
    for before, after in zip(*read, strict=True):
        assert after["answer"]
        assert after["similarity"] == pytest.approx(1.0, abs=1e-3)
        assert (after["exact_match"], after["token_f1"]) == (1.0, 1.0)
        assert before["similarity"] < 0.999


def test_instructions_that_are_too_long_for_a_model_are_told(tiny_run, tmp_path, monkeypatch):
    tuned = tiny_folder(tmp_path / "other", "llama", max_position_embeddings=64)

    def answer_all(options, folder, rows, model, adapter):
        writer = options.writer_arguments("cpu", 1) | {"model": model, "adapter": adapter}
        part = {"number": 0, "rows": rows}
        WriteTextAnswers(folder, writer, options.embed_on("cpu", 1), "")({"part": part})

    monkeypatch.setitem(evaluate_text.__globals__, "_answer_all", answer_all)
    texts = ["Why? " * 100, "Name a gas.", "Why? " * 200]
    write_jsonl(tmp_path / "held.jsonl", [{"instruction": text, "output": "Helium."} for text in texts])
    made = evaluate_text(EvaluateTextOptions(**tiny_run, tuned=tuned)).made
    assert made.startswith(
        "3 instructions answered by llama, tuned-other; 2 of them too long for tuned-other, which counts as an empty "
    )
    write_jsonl(tmp_path / "held.jsonl", [{"instruction": text, "output": "Helium."} for text in texts[::2]])
    with pytest.raises(InputError, match=r"held.jsonl: all 2 instructions are too long for tuned-other .*--reply-tok"):
        evaluate_text(EvaluateTextOptions(**tiny_run, tuned=tuned))


@pytest.mark.slow
def test_a_base_model_and_what_was_made_of_it(tiny_run, tmp_path, cluster):
    tuned = tiny_folder(tmp_path / "other", "llama", hidden_size=128)
    options = EvaluateTextOptions(**tiny_run, tuned=tuned)
    summary = evaluate_text(options)
    assert "3 instructions answered by llama, tuned-other" in summary.made
    figures = tables.read_table(summary.path).to_pylist()
    assert {(row["model"], row["figure"]) for row in figures} == {
        (model, figure) for model in ("llama", "tuned-other") for figure in FIGURES
    }
    answers = {
        name: tables.read_table(f"{options.output}/text/{name}").to_pylist() for name in ("llama", "tuned-other")
    }
    assert figures == text_metric_rows(answers)
    json.dumps(summary.details)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/text").rglob("*.parquet")}
    evaluate_text(options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run/text").rglob("*.parquet")} == before
    with pytest.raises(InputError, match="a multiple-choice model, which writes no text"):
        evaluate_text(EvaluateTextOptions(**tiny_run | {"model": str(Path(tiny_run["embedder"]).parent / "bert")}))
