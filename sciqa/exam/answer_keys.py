"""Right options: find out whether a cell of the answer column is a letter, a label, a number or an option's text."""

import re
from typing import Literal, NamedTuple

from sciqa.core.errors import InputError
from sciqa.exam.answer_options import BEFORE, LetteredAnswerOptions, answer_option_text, is_number_answer_option
from sciqa.exam.column_cells import find_column_cell, structured_column_cell
from sciqa.exam.columns import Columns
from sciqa.exam.row import LETTERS, Row

#: Values of `--answers-from`.
AnswersFrom = Literal["0", "1", "letter", "text"]
NUMBER = re.compile(r"(0|[1-9]\d*)(?:\.0+)?", re.ASCII)
LETTER = re.compile(r"\(?([A-Za-z])[.):]?\)?")


class AnswerKeyReadings(NamedTuple):
    """Possible readings of an answer cell; a reading that does not apply is None.

    Attributes:
        text: text of the cell; None if it is empty.
        letter: index of the option with this letter or label.
        number: the number in the cell, unchanged.
        typed: whether the file stores a number, and not text.
        place: index of the option with this text.
        same: whether several options have this text.
    """

    text: str | None
    letter: int | None = None
    number: int | None = None
    typed: bool = False
    place: int | None = None
    same: bool = False


def _read(cell: object, options: LetteredAnswerOptions) -> AnswerKeyReadings:
    cell = cell if isinstance(cell, str) and cell.strip() in options.texts else structured_column_cell(cell)
    if isinstance(cell, list):
        if len(cell) > 1:
            raise ValueError(f"{len(cell)} right options found, one expected")
        cell = cell[0] if cell else None
    text = answer_option_text(cell)
    if text is None or (text in ("-1", "-1.0") and text not in options.texts):  # marks a missing answer
        return AnswerKeyReadings(None)
    number = NUMBER.fullmatch(text)
    lettered = LETTER.fullmatch(text)
    same = options.texts.count(text)
    letter = LETTERS.find(lettered[1].upper()) if lettered else None
    letter = letter if letter is not None and letter < len(options.texts) else None
    if options.labels:
        names = (text.casefold(), number and number[1], lettered and lettered[1].casefold())
        letter = next((at for at, label in enumerate(options.labels) if label.casefold() in names), None)
    if not same and letter is None and (before := BEFORE.match(text)):
        named = LETTERS.find(before[1].upper())
        if named < len(options.texts) and options.texts[named] == text[before.end() :].strip():
            letter = named
    return AnswerKeyReadings(
        text,
        letter,
        int(number[1]) if number and len(text) < 9 else None,
        is_number_answer_option(cell),
        options.texts.index(text) if same else None,
        same > 1,
    )


