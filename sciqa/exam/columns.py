"""The columns of a file that hold the question, its options and the answer: recognised by name, or given."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from sciqa.core.errors import InputError
from sciqa.exam.column_cells import find_column_cell, structured_column_cell
from sciqa.exam.row import LETTERS, Row

#: Names of each part in public exams, likelier names first; `a.b` is the field b of the column a.
PROMPTS = (
    *("prompt", "question", "question.stem", "question_stem", "query", "Question", "ctx", "goal", "sentence"),
    *("startphrase", "sent1", "problem", "Problem"),
)
#: Column of a text that belongs before the prompt, as in COPA.
PREMISE = "premise"
LISTS = ("choices", "options", "question.choices", "endings", "answers")
#: Columns of the right option and of the wrong options, in exams that keep them apart.
APART: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("correct_answer", ("distractor1", "distractor2", "distractor3")),
    ("Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")),
    ("correct", ("incorrect",)),
)
#: Column of options with marks: 1 for the right option, 0 for the others.
MARKED = "mc1_targets"
#: Columns of the answer. If a file has two, the first is read, and the other must agree.
ANSWERS = (
    *("answer_idx", "answer_index", "answer", "answerKey", "answer_key", "gold", "label", "cop", "correct"),
    *("correct_option", "correct_answer", "correct_answer_num", "correct_answer_id", "target"),
)
CONTEXTS = ("context", "article", "passage", "support", "flores_passage")
#: Further names of the context, used if none of `CONTEXTS` is present: LogiQA's, and synonyms.
TEXTS = ("text", "paragraph", "story", "background", "narrative")
FACTS = ("fact1", "fact2")
IDS = ("id", "question_id", "qid", "Record ID", "doc_id")
#: Columns of the exam table that `--columns` can fill from a column of another name.
KEPT = ("is_question", "title", "topic", "subject", "passage_id")
#: Names of columns with one option each: a common stem, then a letter or a number.
NUMBERED = re.compile(
    r"((?:mc_)?(?:option|opt|op|choice|answer|ending|sol|candidate)[ _-]?)([a-z]|\d{1,2})", re.IGNORECASE
)
#: Names that suggest one more option: `Option E`, `option_4`, `F.`, a letter of another script.
ONE_MORE = re.compile(
    r"(?:(?:mc|option|opt|op|choice|answer|ending|sol|candidate|distractor|incorrect|wrong)[\W_]*)+"
    r"(?:[^\W\d_]|\d{1,2})[\W_]*|[^\W\d_][\W_]+|[^\W\d_a-z]",
    re.IGNORECASE,
)
#: Known pairs (first column of options, column of the answer) whose numbers count from 0 or 1.
COUNTED = {
    ("sol1", "label"): "0",
    ("answerA", "label"): "1",
    ("mc_answer1", "correct_answer_num"): "1",
    ("endings", "label"): "0",
}
#: Fields of `Columns` that are parts of a question.
PARTS = ("prompt", "options", "answer", "correct", "incorrect", "context", "id")
#: Parts that several columns may hold.
SEVERAL = ("prompt", "options", "answer", "incorrect", "context")


@dataclass(frozen=True)
class Columns:
    """Columns of the parts of a question, each by name or by path (`choices.text`).

    Attributes:
        prompt: columns of the question; the texts of several are joined in order.
        options: one column that lists all options, or a column for each.
        answer: column of the right option; if there are two, the second must agree with the first.
        correct: column of the right option's text, in exams that keep it apart from the wrong options.
        incorrect: columns of the wrong options in such exams: one that lists them, or a column for each.
        context: columns whose texts are joined to the exam's own context.
        id: column of the question's id; without one, the row number is the id.
        kept: columns that have another name in the exam table, by that name.
        own: whether these are the columns of the exam table itself, in which numbers count from 0.
        listed: whether one column lists the wrong options, in all rows.
        also: further columns that seem to hold the answer, and must agree with it.
    """

    prompt: tuple[str, ...] = ("prompt",)
    options: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    correct: str | None = None
    incorrect: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    id: str | None = None
    kept: dict[str, str] = field(default_factory=dict)
    own: bool = False
    listed: bool = False
    also: tuple[str, ...] = ()

    @property
    def first(self) -> str | None:
        """Number of the first option, "0" or "1"; None if the columns' names do not tell."""
        option, answer = next(iter(self.options), ""), next(iter(self.answer), "")
        return COUNTED.get((option, answer)) or ("0" if option.endswith("0") and self.options[1:] else None)

    @property
    def used(self) -> set[str]:
        """All columns that are read, by their names in the file."""
        paths = [*self.prompt, *self.options, *self.answer, *self.incorrect, *self.context, *self.kept.values()]
        return {path for path in [*paths, self.correct, self.id] if path}

    def said(self) -> str:
        """Return these columns in the syntax of `--columns`."""
        paths = {name: getattr(self, name) for name in PARTS} | self.kept
        parts = [f"{name}={path if isinstance(path, str) else ','.join(path)}" for name, path in paths.items() if path]
        return " ".join(f"'{part}'" if " " in part else part for part in parts)


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """Return the columns given by `--columns`, by part: `prompt=question options=choices.text answer=answerKey`.

    Raises:
        InputError: an unknown part, a part that is given twice, or no `=`.
    """
    parts = (*PARTS, *KEPT)
    found = {}
    for each in given:
        name, equals, column = each.partition("=")
        if not equals or name not in parts or name in found:
            raise InputError(f"--columns: {each!r} given, PART=COLUMN expected, once for each of {', '.join(parts)}")
        found[name] = column
    if (apart := {"correct", "incorrect"} & found.keys()) and (other := {"options", "answer"} & found.keys()):
        raise InputError(
            f"--columns: {min(other)}={found[min(other)]} and {min(apart)}={found[min(apart)]} given; either the right "
            "and the wrong options have columns of their own, or all options have some, and the answers one"
        )
    return found


