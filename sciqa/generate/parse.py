"""Parse a model's replies: one JSON object with exactly the fields that were asked for, or the fault of the reply.

A Markdown fence around the object is taken off; nothing else is repaired.
"""

import json
import re
import string

from sciqa.generate.options import Kind

#: Faults of a reply, each with what it means; they are values of the column `fault`.
REPLY_FAULTS = {
    "too-long": "the prompt and a reply are longer than the model's limit",
    "refused": "the server refuses the passage",
    "not-json": "not one JSON object, or more than that",
    "wrong-keys": "a field is missing or too much, or stands there twice",
    "wrong-type": "a field is not text, or not text that can be stored",
    "empty-text": "a field is empty",
    "wrong-options": "not the letters that were asked for, one for each option",
    "wrong-answer": "the answer is not the letter of an option",
}
#: Fields of each kind of reply; `input` alone may be empty.
FIELDS: dict[Kind, tuple[str, ...]] = {
    "questions": ("prompt", "options", "answer", "sentence"),
    "instructions": ("instruction", "input", "output"),
}
FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)


class ReplyError(Exception):
    """A reply that is not what was asked for; its text is one of `REPLY_FAULTS`."""


def parse_reply(text: str, kind: Kind, choices: int) -> dict[str, str]:
    """Return the fields of a reply, without white space around them.

    The options of a question are the fields `A`, `B`, … beside `prompt`, `answer` and `sentence`.

    Args:
        text: the reply.
        kind: what was asked for.
        choices: number of options of a question.

    Raises:
        ReplyError: the reply has a fault.
    """
    found = _read_object(text)
    if set(found) != set(FIELDS[kind]):
        raise ReplyError("wrong-keys")
    if kind == "instructions":
        return {name: _text(found[name], may_be_empty=name == "input") for name in FIELDS[kind]}
    options = found.pop("options")
    letters = string.ascii_uppercase[:choices]
    if not isinstance(options, dict) or sorted(options) != list(letters):
        raise ReplyError("wrong-options")
    fields = {name: _text(value) for name, value in found.items()}
    fields |= {letter: _text(options[letter]) for letter in letters}
    if fields["answer"] not in options:
        raise ReplyError("wrong-answer")
    return fields


def _read_object(text: str) -> dict:
    text = text.strip()
    if fenced := FENCED.fullmatch(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ReplyError("not-json") from error
    if not isinstance(found, dict):
        raise ReplyError("not-json")
    return found


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ReplyError("wrong-keys")
    return found


def _text(value: object, may_be_empty: bool = False) -> str:
    try:
        if not isinstance(value, str) or "\0" in value:
            raise ReplyError("wrong-type")
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ReplyError("wrong-type") from error
    if not (value := value.strip()) and not may_be_empty:
        raise ReplyError("empty-text")
    return value


def reply_schema(kind: Kind, choices: int) -> dict:
    """Return the JSON schema of a reply, for servers that constrain what a model writes."""

    def object_of(fields: dict[str, dict]) -> dict:
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    text = {"type": "string"}
    fields: dict[str, dict] = dict.fromkeys(FIELDS[kind], text)
    if kind == "questions":
        letters = list(string.ascii_uppercase[:choices])
        fields |= {"options": object_of(dict.fromkeys(letters, text)), "answer": {"type": "string", "enum": letters}}
    return object_of(fields)
