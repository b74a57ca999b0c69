"""Wrong options for open questions: of the answer's form, from the corpus, none that says the same."""

from dataclasses import replace

import pytest
from conftest import write_jsonl

from sciqa import cli
from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam import open_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.options import ExamOptions
from sciqa.generate import GenerateOptions, generate
from sciqa.generate.distractors import WriteDistractors, find_distractors
from sciqa.generate.filter_results import filter_result_rejects_path
from sciqa.generate.generate import _filter_inputs
from sciqa.predict import PredictOptions
from sciqa.retrieval.index import read_index_manifest
from sciqa.retrieval.search import LocalSearch

PASSAGES = [
    {
        "title": "Apollo 11",
        "section": "",
        "text": "In July 1969 the lander Eagle set down. Neil Armstrong left it some hours after landing.",
    },
    {"title": "Space Race", "section": "", "text": "In 1957 the Soviet Union launched Sputnik, which weighed 83.6 kg."},
    {
        "title": "moonlight",
        "section": "",
        "text": "Only 12 % of the light is reflected, as Pierre Bouguer found in 1729.",
    },
]


@pytest.mark.parametrize(
    ("prompt", "answer", "expected", "others"),
    [
        ("When did people first land on the Moon?", "in 1969", ["in 1957", "in 1729"], ["in 83.6", "in 12"]),
        (
            "Who stood on the Moon first?",
            "Neil Armstrong",
            ["Pierre Bouguer", "Sputnik"],
            ["Armstrong", "In", "In July"],
        ),
        ("What did the Soviet Union launch?", "sunlight", ["moonlight"], ["Soviet Union"]),
        ("Who measured it?", "A paper of Pierre Bouguer", ["A paper of Neil Armstrong"], ["Neil Armstrong"]),
        (
            "What did he find?",
            "Only a small part of the light was reflected",
            ["Neil Armstrong left it some hours after landing."],
            ["Eagle"],
        ),
    ],
)
def test_wrong_options_have_the_form_of_the_answer(prompt, answer, expected, others):
    found = list(find_distractors(prompt, answer, PASSAGES))
    assert set(expected) <= set(found)
    assert not set(others) & set(found)


def test_open_questions_become_an_exam(indexed, tmp_path, cluster):
    path = tmp_path / "open.jsonl"
    asked = [
        {"id": "light", "instruction": "Which of them is the lightest?", "output": "Helium"},
        {"id": "rust", "instruction": "What rusts in the rain?", "output": "Iron"},
        {"id": "odd", "instruction": "How many of them are there?", "output": "3"},
    ]
    write_jsonl(path, asked)
    read = []
    for name, parts in (("all", 64), ("apart", 1)):
        options = GenerateOptions(
            **indexed, distractors=str(path), choices=2, name=name, part_passages=parts, skip_filters=("word-overlap",)
        )
        made = generate(options)
        read.append(tables.read_table(made.path).to_pylist())
    assert read[0] == read[1]
    assert [(row["id"], row[row["answer"]]) for row in read[0]] == [("light", "Helium"), ("rust", "Iron")]
    assert all(set(answer_options_of(row).values()) == {"Helium", "Iron"} for row in read[0])
    assert all(row["sentence"] in row["context"] for row in read[0])
    (rejected,) = tables.read_table(filter_result_rejects_path(options.folder, 2)).to_pylist()
    assert (rejected["id"], rejected["fault"]) == ("odd", "few-distractors")
    assert open_exam(ExamOptions(output=str(tmp_path / "other"), exam=made.path), write=False).questions == 2
    assert generate(options).made.endswith("kept as it was")
    with pytest.raises(InputError, match=r"made from other inputs \(embed_backend: auto there, torch now\)"):
        generate(replace(options, embed_backend="torch"))
    inputs = _filter_inputs(replace(options, precision="float32"), [], PredictOptions(output=options.output))
    assert inputs["precision"] == "float32", "in which a checker computes"


def test_the_sentence_that_decides_is_no_wrong_option(indexed, tmp_path):
    (tmp_path / "open.jsonl").touch()
    options = GenerateOptions(**indexed, distractors=str(tmp_path / "open.jsonl"))
    index = LocalSearch(options.index, read_index_manifest(options.index))
    writer = WriteDistractors(options, index, options.embed_on("cpu", 1))
    asked = {"prompt": "What is it?", "answer": "A gas that takes part in few reactions"}
    sentences = ["Helium is a noble gas.", "Iron is a metal.", "A whale is a mammal."]
    passages = [{"title": "", "section": "", "text": sentence} for sentence in sentences]
    assert set(writer._nearest(asked, passages, sentences[0])) == set(sentences[1:])
    assert set(writer._nearest(asked, passages, "Another one.")) == set(sentences)


@pytest.mark.parametrize(
    ("row", "flags", "said"),
    [
        ({"prompt": "Who?"}, [], "row 1, column 'answer' (or 'output'): nothing found, a text expected"),
        ({"prompt": "a \ud800 b", "answer": "She"}, [], "row 1, column 'prompt': half of a surrogate pair found"),
        ({"prompt": "Who?", "answer": "She"}, ["--adapter", "here"], "--distractors: asks no model"),
        ({"prompt": "Who?", "answer": "She"}, ["--index", "none"], "none"),
    ],
)
def test_bad_open_questions_end_with_one_line(row, flags, said, indexed, tmp_path, capsys):
    write_jsonl(tmp_path / "open.jsonl", [row])
    command = ["generate", "--output", indexed["output"], "--embedder", indexed["embedder"]]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--distractors", str(tmp_path / "open.jsonl"), *flags])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
