"""Parse a model's replies: one JSON object with exactly the fields that were asked for, or the fault of the reply.

A Markdown fence around the object is taken off; nothing else is repaired.
"""

import json
import re
import string
from typing import Literal

from sciqa.audit.words import split_words
from sciqa.corpus.chunking import split_sentences
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
    "cut-text": "a text is as long as the schema lets a local model write it, so it may be cut",
}
#: Fields of each kind of reply, in the order of the schema: what the model decides first comes first. `input` alone may
#: be empty.
FIELDS: dict[Kind, tuple[str, ...]] = {
    "questions": ("sentence", "prompt", "answer", "options"),
    "instructions": ("instruction", "input", "output"),
}
#: Forms of the schema: `fields` names them alone; in `sentences` the field `sentence` is one of the passage's;
#: `bounded` also limits the texts to `LONGEST` characters, none of them empty; `free` is no schema.
SchemaForm = Literal["bounded", "sentences", "fields", "free"]
#: Most characters of texts in the form `bounded`; one of that length counts as cut.
LONGEST = {"prompt": 300, "options": 150, "sentence": 600, "instruction": 300, "input": 600, "output": 600}
#: Characters of these texts, as regular expressions: within, all but control characters; at their ends, visible ones.
ANY, VISIBLE = r"[^\x00-\x08\x0b-\x1f\x7f]", r"[^\s\x00-\x1f\x7f]"
FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)


class GenerateReplyError(Exception):
    """A reply that is not what was asked for; its text is one of `REPLY_FAULTS`."""


def parse_reply(text: str, kind: Kind, choices: int, form: SchemaForm = "free") -> dict[str, str]:
    """Return the fields of a reply, without white space around them.

    The options of a question are the fields `A`, `B`, … beside `prompt`, `answer` and `sentence`. `form` is that of the
    schema that the model was limited to.

    Raises:
        GenerateReplyError: the reply has a fault.
    """
    found = _read_object(text)
    if set(found) != set(FIELDS[kind]):
        raise GenerateReplyError("wrong-keys")
    fields = _read_fields(found, kind, choices)
    written = {name: value for name, value in fields.items() if name != "sentence"}  # which is the passage's
    if form == "bounded" and any(
        len(value) >= LONGEST.get(name, LONGEST["options"]) for name, value in written.items()
    ):
        raise GenerateReplyError("cut-text")
    return fields


def _read_fields(found: dict, kind: Kind, choices: int) -> dict[str, str]:
    if kind == "instructions":
        return {name: _text(found[name], may_be_empty=name == "input") for name in FIELDS[kind]}
    options = found.pop("options")
    letters = string.ascii_uppercase[:choices]
    if not isinstance(options, dict) or sorted(options) != list(letters):
        raise GenerateReplyError("wrong-options")
    fields = {name: _text(value) for name, value in found.items()}
    fields |= {letter: _text(options[letter]) for letter in letters}
    if fields["answer"] not in options:
        raise GenerateReplyError("wrong-answer")
    return fields


def _read_object(text: str) -> dict:
    text = text.strip()
    if fenced := FENCED.fullmatch(text):
        text = fenced[1]
    try:
        found = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise GenerateReplyError("not-json") from error
    if not isinstance(found, dict):
        raise GenerateReplyError("not-json")
    return found


def _without_repeats(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise GenerateReplyError("wrong-keys")
    return found


def _text(value: object, may_be_empty: bool = False) -> str:
    try:
        if not isinstance(value, str) or "\0" in value:
            raise GenerateReplyError("wrong-type")
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise GenerateReplyError("wrong-type") from error
    if not (value := value.strip()) and not may_be_empty:
        raise GenerateReplyError("empty-text")
    return value


def reply_schema(kind: Kind, choices: int, form: SchemaForm, passage: str) -> dict | None:
    """Return the JSON schema of a reply, for engines that limit what a model writes; None in the form `free`."""
    if form == "free":
        return None
    letters = list(string.ascii_uppercase[:choices])
    sentences = [] if form == "fields" else reply_sentences(passage)

    def object_of(fields: dict[str, dict]) -> dict:
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def text(name: str) -> dict:
        if form != "bounded":
            return {"type": "string"}
        pattern = f"{VISIBLE}({ANY}{{0,{LONGEST[name] - 2}}}{VISIBLE})?"
        return {"type": "string", "pattern": f"^({pattern})?$" if name == "input" else f"^{pattern}$"}

    def field(name: str) -> dict:
        if name == "options":
            return object_of(dict.fromkeys(letters, text(name)))
        chosen = {"answer": letters, "sentence": sentences}.get(name)
        return {"type": "string", "enum": chosen} if chosen else text(name)

    return object_of({name: field(name) for name in FIELDS[kind]})


def reply_sentences(passage: str) -> list[str]:
    """Return the different sentences of a passage that have words, each on one line."""
    lines = [" ".join(sentence.split()) for sentence in split_sentences(passage)]
    return list(dict.fromkeys(line for line in lines if split_words(line)))
