"""Questions and instructions from passages: faults counted by hand, nothing asked twice, tables that steps take."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from api_server import KEY, KEY_NAME, ApiServer, chat_answer, prompt_of, weights
from conftest import write_jsonl
from tiny import tiny_folder

from sciqa import cli
from sciqa.core import hashes, storage, tables
from sciqa.core.adapter_files import adapter_hash, describe_adapter_files
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED
from sciqa.corpus import dedup
from sciqa.exam import open_exam, read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.exam_files import read_exam_files
from sciqa.exam.options import ExamOptions
from sciqa.generate import GenerateOptions, generate
from sciqa.generate.candidates import CandidatePart, WriteCandidates, candidates_path
from sciqa.generate.checks import QuestionChecker, checker_options
from sciqa.generate.filter_results import filter_result_rejects_path, filter_result_schema
from sciqa.generate.filters import filter_key_words, filter_option_order, filter_question, filter_repeat_text
from sciqa.generate.generate import _find_writer, generate_parts
from sciqa.generate.local_writer import LocalWriter
from sciqa.generate.passage_template import read_passage_template
from sciqa.generate.replies import GenerateReplyError, parse_reply, reply_schema, reply_sentences
from sciqa.generate.server_writer import ServerWriter, find_writer_server
from sciqa.models.prompt_template import TemplatePrompt
from sciqa.predict.api import api_letter_prompt
from sciqa.predict.api_client import try_client_forms
from sciqa.predict.readers import READERS
from sciqa.predict.scored_answers import ScoredAnswer

GOOD = {
    "prompt": "What kind of gas is helium?",
    "options": {"A": "A noble one", "B": "A light one", "C": "A heavy one"},
}
GOOD |= {"answer": "A", "sentence": "Helium is a noble gas."}
INSTRUCTION = {"instruction": "Name a noble gas.", "input": "", "output": "Helium"}
IRON = {"prompt": "What happens to iron in time?", "options": {"A": "It rusts", "B": "It is a metal", "C": "It melts"}}
IRON |= {"answer": "A", "sentence": "It rusts."}
WHALE = {"prompt": "What does a whale do?", "options": {"A": "It swims", "B": "It is a mammal", "C": "It flies"}}
WHALE |= {"answer": "A", "sentence": "it  SWIMS"}


def changed(record, **changes):
    return json.dumps(record | changes)


def options(**changes):
    return GOOD["options"] | changes


FENCED = f"```json\n{changed(GOOD, prompt='How heavy is helium?', answer='B', sentence='It is light.')}\n```"
#: What a server replies about each passage, by the number of the draw, and the fault that is expected of it.
REPLIES = {
    "Helium": [
        (changed(GOOD), None),
        (f"Here it is: {changed(GOOD)}", "not-json"),
        (changed(GOOD, prompt="Which kind of gas is HELIUM", options=options(C="A solid one")), "near-duplicate"),
        (json.dumps({name: GOOD[name] for name in ("prompt", "options", "answer")}), "wrong-keys"),
        (FENCED, None),
    ],
    "Iron": [
        (changed(IRON, answer="D"), "wrong-answer"),
        (changed(IRON, options=IRON["options"] | {"D": "It floats"}), "wrong-options"),
        (changed(IRON, options=IRON["options"] | {"C": "it rusts!"}), "equal-options"),
        (changed(IRON, sentence="Iron rusts."), "sentence-not-found"),
        (changed(IRON, options=IRON["options"] | {"B": "It bends"}), "word-overlap"),
    ],
    "A": [
        (changed(WHALE, options=WHALE["options"] | {"C": "Swimming, it does"}), "paraphrased-options"),
        (changed(WHALE, prompt=" "), "empty-text"),
        (changed(WHALE, prompt="Which of these does a whale do, as all of them do?"), "exam-copy"),
        (changed(WHALE, prompt=3), "wrong-type"),
        (changed(WHALE), None),
    ],
}
EXPECTED = Counter(fault for replies in REPLIES.values() for _, fault in replies)
DRAWS = 5


def reply(body):
    """Return the prepared reply to a request; draws are numbered from 0 by their seeds."""
    asked = prompt_of(body)
    title = next(title for title in REPLIES if f'"{title}"' in asked)
    return REPLIES[title][body["seed"]][0]


@pytest.fixture
def server():
    started = ApiServer(key=KEY)
    started.reply = reply
    yield started
    started.go.set()
    started.shutdown()
    started.server_close()


def asked_of(server, run, **more):
    about = {"engine": "openai", "base_url": server.url, "model": "small", "api_key_env": KEY_NAME, "choices": 3}
    return GenerateOptions(**run | about | {"per_passage": DRAWS, "part_passages": 1, "licence": "CC0"} | more)


@pytest.fixture
def exam(tmp_path):
    """An exam that one of the replies copies, but for the order of its options."""
    row = {"prompt": "Which of these does a whale do, as all of them do", "A": "it flies", "B": "It swims."}
    write_jsonl(tmp_path / "named.jsonl", [row | {"C": "It is a mammal", "answer": "B"}])
    return str(tmp_path / "named.jsonl")


def test_every_reply_is_kept_or_counted_and_none_is_asked_for_twice(server, indexed, exam, cluster, capsys):
    server.revoke = 7
    options = asked_of(server, indexed, against=(exam,), similarity=1.0, concurrency=2, price=(1.0, 1.0))
    with pytest.raises(InputError, match=r"the server refuses the key \(status 401\)"):
        generate(options)
    first = len(server.answered)
    assert 7 <= first < 15
    assert not list(Path(options.folder).glob("*"))
    server.revoke = 1e9
    summary = generate(options)
    assert len(server.answered) == 15
    assert set(server.answered.values()) == {1}
    assert "3 questions of 15 replies to 3 passages; rejected: 1 not-json, 1 wrong-keys" in summary.made
    assert "tokens read and" in summary.made
    outcomes = {row["outcome"]: row["replies"] for row in summary.details["Replies"]}
    assert outcomes == {name or "kept": number for name, number in EXPECTED.items()}
    rejected = [
        row
        for part in range(3)
        for row in tables.read_table(filter_result_rejects_path(options.folder, part)).to_pylist()
    ]
    for row in rejected:
        passage_title, draw = row["title"], int(row["id"].rpartition("-")[2])
        assert (row["reply"], row["fault"]) == REPLIES[passage_title][draw]

    exam_rows = read_exam(options.folder).to_pylist()
    assert read_exam(options.folder).schema.field("is_question").type == "bool"
    assert [row["prompt"] for row in exam_rows] == [GOOD["prompt"], "How heavy is helium?", WHALE["prompt"]]
    assert open_exam(ExamOptions(exam=options.folder, output=options.output)).answers == 3
    right = [row[row["answer"]] for row in exam_rows]
    assert right == ["A noble one", "A light one", "It swims"]
    assert [row["context"] for row in exam_rows[:2]] == ["Helium is a noble gas. It is light."] * 2
    passages = {row["title"]: row for row in tables.read_table(options.passages).to_pylist()}
    for row in exam_rows:
        assert row["passage_id"] == passages[row["title"]]["passage_id"]
        assert (row["generator"], row["generator_revision"], row["licence"]) == ("small", server.url, "CC0")
        assert row["template"] == hashes.fingerprint(read_passage_template(None, "questions").text)
    shapes = {"trl": [], "alpaca": []}
    for shape, lines in shapes.items():
        for path in sorted(Path(options.output, "jsonl/questions", shape).glob("*.jsonl")):
            lines += map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert [line["output"].partition(". ")[2] for line in shapes["alpaca"]] == right
    assert shapes["alpaca"][0]["instruction"] == GOOD["prompt"]
    assert shapes["alpaca"][0]["output"] in shapes["alpaca"][0]["input"].splitlines()
    assert [line["completion"][0]["content"] for line in shapes["trl"]] == [row["output"] for row in shapes["alpaca"]]
    assert shapes["trl"][0]["prompt"][0]["content"].startswith(f"Question: {GOOD['prompt']}\nA. ")

    before = sorted(Path(options.output).rglob("*"))
    assert generate(options).made.endswith("kept as it was")
    assert sorted(Path(options.output).rglob("*")) == before
    assert sum(server.answered.values()) == 15
    with pytest.raises(InputError, match=r"made from other inputs \(licence: CC0 there, no now\)"):
        generate(asked_of(server, indexed, against=(exam,), similarity=1.0, licence="no"))
    whole, server.revoke = read_exam_files(f"{options.output}/jsonl/questions/trl"), 16
    with pytest.raises(InputError, match=r"the server refuses the key \(status 401\)"):
        generate(asked_of(server, indexed, against=(exam,), similarity=1.0, licence="no", overwrite=True))
    for folder in ("generated/questions", "jsonl/questions/trl", "jsonl/questions/alpaca"):
        with pytest.raises(InputError, match=f"{folder}: not finished"):
            read_exam_files(f"{options.output}/{folder}")
    assert len(whole) == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not-json"),
        ("[]", "not-json"),
        ("[" * 100_000, "not-json"),
        (changed(GOOD) + changed(GOOD), "not-json"),
        (changed(GOOD)[:-1], "not-json"),
        (changed(GOOD)[:-1] + ', "answer": "B"}', "wrong-keys"),
        (changed(GOOD, more=""), "wrong-keys"),
        (changed(GOOD, options=["a", "b", "c"]), "wrong-options"),
        (changed(GOOD, options={"a": "1", "b": "2", "c": "3"}), "wrong-options"),
        (changed(GOOD, options=options(C=None)), "wrong-type"),
        (changed(GOOD, options=options(C="")), "empty-text"),
        (changed(GOOD, prompt="half \ud83d"), "wrong-type"),
        (changed(GOOD, prompt="\0"), "wrong-type"),
        (changed(GOOD, answer="a"), "wrong-answer"),
        (changed(GOOD, answer="A noble one"), "wrong-answer"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for(text, fault):
    with pytest.raises(GenerateReplyError, match=f"^{fault}$"):
        parse_reply(text, "questions", 3)


def test_a_good_reply_is_taken_as_it_is():
    assert parse_reply(f" {changed(GOOD, prompt=' Why? ')}\n", "questions", 3)["prompt"] == "Why?"
    assert parse_reply(json.dumps(INSTRUCTION), "instructions", 4) == INSTRUCTION
    for name, fault in (("output", "empty-text"), ("instruction", "empty-text")):
        with pytest.raises(GenerateReplyError, match=fault):
            parse_reply(changed(INSTRUCTION, **{name: ""}), "instructions", 4)
    schema = reply_schema("questions", 3, "sentences", "It\nrusts. It is grey. ... It rusts.")
    assert schema["properties"]["answer"]["enum"] == schema["properties"]["options"]["required"] == ["A", "B", "C"]
    assert schema["required"] == ["sentence", "prompt", "answer", "options"]
    assert schema["properties"]["sentence"]["enum"] == ["It rusts.", "It is grey."]
    for form, passage in (("fields", "It rusts."), ("sentences", "...")):
        assert reply_schema("questions", 3, form, passage)["properties"]["sentence"] == {"type": "string"}
    assert reply_schema("questions", 3, "free", "It rusts.") is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("the heart of a whale", "A whale's hearts", True),
        ("it rises", "It is rising.", True),
        ("is a metal", "is not a metal", False),
        ("before the war", "after the war", False),
        ("5 kg", "-5 kg", False),
        ("1.5", "5.1", False),
        ("all of them", "some of them", False),
    ],
)
def test_paraphrases_are_told_by_their_words(one, other, same):
    assert (filter_key_words(one) == filter_key_words(other)) is same
    question = {"prompt": "?", "A": one, "B": other, "C": "zinc", "answer": "C", "sentence": "x"}
    assert (filter_question(question, "X.", ()) == "paraphrased-options") is same
    assert filter_question(question, "X.", ("paraphrased-options",)) is None


def test_word_overlap_is_the_baseline_of_that_name():
    question = {"prompt": "?", "A": "rusts", "B": "melts", "answer": "A", "sentence": "Iron rusts"}
    assert filter_question(question, "Iron rusts.", ()) == "word-overlap"
    assert filter_question(question | {"answer": "B"}, "Iron rusts.", ()) is None
    assert filter_question(question | {"B": "iron"}, "Iron rusts.", ()) is None  # a tie
    assert filter_question(question, "Iron rusts.", ("word-overlap",)) is None


def test_the_right_option_has_no_letter_of_its_own():
    question = parse_reply(changed(GOOD), "questions", 3)
    arranged = [filter_option_order(question, f"passage-{number}") for number in range(60)]
    assert {row[row["answer"]] for row in arranged} == {"A noble one"}
    assert all(sorted(answer_options_of(row).values()) == sorted(GOOD["options"].values()) for row in arranged)
    assert min(Counter(row["answer"] for row in arranged).values()) >= 10  # of 20 by chance


def test_near_duplicates_are_those_with_the_same_words(tmp_path):
    prompts = ["What gas do plants take in?", "Which gas is it that a plant takes in?", "What gas do plants give off?"]
    prompts += ["What gas do plants not take in?", "What metal do plants take in?"]
    rows = [{"id": str(n), "prompt": prompt, "A": "x", "answer": "A"} for n, prompt in enumerate(prompts)]
    texts = [filter_repeat_text(row, "questions") for row in rows]
    assert [texts.count(text) for text in texts] == [2, 2, 1, 1, 1]
    passages = [{"passage_id": f"{n:x}", "title": "", "section": "", "text": text} for n, text in enumerate(texts)]
    path, none = str(tmp_path / "entries.arrow"), np.zeros(0, np.uint64)
    dedup.write_dedup_entries(path, dedup.make_dedup_entries(passages, 0, near=True))
    found = [row for bucket in range(dedup.BUCKETS) for row in dedup.find_duplicate_articles([path], bucket, none)]
    assert {(row["row"], row["repeats"]) for row in found} == {(1, 0)}


class KnowingReader:
    """A reader that finds `yes` with any context, `position` nowhere but first, and knows `fact` without one."""

    def score(self, questions, found):
        scored = []
        for question, rows in zip(questions, found, strict=True):
            letters = answer_options_of(question)
            known = {"fact"} | ({"yes"} if rows else set())
            scores = [float(text in known) for text in letters.values()]
            if "position" in letters.values():
                scores = [1.0] + [0.0] * (len(letters) - 1)
            scored.append(ScoredAnswer(np.array(scores)))
        return scored


def test_a_reader_finds_what_cannot_be_answered_and_what_is_known(monkeypatch):
    monkeypatch.setitem(READERS, "knowing", KnowingReader)
    rights = {"yes": None, "no": "unanswerable", "position": "inconsistent", "fact": "known-without"}
    questions = [{"id": text, "prompt": "?", "A": text, "B": "other", "answer": "A"} for text in rights]
    checker = QuestionChecker("knowing", {})
    assert checker.faults(questions, ["text"] * 4) == list(rights.values())
    assert checker.faults([], []) == []


def test_a_checker_whose_scores_are_no_numbers_rejects_nothing(monkeypatch):
    broken = types.SimpleNamespace(score=lambda asked, _: [ScoredAnswer(np.array([np.nan, 0.0])) for _ in asked])
    monkeypatch.setitem(READERS, "broken", lambda: broken)
    question = {"id": "iron-3", "prompt": "?", "A": "a", "B": "b", "answer": "A"}
    with pytest.raises(InputError, match=r"question 'iron-3', option A: --checker gives .* nan, .*--precision float32"):
        QuestionChecker("broken", {}).faults([question], ["text"])


def test_a_template_of_the_user_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% block system %}Be brief.{% endblock %}Of {{ title }}: {{ text }} ({{ letters[-1] }})\n")
    prompt = read_passage_template(str(path), "questions").render_passage(
        {"title": "Iron", "section": None, "text": "It rusts."}, 5
    )
    assert prompt.messages()[0] == {"role": "system", "content": "Be brief."}
    assert prompt.user == "Of Iron: It rusts. (E)"
    for text, said in {
        "{{ title }}": "mine.jinja: no {{ text }} in it",
        "{{ text }}\n{{ question }}": "mine.jinja, line 2: no variable 'question'; there are title, section, text",
        "{% if %}": "mine.jinja, line 1: ",
        "{{ text }}{{ 1 / 0 }}": "mine.jinja, line 1: division by zero",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError) as error:
            read_passage_template(str(path), "questions")
        assert said in str(error.value)
    path.write_bytes(b"{{ text }} \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_passage_template(str(path), "questions")
    with pytest.raises(InputError, match=r"--template .*/none.jinja: no such file"):
        read_passage_template(str(tmp_path / "none.jinja"), "questions")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "vllm"], "--engine vllm: not in this step; start `vllm serve MODEL`"),
        (["--engine", "openai"], "--base-url: with --engine openai the address of the server expected"),
        (["--base-url", "http://x/v1"], "--base-url: not with --engine torch"),
        (["--choices", "1"], "--choices: 1 given, 2 to 26 expected"),
        (["--per-passage", "0"], "--per-passage: 0 given, at least 1 expected"),
        (["--kind", "instructions", "--checker", "x"], "--checker: answers the options of questions"),
        (["--name", "a/b"], "--name: 'a/b' given"),
        ([], "passages: not there, or not finished; run `sciqa corpus`"),
        (["--against", "none.csv"], "passages: not there, or not finished"),
    ],
)
def test_bad_options_end_with_one_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_server_that_lies_and_one_that_takes_no_schema(server, indexed, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    options = asked_of(server, indexed)
    asked, form = find_writer_server(options)
    assert form == "sentences"
    assert asked.tokens == options.reply_tokens
    server.fail = lambda key, attempt: "refused" if "response_format" in key else None
    assert find_writer_server(options)[1] == "free"
    server.fail = lambda key, attempt: "refused" if r"d\u00e9j\u00e0" in key else None
    assert find_writer_server(options)[1] == "fields"
    server.answers_as = "another"
    with pytest.raises(InputError, match="answers by another model, another"):
        find_writer_server(asked_of(server, indexed, timeout=7.0))
    server.answers_as, server.fail = None, lambda key, attempt: "refused" if "Iron" in key else "500"
    server.fail = lambda key, attempt: "refused" if '\\"Iron\\"' in key else None
    writer = ServerWriter(asked, 3, options)
    prompts = [TemplatePrompt("", [], f'Passage from "{title}"') for title in REPLIES]
    names, folder, schemas = ["a-0", "b-0", "c-0"], str(tmp_path / "replies"), [{"type": "object"}, None, None]
    written = writer.write(prompts, names, folder, schemas)
    assert [each.fault for each in written] == [None, "refused", None]
    assert written[0].text == REPLIES["Helium"][0][0]
    assert sum('{"type": "object"}' in key for key in server.answered) == 1
    assert writer.write(prompts, names, folder, schemas) == written
    assert set(server.answered.values()) == {1}


def test_a_model_that_takes_no_temperature_is_given_none(server, indexed, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    server.fail = lambda key, attempt: "refused" if '"max_tokens"' in key else None
    options = asked_of(server, indexed)
    with pytest.raises(InputError, match="--temperature: small takes none; leave it out"):
        find_writer_server(replace(options, temperature=0.7))
    asked, _ = find_writer_server(options)
    assert asked.newer
    writer = ServerWriter(asked, 1, options)
    assert writer.notes == ["small takes no temperature and no seed: its replies are drawn as it likes"]
    server.fail = lambda key, attempt: None
    try_client_forms.cache_clear()
    plain, _ = find_writer_server(replace(options, temperature=0.7))
    assert ServerWriter(plain, 1, options).notes == []


def test_a_server_without_credit_ends_the_run_and_what_it_refused_is_asked_again(
    server, indexed, tmp_path, monkeypatch
):
    monkeypatch.setenv(KEY_NAME, KEY)
    options = asked_of(server, indexed)
    writer = ServerWriter(find_writer_server(options)[0], 1, options)
    titles = dict(zip("abc", REPLIES, strict=True))

    def faults(*names):
        prompts = [TemplatePrompt("", [], f'Passage from "{titles[name[0]]}"') for name in names]
        written = writer.write(prompts, list(names), str(tmp_path / "replies"), [None] * len(names))
        return [each.fault for each in written]

    server.fail = lambda key, attempt: None if "Helium" in key else "402"
    with pytest.raises(InputError, match="status 402: no credit is left"):
        faults("a-0", "b-0", "c-0")
    server.fail = lambda key, attempt: None if "Helium" in key or "1 + 1" in key else "refused"
    assert faults("b-0", "b-1", "a-1", "c-0") == ["refused", "refused", None, "refused"]
    server.fail = lambda key, attempt: None if "Helium" in key else "refused"
    with pytest.raises(
        InputError, match=r"a short question, .*: refused by .*; once it takes that again, .* run the same"
    ):
        faults("a-0", "b-0", "c-0")
    server.fail = lambda key, attempt: None
    assert faults("a-0", "a-1", "b-0", "b-1", "c-0") == [None] * 5
    assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"choices": {"0": "x"}}, "has no choices, 3 times in a row"),
        ({"choices": [None]}, "has no text"),
        ({"choices": [{"message": {"content": ["x"]}}]}, "has no text"),
        ("half JSON", "is not JSON, or only half of it"),
        ("a page", "has no choices"),
    ],
)
def test_an_endpoint_that_lies_ends_with_one_line(changes, said, server, indexed, here, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setattr("sciqa.predict.api_client.FIRST_WAIT", 0.01)
    if isinstance(changes, str):
        server.fail = lambda *_: changes
    else:
        monkeypatch.setattr("api_server.chat_answer", lambda *about: chat_answer(*about) | changes)
    flags = ["--engine", "openai", "--base-url", server.url, "--model", "small", "--api-key-env", KEY_NAME]
    ended = here("generate", "--kind", "instructions", *flags, "--output", indexed["output"])
    assert ended.returncode == 2
    assert f"a first question: an answer of {server.url} " in " ".join(ended.stderr.split())
    assert said in " ".join(ended.stderr.split())
    assert not Path(indexed["output"], "generated").exists()


def test_tokens_that_are_no_numbers_are_not_counted(server, indexed, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    usage = {"usage": {"prompt_tokens": math.nan, "completion_tokens": "many"}}
    monkeypatch.setattr("api_server.chat_answer", lambda *about: chat_answer(*about) | usage)
    options = asked_of(server, indexed)
    writer = ServerWriter(find_writer_server(options)[0], 1, options)
    (written,) = writer.write(
        [TemplatePrompt("", [], 'Passage from "Helium"')], ["a-0"], str(tmp_path / "replies"), [None]
    )
    assert (written.text, written.tokens_in, written.tokens_out) == (REPLIES["Helium"][0][0], 0, 0)


def tiny_options(indexed, tmp_path, **more):
    model = tiny_folder(tmp_path / "llama", "llama", max_position_embeddings=400)
    return GenerateOptions(**indexed | {"model": model, "reply_tokens": 5, "precision": "float32"} | more)


def test_a_local_model_writes_the_same_in_any_batch(indexed, tmp_path):
    options = tiny_options(indexed, tmp_path, kind="instructions")
    (part, _), _ = generate_parts(options)
    texts = []
    for batch in (1, 3):
        options.reply_batch = batch
        template = read_passage_template(None, options.kind)
        worker = WriteCandidates(options, (template.text, template.name))
        assert worker({"part": part._asdict()}) == {"passages": 2, "notes": []}
        rows = tables.read_table(candidates_path(options.folder, 0)).to_pylist()
        assert [row["fault"] for row in rows] == ["not-json"] * 2
        assert all(0 < row["tokens_out"] <= 5 < row["tokens_in"] for row in rows)
        texts.append([row["reply"] for row in rows])
    assert texts[0] == texts[1]
    drawn = [worker.writer.write([TemplatePrompt("", [], "Why?")] * 2, ["a-0", "a-1"], "") for _ in range(2)]
    assert drawn[0] == drawn[1]
    long = worker.writer.write([TemplatePrompt("", [], "Why? " * 400)], ["a-0"], "")
    assert [each.fault for each in long] == ["too-long"]
    with torch.no_grad():
        worker.writer.scorer.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(InputError, match=r"LlamaForCausalLM: its scores of a next token .*--precision float32"):
        worker.writer.write([TemplatePrompt("", [], "Why?")], ["a-0"], "")


def test_passages_that_are_not_those_of_the_manifest_are_not_written_from(indexed, tmp_path):
    options = tiny_options(indexed, tmp_path, kind="instructions")
    parts, _ = generate_parts(options)
    Path(parts[1].path).write_bytes(Path(parts[0].path).read_bytes())
    template = read_passage_template(None, options.kind)
    worker = WriteCandidates(options, (template.text, template.name))
    assert worker({"part": parts[0]._asdict()})["passages"] == 2
    with pytest.raises(InputError, match=f"^{parts[1].path}: not the passages that the manifest names; delete this"):
        worker({"part": parts[1]._asdict()})


def lora_folder(folder, model, **record):
    """Write a LoRA adapter with random weights, which changes what the model says, and its record."""
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(folder)
    storage.write_json(f"{folder}/{ABOUT_TRAINED}", describe_adapter_files(model) | record)
    return str(folder)


def test_an_adapter_writes_and_another_one_checks(indexed, tmp_path):
    options = tiny_options(indexed, tmp_path, kind="instructions", reply_tokens=8)
    adapter = lora_folder(tmp_path / "writer", options.model)
    prompts = [TemplatePrompt("", [], "Why does iron rust?")]
    written = {}
    for name in (None, adapter):
        arguments = GenerateOptions(**vars(options) | {"adapter": name}).writer_arguments("cpu", 1)
        written[name] = LocalWriter(**arguments).write(prompts, ["a-0"])[0].text
    assert written[None] != written[adapter]
    options.adapter = adapter
    assert _find_writer(options, read_passage_template(None, "questions"))[1]["adapter"] == adapter_hash(adapter)
    storage.write_json(f"{adapter}/{ABOUT_TRAINED}", {"base": "another", "revision": "another"})
    with pytest.raises(InputError, match="an adapter for the base model another, not for"):
        generate(options)
    with pytest.raises(InputError, match="--adapter: not with --engine openai"):
        GenerateOptions(engine="openai", base_url="http://localhost:1/v1", adapter=adapter)

    checker = lora_folder(tmp_path / "checker", options.model, style={"completion": "text", "prompt": "plain"})
    reader = checker_options(tiny_options(indexed, tmp_path, checker=checker))
    assert (reader.model, reader.adapter, reader.completion) == (options.model, checker, "auto")
    questions = read_exam("direct-validation").slice(0, 12).to_pylist()
    asked = QuestionChecker("model", reader.reader_arguments("cpu", 1))
    assert not asked.rotates
    faults = asked.faults(questions, ["Iron rusts."] * 12)
    assert {"unanswerable", "known-without"} <= set(faults)
    asked.rotates = True  # the order of options changes nothing, so one is enough
    assert asked.faults(questions, ["Iron rusts."] * 12) == faults
    assert QuestionChecker("model", reader.reader_arguments("cpu", 1) | {"style": {"completion": "letter"}}).rotates


def test_an_encoder_that_checks_is_asked_for_no_letters(indexed, tmp_path):
    for family, completion in (("bert", "auto"), ("llama", "letter")):
        checker = tiny_folder(tmp_path / family, family)
        assert checker_options(tiny_options(indexed, tmp_path, checker=checker)).completion == completion


def test_examples_of_the_question_writer_are_replies_without_a_fault():
    recipe = Path(__file__).parent.parent / "jobs/recipes/question_writer.py"
    make_example = runpy.run_path(str(recipe))["make_example"]
    letters = Counter()
    for question in read_exam("train").slice(0, 60).to_pylist():
        passage = {"title": question["title"], "section": None, "text": f"It is grey. {question['evidence']}"}
        *asked, answer = make_example(question, [passage | {"text": "It is blue."}, passage])["messages"]
        assert asked == read_passage_template(None, "questions").render_passage(passage, 4).messages()
        fields = parse_reply(answer["content"], "questions", 4, "bounded")
        assert list(json.loads(answer["content"])) == reply_schema("questions", 4, "bounded", "")["required"]
        assert fields["sentence"] in reply_sentences(question["evidence"])
        assert (fields["prompt"], fields[fields["answer"]]) == (question["prompt"], question[question["answer"]])
        assert filter_question(fields, passage["text"], ("word-overlap", "paraphrased-options")) is None
        letters[fields["answer"]] += 1
    assert min(letters[letter] for letter in "ABCD") >= 5  # of 15 by chance


@pytest.mark.slow
def test_a_tiny_model_gives_only_rejects_and_ends(indexed, tmp_path, cluster):
    options = tiny_options(indexed, tmp_path, per_passage=2, temperature=2.0)
    options.adapter = lora_folder(tmp_path / "writer", options.model)
    summary = generate(options)
    assert summary.made == "0 questions of 6 replies to 3 passages; rejected: 6 not-json"
    assert tables.read_table(options.folder).schema == filter_result_schema(options)
    with pytest.raises(InputError, match=r"made from other inputs \(adapter: "):
        generate(GenerateOptions(**vars(options) | {"adapter": None}))
    assert [part.first for part in generate_parts(options)[0]] == [0, 0]
    assert CandidatePart(0, "", 0, 2) not in generate_parts(options)[0]


@pytest.mark.slow
def test_a_server_checks_the_questions_of_another(server, indexed, cluster):
    options = asked_of(server, indexed, checker="small")
    generate(options)
    asked = [prompt_of(json.loads(key)) for key in server.answered]
    written = sum(len(text.split()) for replies in REPLIES.values() for text, _ in replies)
    counts = tables.read_table_manifest(options.folder, "generate")
    assert counts["tokens_in"] == sum(len(prompt.split()) for prompt in asked)
    assert counts["tokens_out"] == written + len(asked) - 15  # a letter for each question that is checked
    expected = {}
    for title, replies in REPLIES.items():
        for draw, (text, fault) in enumerate(replies):
            if fault in (None, "exam-copy"):
                expected[title, draw] = _checked(title, draw, text, tables.read_table(options.passages).to_pylist())
    kept = {(row["title"], int(row["id"][-1])): None for row in tables.read_table(options.folder).to_pylist()}
    for part in range(3):
        for row in tables.read_table(filter_result_rejects_path(options.folder, part)).to_pylist():
            if (row["title"], int(row["id"][-1])) in expected:
                kept[row["title"], int(row["id"][-1])] = row["fault"]
    assert kept == expected
    assert len(set(expected.values())) > 1


def _checked(title, draw, text, passages):
    """Return the fault by what the server's log-probabilities say: they are the same for all orders of the options."""
    passage = next(row for row in passages if row["title"] == title)
    text = text.removeprefix("```json\n").removesuffix("\n```")
    question = filter_option_order(parse_reply(text, "questions", 3), f"{passage['passage_id']}-{draw}")
    right = []
    for context in (passage["text"], ""):
        shares = weights(api_letter_prompt(question | {"is_question": True}, context, True))
        right.append(max(shares, key=shares.get) == question["answer"])
    return "unanswerable" if not right[0] else "known-without" if right[1] else None


@pytest.mark.slow
def test_a_killed_run_asks_nothing_twice(server, indexed, cluster):
    server.hold = 7
    flags = ["--engine", "openai", "--base-url", server.url, "--model", "small", "--api-key-env", KEY_NAME]
    flags += ["--choices", "3", "--per-passage", str(DRAWS), "--part-passages", "1", "--concurrency", "2"]
    flags += ["--output", indexed["output"], "--num-cpus", "1"]
    command = [sys.executable, "-m", "sciqa", "generate", *flags]
    killed = subprocess.Popen(command, env=os.environ | {KEY_NAME: KEY}, stderr=subprocess.PIPE)
    folder = Path(indexed["output"], "generated/_questions")
    while (
        len([*folder.glob("replies/*/requests/*.json")]) + DRAWS * len([*folder.glob("candidates/*.parquet")]) < 7
        or server.now < 2
    ):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 7 <= len(server.answered) < 15
    server.hold = 1e9
    again = subprocess.run(command, env=os.environ | {KEY_NAME: KEY}, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert len(server.answered) == 15
    assert set(server.answered.values()) == {1}
    assert "15 replies to 3 passages" in again.stdout
