"""Which columns of a file hold the question, its options and the right one: recognised by their names, or told."""

import ast
import difflib
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

from sciqa.core.errors import InputError
from sciqa.exam.files import parse_json
from sciqa.exam.rows import Row

LETTERS = string.ascii_uppercase
#: Names of each part in public exams, the likelier first; `a.b` is the field b of the column a.
PROMPTS = (
    *("prompt", "question", "question.stem", "question_stem", "query", "Question", "ctx", "goal", "sentence"),
    *("startphrase", "sent1", "problem", "Problem"),
)
#: What stands before such a prompt, and belongs to it, as in COPA.
PREMISE = "premise"
LISTS = ("choices", "options", "question.choices", "endings", "answers")
#: The right option and the wrong ones, in columns of their own.
APART = (
    ("correct_answer", ("distractor1", "distractor2", "distractor3")),
    ("Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")),
    ("correct", ("incorrect",)),
)
#: Options with marks, 1 for the right one and 0 for the others.
MARKED = "mc1_targets"
#: Of two, the first is read, and the other must agree.
ANSWERS = (
    *("answer_idx", "answer_index", "answer", "answerKey", "answer_key", "gold", "label", "cop", "correct"),
    *("correct_option", "correct_answer", "correct_answer_num", "correct_answer_id", "target"),
)
CONTEXTS = ("context", "article", "passage", "support", "flores_passage")
#: What is context where no column of these names is: LogiQA's, and words for it.
TEXTS = ("text", "paragraph", "story", "background", "narrative")
FACTS = ("fact1", "fact2")
IDS = ("id", "question_id", "qid", "Record ID", "doc_id")
#: Columns of the exam table that a column of another name can be taken for.
KEPT = ("is_question", "title", "topic", "subject", "passage_id")
#: A column for each option: what they have in common, then a letter or a number.
NUMBERED = re.compile(
    r"((?:mc_)?(?:option|opt|op|choice|answer|ending|sol|candidate)[ _-]?)([a-z]|\d{1,2})", re.IGNORECASE
)
#: A column that seems to hold one more option: `Option E`, `option_4`, `F.`, a letter of another script.
ONE_MORE = re.compile(
    r"(?:(?:mc|option|opt|op|choice|answer|ending|sol|candidate|distractor|incorrect|wrong)[\W_]*)+"
    r"(?:[^\W\d_]|\d{1,2})[\W_]*|[^\W\d_][\W_]+|[^\W\d_a-z]",
    re.IGNORECASE,
)
#: Columns of options and of the answer whose numbers are known to count from 0 or 1.
COUNTED = {
    ("sol1", "label"): "0",
    ("answerA", "label"): "1",
    ("mc_answer1", "correct_answer_num"): "1",
    ("endings", "label"): "0",
}


#: Fields of `Columns` that are no part of a question.
NO_PARTS = ("kept", "own", "listed", "also")


@dataclass(frozen=True)
class Columns:
    """Where the parts of a question stand, each by the name of a column, or its path (`choices.text`).

    Attributes:
        prompt: the question; of several columns, their texts follow each other.
        options: one column that lists them, or a column for each.
        answer: the right option; of two columns, the second must agree with the first.
        correct: text of the right option, where it does not stand among the others.
        incorrect: the wrong options then, listed by one column or a column for each.
        context: what is joined to the exam's own context.
        id: the question's name; where there is none, the number of its row.
        kept: columns that the exam table has under other names.
        own: whether these are the columns of the exam table itself, in which numbers count from 0.
        listed: whether one column lists the wrong options.
        also: columns that seem to hold the answer too, so that they must agree with it.
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
        """What numbers count from, "0" or "1", where that is known of such columns."""
        known = [COUNTED.get((option, answer)) for option in self.options[:1] for answer in self.answer[:1]]
        return known[0] if known and known[0] else "0" if (self.options or ("",))[0].endswith("0") else None

    @property
    def used(self) -> set[str]:
        """All columns that are read, by the names that they have in the file."""
        paths = [*self.prompt, *self.options, *self.answer, *self.incorrect, *self.context, *self.kept.values()]
        return {path for path in [*paths, self.correct, self.id] if path}

    def said(self) -> str:
        """Return these columns as `--columns` takes them."""
        parts = []
        for each in fields(self):
            value = getattr(self, each.name)
            if value and each.name not in NO_PARTS:
                parts.append(f"{each.name}={value if isinstance(value, str) else ','.join(value)}")
        parts += [f"{name}={path}" for name, path in self.kept.items()]
        return " ".join(f"'{part}'" if " " in part else part for part in parts)


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """Return what `--columns` says, by part: `prompt=question options=choices.text answer=answerKey`.

    Raises:
        InputError: a part that no question has, or one that is named twice.
    """
    parts = [each.name for each in fields(Columns) if each.name not in NO_PARTS] + [*KEPT]
    found = {}
    for each in given:
        name, equals, column = each.partition("=")
        if not equals or name not in parts or name in found:
            raise InputError(f"--columns: {each!r} given, PART=COLUMN expected, once for each of {', '.join(parts)}")
        found[name] = column
    return found


def unwrap(rows: list[Row]) -> list[Row]:
    """Return rows without what is around a question that stands in a field, as in lm-evaluation-harness's samples."""
    for name in ("doc", "row"):
        if all(isinstance(row.cells.get(name), dict) for row in rows):
            around = ("doc_id", "target")
            return [
                row._replace(cells={key: row.cells[key] for key in around if key in row.cells} | row.cells[name])
                for row in rows
            ]
    return rows


