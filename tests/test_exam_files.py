"""Files of exams as programs and people write them: kept to the letter, or refused with the place."""

import bz2
import datetime
import decimal
import gzip
import json
import lzma
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.read_exam import read_exam_questions

GOOD = [
    {"id": "1", "prompt": "Which gas do plants take in?", "A": "Carbon dioxide", "B": "Helium", "answer": "A"},
    {"id": "2", "prompt": "Name the lightest element.", "A": "Lead", "B": "Hydrogen", "answer": "B"},
]
CSV = pd.DataFrame(GOOD).to_csv(index=False)
JSONL = "".join(json.dumps(row) + "\n" for row in GOOD)


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def parquet(rows, **types):
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def reads(path, **options):
    return [list(answer_options_of(row).values()) for row in read_exam(path, **options).to_pylist()]


GIVEN = [["Carbon dioxide", "Helium"], ["Lead", "Hydrogen"]]


@pytest.mark.parametrize("end", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_packed_or_not(tmp_path, kind, end):
    content = {
        "csv": CSV.encode(),
        "tsv": pd.DataFrame(GOOD).to_csv(index=False, sep="\t").encode(),
        "json": json.dumps(GOOD).encode(),
        "jsonl": JSONL.encode(),
        "parquet": parquet(GOOD),
    }[kind]
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}[end]
    path = write(tmp_path, f"Exam.{kind}{end}", pack(content))
    assert reads(path) == GIVEN
    if end:
        with pytest.raises(InputError, match=rf"Exam.{kind}{end}: not a whole {end} file"):
            read_exam(write(tmp_path, f"Exam.{kind}{end}", pack(content)[:-9]))


CONTAINERS = {
    "data": {"version": "1", "data": GOOD},
    "questions": {"questions": GOOD},
    "rows": {"features": [{"name": "id"}], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(GOOD)]},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_lists_within_json(tmp_path, name):
    assert reads(write(tmp_path, "exam.json", json.dumps(CONTAINERS[name], indent=1))) == GIVEN


def test_json_and_jsonl_by_the_other_name(tmp_path):
    assert reads(write(tmp_path, "exam.json", JSONL)) == GIVEN
    assert reads(write(tmp_path, "exam.jsonl", json.dumps(GOOD, indent=1))) == GIVEN
    assert reads(write(tmp_path, "one.json", json.dumps(GOOD[0]))) == GIVEN[:1]


