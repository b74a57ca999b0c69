"""Models behind an API: the same table from a server that fails, nothing asked twice, and no key anywhere."""

import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from api_server import FAILURES, KEY, KEY_NAME, LACKING, ApiServer, around, in_turns, prompt_of, said, weights
from conftest import QUESTIONS, write_jsonl
from ports import free_port
from tiny import mostly_slow
from transformers import AutoModelForCausalLM, AutoTokenizer

from sciqa import cli
from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.letters import read_letter, scores_by_letter_votes
from sciqa.models.load import load_safetensors_folder
from sciqa.predict import PredictOptions, api_letters, predict
from sciqa.predict.api import ApiReader, api_inputs, api_server_arguments
from sciqa.predict.api_client import (
    ApiClientServer,
    ApiRefusedError,
    Client,
    find_client_server,
    read_client_key,
)
from sciqa.predict.api_records import (
    RequestRecords,
    api_record_path,
    collect_records,
    record_files_folder,
    record_usage_summary,
    sum_record_usage,
)
from sciqa.predict.api_reply import ApiIncompleteReplyError
from sciqa.predict.results import METRICS, result_metrics_path, update_results_cost
from sciqa.run import RunExamOptions, run_exam


@pytest.fixture
def serve():
    """A function that starts a server."""
    servers = []

    def start(**about):
        servers.append(ApiServer(**about))
        return servers[-1]

    yield start
    for server in servers:
        server.go.set()
        server.shutdown()
        server.server_close()


def asked_of(server, folder, exam, **more):
    """Options of a run that asks a server."""
    common = {"engine": "openai", "base_url": server.url, "model": "small", "api_key_env": KEY_NAME}
    common |= {"reader": "closed-book", "exam": exam, "shard_questions": 5, "output": str(folder), "name": "api"}
    return PredictOptions(**common | more)


def answers(folder):
    return tables.read_table(f"{folder}/answers/api")


def metrics(folder):
    """Metrics without what an undisturbed run may have otherwise: seconds, and tokens of answers that lacked a part."""
    table = tables.read_table(f"{folder}/metrics/api.parquet")
    return table.drop_columns(["seconds", "tokens_in", "tokens_out", "cost"])


@pytest.mark.parametrize("prompt", mostly_slow(["chat", "plain"], "chat"))
def test_a_failing_server_gives_the_table_of_a_healthy_one(serve, tmp_path, cluster, exam_file, prompt):
    healthy = serve(key=KEY)
    options = asked_of(healthy, tmp_path / "healthy", exam_file, prompt=prompt, concurrency=3, price=(2.0, 10.0))
    made = predict(options).made
    assert sum(healthy.answered.values()) == len(healthy.answered) == QUESTIONS
    assert healthy.most <= 3
    failing = serve(key=KEY, fail=in_turns(FAILURES))
    disturbed = asked_of(failing, tmp_path / "failing", exam_file, prompt=prompt, concurrency=QUESTIONS)
    predict(disturbed)
    assert len(failing.failed) >= 6
    assert failing.early == 0
    assert answers(disturbed.output).equals(answers(options.output))
    assert metrics(disturbed.output).equals(metrics(options.output))

    exam = read_exam(exam_file).to_pylist()
    prompts = [api_letters.api_letter_prompt(question, "", prompt == "chat") for question in exam]
    for row, asked in zip(answers(options.output).to_pylist(), prompts, strict=True):
        np.testing.assert_allclose(row["probabilities"], list(weights(asked).values()), atol=1e-9)
    whole = tables.read_table(f"{options.output}/metrics/api.parquet").to_pylist()[0]
    tokens = sum(len(asked.split()) for asked in prompts)
    assert (whole["tokens_in"], whole["tokens_out"], whole["no_letter"]) == (tokens, QUESTIONS, 0)
    cost = (2 * tokens + 10 * QUESTIONS) / 1e6
    assert whole["cost"] == pytest.approx(cost)
    assert f"{tokens:,} tokens read and {QUESTIONS} written by the server, which cost {cost:,.4f} at --price" in made
    # Answers that lacked a part were paid for as well.
    assert not any(KEY.encode() in data for _, data in written(tmp_path))
    lacking = sum(failing.failed[name] for name in LACKING[2:])
    paid = tables.read_table(f"{disturbed.output}/metrics/api.parquet")["tokens_out"][0].as_py()
    assert QUESTIONS < paid <= QUESTIONS + lacking


