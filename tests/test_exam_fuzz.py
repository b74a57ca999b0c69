"""Exams of any texts: what is written as CSV, JSONL or Parquet is read back as it was, or refused with its row."""

import csv
import io
import json
import re
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of

ODD = [
    "", " ", "NA", "nan", "None", "null", "1.0", "007", "6.02e23", "A", "4", "true", "[1, 2]", '{"a": 1}', "(A)",
    "B. x", "a\u2028b", "a\u0085b", "a\r\nb", "a\nb", "\ufeffa", "\u200b", '"', '""', ",", ";", "\t", "a\tb", "=1+1",
    "sep=;", "'", "\\", "\\n", "#", "a\0b", "\ud800", "-1", "\u00a0a", "a,b;c|d", "😀", "e\u0301", "\x1c", "\x7f",
]  # fmt: skip
text = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), st.just("plain"))


@st.composite
def exams(draw):
    """Rows of an exam, most of them good, and whether their options stand in columns, a list or apart."""
    shape = draw(st.sampled_from(["columns", "list", "apart"]))
    width = draw(st.integers(2 if shape != "apart" else 3, 5))  # of one wrong option, "[1, 2]" may be a list
    rows = []
    for number in range(draw(st.integers(1, 5))):
        options = draw(st.lists(text, min_size=width, max_size=width))
        right = draw(st.one_of(st.none(), st.integers(0, width - 1)) if shape != "apart" else st.just(0))
        rows.append({"id": f"q{number}", "prompt": draw(text), "options": options, "right": right})
    return shape, rows


def cells_of(shape, row):
    letter = None if row["right"] is None else string.ascii_uppercase[row["right"]]
    about = {"id": row["id"], "prompt": row["prompt"]}
    if shape == "columns":
        return about | dict(zip(string.ascii_uppercase, row["options"], strict=False)) | {"answer": letter}
    if shape == "list":
        return about | {"options": row["options"], "answer": letter}
    names = ["correct", *(f"wrong {n}" for n in range(1, len(row["options"])))]
    return about | dict(zip(names, row["options"], strict=True))


def as_csv(rows, draw):
    written = io.StringIO()
    form = {
        "delimiter": draw(st.sampled_from(",;\t")),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
    }
    if any("\r" in str(cell) for row in rows for cell in row.values()):  # which csv forgets to quote
        form["quoting"] = csv.QUOTE_ALL
    writer = csv.DictWriter(written, list(rows[0]), **form)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    return written.getvalue().encode("utf-8-sig" if draw(st.booleans()) else "utf-8")


def as_jsonl(rows, draw):
    plain = draw(st.booleans()) and not any("\ud800" in json.dumps(row, ensure_ascii=False) for row in rows)
    return "".join(json.dumps(row, ensure_ascii=not plain) + "\n" for row in rows).encode()


def as_parquet(rows, draw):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def cannot_be(texts):
    return any("\0" in each or "\ud800" in each for each in texts)


def is_bad(shape, row):
    """Whether a question has no prompt, an option that is empty or a text that is none."""
    options = [each.strip() for each in row["options"]]
    while shape != "list" and len(options) > 1 and not options[-1]:
        options.pop()
    beyond = row["right"] is not None and row["right"] >= len(options)
    return not row["prompt"].strip() or len(options) < 2 or "" in options or beyond or cannot_be(texts_of(row))


def texts_of(row):
    return [row["prompt"], *row["options"]]


@pytest.mark.parametrize("writer", [as_csv, as_jsonl, as_parquet], ids=["csv", "jsonl", "parquet"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_texts_are_read_back_or_refused(tmp_path, writer, data):
    shape, rows = data.draw(exams())
    if writer is not as_jsonl:  # neither can hold half of a pair
        rows = [row for row in rows if "\ud800" not in "".join(texts_of(row))]
    if not rows:
        return
    content = writer([cells_of(shape, row) for row in rows], data.draw)
    path = tmp_path / f"exam.{writer.__name__[3:]}"
    path.write_bytes(content)
    said = [f"incorrect={','.join(f'wrong {n}' for n in range(1, len(rows[0]['options'])))}", "correct=correct"]
    bad = [number for number, row in enumerate(rows, 1) if is_bad(shape, row)]
    try:
        meant = "letter" if shape == "list" else None  # which might be a text there
        read = read_exam(str(path), said if shape == "apart" else (), meant).to_pylist()
    except InputError as error:
        message = str(error)
        if writer is as_csv and b"\0" in content:
            assert f"line {content[: content.index(0)].count(10) + 1}, byte " in message
        else:
            assert int(re.search(r"row (\d+), column", message)[1]) in bad, message
        return
    assert not bad
    for row, found in zip(rows, read, strict=True):
        options = [each.strip() for each in row["options"]]
        while not options[-1]:
            options.pop()
        assert found["prompt"] == row["prompt"].strip()
        given_options = list(answer_options_of(found).values())
        assert given_options == options or (shape == "apart" and sorted(given_options) == sorted(options))
        expected = None if row["right"] is None else options[row["right"]]
        assert (found["answer"] and answer_options_of(found)[found["answer"]]) == expected


FEW = ["0", "1", "2", "3", "4", "A", "B", "C", "Tin", "Iron"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FEW), min_size=2, max_size=5), st.sampled_from(FEW))
def test_an_answer_is_never_one_of_two_that_it_may_be(tmp_path, options, answer):
    letters = string.ascii_uppercase[: len(options)]
    may_be = {at for at, option in enumerate(options) if option == answer}
    if answer in letters:  # which these columns say it is
        may_be = {letters.index(answer)}
    if answer.isdecimal() and int(answer) < len(options):
        may_be.add(int(answer))
    from_one = answer.isdecimal() and answer in options and 0 <= int(answer) - 1 < len(options)
    path = tmp_path / "exam.jsonl"
    row = {"id": "1", "prompt": "p", **dict(zip(letters, options, strict=True)), "answer": answer}
    path.write_text(json.dumps(row))
    try:
        read = read_exam(str(path))["answer"].to_pylist()[0]
    except InputError as error:
        refused = str(error)
    else:
        assert {letters.index(read)} == may_be
        return
    assert "row 1, column 'answer'" in refused
    assert len(may_be) != 1 or from_one