def unwrap_columns(rows: list[Row]) -> list[Row]:
    """Return rows; questions nested in a field, as in lm-evaluation-harness's samples, are moved to the top level."""
    around = ("doc_id", "target")
    for name in ("doc", "row"):
        inner = [cell for row in rows if isinstance(cell := row.cells.get(name), dict)]
        if len(inner) == len(rows):
            return [
                row._replace(cells={key: row.cells[key] for key in around if key in row.cells} | cells)
                for row, cells in zip(rows, inner, strict=True)
            ]
    return rows


def recognise_columns(exam: str, rows: list[Row], given: dict[str, str]) -> Columns:
    """Return the columns of an exam: those of `parse_columns`, and for other parts the first known name in its rows.

    Raises:
        InputError: lists all missing columns, with similar names that are present.
    """
    names = _names(rows)
    _check_given(exam, given, names, rows)
    prompt = _several(given["prompt"], names) if given.get("prompt") else _prompt(names)
    options, correct, incorrect = _options(given, names)
    if "answer" in given and (correct or options == (MARKED,)):
        raise InputError(
            f"{exam}: --columns answer={given['answer']}, but column {correct or MARKED!r} says which option is right; "
            "leave answer out, or name the columns of all options by options=…"
        )
    own = prompt == ("prompt",) and options[:1] == ("A",) and "options" not in given
    columns = Columns(
        prompt=prompt,
        options=options,
        answer=_answer(given, names, prompt, rows) if not correct and options != (MARKED,) else (),
        correct=correct,
        incorrect=incorrect,
        context=_context(given, names, own),
        id=given.get("id") or next((name for name in IDS if name in names and "id" not in given), None),
        kept={name: given[name] for name in KEPT if given.get(name)},
        own=own,
        listed=len(incorrect) == 1
        and all(isinstance(structured_column_cell(find_column_cell(r.cells, incorrect[0])), list) for r in rows),
    )
    _check_present(exam, columns, names, given)
    also = [name for name in names if name not in columns.used and "answer" not in given and _like_answer([name])]
    return replace(columns, also=tuple(also))


def _names(rows: list[Row]) -> list[str]:
    """Return the column names of all rows; if `question` is an object, its fields as `question.FIELD`."""
    names = dict.fromkeys(name for row in rows for name in row.cells)
    if nested := [cell for row in rows if isinstance(cell := row.cells.get("question"), dict)]:
        inner = dict.fromkeys(key for cell in nested for key in cell)
        del names["question"]
        names |= dict.fromkeys(f"question.{key}" for key in inner)
    return list(names)


def _prompt(names: list[str]) -> tuple[str, ...]:
    prompt = next((name for name in PROMPTS if name in names), "prompt")
    return (PREMISE, prompt) if PREMISE in names else (prompt,)


def _options(given: dict[str, str], names: list[str]) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """Return the columns of options; or, in exams that keep them apart, of the right and of the wrong options."""
    if "correct" in given or "incorrect" in given:
        correct, incorrect = given.get("correct", "correct"), given.get("incorrect", "incorrect")
        return (), correct, _several(incorrect, names)
    if "options" in given:
        return _several(given["options"], names), None, ()
    lettered = set(LETTERS) & set(names)
    if {"A", "B"} <= lettered or (lettered and "prompt" in names):
        return tuple(LETTERS[: max(len(lettered), 2)]), None, ()
    if listed := next((name for name in LISTS if name in names), None):
        return (listed,), None, ()
    if numbered := _numbered(names):
        return numbered, None, ()
    for right, wrong in APART:
        if {right, *wrong} <= set(names):
            return (), right, wrong
    return ((MARKED,) if MARKED in names else tuple("AB")), None, ()


def _several(path: str, names: list[str]) -> tuple[str, ...]:
    return (path,) if path in names else tuple(each.strip() for each in path.split(","))