def test_a_later_price_is_that_of_the_metrics(tmp_path):
    options = PredictOptions(output=str(tmp_path), name="api", price=(2.0, 10.0))
    path = result_metrics_path(options.output, options.name)
    row = {"slice": "all", "reader": "api", "log_loss": float("nan"), "tokens_in": 1000, "tokens_out": 10, "cost": None}
    tables.write_table(path, pa.Table.from_pylist([row, row | {"tokens_in": None}], schema=METRICS))
    update_results_cost(replace(options, price=None))
    assert tables.read_table(path)["cost"].to_pylist() == [None, None]
    update_results_cost(options)
    assert tables.read_table(path)["cost"].to_pylist() == [pytest.approx(0.0021), None]
    update_results_cost(replace(options, price=None))
    assert tables.read_table(path)["cost"].to_pylist() == [pytest.approx(0.0021), None]
    written = Path(path).stat().st_mtime_ns
    update_results_cost(options)
    assert Path(path).stat().st_mtime_ns == written


def test_a_stopped_run_asks_nothing_twice(serve, tmp_path, cluster, exam_file):
    server = serve(key=KEY)
    server.revoke = 5
    options = asked_of(server, tmp_path / "run", exam_file, concurrency=3)
    with pytest.raises(InputError, match=rf"{server.url}: the server refuses the key \(status 401\); set {KEY_NAME}"):
        predict(options)
    assert len(list(Path(record_files_folder(f"{options.output}/answers/api")).iterdir())) == len(server.answered) >= 5
    server.revoke = 1e9
    predict(asked_of(server, tmp_path / "run", exam_file, shard_questions=4))  # with other shards
    assert set(server.answered.values()) == {1}
    assert len(server.answered) == QUESTIONS
    assert not Path(record_files_folder(f"{options.output}/answers/api")).exists()
    first = answers(options.output)
    Path(options.output, "answers/api/00001.parquet").unlink()  # also what is in the table of records already
    predict(options)
    assert set(server.answered.values()) == {1}
    assert answers(options.output).equals(first)
    assert first.num_rows == QUESTIONS


def test_votes_where_a_server_gives_no_log_probabilities(serve, tmp_path, exam_file):
    server = serve(logprobs=False)
    options = asked_of(server, tmp_path, exam_file, samples=3)
    assert {"ranked_by": "votes", "samples": 3, "max_tokens": 16}.items() <= api_inputs(options).items()
    questions, folder = read_exam(exam_file).to_pylist(), f"{tmp_path}/answers/api"
    reader = ApiReader(**api_server_arguments(options, folder, workers=1))
    none = 0
    for scored, question in zip(reader.score(questions, [()] * QUESTIONS), questions, strict=True):
        asked, letters = api_letters.api_letter_prompt(question, "", True), answer_options_of(question)
        votes = [read_letter(said({"seed": seed}, asked), letters) for seed in range(3)]
        none += votes.count(None)
        np.testing.assert_allclose(scored.scores, scores_by_letter_votes(votes, list(letters)))
    assert len(server.answered) == 3 * QUESTIONS
    usage = sum_record_usage(list(collect_records(folder).values()))
    assert usage["no_letter"] == none > 0
    assert usage["tokens_out"] > 3 * QUESTIONS
    assert record_usage_summary((1.0, 1.0), usage).endswith(f"; {none} of its answers without a letter")


def test_votes_of_a_model_that_takes_no_temperature(serve, tmp_path, exam_file):
    server = serve(fail=lambda key, attempt: "refused" if '"max_tokens"' in key else None)
    with pytest.raises(InputError, match="--temperature: small takes none; leave it out"):
        find_client_server(asked_of(server, tmp_path, exam_file, temperature=0.7))
    options = asked_of(server, tmp_path, exam_file)
    reader = ApiReader(**api_server_arguments(options, str(tmp_path / "answers"), 1))
    assert reader.notes == ["small takes no temperature and no seed: its replies are drawn as it likes"]
    assert ApiReader(**api_server_arguments(asked_of(serve(), tmp_path, exam_file), str(tmp_path / "a"), 1)).notes == []


