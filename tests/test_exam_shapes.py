"""Public exams as they are published: read as they stand. The questions are made up, the columns are theirs."""

import csv
import io
import json
import re

import datasets
import pandas as pd
import pytest

from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.read_exam import read_exam_questions

#: What every shape below asks: prompt, options, and the place of the right one.
ASKED = [
    ("Which metal is liquid in a warm room?", ["Iron", "Mercury", "Zinc", "Lead"], 1),
    ("How many legs has a spider?", ["Eight", "Six", "Ten", "Four"], 0),
    ("What do bees make?", ["Milk", "Silk", "Wool", "Honey"], 3),
    ("Which planet has rings?", ["Venus", "Mars", "Saturn", "Mercury"], 2),
]
CONTEXTS = [f"A text about question {number}." for number in range(4)]
EIGHT = [[*options, "Copper", "Tin", "Gold", "Brass"] for _, options, _ in ASKED]


def rows(make):
    return [make(at, prompt, options, right) for at, (prompt, options, right) in enumerate(ASKED)]


def labelled(options, labels="ABCDEFGH"):
    return [{"text": text, "label": label} for text, label in zip(options, labels, strict=False)]


def columns(options, labels="ABCDEFGH"):
    return {"text": options, "label": list(labels[: len(options)])}


def apart(options, right):
    return options[right], [option for option in options if option != options[right]]


def letters(options, names="ABCD"):
    return dict(zip(names, options, strict=True))


def harness(at, doc, target):
    """A line of the samples that lm-evaluation-harness logs."""
    return {"doc_id": at, "doc": doc, "target": target, "arguments": [["Q", " A"]], "resps": [[["-1.5", "False"]]]} | {
        "filtered_resps": [["-1.5", "False"]], "doc_hash": "0f", "acc": 1.0, "filter": "none", "metrics": ["acc"],
    }  # fmt: skip


