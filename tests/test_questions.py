import json
from pathlib import Path

import pandas as pd
import pytest

from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of

GOOD = [
    {"id": "1", "prompt": "Which gas do plants take in?", "A": "Carbon dioxide", "B": "Helium", "answer": "A"},
    {"id": "2", "prompt": "Name the lightest element.", "A": "Lead", "B": "Hydrogen", "answer": "B"},
]


def save(tmp_path, rows, suffix):
    path = tmp_path / f"exam.{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_same_questions_are_read_from_every_format(tmp_path, suffix):
    table = read_exam(save(tmp_path, GOOD, suffix))
    assert table["prompt"].to_pylist() == [row["prompt"] for row in GOOD]
    assert table["answer"].to_pylist() == ["A", "B"]
    assert table["is_question"].to_pylist() == [True, True]
    assert table["context"].to_pylist() == [None, None]


@pytest.mark.parametrize(("given", "letter"), [("B", "B"), ("b", "B"), (1, "B"), ("1", "B"), (0, "A"), (None, None)])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_answers_may_be_letters_or_indices(tmp_path, suffix, given, letter):
    table = read_exam(save(tmp_path, [GOOD[0] | {"answer": given}], suffix))
    assert table["answer"].to_pylist() == [letter]


def test_answers_are_optional(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "answer"} for row in GOOD]
    assert read_exam(save(tmp_path, rows, "csv"))["answer"].to_pylist() == [None, None]


def test_two_to_twenty_six_options_and_fewer_in_some_rows(tmp_path):
    letters = [chr(65 + number) for number in range(26)]
    many = {"id": "many", "prompt": "Which letter?"} | {letter: letter.lower() for letter in letters}
    rows = read_exam(save(tmp_path, [many, GOOD[0]], "csv")).to_pylist()
    assert list(answer_options_of(rows[0])) == letters
    assert answer_options_of(rows[1]) == {"A": "Carbon dioxide", "B": "Helium"}


def test_words_that_look_like_missing_values_stay_options(tmp_path):
    path = tmp_path / "exam.csv"
    path.write_text("id,prompt,A,B,answer\n1,Symbol of sodium?,NA,nan,A\n")
    assert answer_options_of(read_exam(str(path)).to_pylist()[0]) == {"A": "NA", "B": "nan"}


def test_is_question_and_context_are_read_and_other_columns_kept(tmp_path):
    row = GOOD[1] | {"is_question": False, "context": "Hydrogen is light.", "subject": "chemistry"}
    for suffix in ("csv", "jsonl", "parquet"):
        read = read_exam(save(tmp_path, [row], suffix)).to_pylist()[0]
        assert (read["is_question"], read["context"], read["subject"]) == (False, "Hydrogen is light.", "chemistry")


BAD = {
    "missing prompt column": ([{"id": "1", "A": "a", "B": "b"}], "no column 'prompt'"),
    "missing option column": ([{"id": "1", "prompt": "p", "A": "a", "C": "c"}], "no column 'B'"),
    "duplicate id": ([GOOD[0], GOOD[1] | {"id": "1"}], r"row 2, column 'id'.*row 1"),
    "answer outside": ([GOOD[0], GOOD[1] | {"answer": "C"}], r"row 2, column 'answer': 'C' found"),
    "index outside": ([GOOD[0] | {"answer": "2"}], r"row 1, column 'answer': '2' found.*0 to 1"),
    "empty prompt": ([GOOD[0], GOOD[1] | {"prompt": "  "}], "row 2, column 'prompt': empty"),
    "empty option": ([GOOD[0] | {"A": ""}], "row 1, column 'A': empty"),
    "one option": ([GOOD[0] | {"B": ""}], "row 1, column 'B': empty"),
    "odd is_question": ([GOOD[0] | {"is_question": "maybe"}], "row 1, column 'is_question'"),
    "no rows": ([], "no questions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(tmp_path, case):
    rows, message = BAD[case]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message) as error:
        read_exam(str(path))
    assert str(path) in str(error.value)


def test_not_utf8_is_named_by_line_and_byte(tmp_path):
    path = tmp_path / "exam.csv"
    path.write_bytes(b"id,prompt,A,B\n1,Caf\xe9?,a,b\n")
    with pytest.raises(InputError, match="line 2, byte 6: not UTF-8"):
        read_exam(str(path))


def test_ragged_csv_row_is_named(tmp_path):
    path = tmp_path / "exam.csv"
    path.write_text("id,prompt,A,B\n1,p,a,b\n2,p,a,b,c\n3,p,a\n")
    with pytest.raises(InputError, match="row 2: 5 cells, 4 expected"):
        read_exam(str(path))


def test_parquet_cut_short(tmp_path):
    path = save(tmp_path, GOOD, "parquet")
    with Path(path).open("r+b") as file:
        file.truncate(200)
    with pytest.raises(InputError, match="not a whole Parquet file"):
        read_exam(path)


@pytest.mark.parametrize("name", ["absent.csv", "exam.txt", "holdout"])
def test_no_such_exam(tmp_path, name):
    with pytest.raises(InputError, match=name):
        read_exam(str(tmp_path / name))