def _numbered(names: list[str]) -> tuple[str, ...]:
    """Return columns whose names differ only in a final letter or number, from a, A, 0 or 1 on without a gap."""
    families: dict[str, dict[str, str]] = {}
    for name in names:
        if matched := NUMBERED.fullmatch(name):
            families.setdefault(matched[1], {})[matched[2]] = name
    for family in families.values():
        for ends in (LETTERS, LETTERS.lower(), [str(n) for n in range(27)], [str(n) for n in range(1, 28)]):
            if set(ends[: len(family)]) == set(family) and len(family) > 1:
                return tuple(family[end] for end in ends[: len(family)])
    return ()


def _answer(given: dict[str, str], names: list[str], prompt: tuple[str, ...], rows: list[Row]) -> tuple[str, ...]:
    """Return the columns of answers; among known names, columns that hold answers take precedence over empty ones."""
    if "answer" in given:
        return _several(given["answer"], names) if given["answer"] else ()
    known = ANSWERS if prompt != ("Question",) else (*ANSWERS, "Answer")
    present = [name for name in known if name in names and name not in LISTS]
    found = [name for name in present if any(row.cells.get(name) not in (None, "") for row in rows)] or present
    pair = found[:1] in (["answer_idx"], ["answer_index"]) and "answer" in found
    return (found[0], "answer") if pair else tuple(found[:1])


def _context(given: dict[str, str], names: list[str], own: bool) -> tuple[str, ...]:
    if "context" in given:
        return _several(given["context"], names) if given["context"] else ()
    if own:
        return ("context",) if "context" in names else ()
    known = [name for name in (*CONTEXTS, *TEXTS) if name in names and f"{name}." not in " ".join(names)]
    return tuple(known[:1] + [name for name in FACTS if name in names])


def _check_given(exam: str, given: dict[str, str], names: list[str], rows: list[Row]) -> None:
    """Raise `InputError` unless all given columns exist, and some row has something at a path into fields."""
    for part, path in given.items():
        for each in filter(None, _several(path, names) if part in SEVERAL else (path,)):
            if each not in names and all(find_column_cell(row.cells, each) is None for row in rows):
                raise InputError(
                    f"{exam}: --columns {part}={path}, but {_missing(each, names)}; found {_listed(names)}"
                )


def _check_present(exam: str, columns: Columns, names: list[str], given: dict[str, str]) -> None:
    """Raise `InputError` that lists all missing columns, and unread columns that look like misnamed ones."""
    roots = {name.partition(".")[0] for name in names} | set(names)
    unused = [name for name in names if name not in columns.used]
    wanted = [*columns.prompt, *columns.options, *columns.incorrect, *filter(None, [columns.correct])]
    problems = [_missing(path, unused) for path in wanted if path not in roots and path.partition(".")[0] not in roots]
    if columns.options == ("A", "B") and not roots & {"A", "B"}:
        problems.append("so no options to choose from")
    if not columns.answer and not columns.correct and columns.options != (MARKED,) and "answer" not in given:
        problems += [_missing("answer", unused, like) for like in [_like_answer(unused)] if like]
    if columns.own:
        present = {**given, **dict.fromkeys(names)}
        near = {name: _same(name, unused) for name in ("id", "context", *KEPT) if name not in present}
        problems += [_missing(name, unused, like) for name, like in near.items() if like]
    if "options" not in given and "incorrect" not in given:
        after = LETTERS[len(columns.options) :][:1].lower() if columns.own else ""
        more = [name for name in unused if _is_one_more(name) or name == after]
        read = _listed([*columns.options, *filter(None, [columns.correct]), *columns.incorrect])
        problems += [f"column {name!r} looks like an option, but is none of {read}" for name in more]
    if columns.own and "AA" in names:
        problems.append("a 27th option, 'AA'; a question has at most 26")
    if problems:
        raise InputError(
            f"{exam}: {', '.join(problems)}; found {_listed(names)}. Rename columns, or name them, such as "
            "--columns prompt=question options=choices.text answer=answerKey (answer= where there is none); the first "
            "line of a CSV file names them"
        )


def _is_one_more(name: str) -> bool:
    """Whether an unread column has a name like that of an option."""
    plural = re.fullmatch("[a-z]{2,}s|opt", name, re.IGNORECASE)
    return bool(ONE_MORE.fullmatch(name)) and not plural


def _missing(name: str, names: Iterable[str], like: str | None = None) -> str:
    like = like or _same(name, names) or next(iter(difflib.get_close_matches(name, names, 1, 0.75)), None)
    return f"no column {name!r}" + (f"; did you mean {like!r}?" if like else "")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _same(name: str, names: Iterable[str]) -> str | None:
    """Return a name that differs from another only in case and punctuation; None if there is none."""
    return next((each for each in names if _plain(each) == _plain(name)), None)


def _like_answer(names: Iterable[str]) -> str | None:
    """Return the first name that looks like that of an answer column; None if there is none."""
    alone = ("label", "labels", "gold", "target", "targets", "key", "truth", "right", "solution", "ans", "correct")
    for name in names:
        plain = _plain(name)
        if plain in alone or difflib.SequenceMatcher(None, plain, "answer").ratio() >= 0.75:
            return name
    return next((name for name in names if _plain(name).startswith(("answer", "correct", "right"))), None)


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if names[20:] else "")