SHAPES = {
    "Kaggle LLM Science Exam": (
        "csv",
        rows(
            lambda at, p, o, r: {
                "id": at, "prompt": p, **letters([*o, "None of them"], "ABCDE"), "answer": "ABCD"[r]
            }
        ),
    ),
    "the same without ids": ("csv", rows(lambda at, p, o, r: {"prompt": p, **letters(o), "answer": "ABCD"[r]})),
    "ARC, JSONL of AI2": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "id": f"M_{at}",
                "question": {"stem": p, "choices": labelled(o, "1234" if at % 2 else "ABCD")},
                "answerKey": ("1234" if at % 2 else "ABCD")[r],
            }
        ),
    ),
    "ARC": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "id": f"M_{at}",
                "question": p,
                "choices": columns(o, "1234" if at % 2 else "ABCD"),
                "answerKey": ("1234" if at % 2 else "ABCD")[r],
            }
        ),
    ),
    "MMLU, CSV without header": ("bare csv", rows(lambda at, p, o, r: [p, *o, "ABCD"[r]])),
    "MMLU, CSV with header": ("csv", rows(lambda at, p, o, r: {"question": p, **letters(o), "answer": "ABCD"[r]})),
    "MMLU": ("parquet", rows(lambda at, p, o, r: {"question": p, "subject": "facts", "choices": o, "answer": r})),
    "MMLU-Pro": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "question_id": 70 + at, "question": p, "options": EIGHT[at], "answer": "ABCD"[r], "answer_index": r,
                "cot_content": "", "category": "facts", "src": "made up",
            }
        ),
    ),
    "SciQ": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "question": p,
                **dict(zip(("distractor1", "distractor2", "distractor3"), apart(o, r)[1], strict=True)),
                "correct_answer": o[r],
                "support": CONTEXTS[at],
            }
        ),
    ),
    "OpenBookQA": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "id": f"7-{at}", "question_stem": p, "choices": columns(o), "answerKey": "ABCD"[r],
                "fact1": CONTEXTS[at], "humanScore": 1.0, "clarity": 2.0, "turkIdAnonymized": "b356",
            }
        ),
    ),
    "OpenBookQA, JSONL of AI2": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "id": f"7-{at}", "question": {"stem": p, "choices": labelled(o)}, "fact1": CONTEXTS[at],
                "answerKey": "ABCD"[r],
            }
        ),
    ),
    "QASC": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "id": f"3{at}", "question": p, "choices": columns(EIGHT[at]), "answerKey": "ABCD"[r],
                "fact1": CONTEXTS[at], "fact2": "Another text.", "combinedfact": o[r], "formatted_question": f"{p} (A)",
            }
        ),
    ),
    "CommonsenseQA": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "id": f"c{at}", "question": p, "question_concept": "thing", "choices": columns(o),
                "answerKey": "ABCD"[r],
            }
        ),
    ),
    "CommonsenseQA, JSONL of its authors": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "answerKey": "ABCD"[r], "id": f"c{at}",
                "question": {"question_concept": "thing", "choices": labelled(o), "stem": p},
            }
        ),
    ),
    "MedMCQA": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "id": f"m{at}", "question": p, **letters(o, ("opa", "opb", "opc", "opd")), "cop": r,
                "choice_type": "single", "exp": "Because.", "subject_name": "Facts", "topic_name": None,
            }
        ),
    ),
    "MedMCQA, counted from 1": (
        "csv",
        rows(
            lambda at, p, o, r: {
                "id": f"m{at}", "question": p, **letters(o, ("opa", "opb", "opc", "opd")), "cop": r + 1, "exp": "",
            }
        ),
    ),
    "MedQA": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "question": p, "answer": o[r], "options": letters(o), "meta_info": "step1", "answer_idx": "ABCD"[r],
                "metamap_phrases": ["a", "b"],
            }
        ),
    ),
    "GPQA": (
        "csv",
        rows(
            lambda at, p, o, r: {
                "Record ID": f"rec{at}", "Pre-Revision Question": "?", "Question": p, "Correct Answer": o[r],
                **{f"Incorrect Answer {n}": text for n, text in enumerate(apart(o, r)[1], 1)},
                "Explanation": "Because.", "Subdomain": "Facts", "Canary String": "",
            }
        ),
    ),
    "RACE": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "example_id": "high1.txt", "article": CONTEXTS[at], "answer": "ABCD"[r], "question": p, "options": o
            }
        ),
    ),
    "TruthfulQA": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "question": p,
                "mc1_targets": {"choices": [o[r], *apart(o, r)[1]], "labels": [1, 0, 0, 0]},
                "mc2_targets": {"choices": [o[r], *apart(o, r)[1], "No"], "labels": [1, 1, 0, 0, 0]},
            }
        ),
    ),
    "TruthfulQA, JSON of its authors": (
        "json",
        rows(
            lambda at, p, o, r: {
                "question": p, "mc0_targets": {o[r]: 1, apart(o, r)[1][0]: 0},
                "mc1_targets": {o[r]: 1, **dict.fromkeys(apart(o, r)[1], 0)},
            }
        ),
    ),
    "AGIEval": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "passage": CONTEXTS[at], "question": p,
                "options": [f"({letter}){text}" for letter, text in zip("ABCD", o, strict=True)],
                "label": "ABCD"[r], "answer": None, "other": None,
            }
        ),
    ),
    "HellaSwag": (
        "parquet",
        rows(
            lambda at, p, o, r: {
                "ind": at, "activity_label": "Asking", "ctx_a": p, "ctx_b": "", "ctx": p, "endings": o, "label": str(r),
                "source_id": f"v_{at}", "split": "val", "split_type": "indomain",
            }
        ),
    ),
    "PIQA": ("jsonl", rows(lambda at, p, o, r: {"goal": p, "sol1": o[0], "sol2": o[1], "label": r % 2})),
    "Social IQa": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "context": CONTEXTS[at], "question": p, **letters(o[:3], ("answerA", "answerB", "answerC")),
                "label": str(1 + r % 3),
            }
        ),
    ),
    "WinoGrande": (
        "jsonl",
        rows(lambda at, p, o, r: {"sentence": p, "option1": o[0], "option2": o[1], "answer": str(1 + r % 2)}),
    ),
    "Cosmos QA": (
        "csv",
        rows(
            lambda at, p, o, r: {
                "id": f"q{at}", "context": CONTEXTS[at], "question": p, "label": r,
                **{f"answer{n}": text for n, text in enumerate(o)},
            }
        ),
    ),
    "ReClor": (
        "json",
        rows(
            lambda at, p, o, r: {
                "context": CONTEXTS[at], "question": p, "answers": o, "label": r, "id_string": f"train_{at}"
            }
        ),
    ),
    "Belebele": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "link": "x", "question_number": 1, "flores_passage": CONTEXTS[at], "question": p,
                **{f"mc_answer{n}": text for n, text in enumerate(o, 1)}, "correct_answer_num": str(r + 1),
            }
        ),
    ),
    "AQuA-RAT": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "question": p, "options": [f"{letter}){text}" for letter, text in zip("ABCD", o, strict=True)],
                "rationale": "So it is.", "correct": "ABCD"[r],
            }
        ),
    ),
    "MathQA": (
        "json",
        rows(
            lambda at, p, o, r: {
                "Problem": p, "Rationale": "So it is.",
                "options": " , ".join(f"{letter} ) {text}" for letter, text in zip("abcd", o, strict=True)),
                "correct": "abcd"[r], "category": "general",
            }
        ),
    ),
    "langtest": (
        "jsonl",
        rows(
            lambda at, p, o, r: {
                "question": p,
                "options": "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", o, strict=True)),
                "answer": f"{'ABCD'[r]}. {o[r]}",
            }
        ),
    ),
    "C-Eval": (
        "csv",
        rows(lambda at, p, o, r: {"id": at, "question": p, **letters(o), "answer": "ABCD"[r], "explanation": ""}),
    ),
    "CMMLU": (
        "csv",
        rows(lambda at, p, o, r: {"": at, "Question": p, **letters(o), "Answer": "ABCD"[r]}),
    ),
    "harness: ARC": (
        "jsonl",
        rows(
            lambda at, p, o, r: harness(
                at, {"id": f"M_{at}", "question": p, "choices": columns(o), "answerKey": "ABCD"[r]}, str(r)
            )
        ),
    ),
    "harness: MMLU": (
        "jsonl",
        rows(
            lambda at, p, o, r: harness(at, {"question": p, "subject": "facts", "choices": o, "answer": r}, "ABCD"[r])
        ),
    ),
    "harness: HellaSwag": (
        "jsonl",
        rows(
            lambda at, p, o, r: harness(
                at, {"ctx": p, "endings": o, "label": str(r), "query": p, "choices": o, "gold": r}, str(r)
            )
        ),
    ),
    "harness: SciQ": (
        "jsonl",
        rows(
            lambda at, p, o, r: harness(
                at,
                {
                    "question": p, **{f"distractor{n}": text for n, text in enumerate(apart(o, r)[1], 1)},
                    "correct_answer": o[r], "support": CONTEXTS[at],
                },
                3,
            )
        ),
    ),
    "harness: a task without names of its own": (
        "jsonl",
        rows(lambda at, p, o, r: harness(at, {"question": p, "choices": o}, r)),
    ),
}  # fmt: skip
WITH_CONTEXT = {
    "SciQ", "OpenBookQA", "OpenBookQA, JSONL of AI2", "RACE", "AGIEval", "Social IQa", "Cosmos QA", "ReClor",
    "Belebele", "harness: SciQ",
}  # fmt: skip
FEWER = {"PIQA": 2, "WinoGrande": 2, "Social IQa": 3}
SHUFFLED = {"SciQ", "GPQA", "TruthfulQA", "TruthfulQA, JSON of its authors", "harness: SciQ"}