class AnswerKeyColumn:
    """A column of answers, with all readings of its cells and the choice among them.

    Args:
        name: name of the column.
        rows: rows of the exam.
        options: options of each row.
        columns: columns of the exam. If one cell lists all options, answers stored as numbers count from 0; if the
            columns are those of the exam table itself, a letter is not taken for an option's text.
    """

    def __init__(self, name: str, rows: list[Row], options: list[LetteredAnswerOptions], columns: Columns) -> None:
        self.name, self.rows, self.options, self.own = name, rows, options, columns.own
        self.counted, self.listed = columns.first, len(columns.options) == 1
        self.readings: list[AnswerKeyReadings] = []
        for row, each in zip(rows, options, strict=True):
            try:
                self.readings.append(_read(find_column_cell(row.cells, name), each))
            except ValueError as error:
                raise row.error(name, str(error)) from error

    def places(self, meant: AnswersFrom | None) -> list[int | None]:
        """Return the index of each right option, None where the cell is empty; an empty text means what None does.

        Raises:
            InputError: a cell matches no option, or may mean two.
        """
        meant = meant or None
        self.first = int(meant) if meant in ("0", "1") else self._first()
        given = [reading for reading in self.readings if reading.text is not None]
        self.all_text = all(reading.place is not None for reading in given)
        self.all_letters = all(reading.letter is not None for reading in given)
        keyed = [reading.letter is not None or reading.number is not None for reading in given]
        in_range = all(
            reading.letter is not None or (reading.number or 0) <= len(options.texts)
            for reading, options in zip(self.readings, self.options, strict=True)
        )
        if meant is None and self.all_text and not (all(keyed) and in_range):
            meant = "text"
        read = {None: self._any, "text": self._text, "letter": self._letter, "0": self._key, "1": self._key}[meant]
        return [None if reading.text is None else read(at) for at, reading in enumerate(self.readings)]

    def check_agrees(self, places: list[int | None], other: str) -> None:
        """Raise `InputError` unless each answer in this column agrees with the index read from another column."""
        for at, (place, reading) in enumerate(zip(places, self.readings, strict=True)):
            if reading.text is None:
                continue
            if place is None:
                raise self.rows[at].error(other, f"empty, but column {self.name!r} says {reading.text!r}")
            means = {reading.letter, reading.place, reading.number, (reading.number or 0) - 1}
            same = reading.same and self.options[at].texts[place] == reading.text
            if place not in means and not same:
                raise self._error(at, f"{reading.text!r} found, but column {other!r} says {LETTERS[place]}")

    def _error(self, at: int, problem: str) -> InputError:
        return self.rows[at].error(self.name, problem)

    def _first(self) -> int | None:
        """Return the first option's number, as known, or as shown by a 0 or the last option's number; else None."""
        numbered = [at for at, each in enumerate(self.readings) if each.number is not None and each.letter is None]
        if not numbered:
            return 0
        if self.counted:
            return int(self.counted)
        zero = next((at for at in numbered if self.readings[at].number == 0), None)
        last = next((at for at in numbered if self.readings[at].number == len(self.options[at].texts)), None)
        if zero is not None and last is not None:
            raise self._error(last, f"{self.readings[last].text!r} found, but elsewhere 0 is, for the first")
        from_zero = self.own or (self.listed and all(map(self._trusted, numbered)))
        if zero is None and last is None and (len(numbered) > 1 or not from_zero):
            return None
        return 0 if from_zero or last is None else 1

    def _trusted(self, at: int) -> bool:
        """Whether a number cannot be an option's text, since the file stores it as a number and options as text."""
        return self.listed and self.readings[at].typed and not self.options[at].numbers

    def _text(self, at: int) -> int:
        reading = self.readings[at]
        if reading.same:
            raise self._error(at, f"{reading.text!r} found, the text of several options; name one by its letter")
        if reading.place is None:
            raise self._error(at, f"{reading.text!r} found, the text of an option expected")
        return reading.place

    def _letter(self, at: int) -> int:
        if (letter := self.readings[at].letter) is None:
            raise self._error(at, f"{self.readings[at].text!r} found, {self._letters(at)} expected")
        return letter

    def _key(self, at: int) -> int:
        reading = self.readings[at]
        if reading.number is None:
            return self._letter(at)
        place = reading.number - (self.first or 0)
        if not 0 <= place < len(self.options[at].texts):
            raise self._expected(at)
        if self.options[at].sorted:
            raise self._error(
                at,
                f"{reading.text!r} found, but the labels of the options are not in order, so that an index may count "
                f"them as they stand or as they are labelled; {self._letters(at)} expected",
            )
        return place

    def _any(self, at: int) -> int:
        reading = self.readings[at]
        if reading.letter is not None:
            other = reading.same or reading.place not in (None, reading.letter)
            if other and not (self.all_letters and (self.own or not self.all_text)):
                raise self._two(at, "letter or label")
            return reading.letter
        if reading.number is None and reading.place is not None:
            return self._text(at)
        if reading.number is None or "".join(self.options[at].labels).isdecimal():
            raise self._expected(at)
        agrees = self.first is not None and reading.place == reading.number - self.first and not reading.same
        if reading.place is not None and not agrees and not self._trusted(at):
            raise self._two(at, "number")
        if self.first is None:
            raise self._error(
                at,
                f"{reading.text!r} found, and nowhere a 0 or the number of a last option; say by --answers-from 0 or "
                "--answers-from 1 what the first option is",
            )
        return self._key(at)

    def _two(self, at: int, other: str) -> InputError:
        return self._error(
            at,
            f"{self.readings[at].text!r} found, which is the text of an option and may be a {other} too; say by "
            "--answers-from what it is: text, letter, or 0 or 1, the number of the first option",
        )

    def _letters(self, at: int) -> str:
        options = self.options[at]
        if options.labels:
            return f"one of the labels {', '.join(options.labels)}"
        return f"a letter from A to {LETTERS[len(options.texts) - 1]}"

    def _expected(self, at: int) -> InputError:
        reading, last, first = self.readings[at], len(self.options[at].texts) - 1, self.first or 0
        what = f"{reading.text!r} found, {self._letters(at)} or an index from {first} to {last + first} expected"
        if reading.number == last + 1 and not first:
            what += "; where the first option is 1, pass --answers-from 1"
        return self._error(at, what)