def test_drawn_answers_over_rotations_from_a_failing_server(serve, tmp_path, exam_file, monkeypatch):
    monkeypatch.setattr("sciqa.predict.api_client.FIRST_WAIT", 0.01)
    monkeypatch.setenv(KEY_NAME, KEY)
    questions, scores = read_exam(exam_file).to_pylist(), []
    for number, fail in enumerate((lambda *_: None, in_turns(("no choices", "429", "half JSON"), 1))):
        server = serve(key=KEY, fail=fail)  # it would give log-probabilities
        options = asked_of(server, tmp_path, exam_file, logprobs=False, samples=2, rotations=2, concurrency=16)
        folder = f"{tmp_path}/{number}/answers/api"
        reader = ApiReader(**api_server_arguments(options, folder, workers=1))
        scores.append([scored.scores.tolist() for scored in reader.score(questions, [()] * QUESTIONS)])
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 2 * 2 * QUESTIONS
        collect_records(folder)
        records = tables.read_table(api_record_path(folder)).to_pylist()
        assert {(row["rotation"], row["sample"]) for row in records} == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_an_exam_with_contexts_of_its_own(serve, tmp_path, cluster):
    exam = tmp_path / "exam.jsonl"
    row = {"prompt": "Which rusts?", "A": "iron", "B": "helium", "answer": "A"}
    write_jsonl(exam, [row | {"id": str(n), "context": f"Iron rusts, for the {n}th time."} for n in range(4)])
    server = serve()
    common = {"engine": "openai", "base_url": server.url, "model": "small", "output": str(tmp_path / "run")}
    run_exam(RunExamOptions(**common, exam=str(exam), context="given", baselines=False))
    assert len(server.answered) == 4
    assert all(re.search(r"Context: Iron rusts, for the \dth time\.", key) for key in server.answered)
    assert tables.read_table(f"{tmp_path}/run/answers/open-book-small")["id"].to_pylist() == list("0123")


def written(folder):
    for path in Path(folder).rglob("*"):
        if path.is_file() and not path.is_socket():
            yield path, path.read_bytes()


def test_the_key_is_nowhere(serve, tmp_path, cluster, exam_file, capfd):
    server = serve(key=KEY)
    find_client_server(asked_of(server, tmp_path, exam_file))
    server.fail = lambda key, attempt: "refused" if attempt else "500"
    with pytest.raises(InputError, match=r"question '.*': refused by .* 400: too long, \*\*\*\); .* --con") as error:
        predict(asked_of(server, tmp_path / "run", exam_file))
    logs = ray._private.worker._global_node.get_session_dir_path()
    places = list(itertools.chain(written(tmp_path), written(logs)))
    assert len(places) > 20
    assert [path for path, data in places if KEY.encode() in data] == []
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err + str(error.value)


@pytest.mark.parametrize(
    ("about", "more", "parts"),
    [
        ({}, {"model": "large"}, ["--model large: not found at", "it has small"]),
        ({"answers_as": "other"}, {}, ["--model small:", "answers by another model, other; pass that name"]),
        ({"key": "another"}, {}, ["refuses the key (status 401)", KEY_NAME]),
        ({"key": KEY}, {"api_key_env": "NO_SUCH_KEY"}, ["refuses the key", "NO_SUCH_KEY", "(it is not set)"]),
        ({"fail": lambda *_: "no choices"}, {}, ["has no choices, 3 times in a row"]),
        ({"fail": lambda *_: "500"}, {}, ["no answer (status 500: a fault) after up to 2 repeats", "is kept"]),
    ],
    ids=["no such model", "another model", "wrong key", "no key", "half answers", "faults"],
)
def test_a_server_that_cannot_be_used_ends_a_run_before_it_begins(
    serve, short_waits, tmp_path, cluster, exam_file, capfd, about, more, parts
):
    server = serve(**about)
    if "answers_as" in about:
        server.model = "small"
    flags = {"engine": "openai", "base_url": server.url, "model": "small", "api_key_env": KEY_NAME, "exam": exam_file}
    flags |= {"reader": "closed-book", "output": tmp_path / "run"} | more
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", *itertools.chain(*((f"--{k.replace('_', '-')}", str(v)) for k, v in flags.items()))])
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2
    assert all(part in error for part in parts), error
    assert KEY not in error
    assert server.answered == {}
    assert not (tmp_path / "run").exists()