def save(folder, kind, cells):
    path = folder / f"exam.{kind.split()[-1]}"
    if kind == "bare csv":
        written = io.StringIO()
        csv.writer(written).writerows(cells)
        path.write_text(written.getvalue())
    elif kind == "csv":
        pd.DataFrame(cells).to_csv(path, index=False)
    elif kind == "parquet":
        pd.DataFrame(cells).to_parquet(path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in cells))
    else:
        path.write_text(json.dumps(cells))
    return str(path)


@pytest.mark.parametrize("name", SHAPES)
def test_public_shapes_are_read_as_they_stand(tmp_path, name):
    path = save(tmp_path, *SHAPES[name])
    read = read_exam(path).to_pylist()
    assert [row["prompt"] for row in read] == [prompt for prompt, _, _ in ASKED]
    for at, (row, (_, options, right)) in enumerate(zip(read, ASKED, strict=True)):
        given = answer_options_of(row)
        options = {"QASC": EIGHT[at], "MMLU-Pro": EIGHT[at]}.get(name, options[: FEWER.get(name, 4)])
        options = [*options, "None of them"] if name.startswith("Kaggle") else options
        right = right % FEWER.get(name, 4)
        assert sorted(given.values()) == sorted(options)
        assert list(given.values()) == options or name in SHUFFLED
        assert given[row["answer"]] == options[right]
        if name in WITH_CONTEXT:
            assert row["context"] == CONTEXTS[at]
        elif name != "QASC":
            assert row["context"] is None
    if name == "QASC":
        assert read[0]["context"] == f"{CONTEXTS[0]}\nAnother text."
    assert len({row["id"] for row in read}) == 4
    assert not set(read[0]) & {"choices", "correct_answer", "distractor1", "answerKey", "mc1_targets", "cop"}


