"""Instructions with their answers: rows as they are, and examples of `--objective instruct` as messages of a chat."""

from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_option_text
from sciqa.exam.exam_files import read_exam_files
from sciqa.exam.row import Row

Message = dict[str, str]
ROLES = ("system", "user", "assistant")


def read_instructions(path: str) -> list[dict[str, str]]:
    """Return the rows of a file or folder of instructions.

    Returns:
        By row the texts `id` (by default the row's number), `instruction`, `input` (it may be empty) and `output`.

    Raises:
        InputError: names file, row and column of what is missing, empty or no text.
    """
    rows = read_exam_files(path)
    return [{"id": name} | _texts(row) for name, row in zip(instruction_ids(rows), rows, strict=True)]


def instruction_ids(rows: list[Row]) -> list[str]:
    """Return the id of each row, by default its number from 1 on.

    Raises:
        InputError: an id that is no text, or stands twice.
    """
    seen: dict[str, Row] = {}
    for number, row in enumerate(rows, 1):
        try:
            name = answer_option_text(row.cells.get("id")) or str(number)
        except ValueError as error:
            raise row.error("id", str(error)) from error
        if first := seen.get(name):
            raise row.error("id", f"{name!r} is that of row {first.number} of {first.path} already; ids must differ")
        seen[name] = row
    return list(seen)


def read_instructions_examples(path: str) -> list[dict]:
    """Return the training examples in a file of instructions.

    Args:
        path: JSONL, JSON, CSV, Parquet or Arrow. Its columns are `instruction`, `input` (may be empty) and `output`, as
            in Alpaca's file, or `messages`, a list of {role, content}.

    Returns:
        By example the messages `prompt`, and `completion`, the one message that is learned. A conversation gives an
        example for each message of the assistant.

    Raises:
        InputError: names file, row and column of what is missing, empty or no text.
    """
    return [example for row in read_exam_files(path) for example in _examples(row)]


def instruction_text(row: Row, column: str, optional: bool = False) -> str:
    """Return the text of a cell; if it is `optional`, "" for a missing or empty one.

    Raises:
        InputError: the cell is missing or empty, or holds something else than text.
    """
    value = row.cells.get(column)
    if optional and value in (None, ""):
        return ""
    return _checked_text(value, f"{row.place}, column {column!r}")


def instruction_messages(row: Row, column: str) -> list[Message]:
    """Return the messages in a cell.

    Raises:
        InputError: it is not a list of {role, content} with a known role and some text in each.
    """
    value, place = row.cells[column], f"{row.place}, column {column!r}"
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: a list of messages {{role, content}} expected")
    found = []
    for number, message in enumerate(value, 1):
        where = f"{place}, message {number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"{where}: role {role!r} given, one of {', '.join(ROLES)} expected")
        found.append({"role": role, "content": _checked_text(message.get("content"), where)})
    return found


def instruction_prompt(texts: dict[str, str]) -> str:
    """Return what a model is asked for the texts `instruction` and `input`."""
    return "\n\n".join(filter(None, [texts["instruction"], texts["input"]]))


def _texts(row: Row) -> dict[str, str]:
    """Return the texts of a row of instructions, without white space around them."""
    return {
        name: instruction_text(row, name, optional=name == "input").strip()
        for name in ("instruction", "input", "output")
    }


def _examples(row: Row) -> list[dict]:
    if "messages" not in row.cells:
        texts = _texts(row)
        answer = {"role": "assistant", "content": texts["output"]}
        return [{"prompt": [{"role": "user", "content": instruction_prompt(texts)}], "completion": [answer]}]
    messages = instruction_messages(row, "messages")
    examples = [
        {"prompt": messages[:at], "completion": [message]}
        for at, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    if not examples or not examples[0]["prompt"]:
        raise InputError(f"{row.place}, column 'messages': a message of the user and the assistant's answer expected")
    return examples


def _checked_text(value: object, place: str) -> str:
    if type(value) is not str:  # numbers are read as a kind of text
        given = "nothing" if value is None else f"{value!r:.40}"
        raise InputError(f"{place}: {given} given, text expected")
    try:
        if answer_option_text(value) is None:
            raise InputError(f"{place}: empty, text expected; fill it, or leave the row out")
    except ValueError as error:
        raise InputError(f"{place}: {error}; write it otherwise, or leave the row out") from error
    return value