def test_passages_reach_a_template_that_names_them(serve, tmp_path):
    server, path = serve(), tmp_path / "listed.jinja"
    path.write_text(
        "{% for p in passages %}[{{ p.title }}] {{ p.text }} {% endfor %}{{ question }}\nA. a\nB. b\nAnswer:"
    )
    options = asked_of(server, tmp_path, "test", template=str(path), reader="open-book", prompt="plain")
    passages = [
        {"title": "Neon", "section": "", "text": "Neon glows."},
        {"title": "Not", "section": "", "text": "Read."},
    ]
    question = {"id": "1", "prompt": "Which glows?", "is_question": True, "context": None, "A": "a", "B": "b"}
    reader = ApiReader(**api_server_arguments(options, options.folder, 1))
    reader.score([question] * 2, [({"context": "Neon. Neon glows.", "passages": passages},), ()])
    prompts = {prompt_of(json.loads(key)) for key in server.answered}
    rest = "Which glows?\nA. a\nB. b\nAnswer:"
    assert prompts == {f"[Neon] Neon glows. {rest}", rest}
    assert api_inputs(options)["passages"] == "sent"
    path.write_text("{{ context }} {{ question }}")
    assert "passages" not in api_inputs(options)
    assert "passages" not in api_inputs(replace(options, template=None))


def test_nobody_listens(serve, tmp_path, exam_file):
    server = serve()
    options = asked_of(server, tmp_path, exam_file)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=rf"{server.url}: no answer \(.*refused.*\) after up to 2 repeats"):
        predict(options)


@pytest.mark.parametrize("name", ["small-2026-08-06", "small@main"])
def test_a_model_may_answer_by_the_name_of_its_version(serve, tmp_path, exam_file, name):
    assert find_client_server(asked_of(serve(answers_as=name), tmp_path, exam_file)).listed == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openai"}, "--base-url: with --engine openai the address"),
        ({"base_url": "http://localhost:1"}, "--base-url: not with --engine torch"),
        ({"engine": "openai", "base_url": "localhost:1"}, "--base-url: an address expected"),
        ({"engine": "openai", "base_url": "http://[1"}, "--base-url: an address expected"),
        ({"engine": "openai", "base_url": "http://h/v1\r"}, "--base-url: an address expected"),
        ({"engine": "openai", "base_url": "http://u:secret@h/v1"}, "--base-url: an address without user"),
        ({"engine": "openai", "base_url": "http://h/v1?key=secret"}, "--base-url: an address without user"),
        ({"api_key_env": "sk-secret"}, "--api-key-env: the name of an environment variable"),
        ({"engine": "openai", "base_url": "http://h", "completion": "text"}, "--completion text: not with"),
        ({"engine": "openai", "base_url": "http://h", "normalise": "tokens"}, "--normalise: not with"),
        ({"engine": "openai", "base_url": "http://h", "adapter": "a"}, "--adapter: not with --engine openai"),
        ({"price": (1.0, -1.0)}, "--price: 1 -1 given"),
        ({"timeout": 0.0}, "--timeout: 0.0 given"),
        ({"concurrency": 0}, "--concurrency: 0 given"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError) as error:
        PredictOptions(**options)
    assert str(error.value).startswith(message)
    assert "secret" not in str(error.value)


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr("sciqa.predict.api_client.FIRST_WAIT", 0.01)


def client_of(server, **about):
    named = {"url": server.url, "model": "small", "key_name": "NO_SUCH_KEY", "has_key": False, "chat": True}
    return Client(ApiClientServer(**named | {"timeout": 0.5, "tokens": 8, "listed": 20} | about), retries=1)


@pytest.mark.parametrize("failure", [*FAILURES, "late"])
def test_each_failure_is_asked_again(serve, short_waits, failure):
    server = serve(fail=lambda key, attempt: failure if attempt == 0 else None)
    client = client_of(server)
    request = client.server.request("Which?\nA. iron\nB. helium", 0, 0.0)
    reply = client.ask(request, "a question")
    assert server.failed == {failure: 1}
    assert set(reply.logprobs) == {"A", " A", "B", " B", "The"}
    assert reply.tokens_out == (2 if failure in LACKING[2:] else 1)


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("no choices", ApiIncompleteReplyError, "a question: an answer of .* has no choices, 2 times in a row"),
        ("half JSON", ApiIncompleteReplyError, "is not JSON, or only half of it"),
        ("NaN", ApiIncompleteReplyError, "has nan as a log-probability"),
        ("late", InputError, r"no answer \(none within 0.5 s\) after up to 1 repeats"),
        ("dropped", InputError, r"no answer \(.*[Dd]isconnected.*\)"),
        ("429", InputError, r"no answer \(status 429: slow down\)"),
        ("refused", ApiRefusedError, "a question: refused by .*too long"),
        ("402", InputError, r"/v1: status 402: no credit is left.*; once that is mended, run the same command"),
    ],
)
def test_a_failure_that_lasts_is_one_line(serve, short_waits, failure, error, message):
    client = client_of(serve(fail=lambda *_: failure))
    with pytest.raises(error, match=message) as raised:
        client.ask(client.server.request("Which?\nA. iron\nB. helium", 0, 0.0), "a question")
    assert raised.type is error