@pytest.mark.parametrize("name", ["SciQ", "GPQA", "TruthfulQA"])
def test_the_place_of_the_right_option_follows_from_the_id_alone(tmp_path, name):
    cells = SHAPES[name][1]
    many = [row | {"id": f"q{number}"} for number, row in enumerate(cells * 50)]
    read = read_exam(save(tmp_path, "jsonl", many)).to_pylist()
    counts = [sum(row["answer"] == letter for row in read) for letter in "ABCD"]
    assert min(counts) > 30, counts
    backwards = read_exam(save(tmp_path, "jsonl", many[::-3])).to_pylist()
    assert {row["id"]: row for row in backwards}.items() <= {row["id"]: row for row in read}.items()


def test_keys_that_may_count_from_0_or_1_must_be_said(tmp_path):
    kind, cells = SHAPES["MedMCQA, counted from 1"]
    some = save(tmp_path, kind, cells[:1] + cells[3:])
    with pytest.raises(InputError, match=r"line 2, row 1, column 'cop': '2' found.*--answers-from 1") as error:
        read_exam(some)
    assert "--answers-from 0" in str(error.value)
    assert read_exam(some, answers_from="1")["answer"].to_pylist() == ["B", "C"]
    assert read_exam(some, answers_from="0")["answer"].to_pylist() == ["C", "D"]
    both = save(tmp_path, kind, [*cells, cells[0] | {"id": "more", "cop": 0}])
    with pytest.raises(InputError, match=r"row 3, column 'cop': '4' found, but elsewhere 0"):
        read_exam(both)