def test_a_folder_of_shards_is_one_exam_and_several_exams_are_refused(tmp_path):
    for number, row in enumerate(GOOD):
        write(tmp_path, f"run/test-0000{number}-of-00002.parquet", parquet([row]))
        write(tmp_path, f"lines/part-{number}.jsonl.gz", gzip.compress(json.dumps(row).encode()))
    assert reads(str(tmp_path / "run")) == GIVEN
    assert reads(str(tmp_path / "lines")) == GIVEN
    assert reads(f"file://{tmp_path}/run") == GIVEN
    write(tmp_path, "run/train-00000-of-00001.parquet", parquet([GOOD[0]]))
    with pytest.raises(InputError, match=r"run: holds 2 exams \(test, train\); name one of its files"):
        read_exam(str(tmp_path / "run"))
    assert reads(str(tmp_path / "run" / "test-*.parquet")) == GIVEN
    with pytest.raises(InputError, match=r"run/te\*.csv: no file"):
        read_exam(str(tmp_path / "run" / "te*.csv"))
    with pytest.raises(
        InputError, match=r"train-00000-of-00001.parquet, row 1, column 'id': '1' stands in row 1 of .*test"
    ):
        read_exam(str(tmp_path / "run" / "*.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no file"):
        read_exam(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("name", "content", "formats"),
    [("q.jsonl", JSONL, "csv, jsonl"), ("q.csv.gz", gzip.compress(CSV.encode()), "csv, csv.gz")],
)
def test_an_exam_in_two_formats_is_not_taken_for_two_shards(tmp_path, name, content, formats):
    write(tmp_path, "q.csv", CSV)
    write(tmp_path, name, content)
    with pytest.raises(InputError, match=rf"holds files of 2 formats \({formats}\), one expected"):
        read_exam(str(tmp_path))
    with pytest.raises(InputError, match=rf"holds files of 2 formats \({formats}\), one expected"):
        read_exam(f"{tmp_path}/q*")
    assert reads(f"{tmp_path}/*.csv") == reads(str(tmp_path / name)) == GIVEN


def test_a_pattern_names_files_of_its_folder_alone(place, monkeypatch, tmp_path):
    for name in ("test-0.csv", "algebra/test-0.csv", "algebra/test-1.csv"):
        storage.write_bytes(f"{place}/{name}", CSV.encode())
    assert reads(f"{place}/test-*.csv") == reads(f"{place}/*.csv") == GIVEN
    if place == str(tmp_path):
        monkeypatch.chdir(tmp_path)
        assert reads("test-*.csv") == GIVEN
    with pytest.raises(InputError, match="no file of that folder has such a name"):
        read_exam(f"{place}/test-1*.csv")


def test_endings_in_capitals_are_read_in_folders_and_patterns(place):
    header, first, *others = CSV.splitlines()
    for name, lines in (("part-1.csv", [header, first]), ("part-2.CSV", [header, *others])):
        storage.write_bytes(f"{place}/run/{name}", "\n".join(lines).encode())
    assert reads(f"{place}/run") == reads(f"{place}/run/part-*") == GIVEN
    storage.write_bytes(f"{place}/notes/about.md", b"nothing")
    for named in (f"{place}/notes", f"{place}/notes/*"):
        with pytest.raises(InputError, match=r"notes: holds no file ending in .csv or .csv.gz"):
            read_exam(named)


def test_a_hub_that_cannot_be_reached_is_bad_input(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    code = "from sciqa.exam.read_exam import read_exam; read_exam('hf://datasets/none/such/test.parquet')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("sciqa.core.errors.InputError: hf://datasets/none/such/test.parquet: "), result.stderr


def test_reading_needs_no_ray_and_no_torch():
    code = "import importlib.util as u\n"
    code += "names = ('exam_files', 'columns', 'column_cells', 'answer_options', 'answer_keys', 'read_exam')\n"
    code += (
        "for name in names: print(open(u.find_spec('sciqa.exam').submodule_search_locations[0] + f'/{name}.py').read())"
    )
    source = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "read_exam_files" in source
    assert not any(f"import {name}" in source for name in ("ray", "torch", "transformers"))


LETTERS = ("id", "prompt", "A", "B", "answer")
TABLES = {
    "white space in the header": " id, prompt ,A\u00a0,\tB,answer \n1,p,a,b,A\n",
    "two byte order marks": '\ufeff\ufeff"id","prompt","A","B","answer"\n1,p,a,b,A\n',
    "separator said": "sep=;\nid;prompt;A;B;answer\n1;p;a;b;A\n",
    "separator not said": "id;prompt;A;B;answer\n1;p;a;b;A\n",
    "tabs in a .csv": "id\tprompt\tA\tB\tanswer\n1\tp\ta\tb\tA\n",
    "empty rows": ",,,,\nid,prompt,A,B,answer\n\n,,,,\n1,p,a,b,A\n , ,,,\n\n",
    "empty columns": "id,prompt,A,B,answer,,\n1,p,a,b,A,,\n",
    "an index": ",id,prompt,A,B,answer\n0,1,p,a,b,A\n",
    "ends of lines of old": "id,prompt,A,B,answer\r1,p,a,b,A\r",
    "ends of lines of Windows": "id,prompt,A,B,answer\r\n1,p,a,b,A\r\n\r\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_spreadsheets_are_taken_as_they_are(tmp_path, name):
    row = read_exam(write(tmp_path, "exam.csv", TABLES[name])).to_pylist()[0]
    assert {key: row[key] for key in LETTERS} == {"id": "1", "prompt": "p", "A": "a", "B": "b", "answer": "A"}
    assert set(row) == {*LETTERS, "is_question", "context"}


def test_hidden_white_space_in_names_of_other_files(tmp_path):
    named = [{f"\ufeff {name} ": value for name, value in row.items()} for row in GOOD]
    assert reads(write(tmp_path, "exam.jsonl", "".join(json.dumps(row) + "\n" for row in named))) == GIVEN
    assert reads(write(tmp_path, "exam.parquet", parquet(named))) == GIVEN


HEADER = "id,prompt,A,B,answer\n"
REFUSED = {
    "a column in other case": ("id,prompt,A,B,Answer\n1,p,a,b,A\n", "no column 'answer'; did you mean 'Answer'?"),
    "a column misspelt": ("id,prompt,A,B,anwser\n1,p,a,b,A\n", "no column 'answer'; did you mean 'anwser'?"),
    "a column of other name": ("id,prompt,A,B,Gold\n1,p,a,b,A\n", "no column 'answer'; did you mean 'Gold'?"),
    "context in other case": ("id,prompt,A,B,Context\n1,p,a,b,c\n", "no column 'context'; did you mean 'Context'?"),
    "id in other case": ("ID,prompt,A,B,answer\n1,p,a,b,A\n", "no column 'id'; did you mean 'ID'?"),
    "all that is missing": (
        "ID,Prompt,A,C,answer \n1,p,a,b,A\n",
        "no column 'prompt'; did you mean 'Prompt'?, no column 'B'",
    ),
    "letters in lower case": ("id,prompt,a,b,answer\n1,p,a,b,A\n", "no column 'A'; did you mean 'a'?"),
    "twice": ("id,prompt,A,B,B \n1,p,a,b,A\n", "column 'B' stands twice"),
    "no name": ("id,prompt,A,B,,answer\n1,p,a,b,c,A\n", "line 1: column 5 has no name"),
    "lines counted": (HEADER + '1,"p\n\nq",a,b,A\n\n2,p,a,b,X\n', "line 6, row 2, column 'answer': 'X' found"),
    "lines after sep": ("sep=,\n" + HEADER + "1,p,a,b,A\n2,p,a,,A\n", "line 4, row 2, column 'B': empty"),
    "a quote left open": (HEADER + '1,p,a,b,A\n2,"p,a,b,A\n', "line 3: not CSV"),
    "a quote within": (HEADER + '1,"p" q,a,b,A\n', "line 2: not CSV"),
    "a carriage return": (HEADER + "1,p,a,b,A\n2,p,a\rc,b,A\n", "line 3: not CSV (new-line character"),
    "too many cells": (HEADER + "1,p,a,b,A\n2,p,q,a,b,A\n", "line 3, row 2: 6 cells, 5 expected"),
    "a NUL": (HEADER + "1,p,a,b,A\n2,p\0,a,b,A\n", "line 3, byte 4: a NUL byte"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_csv_that_is_refused_says_where_and_what_to_do(tmp_path, name):
    content, message = REFUSED[name]
    path = write(tmp_path, "exam.csv", content)
    with pytest.raises(InputError) as error:
        read_exam(path)
    assert f"{path}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "line", ["The planets are Mercury, Venus, Earth, Mars, and Neptune.", "1,2,3,4,5-pentamethyl compounds are known."]
)
def test_a_line_of_text_with_as_many_commas_as_a_row_is_no_row(tmp_path, line):
    text = f"{line}\nPluto is none."
    path = write(tmp_path, "exam.csv", f'prompt,context,A,B,answer\nWhich?,"{text}",Mars,Pluto,B\n')
    assert read_exam(path)["context"].to_pylist() == [text]


@pytest.mark.parametrize("kind", [pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)])
def test_options_that_are_short_floats_keep_their_decimals(tmp_path, kind):
    rows = [{"question": "p", "choices": [0.1, 0.7], "answer": "A"}]
    assert reads(write(tmp_path, "exam.parquet", parquet(rows, choices=kind))) == [["0.1", "0.7"]]
    fields = [rows[0] | {"choices": {"text": [0.1, 0.7], "label": ["A", "B"]}}]
    kind = pa.struct([("text", pa.list_(pa.float32())), ("label", pa.list_(pa.string()))])
    assert reads(write(tmp_path, "exam.parquet", parquet(fields, choices=kind))) == [["0.1", "0.7"]]


def test_a_time_that_python_has_not_is_refused_by_its_column(tmp_path):
    path = write(tmp_path, "exam.parquet", parquet([GOOD[0] | {"at": 10**14}], at=pa.timestamp("s")))
    with pytest.raises(InputError, match=r"exam.parquet, column 'at': cannot be read .*; store it as text, or drop it"):
        read_exam(path)


def test_an_exam_that_has_no_answers_can_say_so(tmp_path):
    path = write(tmp_path, "exam.csv", "id,prompt,A,B,answer_length\n1,p,a,b,7\n")
    with pytest.raises(InputError, match=r"did you mean 'answer_length'.*answer= where there is none"):
        read_exam(path)
    questions = read_exam_questions(path, ["answer="])
    assert questions.table["answer"].to_pylist() == [None]
    assert any("no answers" in note for note in questions.notes)


def test_nothing_but_the_file_itself_is_looked_for(tmp_path, monkeypatch):
    """Where a key may read objects and not list them, S3 refuses to say that another one is not there."""
    path = write(tmp_path, "exam.csv", "prompt,A,B,answer\np,a,b,A\n")
    monkeypatch.setattr(storage, "path_exists", lambda name: name == path or pytest.fail(name))
    assert read_exam(path).num_rows == 1


def test_a_table_that_a_step_has_not_finished_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables.begin_table(f"{tmp_path}/run/questions", {"kind": "questions"})
    tables.write_table(f"{tmp_path}/run/questions/00000.parquet", pa.Table.from_pylist(GOOD))
    paths = ["run/questions", "run/questions/", f"{tmp_path}/run/questions", "run/questions/*.parquet"]
    for path in paths:
        with pytest.raises(InputError, match=r"run/questions.*: not finished; run the command that writes it"):
            read_exam(path)
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(InputError, match="questions: not finished"):
        read_exam("questions")
    monkeypatch.chdir(tmp_path)
    tables.finish_table(f"{tmp_path}/run/questions", {})
    assert [reads(path) for path in paths] == [GIVEN] * 4


def test_utf_16_is_named(tmp_path):
    with pytest.raises(InputError, match="line 1, byte 1: UTF-16; save the file as UTF-8"):
        read_exam(write(tmp_path, "exam.csv", CSV.encode("utf-16")))


TEXTS = ["6.02e23", "1.0", "007", "NA", "nan", "None", "null", "1e400", "-0", "TRUE", "1,5", "10000000000000000001"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_texts_that_look_like_other_values_stay_as_they_are(tmp_path, kind):
    row = (
        {"id": "007", "prompt": "NA"} | dict(zip("ABCDEFGHIJKL", TEXTS, strict=True)) | {"answer": "A", "note": "null"}
    )
    content = {
        "csv": pd.DataFrame([row]).to_csv(index=False),
        "jsonl": json.dumps(row),
        "parquet": parquet([row]),
    }
    read = read_exam(write(tmp_path, f"exam.{kind}", content[kind])).to_pylist()[0]
    assert list(answer_options_of(read).values()) == TEXTS
    assert (read["id"], read["prompt"], read["note"]) == ("007", "NA", "null")


def test_numbers_of_json_are_the_text_that_stands_there(tmp_path):
    numbers = ["6.02e23", "1.0", "10", "100000000000000000000000000000001", "-1E-5", "0.10", "1e400"]
    cells = ", ".join(f'"{letter}": {number}' for letter, number in zip("ABCDEFG", numbers, strict=True))
    path = write(tmp_path, "exam.jsonl", f'{{"id": 1.50, "prompt": "p", {cells}, "answer": "C"}}\n')
    row = read_exam(path).to_pylist()[0]
    assert (list(answer_options_of(row).values()), row["id"]) == (numbers, "1.50")


def test_values_of_parquet(tmp_path):
    rows = [
        {
            "id": 10**18 + 1, "prompt": b"caf\xc3\xa9", "A": 6.02e23, "B": 0.1, "C": decimal.Decimal("1.50"),
            "D": datetime.date(2020, 2, 29), "E": True, "F": 1.0, "answer": 2.0,
        }
    ]  # fmt: skip
    path = write(tmp_path, "exam.parquet", parquet(rows, B=pa.float32(), C=pa.decimal128(5, 2)))
    row = read_exam(path).to_pylist()[0]
    assert list(answer_options_of(row).values()) == ["6.02e+23", "0.1", "1.50", "2020-02-29", "True", "1.0"]
    assert (row["id"], row["prompt"], row["answer"]) == (str(10**18 + 1), "café", "C")


BAD_CELLS = {
    "a list": ("A", ["a", "b"], "a list found, text expected"),
    "fields": ("prompt", {"text": "a"}, "fields found, text expected"),
    "half a pair": ("B", "a\ud800", "half of a surrogate pair"),
    "NUL": ("B", "a\0b", "a NUL character"),
    "several right ones": ("answer", ["A", "B"], "2 right options found, one expected"),
    "a truth": ("answer", True, "'True' found, a letter from A to B"),
    "a fraction": ("answer", 0.5, "'0.5' found"),
    "a negative": ("answer", -2, "'-2' found"),
}


@pytest.mark.parametrize("name", BAD_CELLS)
def test_cells_that_are_no_text_are_refused(tmp_path, name):
    column, value, message = BAD_CELLS[name]
    path = write(tmp_path, "exam.jsonl", JSONL + "\n" + json.dumps(GOOD[0] | {"id": "3", column: value}))
    with pytest.raises(InputError) as error:
        read_exam(path)
    assert f"line 4, row 3, column '{column}': {message}" in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = write(tmp_path, "exam.parquet", parquet([GOOD[0] | {"A": b"ok"}, GOOD[1] | {"A": b"caf\xe9"}]))
    with pytest.raises(InputError, match="row 2, column 'A': bytes that are not UTF-8"):
        read_exam(path)
    told = pa.table({"question": pa.array([b"caf\xe9"]).view(pa.string()), "choices": [["a", "b"]], "answer": ["b"]})
    pq.write_table(told, tmp_path / "told.parquet")
    with pytest.raises(InputError, match=r"told\.parquet: not a whole Parquet file .*Invalid UTF8"):
        read_exam(str(tmp_path / "told.parquet"))


def test_an_arrow_file_of_what_parquet_cannot_hold(tmp_path):
    empty = pa.array([{}], pa.struct([]))
    table = pa.table({"question": ["q"], "choices": [["a", "b"]], "answer": [1], "about": empty})
    with pa.ipc.new_file(tmp_path / "exam.arrow", table.schema) as file:
        file.write_table(table)
    assert read_exam(str(tmp_path / "exam.arrow")).to_pylist()[0]["answer"] == "B"


def test_a_key_twice_in_an_object_is_refused(tmp_path):
    path = write(tmp_path, "exam.jsonl", '{"id": "1", "prompt": "p", "A": "a", "A": "c", "B": "b"}')
    with pytest.raises(InputError, match="row 1: not JSON \\('A' stands twice"):
        read_exam(path)


def test_lines_of_jsonl_end_at_line_feeds_alone(tmp_path):
    odd = GOOD[0] | {"A": "Carbon\u2028dioxide", "B": "He\u0085lium\u2029x"}
    lines = json.dumps(odd, ensure_ascii=False) + "\r\n\n" + json.dumps(GOOD[1]) + "\n \n"
    assert reads(write(tmp_path, "exam.jsonl", lines)) == [[odd["A"], odd["B"]], GIVEN[1]]
    with pytest.raises(InputError, match="line 3, row 2: not JSON"):
        read_exam(write(tmp_path, "exam.jsonl", lines.replace('"Lead"', "Lead")))


def test_cells_of_any_length(tmp_path):
    long = "word " * 100_000 + "end"
    assert reads(write(tmp_path, "exam.csv", f"{HEADER}1,p,{long},b,A\n")) == [[long, "b"]]


def question(options, answer, **more):
    return {"prompt": "p", **dict(zip("ABCDEF", options, strict=False)), "answer": answer, **more}


#: Answers that may be a number or a text: rows, and which of them is refused, or the letters read.
KEYS = {
    "the issue's": ([GOOD[0], question("3452", "4", id="3")], 2),
    "within range": ([question(("3", "2", "1", "0"), "2")], 1),
    "both the same": ([question(("5", "1", "7"), "1")], ["B"]),
    "typed in columns": ([question(("3", "2", "1", "0"), 2)], 1),
    "numbers in JSON": ([question((3, 2, 1, 0), 2)], 1),
    "all are texts": ([question(("12", "144", "4"), "144"), question(("2", "4", "9"), "4")], ["B", "B"]),
    "texts, one of them a letter": ([question(("Tin", "Iron"), "Iron"), question(("B", "A"), "A")], ["B", "B"]),
    "texts and letters": (
        [question(("Tin", "Iron"), "Iron"), question(("Tin", "Iron"), "A"), question(("B", "A"), "A")],
        3,
    ),
    "letters that are texts elsewhere": ([question(("B", "A"), "A"), question(("Tin", "Iron"), "B")], ["A", "B"]),
    "counted from 1": ([question(("a", "b"), 1), question(("a", "b"), "2")], 2),
    "the same text twice": ([question(("Tin", "Iron", "Tin"), "Tin")], 1),
    "the same text twice, by letter": ([question(("Tin", "Iron", "Tin"), "C")], ["C"]),
    "an index in a list": ([{"question": "p", "choices": ["3", "2", "1", "0"], "answer": 2}], ["C"]),
    "numbers in a list": ([{"question": "p", "choices": [3, 2, 1, 0], "answer": 2}], 1),
    "text of a number in a list": ([{"question": "p", "choices": ["3", "2", "1", "0"], "answer": "2"}], 1),
    "an index of 4 in a list": ([{"question": "p", "choices": list("abcd"), "answer": 4}], 1),
    "labels that are texts": (
        [{"question": "p", "choices": {"text": list("2341"), "label": list("1234")}, "answerKey": "2"}],
        1,
    ),
    "labels, some of them texts": (
        [
            {"question": "p", "choices": {"text": list("2341"), "label": list("1234")}, "answerKey": "2"},
            {"question": "p", "choices": {"text": list("wxyz"), "label": list("1234")}, "answerKey": "4"},
        ],
        ["B", "D"],
    ),
    "labels in another order": (
        [{"question": "p", "choices": {"text": list("xyz"), "label": list("CAB")}, "answerKey": "C"}],
        ["C"],
    ),
    "an index, and labels in another order": (
        [{"question": "p", "choices": {"text": list("xyz"), "label": list("CAB")}, "answerKey": 0}],
        1,
    ),
    "no such label": (
        [{"question": "p", "choices": {"text": list("xyz"), "label": list("123")}, "answerKey": "A"}],
        1,
    ),
    "a label twice": (
        [{"question": "p", "choices": {"text": list("xyz"), "label": list("112")}, "answerKey": "1"}],
        1,
    ),
    "27 options": ([{"question": "p", "choices": [str(n) for n in range(100, 127)], "answer": 0}], 1),
    "one option": ([{"question": "p", "choices": ["a"], "answer": 0}], 1),
    "an empty option": ([{"question": "p", "choices": ["a", "", "b"], "answer": 0}], 1),
    "letters in brackets": ([question("xyz", "(B)"), question("xyz", "c.")], ["B", "C"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_answers_are_read_or_their_row_is_refused(tmp_path, name):
    rows, expected = KEYS[name]
    rows = [{"id": str(number)} | row for number, row in enumerate(rows, 1)]
    path = write(tmp_path, "exam.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if isinstance(expected, list):
        assert read_exam(path)["answer"].to_pylist() == expected
    else:
        with pytest.raises(InputError, match=rf"exam.jsonl, row {expected}, column '(answer|answerKey|choices)': "):
            read_exam(path)


def test_a_0_in_the_name_of_a_list_of_options_does_not_say_that_answers_count_from_0(tmp_path):
    rows = [{"question": "p", "choices10": list("abcd"), "answer": number} for number in (1, 2)]
    path = write(tmp_path, "exam.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="row 1, column 'answer': '1' found, and nowhere a 0"):
        read_exam(path, ("options=choices10",))


@pytest.mark.parametrize(("said", "letter"), [("0", "E"), ("1", "D"), ("text", "B"), ("letter", None)])
def test_answers_from_says_what_an_answer_is(tmp_path, said, letter):
    path = write(tmp_path, "exam.jsonl", json.dumps(question("34526", "4")))
    with pytest.raises(InputError, match="--answers-from"):
        read_exam(path)
    if letter:
        assert read_exam(path, answers_from=said)["answer"].to_pylist() == [letter]
    else:
        with pytest.raises(InputError, match="row 1, column 'answer': '4' found, a letter from A to E expected"):
            read_exam(path, answers_from=said)


def test_an_empty_answers_from_says_nothing(tmp_path):
    rows, letters = KEYS["all are texts"]
    rows = [{"id": str(number)} | row for number, row in enumerate(rows)]
    path = write(tmp_path, "exam.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_exam(path, answers_from="")["answer"].to_pylist() == letters


def test_a_27th_column_is_refused(tmp_path):
    names = [chr(65 + number) for number in range(26)] + ["AA"]
    with pytest.raises(InputError, match="27th option"):
        read_exam(write(tmp_path, "exam.jsonl", json.dumps({"prompt": "p"} | {name: name for name in names})))


def test_ids_are_row_numbers_where_there_are_none(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "id"} for row in GOOD]
    path = write(tmp_path, "exam.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_exam(path)["id"].to_pylist() == ["1", "2"]


def test_other_columns_are_kept_but_for_those_that_would_be_taken_for_options(tmp_path):
    row = {"question": "p", "choices": ["a", "b"], "answer": 1, "E": "energy", "tags": ["x", 1], "level": 2.0}
    read = read_exam(write(tmp_path, "exam.jsonl", json.dumps(row))).to_pylist()[0]
    assert answer_options_of(read) == {"A": "a", "B": "b"}
    assert (read["tags"], read["level"]) == ('["x", "1"]', "2.0")