def test_tokens_of_the_same_text_are_summed(serve, monkeypatch):
    """Where a server leaves out the space that a token begins with, its chats list a text twice."""
    listed = [("A", 0.6), ("B", 0.2), ("A", 0.1), ("B", 0.05), ("A", 0.6)]  # the last is the first again

    def answer(body, server):
        tokens = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in listed]
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "A"}}
        choice["logprobs"] = {"content": [tokens[0] | {"top_logprobs": tokens}]}
        return {"object": "chat.completion", **around(server, "", ""), "choices": [choice]}

    monkeypatch.setattr("api_server.chat_answer", answer)
    client = client_of(serve(answers_as="small-2026-08-06"))
    reply = client.ask(client.server.request("Which?", 0, 0.0), "a question")
    assert {token: round(math.exp(logprob), 6) for token, logprob in reply.logprobs.items()} == {"A": 0.7, "B": 0.25}
    assert reply.model == "small-2026-08-06"


def test_a_reply_is_read_as_it_came_but_for_a_long_key(serve, monkeypatch):
    server = serve()
    server.reply = lambda body: f"\\boxed{{B}} {KEY}"
    texts = []
    for key in ("x", KEY):
        monkeypatch.setenv("NO_SUCH_KEY", key)
        client = client_of(server, listed=0)
        texts.append(client.ask(client.server.request("Which?\nA. iron\nB. helium", 0, 0.0), "a question").text)
    assert texts == [f"\\boxed{{B}} {KEY}", "\\boxed{B} ***"]


@pytest.mark.parametrize("listed", [0, 20])
def test_half_a_character_of_a_reply_can_be_kept(serve, monkeypatch, tmp_path, listed):
    server = serve(answers_as="small")
    server.reply = lambda body: "B \ud83d"
    monkeypatch.setattr("api_server.listed_tokens", lambda *_: {"B \ud83d": -0.1, "\ud83e": -2.5})
    client = client_of(server, listed=listed)
    reply = client.ask(client.server.request("Which?\nA. iron\nB. helium", 0, 0.0), "a question")
    assert reply.text == "B \ufffd"
    assert reply.logprobs == ({"B \ufffd": -0.1, "\ufffd": -2.5} if listed else {})
    folder = str(tmp_path / "answers" / "api")
    RequestRecords(folder).put("1", {"id": "1", "rotation": 0, "sample": 0, "letter": None} | vars(reply))
    assert collect_records(folder)


def test_answers_of_several_models_are_told_of(tmp_path, capsys):
    folder = str(tmp_path / "answers" / "api")
    for number, model in enumerate(["small-2026-08-06", "small-2026-11-20", "small-2026-11-20", ""]):
        row = {"id": str(number), "rotation": 0, "sample": 0, "letter": "A", "text": "A", "logprobs": {}}
        row |= {"tokens_in": 1, "tokens_out": 1, "finished": True} | ({"model": model} if model else {})
        RequestRecords(folder).put(str(number), row)
    collect_records(folder)
    assert "answers of several models: small-2026-08-06 (1), small-2026-11-20 (2)" in capsys.readouterr().err
    models = tables.read_table(api_record_path(folder))["model"].to_pylist()
    assert models == ["small-2026-08-06", "small-2026-11-20", "small-2026-11-20", None]


def test_a_wait_that_is_too_long_is_not_said_to_be_repeated(serve, monkeypatch):
    monkeypatch.setattr("api_server.Handler.lose", lambda self, *_: self.send({}, 429, {"Retry-After": "600"}))
    server = serve(fail=lambda *_: "429")
    client = client_of(server)
    with pytest.raises(InputError, match="after up to 1 repeats"):
        client.ask(client.server.request("Which?", 0, 0.0), "a question")
    assert set(server.attempts.values()) == {1}


def test_a_worker_without_the_key_says_so(monkeypatch):
    about = {"url": "u", "model": "m", "chat": True, "timeout": 1.0, "tokens": 8}
    with pytest.raises(InputError, match="NO_SUCH_KEY: set where the command was given, but not in a worker"):
        read_client_key(ApiClientServer(**about, key_name="NO_SUCH_KEY", has_key=True))
    monkeypatch.setenv("BAD_KEY", "sk-sécret")
    with pytest.raises(InputError, match="BAD_KEY: holds characters") as error:
        read_client_key(ApiClientServer(**about, key_name="BAD_KEY", has_key=True))
    assert "cret" not in str(error.value).replace("the value is not shown", "")