OTHER = {
    "HeadQA": (
        rows(
            lambda at, p, o, r: {
                "qid": at + 1, "qtext": p, "ra": r + 1, "year": "2013",
                "answers": [{"aid": n, "atext": text} for n, text in enumerate(o, 1)],
            }
        ),
        ["prompt=qtext", "options=answers", "answer=ra"],
    ),
    "fields within fields": (
        rows(lambda at, p, o, r: {"item": {"ask": {"text": p}, "give": o}, "meta": {"gold": "ABCD"[r]}}),
        ["prompt=item.ask.text", "options=item.give", "answer=meta.gold"],
    ),
    "a column for each option": (
        rows(lambda at, p, o, r: {"Frage": p, **letters(o, ("eins", "zwei", "drei", "vier")), "Antwort": o[r]}),
        ["prompt=Frage", "options=eins,zwei,drei,vier", "answer=Antwort"],
    ),
    "right and wrong apart": (
        rows(lambda at, p, o, r: {"Frage": p, "gut": o[r], "schlecht": apart(o, r)[1], "Text": CONTEXTS[at]}),
        ["prompt=Frage", "correct=gut", "incorrect=schlecht", "context=Text"],
    ),
    "labels beside the texts": (
        rows(lambda at, p, o, r: {"q": p, "c": columns(o, "1234"), "k": "1234"[r]}),
        ["prompt=q", "options=c.text", "answer=k"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_columns_read_all_else(tmp_path, name):
    cells, said = OTHER[name]
    path = save(tmp_path, "jsonl", cells)
    with pytest.raises(InputError, match=r"no column 'prompt'.*--columns prompt=question options="):
        read_exam(path)
    questions = read_exam_questions(path, said)
    for row, (prompt, options, right) in zip(questions.table.to_pylist(), ASKED, strict=True):
        assert row["prompt"] == prompt
        assert answer_options_of(row)[row["answer"]] == options[right]
        assert len(answer_options_of(row)) == 4
    assert all(part.partition("=")[2] in questions.columns.said() for part in said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["prompt"], "'prompt' given, PART=COLUMN expected"),
        (["prompt=a", "prompt=b"], "once for each of prompt"),
        (["text=a"], "PART=COLUMN expected, once for each of prompt, options, answer, correct"),
        (["correct=answer", "options=choices"], "options=choices and correct=answer given"),
        (["correct=answer", "answer=answer"], "answer=answer and correct=answer given"),
        (["prompt=Questions"], "--columns prompt=Questions, but no column 'Questions'; did you mean 'question'"),
        (["answer=answer.right"], "--columns answer=answer.right, but no column 'answer.right'"),
        (["title=question,answer"], "--columns title=question,answer, but no column 'question,answer'"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path, said, message):
    with pytest.raises(InputError, match=message):
        read_exam(save(tmp_path, *SHAPES["MMLU"]), said)


def test_two_columns_of_answers_must_agree(tmp_path):
    kind, cells = SHAPES["MMLU-Pro"]
    path = save(tmp_path, kind, [*cells[:2], cells[2] | {"answer": "A"}, cells[3]])
    with pytest.raises(InputError, match=r"row 3, column 'answer': 'A' found, but column 'answer_index' says D"):
        read_exam(path)
    kind, cells = SHAPES["MedQA"]
    path = save(tmp_path, kind, [cells[0] | {"answer": "Lead"}])
    for columns in ((), ("answer=answer_idx,answer",)):
        with pytest.raises(InputError, match=r"row 1, column 'answer': 'Lead' found, but column 'answer_idx' says B"):
            read_exam(path, columns)


def test_questions_without_an_answer_are_counted(tmp_path):
    kind, cells = SHAPES["PIQA"]
    questions = read_exam_questions(save(tmp_path, kind, [*cells[:2], *(row | {"label": -1} for row in cells[2:])]))
    assert questions.table["answer"].to_pylist()[2:] == [None, None]
    assert any("2 of 4 questions have no answer" in note for note in questions.notes)
    assert any("prompt=goal options=sol1,sol2 answer=label" in note for note in questions.notes)


STORY = "It had rained all night."
#: More shapes: the kind of file and its content, and what is read of its first question.
MORE = {
    "RACE, file of its authors": (
        "json",
        {"article": STORY, "questions": ["Wet?", "Dry?"], "options": [["a", "b"], ["c", "d"]], "answers": ["B", "A"]},
        ("Wet?", STORY, ["a", "b"], "B"),
    ),
    "questions about one text": (
        "json",
        {"article": STORY, "questions": [{"question": "Wet?", "options": ["a", "b"], "answer": "B"}]},
        ("Wet?", STORY, ["a", "b"], "B"),
    ),
    "COPA": (
        "jsonl",
        [{"premise": STORY, "question": "effect", "choice1": "wet", "choice2": "dry", "label": 0}],
        (f"{STORY}\neffect", None, ["wet", "dry"], "A"),
    ),
    "SWAG": (
        "jsonl",
        [{"startphrase": "A man he", "sent1": "A man.", "sent2": "he", "ending0": "a", "ending1": "b", "label": 1}],
        ("A man he", None, ["a", "b"], "B"),
    ),
    "LogiQA": (
        "jsonl",
        [{"text": STORY, "question": "Wet?", "options": ["a", "b"], "answer": 0}],
        ("Wet?", STORY, ["a", "b"], "A"),
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_more_shapes(tmp_path, name):
    kind, content, (prompt, context, options, answer) = MORE[name]
    lines = [json.dumps(content)] if kind == "json" else list(map(json.dumps, content))
    (tmp_path / f"exam.{kind}").write_text("\n".join(lines))
    row = read_exam(str(tmp_path / f"exam.{kind}")).to_pylist()[0]
    assert (row["prompt"], row["context"], list(answer_options_of(row).values()), row["answer"]) == (
        *(prompt, context, options, answer),
    )


def test_options_that_are_marked_each(tmp_path):
    cells = [{"question": p, "answers": [{"text": text, "correct": at == r} for at, text in enumerate(o)]}
             for p, o, r in ASKED]  # fmt: skip
    for row, (_, options, right) in zip(read_exam(save(tmp_path, "jsonl", cells)).to_pylist(), ASKED, strict=True):
        assert answer_options_of(row)[row["answer"]] == options[right]
        assert set(answer_options_of(row).values()) == set(options)


def test_what_datasets_saves(tmp_path):
    cells = [{"question": p, "choices": o, "answer": r} for p, o, r in ASKED]
    datasets.Dataset.from_list(cells).save_to_disk(str(tmp_path / "saved"))
    rows = read_exam(str(tmp_path / "saved")).to_pylist()
    assert [(row["prompt"], row["answer"]) for row in rows] == [(p, "ABCD"[r]) for p, _, r in ASKED]


LIST = {"question": "Wet?", "options": ["a", "b", "c"]}
#: What would be read wrong without a word: the name of the file, its text, and the error.
APART = {"question": "Wet?", "correct_answer": "x", "distractor1": "y", "distractor2": "z", "distractor3": "w"}
MARKS = {"question": "Wet?", "options": [{"text": "a", "isCorrect": True}, {"text": "b", "isCorrect": False}]}
REFUSED = [
    *(
        ("csv", f'question,correct,incorrect\nWet?,gold,"{cell}"\nDry?,x,y\n', "which is no list, or may be one option")
        for cell in ("['iron ore' 'tin' 'zinc']", "[1 2 3]", "[1, 2, 3]")
    ),
    ("csv", "question,options,answer\nWet?,['iron ore' 'tin'],A\n", "a list of options expected"),
    (
        "csv",
        'question,options,answer\nWet?,"{""A"": ""x"", ""A"": ""y"", ""B"": ""z""}",B\n',
        "a list of options expected",
    ),
    ("csv", "question,options,answer\nWet?,\"{'A': 'x', 'A': 'y', 'B': 'z'}\",B\n", "a list of options expected"),
    ("csv", "question,correct,incorrect,answer\nWet?,x,y,y\n", "'answer': 'y' found, but column 'correct' says"),
    ("jsonl", json.dumps(APART | {"answer": "y"}), "column 'answer': 'y' found, but column 'correct_answer' says"),
    ("jsonl", json.dumps(MARKS | {"answer": "B"}), "column 'answer': B found, but 'options' marks 'a' as right"),
    *(
        ("csv", f"prompt,A,B,C,D,{name},answer\nQ?,a,b,c,d,e,B\n", f"column '{name}' looks like an option")
        for name in ("e", "Е", "Option E", "F.", "option_5", "answer 5")
    ),
    ("csv", "prompt,option1,option2,option_3,answer\nQ?,a,b,c,B\n", "column 'option_3' looks like an option"),
    ("csv", 'prompt,A,B,C,answer\n"Wet?,a,b,c,A\nDry?,a,b,c,B\nLast",p,q,r,C\n', "row 1: a cell that holds whole rows"),
    (
        "csv",
        "prompt,A,B,C,D,answer\nWet?,a,b,c,d,2\nDry?,a,b,c,d,3\n",
        "row 1, column 'answer': '2' found, and nowhere",
    ),
    ("jsonl", "\n".join([json.dumps(LIST | {"answer": 1})] * 2), "column 'answer': '1' found, and nowhere a 0"),
    ("jsonl", json.dumps({"question": "Wet?", "options": {"red": True, "blue": False}}), "options as a list, or by"),
    ("jsonl", json.dumps({"question": "Wet?", "options": {"red": 0.0, "blue": 1.0}, "answer": "blue"}), "options as a"),
    ("jsonl", json.dumps(LIST | {"answer": "a", "answer_letter": "B"}), "'B' found, but column 'answer' says A"),
    ("csv", "prompt,A,B,C,answer,correct\nQ?,a,b,c,B,C\n", "column 'correct': 'C' found, but column 'answer' says B"),
    ("jsonl", json.dumps({"question": "Wet?", "passage": STORY, "answer": True}), "so no options to choose from"),
    *(
        ("jsonl", json.dumps({"question": "Wet?", "options": options, "answer": "A"}), message)
        for options, message in (
            ("A. water\nB. \nC. sand", "empty as option 2"),
            ("(a) water\n(b) \n(c) sand", "empty as option 2"),
            ("A. water; B.; C. sand", "empty as option 2"),
            ("A) water  B)   C) sand", "empty as option 2"),
            ("A. water\nB. sand\nC.", "empty as option 3"),
            ("A.\nB. sand", "empty as option 1"),
            ("A. water\nB. sand\nD. salt", "a list of options expected"),
            ("a) water, b) sand, e) salt", "a list of options expected"),
        )
    ),
]


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED)
def test_what_would_be_misread_is_refused(tmp_path, kind, text, message):
    (tmp_path / f"exam.{kind}").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_exam(str(tmp_path / f"exam.{kind}"))


@pytest.mark.parametrize("cell", ["['a', 'b', 'c']", '["a", "b", "c"]'])
def test_wrong_options_are_a_list_in_one_row_and_a_single_text_in_another(tmp_path, cell):
    pd.DataFrame({"question": ["Wet?", "Dry?"], "correct": "x", "incorrect": [cell, "d"]}).to_csv(tmp_path / "e.csv")
    read = [sorted(answer_options_of(row).values()) for row in read_exam(str(tmp_path / "e.csv")).to_pylist()]
    assert read == [["a", "b", "c", "x"], ["d", "x"]]


def test_answers_beside_the_right_option_or_marks_are_read_where_they_agree(tmp_path):
    lines = "\n".join(json.dumps(APART | {"answer": answer}) for answer in ("x", ""))
    (tmp_path / "apart.jsonl").write_text(lines)
    questions = read_exam_questions(str(tmp_path / "apart.jsonl"))
    assert [answer_options_of(row)[row["answer"]] for row in questions.table.to_pylist()] == ["x", "x"]
    assert "not read: answer" in questions.notes[0]
    with pytest.raises(InputError, match="answer=answer, but column 'correct_answer' says which option is right"):
        read_exam(str(tmp_path / "apart.jsonl"), ["answer=answer"])
    (tmp_path / "marks.jsonl").write_text(json.dumps(MARKS | {"answer": "A"}))
    (row,) = read_exam(str(tmp_path / "marks.jsonl")).to_pylist()
    assert (row["A"], row["B"], row["answer"]) == ("a", "b", "A")


def test_an_object_of_options_may_have_numbers_as_keys(tmp_path):
    pd.DataFrame([{"question": "Wet?", "options": {1: 10, 2: 20}, "answer": 2}]).to_csv(tmp_path / "e.csv")
    (row,) = read_exam(str(tmp_path / "e.csv")).to_pylist()
    assert (row["A"], row["B"], row["answer"]) == ("10", "20", "B")


def test_columns_that_are_no_options_are_no_matter(tmp_path):
    (tmp_path / "exam.csv").write_text("n,prompt,A,B,C,answer,i,correct,answers\n7,Wet?,a,b,c,B,1,0.7,x\n")
    (row,) = read_exam(str(tmp_path / "exam.csv")).to_pylist()
    assert (row["answer"], row["n"], row["correct"]) == ("B", "7", "0.7")


def test_columns_that_are_not_read_are_said(tmp_path):
    cells = [{"question": p, "hint": "Think.", "choices": o, "answer": r} for p, o, r in ASKED]
    assert "; not read: hint" in read_exam_questions(save(tmp_path, "jsonl", cells)).notes[0]
    lettered = [{"question": p, "choices": [f"{n}. {o}" for n, o in zip("ABCD", os, strict=True)], "answer": "A"}
                for p, os, _ in ASKED]  # fmt: skip
    assert (
        "the letters before its options are left out"
        in read_exam_questions(save(tmp_path, "jsonl", lettered)).notes[-1]
    )