def find(cells: dict[str, object], path: str) -> object:
    """Return the cell of a column, or what stands at a path into its fields; None where it has none."""
    if path in cells or "." not in path:
        return cells.get(path)
    name, _, rest = path.partition(".")
    cell = structured(cells.get(name))
    if isinstance(cell, list):
        return [find(each, rest) if isinstance(each, dict) else None for each in cell]
    return find(cell, rest) if isinstance(cell, dict) else None


def structured(cell: object) -> object:
    """Return a cell; a list or fields that are written out as text, in JSON or as Python does, as such."""
    if not isinstance(cell, str) or cell.lstrip()[:1] not in ("[", "{"):
        return cell
    for parse in (parse_json, ast.literal_eval):
        try:
            parsed = parse(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(parsed, list | dict):
            return parsed
    return cell


def recognise(exam: str, rows: list[Row], given: dict[str, str]) -> Columns:
    """Return the columns of an exam: those that are given, and for the others those of the first name known.

    Args:
        exam: its name, for messages.
        rows: all of it.
        given: as `parse_columns` returns it.

    Raises:
        InputError: with all columns that are missing, and the names that come near.
    """
    names = _names(rows)
    _check_given(exam, given, names)
    prompt = _several(given["prompt"], names) if given.get("prompt") else _prompt(names)
    options, correct, incorrect = _options(given, names)
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
        listed=len(incorrect) == 1 and all(isinstance(structured(find(r.cells, incorrect[0])), list) for r in rows),
    )
    _check_present(exam, columns, names, given)
    also = [name for name in names if name not in columns.used and "answer" not in given and _like_answer([name])]
    return replace(columns, also=tuple(also))


def _names(rows: list[Row]) -> list[str]:
    """Return the columns of all rows, with the fields of `question`, of which some exams make one."""
    names = dict.fromkeys(name for row in rows for name in row.cells)
    if any(isinstance(row.cells.get("question"), dict) for row in rows):
        inner = dict.fromkeys(
            key for row in rows if isinstance(row.cells.get("question"), dict) for key in row.cells["question"]
        )
        del names["question"]
        names |= dict.fromkeys(f"question.{key}" for key in inner)
    return list(names)


def _prompt(names: list[str]) -> tuple[str, ...]:
    prompt = next((name for name in PROMPTS if name in names), "prompt")
    return (PREMISE, prompt) if PREMISE in names else (prompt,)


def _options(given: dict[str, str], names: list[str]) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """Return the columns of options; those of the right and of the wrong ones, where they stand apart."""
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
    for correct, incorrect in APART:
        if {correct, *incorrect} <= set(names):
            return (), correct, incorrect
    return ((MARKED,) if MARKED in names else tuple("AB")), None, ()


def _several(path: str, names: list[str]) -> tuple[str, ...]:
    return (path,) if path in names else tuple(each.strip() for each in path.split(","))


def _numbered(names: list[str]) -> tuple[str, ...]:
    """Return the columns that differ in a last letter or number alone, from a or A, 0 or 1 on and without a gap."""
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
    """Return the columns of answers; of those with names that are known, one with answers goes before one without."""
    if "answer" in given:
        return (given["answer"],) if given["answer"] else ()
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


def _check_given(exam: str, given: dict[str, str], names: list[str]) -> None:
    """Raise `InputError` unless every column that is given is there."""
    for part, path in given.items():
        for each in _several(path, names) if path else ():
            if each not in names and each.partition(".")[0] not in {name.partition(".")[0] for name in names}:
                raise InputError(
                    f"{exam}: --columns {part}={path}, but {_missing(each, names)}; found {_listed(names)}"
                )


def _check_present(exam: str, columns: Columns, names: list[str], given: dict[str, str]) -> None:
    """Raise `InputError` that says all columns which are missing, or seem to have been meant by others."""
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
    """Whether a column that is not read has the name of an option."""
    plural = re.fullmatch("[a-z]{2,}s|opt", name, re.IGNORECASE)
    return bool(ONE_MORE.fullmatch(name)) and not plural


def _missing(name: str, names: Iterable[str], like: str | None = None) -> str:
    like = like or _same(name, names) or next(iter(difflib.get_close_matches(name, names, 1, 0.75)), None)
    return f"no column {name!r}" + (f"; did you mean {like!r}?" if like else "")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _same(name: str, names: Iterable[str]) -> str | None:
    """Return a name that differs from another in case and punctuation alone."""
    return next((each for each in names if _plain(each) == _plain(name)), None)


def _like_answer(names: Iterable[str]) -> str | None:
    """Return a name that seems to be of a column of answers, where there is none of a name that is known."""
    alone = ("label", "labels", "gold", "target", "targets", "key", "truth", "right", "solution", "ans", "correct")
    for name in names:
        plain = _plain(name)
        if plain in alone or difflib.SequenceMatcher(None, plain, "answer").ratio() >= 0.75:
            return name
    return next((name for name in names if _plain(name).startswith(("answer", "correct", "right"))), None)


def _listed(names: list[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if names[20:] else "")