def test_without_records_nothing_is_gathered(tmp_path):
    assert collect_records(str(tmp_path / "answers" / "api")) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_hundred_questions_from_a_failing_server(serve, tmp_path, cluster):
    exam = str(tmp_path / "exam.jsonl")
    write_jsonl(Path(exam), read_exam("train").slice(0, 200).to_pylist())
    healthy = asked_of(serve(key=KEY), tmp_path / "healthy", exam)
    predict(healthy)
    failing = serve(key=KEY, fail=in_turns((*FAILURES, "late"), 3))
    disturbed = asked_of(failing, tmp_path / "failing", exam, concurrency=32, num_workers=2, timeout=2.0)
    predict(disturbed)
    assert set(failing.failed) == {*FAILURES, "late"}
    assert sum(failing.failed.values()) >= 600
    assert failing.early == 0
    assert answers(disturbed.output).equals(answers(healthy.output))
    assert metrics(disturbed.output).equals(metrics(healthy.output))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["chat", "plain"])
def test_a_real_server_says_what_its_model_does(tmp_path, cluster, exam_file, prompt):
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    folder = load_safetensors_folder(find_model("SmolLM2-135M-Instruct"))
    port = free_port()
    run = "from transformers.cli.transformers import main; main()"
    flags = ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen([sys.executable, "-c", run, "serve", folder, *flags])
    try:
        while True:
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        options = {"engine": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "model": folder, "prompt": prompt}
        options |= {"reader": "closed-book", "exam": exam_file, "output": str(tmp_path / "run"), "name": "api"}
        predict(PredictOptions(**options, samples=1, concurrency=2))
    finally:
        server.terminate()
        server.wait()
    records = tables.read_table(api_record_path(f"{tmp_path}/run/answers/api")).to_pylist()
    records = {record["id"]: record for record in records}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for question in read_exam(exam_file).to_pylist():
        asked = api_letters.api_letter_prompt(question, "", prompt == "chat")
        if prompt == "chat":
            messages = [{"role": "user", "content": asked}]
            inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        else:
            inputs = tokenizer(asked, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        record = records[question["id"]]
        text = tokenizer.decode(output, skip_special_tokens=True)
        assert record["text"] == text
        assert record["letter"] == read_letter(text, answer_options_of(question))
        assert record["tokens_in"] == inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_a_killed_run_asks_nothing_twice(serve, tmp_path, exam_file, cluster):
    server = serve(key=KEY)
    server.hold = 7
    options = asked_of(server, tmp_path / "run", exam_file, concurrency=2)
    flags = ["--engine", "openai", "--base-url", server.url, "--model", "small", "--api-key-env", KEY_NAME]
    flags += ["--reader", "closed-book", "--exam", exam_file, "--shard-questions", "5", "--output", options.output]
    flags += ["--name", "api", "--concurrency", "2", "--num-cpus", "1"]
    command = [sys.executable, "-m", "sciqa", "predict", *flags]
    killed = subprocess.Popen(command, env=os.environ | {KEY_NAME: KEY}, stderr=subprocess.PIPE)
    folder = Path(record_files_folder(f"{options.output}/answers/api"))
    while len([path for path in folder.glob("*.json") if path.name[0] != "."]) < len(server.answered) or server.now < 2:
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 7 <= len(server.answered) < QUESTIONS
    server.hold = 1e9
    again = subprocess.run(command, env=os.environ | {KEY_NAME: KEY}, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert KEY not in again.stdout + again.stderr
    assert len(server.answered) == QUESTIONS
    assert set(server.answered.values()) == {1}
    other = asked_of(serve(key=KEY), tmp_path / "other", exam_file)
    predict(other)
    assert answers(options.output).equals(answers(other.output))


def test_a_prompt_is_the_same_for_both_endpoints_but_for_its_end():
    question = {"prompt": "Which rusts?", "is_question": True, "A": "iron", "B": "helium"}
    asked = api_letters.api_letter_prompt(question, "Iron rusts.", True)
    assert asked.startswith("Context: Iron rusts.\n\nQuestion: Which rusts?\nA. iron\nB. helium\n")
    assert asked.endswith("letter of the right option alone.")
    assert api_letters.api_letter_prompt(question, "Iron rusts.", False).endswith("\nB. helium\nAnswer:")
    assert prompt_of({"messages": [{"content": asked}]}) == asked
