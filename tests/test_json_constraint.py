"""Replies limited to a JSON schema: a model with random weights writes nothing else, whatever seed and batch."""

import json

import pytest
import torch
from tiny import tiny_folder

from sciqa.generate import replies
from sciqa.generate.local_writer import LocalWriter
from sciqa.generate.replies import GenerateReplyError, parse_reply, reply_schema, reply_sentences
from sciqa.models.decoding import decoding_end_tokens
from sciqa.models.json_constraint import JsonConstraint, constraint_tokenizer
from sciqa.models.prompt_template import TemplatePrompt

PASSAGE = 'Iron “rusts”.\nIt is called "Fe" – or C:\\iron. It melts at 1538 °C.'
SHORT = {"prompt": 40, "options": 12, "sentence": 600, "instruction": 40, "input": 20, "output": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("tiny"), "llama", initializer_range=0.2, max_position_embeddings=4096)


def make_writer(folder, **more):
    given = {"model": folder, "precision": "float32", "device": "cpu", "threads": 1, "batch": 8, "tokens": 400}
    return LocalWriter(**given | {"seed": 0, "draws": True, "temperature": 2.0} | more)


@pytest.fixture(scope="module")
def writer(folder):
    return make_writer(folder)


def ask(writer, kind, names, choices=3):
    schemas = [reply_schema(kind, choices, "bounded", PASSAGE)] * len(names)
    return writer.write([TemplatePrompt("", [], f"Of {name}: {PASSAGE}") for name in names], names, "", schemas)


@pytest.mark.parametrize("kind", ["questions", "instructions"])
def test_every_drawn_reply_parses(writer, monkeypatch, kind):
    monkeypatch.setattr(replies, "LONGEST", SHORT)
    names = [f"{number}-0" for number in range(12)]
    written = ask(writer, kind, names)
    fields = [parse_reply(reply.text, kind, 3) for reply in written]
    assert len({reply.text for reply in written}) == len(names)
    for reply, each in zip(written, fields, strict=True):
        assert reply.fault is None
        assert reply.tokens_out < 400
        assert all(len(value) <= SHORT.get(name, 12) for name, value in each.items() if name != "sentence")
    if kind == "questions":
        assert {each["sentence"] for each in fields} == set(reply_sentences(PASSAGE))
        assert {each["answer"] for each in fields} == set("ABC")
    alone = [ask(writer, kind, [name])[0] for name in names[:3]]
    assert alone == written[:3]
    monkeypatch.setattr(writer, "seed", 1)
    assert not {reply.text for reply in ask(writer, kind, names)} & {reply.text for reply in written}


def test_the_likeliest_reply_is_one_too_and_a_cut_one_is_counted(folder, writer, monkeypatch):
    monkeypatch.setattr(replies, "LONGEST", SHORT)
    monkeypatch.setattr(writer, "draws", False)
    (reply,) = ask(writer, "questions", ["1-0"])
    assert parse_reply(reply.text, "questions", 3)["sentence"] in reply_sentences(PASSAGE)
    assert ask(writer, "questions", ["2-0", "1-0"])[1].text == ask(writer, "questions", ["1-0", "3-0"])[0].text
    monkeypatch.setattr(writer, "tokens", reply.tokens_out - 5)
    (cut,) = ask(writer, "questions", ["1-0"])
    assert reply.text.startswith(cut.text)
    with pytest.raises(GenerateReplyError, match="not-json"):
        parse_reply(cut.text, "questions", 3, "bounded")
    (free,) = writer.write([TemplatePrompt("", [], "Of it")], ["1-0"], "")
    with pytest.raises(GenerateReplyError, match="not-json"):
        parse_reply(free.text, "questions", 3)


def test_texts_of_full_length_count_as_cut(monkeypatch):
    monkeypatch.setattr(replies, "LONGEST", SHORT)
    question = {"prompt": "Why?", "options": {"A": "x" * 11, "B": "y"}, "answer": "A", "sentence": "z" * 700}
    assert parse_reply(json.dumps(question), "questions", 2, "bounded")["A"] == "x" * 11
    longer = json.dumps(question | {"options": {"A": "x" * 12, "B": "y"}})
    with pytest.raises(GenerateReplyError, match="cut-text"):
        parse_reply(longer, "questions", 2, "bounded")
    assert parse_reply(longer, "questions", 2, "sentences")["A"] == "x" * 12


def test_the_constraint_allows_exactly_what_the_schema_does(writer):
    tokenizer, encode = constraint_tokenizer(writer.scorer), writer.scorer.text.encode
    schema = {"type": "object", "properties": {"a": {"enum": ["no", "yes"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    (tokens,) = encode(['{"a": "no"}'], start=False)
    width = len(writer.scorer.tokenizer) + 7  # models have spare rows of embeddings
    constraint, allowed = JsonConstraint(tokenizer, [schema] * 2), []
    for step in range(len(tokens) + 1):
        ids = torch.tensor([[7, *tokens[:step]]] * 2)
        scores = constraint(ids, torch.zeros(2, width))
        allowed.append([set(row.isfinite().nonzero().flatten().tolist()) for row in scores])
        assert allowed[-1][0] == allowed[-1][1]
    assert all(token in allowed[step][0] for step, token in enumerate(tokens))
    assert allowed[-1][0] == set(decoding_end_tokens(writer.scorer))
    assert max(max(each[0]) for each in allowed) < width - 7
    with pytest.raises(ValueError):
        JsonConstraint(tokenizer, [{"type": "nonsense"}])
