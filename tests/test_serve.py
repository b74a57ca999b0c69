"""The server: its answers beside those of `ask`, what it refuses, its page in a browser, and Ray Serve under load."""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import ray
import torch
import transformers
import uvicorn
from fastapi.testclient import TestClient
from ports import free_port
from prometheus_client import generate_latest
from tiny import tiny_folder

from sciqa.ask import AskOptions, ask
from sciqa.ask.answerer import answerer_identity, check_answerer
from sciqa.core import cluster as cluster_module
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.retrieval.index import read_index_manifest
from sciqa.serve import ServeOptions
from sciqa.serve.app import create_app
from sciqa.serve.middleware import CountRequestsMiddleware, MetricsMiddleware
from sciqa.serve.replica import Replica
from sciqa.serve.serve import TOKEN, serve_application, serve_scaling, serve_token, start_serve, stop_serve
from sciqa.serve.served_models import (
    APPLICATION,
    MODELS,
    BusyServedModelsError,
    LostServedModelsError,
    ServedModels,
)

SECRET = "a-token-that-nobody-guesses"
QUESTION = "How do plants differ from animals?"
ASKED = read_exam("direct-validation").slice(0, 1).to_pylist()[0]
OPTIONS = list(answer_options_of(ASKED).values())
RANK = {"question": ASKED["prompt"], "options": OPTIONS}
CHAT = {"messages": [{"role": "user", "content": QUESTION}]}


class OneReplica(Replica):
    """A replica in this process, as the web application sees several."""

    def replicas(self):
        return 1


def one_replica(options):
    """A replica with these options, in this process."""
    manifest = check_answerer(options, options.for_question("?", ("a", "b")).as_row())
    return OneReplica(options, manifest, answerer_identity(options, manifest), "cpu", 2)


@pytest.fixture(scope="module")
def settings(small_index, tmp_path_factory):
    """Options of `ask` and `serve` alike: a tiny model on the small index."""
    model = tiny_folder(tmp_path_factory.mktemp("llama"), "llama", max_position_embeddings=512)
    return {"output": small_index, "model": model, "precision": "float32", "max_new_tokens": 24}


@pytest.fixture(scope="module")
def options(settings):
    return ServeOptions(**settings, max_request_bytes=4096)


@pytest.fixture(scope="module")
def replica(options):
    return one_replica(options)


@pytest.fixture(scope="module")
def client(replica, options):
    with TestClient(create_app(replica, options, None)) as client:
        yield client


def answered(settings, capsys, **more):
    """The text that `ask` writes, and its details."""
    capsys.readouterr()
    details = ask(AskOptions(**settings | more)).details
    return capsys.readouterr().out.removesuffix("\n"), details


def events_of(response):
    """The events of a streamed answer, sent as events or as lines."""
    lines = [line for line in response.text.splitlines() if line]
    if response.headers["content-type"].startswith("text/event-stream"):
        assert all(line.startswith("data: ") for line in lines)
        lines = [line.removeprefix("data: ") for line in lines]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_options_are_ranked_as_by_ask(client, settings, capsys):
    made = client.post("/v1/rank", json=RANK).json()
    _, details = answered(settings, capsys, question=ASKED["prompt"], options=tuple(OPTIONS))
    assert [(row["option"], row["probability"]) for row in made["ranking"]] == details["ranking"]
    assert [OPTIONS["ABCDEFGHIJ".index(row["letter"])] for row in made["ranking"]] == [o for o, _ in details["ranking"]]
    kept = details["passages"][0].keys()
    assert [{name: passage[name] for name in kept} for passage in made["passages"]] == details["passages"]
    assert [passage["number"] for passage in made["passages"] if passage["read"]] == details["read"] == [1]
    for row in made["ranking"]:
        evidence = row["evidence"]
        assert evidence["passage_id"] == made["passages"][0]["passage_id"]
        assert evidence["sentence"] in made["passages"][0]["text"]
    without = client.post("/v1/rank", json=RANK | {"evidence": False}).json()
    assert without["ranking"] == [row | {"evidence": None} for row in made["ranking"]]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=["greedy", "drawn"])
def test_words_are_those_of_ask_in_every_form(client, settings, capsys, drawn):
    given = {"do_sample": True} if drawn else {}
    text, details = answered(settings, capsys, question=QUESTION, **drawn, **given)
    whole = client.post("/v1/ask", json={"question": QUESTION} | drawn).json()
    assert (whole["answer"], whole["cited"]) == (text, details["cited"])
    assert [passage["number"] for passage in whole["passages"] if passage["read"]] == details["read"]
    assert (whole["finish_reason"], whole["tokens"]) == ("length", 24)
    for accept, kind in (("*/*", "text/event-stream"), ("application/x-ndjson", "application/x-ndjson")):
        body = {"question": QUESTION, "stream": True} | drawn
        response = client.post("/v1/ask", json=body, headers={"Accept": accept})
        assert response.headers["content-type"].partition(";")[0] == kind
        first, *pieces, last = events_of(response)
        assert (first["type"], first["passages"]) == ("passages", whole["passages"])
        assert len(pieces) > 3
        assert "".join(piece["text"] for piece in pieces) == text
        assert {name: whole[name] for name in last if name != "type"} | {"type": "done"} == last
    chat = client.post("/v1/chat/completions", json=CHAT | drawn).json()
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert chat["choices"][0]["finish_reason"] == "length"
    assert chat["usage"]["completion_tokens"] == 24
    for name in ("cited", "passages", "context_cut"):
        assert chat[name] == whole[name]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, end = events_of(client.post("/v1/chat/completions", json=CHAT | drawn | streamed))
    assert end == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "length"]
    assert (chunks[-1]["cited"], chunks[-1]["context_cut"]) == (whole["cited"], False)
    assert (usage["choices"], usage["usage"]) == ([], chat["usage"])
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


def test_an_answer_says_that_its_context_was_cut(client, replica, monkeypatch):
    monkeypatch.setattr(replica.answerer.reader.scorer, "limit", 120)
    assert client.post("/v1/ask", json={"question": QUESTION}).json()["context_cut"] is True
    assert client.post("/v1/chat/completions", json=CHAT).json()["context_cut"] is True


def test_an_answer_says_that_its_question_was_cut_for_the_search(client, replica, monkeypatch):
    asked = [("/v1/rank", RANK), ("/v1/ask", {"question": QUESTION}), ("/v1/chat/completions", CHAT)]
    assert [client.post(path, json=body).json()["question_cut"] for path, body in asked] == [False] * 3
    monkeypatch.setattr(replica.answerer.finder.limit, "tokens", 5)
    assert [client.post(path, json=body).json()["question_cut"] for path, body in asked] == [True] * 3


def test_a_body_of_another_type_is_told_its_header(client):
    body = json.dumps(RANK)
    for headers in ({}, {"Content-Type": "application/x-www-form-urlencoded"}):
        refused = client.post("/v1/rank", content=body, headers=headers)
        assert refused.status_code == 415
        assert "Content-Type: application/json expected" in refused.json()["error"]["message"]


def test_a_conversation_goes_through_the_chat_template(client, settings, replica):
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    before += [{"role": "assistant", "content": "Good day."}]
    parts = [{"type": "text", "text": "How do plants"}, {"type": "text", "text": "differ from animals?"}]
    messages = [{"role": "developer", "content": "Be brief."}, *before[1:], {"role": "user", "content": parts}]
    made = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 9, "temperature": 0}).json()
    question = "How do plants\ndiffer from animals?"
    context = replica.answerer.find(replica.options.for_question(question))["context"]
    last = {"role": "user", "content": f"Context: {context}\n\nQuestion: {question}\n\nAnswer in one or two sentences."}
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    asked = [*before, last]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = re.sub(r" \[\d\]", "", made["choices"][0]["message"]["content"])
    assert text.strip() == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert made["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/v1/rank", b"{", 400, "the body is not JSON (character 1: "),
        ("/v1/rank", b'{"question": "?", "options": ["a", "b"], "options": ["c", "d"]}', 400, "options: given twice"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "role": "user"}]}', 400, "role: given twice"),
        ("/v1/rank", b'{"question": "\\ud800?", "options": ["a", "b"]}', 422, "question: "),
        ("/v1/rank", b"[" * 2000, 400, ""),
        ("/v1/rank", {"question": "Which?"}, 422, "options: Field required"),
        ("/v1/rank", {"question": "Which?", "options": ["a"]}, 422, "options: "),
        ("/v1/rank", {"question": " ", "options": ["a", "b"]}, 422, "question: "),
        ("/v1/rank", {"question": "Which?", "options": ["a", " a "]}, 422, "options: 'a' is given twice"),
        ("/v1/rank", {"question": "Which?", "options": ["a", ""]}, 422, "options.1: "),
        ("/v1/rank", {"question": "Which?", "options": list(map(str, range(27)))}, 422, "options: "),
        ("/v1/rank", {"question": "Which? " * 400, "options": ["a", "b"]}, 422, "tokens without any context"),
        ("/v1/rank", RANK | {"option": 1}, 422, "option: Extra inputs"),
        ("/v1/ask", {"question": "Which? " * 400}, 422, "tokens without any context"),
        ("/v1/ask", {"question": "Which? " * 400, "stream": True}, 422, "tokens without any context"),
        (
            "/v1/ask",
            {"question": "Which?", "max_new_tokens": 25},
            422,
            "25 tokens of an answer asked for, this server writes at most 24",
        ),
        ("/v1/ask", b'{"question": "Which?", "temperature": NaN}', 422, "temperature: "),
        ("/v1/chat/completions", {"messages": []}, 422, "messages: "),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "Yes."}]}, 422, "role `user`"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": " "}]}, 422, "role `user`"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "?"}]}, 422, "messages.0.role: "),
        ("/v1/chat/completions", CHAT | {"n": 2}, 422, "n: "),
        ("/v1/chat/completions", CHAT | {"tools": []}, 422, "tools: Extra inputs"),
        ("/v1/chat/completions", CHAT | {"model": "gpt-5"}, 404, "no model 'gpt-5' here; there is 'llama"),
        ("/v1/chat/completions", CHAT | {"store": True}, 422, "store: "),
        ("/v1/chat/completions", CHAT | {"metadata": {}}, 422, "metadata: Input should be None"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "name": "Al", "content": "?"}]}, 422, "0.name: Input"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 1, "max_completion_tokens": 2}, 422, "one of max_tokens and"),
        ("/v1/chat/completions", CHAT | {"stream_options": {}}, 422, "stream_options: only with stream"),
        ("/v1/ask", {"question": "Why?", "temperature": 1e-40}, 422, "temperature: 1e-40 given, at least 0.001"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_are_refused_in_one_clear_line(client, path, body, status, part):
    given = {"content": body, "headers": {"Content-Type": "application/json"}} if isinstance(body, bytes) else {}
    response = client.post(path, **given or {"json": body})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert part in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "--" not in error["message"]  # fields, not flags
    assert not error["message"].startswith("body: ")


def test_fields_that_are_null_ask_for_nothing(client):
    messages = [{"role": "user", "name": None, "content": QUESTION}]
    whole = CHAT | {"messages": messages, "metadata": None, "stop": None, "max_tokens": 1}
    assert client.post("/v1/chat/completions", json=whole).status_code == 200


def test_an_encoder_ranks_and_writes_nothing(small_index, tmp_path):
    model = tiny_folder(tmp_path, "bert")
    transformers.AutoModelForMultipleChoice.from_pretrained(model).save_pretrained(model)
    options = ServeOptions(output=small_index, model=model)
    with TestClient(create_app(one_replica(options), options, None)) as client:
        assert len(client.post("/v1/rank", json=RANK).json()["ranking"]) == len(OPTIONS)
        refused = client.post("/v1/ask", json={"question": QUESTION})
    assert (refused.status_code, "writes no words" in refused.json()["error"]["message"]) == (422, True)


def test_large_bodies_are_refused_announced_or_not(client):
    fits = {"question": "?" * 3900, "options": ["a"]}
    assert client.post("/v1/rank", json=fits).status_code == 422
    body = json.dumps({"question": "?" * 5000, "options": ["a"]}).encode()
    typed = {"Content-Type": "application/json"}
    whole = client.post("/v1/rank", content=body, headers=typed)
    pieces = client.post("/v1/rank", content=(body[at : at + 512] for at in range(0, len(body), 512)), headers=typed)
    assert "content-length" not in pieces.request.headers
    for response in (whole, pieces):
        assert response.status_code == 413
        assert response.json()["error"]["message"] == "a body of at most 4,096 bytes expected"


def test_a_token_guards_answers_and_figures(replica, options, caplog, capfd):
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    with TestClient(create_app(replica, options, digest), raise_server_exceptions=False) as client:
        for path in ("/v1/rank", "/v1/ask", "/v1/chat/completions", "/v1/models", "/v1/nothing", "/metrics"):
            for given in (None, "", "Bearer", "Bearer wrong", f"Basic {SECRET}", f"Bearer {digest}", SECRET):
                headers = {"Authorization": given} if given is not None else {}
                for response in (client.post(path, json=RANK, headers=headers), client.get(path, headers=headers)):
                    assert response.status_code == 401, (path, given)
                    assert response.headers["www-authenticate"] == "Bearer"
        allowed = {"Authorization": f"Bearer {SECRET}"}
        assert client.post("/v1/rank", json=RANK, headers=allowed).status_code == 200
        figures = client.get("/metrics", headers=allowed).text
        assert client.get("/").status_code == 200
        assert client.get("/healthz").json()["token_required"] is True
    assert 'sciqa_requests_total{path="/v1/rank",status="401"} 14.0' in figures
    shown = capfd.readouterr()
    assert not any(SECRET in each or digest in each for each in (figures, caplog.text, shown.out, shown.err))


def test_without_a_token_only_this_machine_is_served(monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    for host in ("127.0.0.1", "127.8.0.1", "::1", "localhost"):
        assert serve_token(host) is None
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org"):
        with pytest.raises(InputError, match=f"--host {re.escape(host)}: .* set {TOKEN}"):
            serve_token(host)
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(InputError, match="at least 16 characters") as error:
        serve_token("127.0.0.1")
    assert "short" not in str(error.value)
    monkeypatch.setenv(TOKEN, SECRET)
    assert serve_token("0.0.0.0") == SECRET


def test_figures_count_requests_by_path_and_status(replica, options):
    with TestClient(create_app(replica, options, None)) as client:
        client.post("/v1/rank", json=RANK)
        client.post("/v1/rank", json={})
        client.post("/v1/ask", json={"question": QUESTION})
        client.get("/unknown/path")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'sciqa_requests_total{path="/v1/rank",status="200"} 1.0',
        'sciqa_requests_total{path="/v1/rank",status="422"} 1.0',
        'sciqa_requests_total{path="other",status="404"} 1.0',
        'sciqa_request_seconds_count{path="/v1/ask"} 1.0',
        "sciqa_first_token_seconds_count 1.0",
        "sciqa_requests_in_progress 1.0",
        "sciqa_replicas 1.0",
    ):
        assert line in response.text.splitlines()


class BrokenModels:
    """Models that are busy, or whose replica ends; before or after the first words."""

    def __init__(self, error, events):
        self.error, self.events = error, events

    async def rank(self, question, options, evidence):
        raise self.error

    async def write(self, question, earlier, settings):
        for event in self.events:
            yield event
        raise self.error

    def replicas(self):
        return 0


@pytest.mark.parametrize("error", [BusyServedModelsError, LostServedModelsError, ValueError])
def test_a_refusal_or_a_loss_has_a_status_and_a_loss_amid_words_an_event(options, error):
    status = 500 if error is ValueError else 503
    app = create_app(BrokenModels(error(SECRET), []), options, None)
    with TestClient(app, raise_server_exceptions=False) as client:
        for path, body in (("/v1/rank", RANK), ("/v1/ask", {"question": QUESTION, "stream": True})):
            response = client.post(path, json=body)
            assert response.status_code == status
            assert response.headers.get("retry-after") == ("1" if status == 503 else None)
            assert SECRET not in response.text
        assert client.get("/healthz").status_code == 503
    if error is not ValueError:
        begun = [{"type": "passages", "passages": []}, {"type": "text", "text": "Plants"}]
        with TestClient(create_app(BrokenModels(error(), begun), options, None)) as client:
            *_, last = events_of(client.post("/v1/ask", json={"question": QUESTION, "stream": True}))
            assert last["type"] == "error"
            *_, last, end = events_of(client.post("/v1/chat/completions", json=CHAT | {"stream": True}))
            assert (last["error"]["type"], end) == ("server_error", "[DONE]")


def test_faults_of_the_server_are_logged_and_no_client_is_told_of_its_files(client, replica, monkeypatch, caplog):
    def fail(*given):
        raise InputError("/secret/index/vectors.npy: not the file that was written; pass --precision float32")

    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(replica.answerer, "rank", fail)
    monkeypatch.setattr(replica.answerer, "write", fail)
    for path, body in (("/v1/rank", RANK), ("/v1/ask", {"question": QUESTION}), ("/v1/chat/completions", CHAT)):
        caplog.clear()
        response = client.post(path, json=body)
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "secret" not in response.text
        assert "/secret/index" in caplog.text

    def break_off(options, found, prompt, show):
        show("Plants ")
        fail()

    monkeypatch.setattr(replica.answerer, "write", break_off)
    *_, last = events_of(client.post("/v1/ask", json={"question": QUESTION, "stream": True}))
    assert (last["type"], "secret" in last["message"]) == ("error", False)


def test_a_replica_whose_device_is_gone_ends(replica, monkeypatch):
    def lost(*given):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def fail(*given):
        try:
            lost()
        except RuntimeError as error:
            raise InputError("cannot embed texts") from error

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(replica, "device", "cuda")
    monkeypatch.setattr(replica.answerer, "find", fail)
    for works, expected in ((lambda: None, []), (lost, [1])):
        monkeypatch.setattr(torch.cuda, "synchronize", works)
        assert asyncio.run(replica.rank(QUESTION, OPTIONS, evidence=False))["type"] == "failure"
        assert ended == expected


def test_every_request_ends_also_where_a_fault_cannot_be_told(replica, monkeypatch):
    def fail(*given):
        raise ImportError("a defect")

    monkeypatch.setattr(replica.answerer, "find", fail)
    monkeypatch.setattr(replica, "_failed", fail)

    async def use():
        with pytest.raises(ImportError):
            await replica.rank(QUESTION, OPTIONS, evidence=False)
        with pytest.raises(ImportError):
            await anext(replica.write(QUESTION, [], {}))

    asyncio.run(asyncio.wait_for(use(), 120))


def test_a_replica_goes_on_with_an_index_that_is_gone(settings, tmp_path):
    shutil.copytree(f"{settings['output']}/index", tmp_path / "index")
    replica = one_replica(ServeOptions(**settings, index=str(tmp_path / "index")))
    rows = np.arange(sum(shard["rows"] for shard in read_index_manifest(str(tmp_path / "index"))["shards"]))
    shutil.rmtree(tmp_path / "index")
    passages = replica.answerer.index.passages(rows)
    assert len({passage["passage_id"] for passage in passages}) == len(rows)


def test_a_replica_does_not_start_with_other_files_than_the_server_was_started_with(settings, tmp_path, monkeypatch):
    shutil.copytree(settings["model"], tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("{{ context }} {{ question }}")
    options = ServeOptions(**settings | {"model": str(tmp_path / "model"), "template": str(tmp_path / "mine.jinja")})
    manifest = check_answerer(options, options.for_question("?", ("a", "b")).as_row())
    identity = answerer_identity(options, manifest)
    (tmp_path / "mine.jinja").write_text("{{ context }}\n{{ question }}")
    assert answerer_identity(options, manifest) != identity
    (tmp_path / "mine.jinja").write_text("{{ context }} {{ question }}")
    assert answerer_identity(options, manifest) == identity
    about = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(about | {"rms_norm_eps": 0.1}))
    monkeypatch.setattr("sciqa.serve.replica.Answerer", None)  # nothing is loaded
    with pytest.raises(InputError, match="are not those that the server was started with; start it again"):
        OneReplica(options, manifest, identity, "cpu", 2)
    manifest["shards"][0]["bytes"]["vectors.npy"] += 1  # as of an index that was built anew
    with pytest.raises(InputError, match=r"vectors\.npy"):
        OneReplica(options, manifest, answerer_identity(options, manifest), "cpu", 2)


def test_a_server_without_room_for_its_longest_answer_does_not_start(settings):
    with pytest.raises(InputError, match=r"--max-new-tokens: 3000 given, .* has room for 511"):
        one_replica(ServeOptions(**settings | {"max_new_tokens": 3000}))
    said = r"--max-new-tokens: 505 given, .* \d+ tokens without any context and 505 to write, the model's limit is 512"
    with pytest.raises(InputError, match=said):
        one_replica(ServeOptions(**settings | {"max_new_tokens": 505}))


@pytest.mark.parametrize("error", [ray.exceptions.OutOfMemoryError("killed"), ray.exceptions.NodeDiedError("gone")])
def test_every_loss_of_a_replica_is_told_as_one(monkeypatch, error):
    class Lost:
        """The handle of a deployment whose replica is lost, and the response of each of its methods."""

        def __getattr__(self, name):
            return self

        def __call__(self, *given, **options):
            return self

        def remote(self, *given):
            return self

        def cancel(self):
            raise error

        def __await__(self):
            raise error
            yield

        async def __aiter__(self):
            yield {"type": "passages"}
            raise error

    async def use(models):
        with pytest.raises(LostServedModelsError):
            await models.rank("?", ["a", "b"], evidence=False)
        events = models.write("?", [], {})
        assert await anext(events) == {"type": "passages"}
        with pytest.raises(LostServedModelsError):
            await anext(events)

    monkeypatch.setattr("ray.serve.get_deployment_handle", lambda *given, **options: Lost())
    asyncio.run(use(ServedModels()))


def test_a_client_that_has_gone_is_no_fault_of_the_server():
    async def cancelled(scope, receive, send):
        if scope["path"] == "/v1/ask":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise asyncio.CancelledError

    async def send(message):
        pass

    metrics = MetricsMiddleware()
    for path in ("/v1/rank", "/v1/ask"):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(CountRequestsMiddleware(cancelled, metrics)({"type": "http", "path": path}, None, send))
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert 'sciqa_requests_total{path="/v1/rank",status="499"} 1.0' in lines
    assert 'sciqa_requests_total{path="/v1/ask",status="200"} 1.0' in lines
    assert 'sciqa_request_seconds_count{path="/v1/rank"} 1.0' not in lines
    assert not any('status="500"' in line for line in lines)


def test_separators_of_lines_in_a_text_do_not_part_an_event(options):
    begun = [{"type": "passages", "passages": []}, {"type": "text", "text": "one\u2028two\u0085three"}]
    with TestClient(create_app(BrokenModels(LostServedModelsError(), begun), options, None)) as client:
        _, text, _ = events_of(client.post("/v1/ask", json={"question": QUESTION, "stream": True}))
        assert text["text"] == begun[1]["text"]
        _, text, *_ = events_of(client.post("/v1/chat/completions", json=CHAT | {"stream": True}))
        assert text["choices"][0]["delta"]["content"] == begun[1]["text"]


def test_an_adapter_is_named_with_its_model(options):
    named = dataclasses.replace(options, adapter="/runs/trained/reader")
    with TestClient(create_app(BrokenModels(None, []), named, None)) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"].endswith("+reader")
        assert client.get("/healthz").json()["model"] == model["id"]
        assert client.post("/v1/chat/completions", json=CHAT | {"model": named.model}).status_code == 404


def test_ray_is_started_without_the_token_and_on_the_head_alone(settings, monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)
    seen = []
    monkeypatch.setattr(cluster_module, "connect_cluster", lambda options: seen.append(dict(os.environ)))
    monkeypatch.setattr(cluster_module, "is_cluster_head", lambda: False)
    with pytest.raises(InputError, match=r"listens on the head node of its cluster, .*; start it there"):
        start_serve(ServeOptions(**settings, port=free_port()))
    assert [TOKEN in each for each in seen] == [False]
    assert os.environ[TOKEN] == SECRET


def test_more_replicas_than_there_is_room_for_are_refused_at_once(settings, cluster, monkeypatch):
    assert cluster_module.is_cluster_head()
    monkeypatch.setattr(cluster_module, "LONGEST_WAIT", 0)
    options = ServeOptions(**settings, min_replicas=4, max_replicas=4)
    with pytest.raises(InputError, match=r"too few resources: 4 workers need CPU .* each, there is room for 2 on"):
        serve_application(options, {"shards": []}, None)


def test_replicas_that_have_no_room_yet_are_told_of(settings, cluster, capsys, monkeypatch):
    serve_application(ServeOptions(**settings, max_replicas=4), {"shards": []}, None)
    assert "serve: room for 2 of --max-replicas 4 now; CPU threads of each: 1" in capsys.readouterr().err
    kinds = [{"CPU": 8, "GPU": 1, f"accelerator_type:{kind}": 1} for kind in ("A10G", "T4", "T4", "T4")]
    monkeypatch.setattr(cluster_module, "_resources", lambda: kinds)
    options = ServeOptions(**settings, max_replicas=4, accelerator="A10G")
    monkeypatch.setattr(importlib.import_module("sciqa.serve.serve"), "model_file_bytes", lambda name: 0)
    serve_application(options, {"shards": []}, None)
    assert "serve: room for 1 of --max-replicas 4 now" in capsys.readouterr().err


def test_a_long_answer_lets_rankings_through_and_ends_with_its_client(replica, monkeypatch):
    ranked, pieces = threading.Event(), []

    def write(options, found, earlier, show):
        while True:  # an answer that ends only when nobody reads it
            pieces.append(ranked.is_set())
            show("word ")
            time.sleep(0.001)

    monkeypatch.setattr(replica.answerer, "write", write)

    async def use():
        async with contextlib.aclosing(replica.write(QUESTION, [], {})) as events:
            assert (await anext(events))["type"] == "passages"
            assert (await anext(events))["type"] == "text"
            made = await replica.rank(RANK["question"], OPTIONS, evidence=False)
            ranked.set()
            assert (await anext(events))["type"] == "text"
        return made, await replica.rank(RANK["question"], OPTIONS, evidence=False)

    during, after = asyncio.run(asyncio.wait_for(use(), 120))
    assert during == after
    assert pieces[0] is False


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas: 2 given, at least --min-replicas (3)"),
        ({"max_queued_requests": 0}, "--max-queued-requests: 0"),
        ({"target_requests": 0.0}, "--target-requests"),
        ({"target_requests": float("nan")}, "--target-requests"),
        ({"scale_up_seconds": float("nan")}, "--scale-up-seconds: nan"),
        ({"port": 65536}, "--port: 65536"),
        ({"context_passages": 9}, "--context-passages: 9"),
        ({"temperature": 0.5}, "--do-sample"),
    ],
)
def test_bad_options_of_the_server(given, part):
    with pytest.raises(InputError) as error:
        ServeOptions(**given)
    assert part in str(error.value)


def test_options_of_the_server_hold_for_every_question():
    options = ServeOptions(
        top_k=7, rotations=2, completion="letter", do_sample=True, top_p=0.5, min_replicas=2, max_replicas=4
    )
    for given in ((), ("a", "b")):
        expected = AskOptions(
            question="Why?", options=given, top_k=7, rotations=2, completion="letter", do_sample=True, top_p=0.5
        )
        assert options.for_question("Why?", given) == expected
    greedy = options.for_question("Why?", **options.answer_settings(None, 0, 0.9, None))
    assert (greedy.do_sample, greedy.top_p) == (False, None)
    drawn = options.for_question("Why?", **options.answer_settings(5, 0.3, None, 7))
    assert (drawn.temperature, drawn.top_p, drawn.seed, drawn.max_new_tokens) == (0.3, 0.5, 7, 5)
    assert serve_scaling(options)["max_replicas"] == 4


@pytest.fixture(scope="module")
def page_server(replica, options):
    """The address of the web application."""
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    with served(create_app(replica, options, digest)) as url:
        yield url


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_the_page_works_in_a_browser(page_server, client, width):
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        failures, asked = [], []
        page.on("console", lambda said: said.type in ("error", "warning") and failures.append(said.text))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_server)
        page.wait_for_selector("#token", state="visible")

        page.fill("#question", ASKED["prompt"])
        page.fill("#options", "\n".join(OPTIONS))
        page.click("#ask")
        page.wait_for_selector("#problem:visible")
        assert "Authorization" in page.inner_text("#problem")
        assert any("401" in each for each in failures)
        failures.clear()

        page.fill("#token", SECRET)
        page.click("#ask")
        page.wait_for_selector("#result:visible")
        made = client.post("/v1/rank", json=RANK).json()
        assert page.locator(".option .text").all_inner_texts() == [row["option"] for row in made["ranking"]]
        shares = [f"{100 * row['probability']:.1f} %" for row in made["ranking"]]
        assert page.locator(".option .p").all_inner_texts() == shares
        assert page.locator("blockquote").count() == len(made["passages"])
        assert page.locator("blockquote.read").count() == 1
        for number, row in enumerate(made["ranking"]):
            page.locator(".option").nth(number).click()
            evidence = row["evidence"]
            assert "".join(page.locator("blockquote mark").all_inner_texts()) == evidence["sentence"]
            clause = evidence["sentence"][evidence["start"] : evidence["end"]]
            assert page.locator("mark.clause").all_inner_texts() == [clause]
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")

        page.fill("#options", "")
        page.fill("#question", QUESTION)
        page.click("#ask")
        page.wait_for_selector("#answer:visible")
        page.wait_for_selector("#ask:enabled")
        whole = client.post("/v1/ask", json={"question": QUESTION}).json()
        assert page.inner_text("#answer").split() == whole["answer"].split()
        assert page.locator("blockquote").count() == len(whole["passages"])
        assert page.locator(".option").count() == 0
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")

        page.fill("#question", "Which? " * 400)
        page.click("#ask")
        page.wait_for_selector("#problem:visible")
        assert "tokens without any context" in page.inner_text("#problem")
        page.reload()
        assert page.input_value("#token") == SECRET
        assert all(url.startswith((page_server, "data:")) for url in asked)
        assert [each for each in failures if "422" not in each] == []
        browser.close()


class SpokenModels(BrokenModels):
    """Models whose answers are given; the second answer in words breaks off."""

    def __init__(self, ranked, *answers):
        self.ranked, self.answers = ranked, list(answers)

    async def rank(self, question, options, evidence):
        return self.ranked

    async def write(self, question, earlier, settings):
        for event in self.answers.pop(0):
            yield event


@contextlib.contextmanager
def served(app):
    """The address of an application, served by uvicorn in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join()


def test_the_page_marks_the_clause_and_says_what_was_cut(options):
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    sentence = "The sign \U00013080\U00013081 of old Egypt, which was cut in stone, means sun god."
    clause = "which was cut in stone"
    passage = {"number": 1, "passage_id": "p", "title": "T", "section": "", "url": None, "read": True}
    passage["text"] = f"\U00013080. {sentence} More."
    start = sentence.index(clause)
    evidence = {"passage_id": "p", "sentence": sentence, "start": start, "end": start + len(clause)}
    rows = [{"option": "a", "letter": "A", "probability": 0.6, "evidence": evidence}]
    ranked = {"type": "ranked", "ranking": rows, "tied": False, "context_cut": True, "passages": [passage]}
    begun = [{"type": "passages", "passages": [passage]}, {"type": "text", "text": "Words"}]
    done = {"type": "done", "finish_reason": "length", "context_cut": True, "cited": [], "tokens": 1}
    app = create_app(SpokenModels(ranked, [*begun, done], begun), options, None)
    with served(app) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.fill("#question", "Which?")
        page.fill("#options", "a\nb")
        page.click("#ask")
        page.wait_for_selector("#result:visible")
        assert page.locator("mark.clause").all_inner_texts() == [clause]
        assert "".join(page.locator("blockquote mark").all_inner_texts()) == sentence
        assert "context was cut" in page.inner_text("#about")
        page.fill("#options", "")
        page.click("#ask")
        page.wait_for_selector("#answer:visible")
        page.wait_for_selector("#ask:enabled")
        assert "limit of tokens" in page.inner_text("#about")
        assert "context was cut" in page.inner_text("#about")
        assert not page.is_visible("#problem")
        page.click("#ask")
        page.wait_for_selector("#problem:visible")
        assert page.inner_text("#problem") == "The answer broke off."
        browser.close()


@pytest.fixture(scope="module")
def deployed(settings):
    """The address of the application on Ray Serve, with one or two replicas and room for eight requests that wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN, SECRET)
        scaled = {"max_replicas": 2, "scale_up_seconds": 1.0, "max_queued_requests": 8}
        yield start_serve(ServeOptions(**settings, **scaled, port=free_port()))
    stop_serve()


ALLOWED = {"Authorization": f"Bearer {SECRET}"}


async def one(session, url, kind):
    """One request of a kind: its status, and what came; the status of a stream that ends by an error is `lost`."""
    path, body = {
        "rank": ("/v1/rank", RANK),
        "ask": ("/v1/ask", {"question": QUESTION}),
        "stream": ("/v1/ask", {"question": QUESTION, "stream": True}),
        "chat": ("/v1/chat/completions", CHAT | {"stream": True}),
        "bad": ("/v1/rank", {"question": "?"}),
    }[kind]
    async with session.post(url + path, json=body) as response:
        text = await response.text()
    if response.status != 200 or kind not in ("stream", "chat"):
        assert response.content_type == "application/json", (response.status, text)
        return response.status, json.loads(text)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    whole = events[-1].get("type") == "done" or events[-1].get("choices", [{}])[0].get("finish_reason")
    return 200 if whole else "lost", events


async def load(url, kinds, a_second):
    """Send requests at a steady rate, whether or not earlier ones are answered."""
    timeout = aiohttp.ClientTimeout(300)
    async with aiohttp.ClientSession(headers=ALLOWED, timeout=timeout) as session:
        sent = []
        for kind in kinds:
            sent.append(asyncio.create_task(one(session, url, kind)))
            await asyncio.sleep(1 / a_second)
        return await asyncio.gather(*sent)


@pytest.mark.slow
def test_ray_serve_answers_as_ask_does(deployed, settings, capsys):
    text, _ = answered(settings, capsys, question=QUESTION)
    _, ranked = answered(settings, capsys, question=ASKED["prompt"], options=tuple(OPTIONS))
    kinds = ["rank", "ask", "stream", "chat", "bad"]
    (rank, made), (ask_, whole), (stream, events), (chat, chunks), (bad, said) = asyncio.run(load(deployed, kinds, 1))
    assert (rank, ask_, stream, chat, bad) == (200, 200, 200, 200, 422)
    assert [row["option"] for row in made["ranking"]] == [option for option, _ in ranked["ranking"]]
    probabilities = [probability for _, probability in ranked["ranking"]]
    np.testing.assert_allclose([row["probability"] for row in made["ranking"]], probabilities, atol=1e-5)
    assert whole["answer"] == text
    assert "".join(event.get("text", "") for event in events) == text
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert said["error"]["message"] == "options: Field required"


@pytest.mark.slow
def test_words_come_as_they_are_written(deployed):
    async def read():
        async with aiohttp.ClientSession(headers=ALLOWED) as session:
            body = {"question": QUESTION, "stream": True}
            async with session.post(f"{deployed}/v1/ask", json=body) as response:
                return [piece async for piece, _ in response.content.iter_chunks()]

    pieces = asyncio.run(read())
    assert len(pieces) > 3
    assert b'"passages"' in pieces[0]
    assert b'"done"' not in pieces[0]


@pytest.mark.slow
def test_under_load_every_request_is_answered_or_refused(deployed):
    kinds = ["rank", "stream", "rank", "ask", "bad", "chat"] * 25
    made = asyncio.run(load(deployed, kinds, 50))
    statuses = collections.Counter(status for status, _ in made)
    assert set(statuses) <= {200, 422, 503}
    assert [status for (status, _), kind in zip(made, kinds, strict=True) if kind == "bad"] == [422] * 25
    assert statuses[200] > 0
    assert statuses[503] > 0  # more than two replicas and a queue of eight take in three seconds
    assert len({json.dumps(said) for status, said in made if status == 503}) == 1
    answers = {json.dumps(said["ranking"]) for (status, said), kind in zip(made, kinds, strict=True)
               if (status, kind) == (200, "rank")}  # fmt: skip
    assert len(answers) == 1
    ((status, _),) = asyncio.run(load(deployed, ["rank"], 1))
    assert status == 200


def replicas():
    """The actors of the replicas of the models, by name."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {each["name"]: each["namespace"] for each in named if f"{APPLICATION}#{MODELS}#" in each["name"]}


def ready(url):
    """How many replicas answer."""
    with urllib.request.urlopen(f"{url}/healthz") as response:
        return json.load(response)["replicas"]


def load_until(url, condition):
    """Send requests until a condition holds."""
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, (ready(url), replicas())
        asyncio.run(load(url, ["rank", "stream"] * 10, 20))


@pytest.mark.slow
def test_a_replica_killed_under_load_loses_only_what_it_held(deployed):
    load_until(deployed, lambda: ready(deployed) == 2)  # there are more as requests wait
    name, namespace = next(iter(replicas().items()))
    threading.Timer(3, lambda: ray.kill(ray.get_actor(name, namespace))).start()
    kinds = ["rank", "stream", "bad"] * 40
    made = asyncio.run(load(deployed, kinds, 15))
    statuses = [
        "held" if status == 503 and "has ended" in said["error"]["message"] else status for status, said in made
    ]
    assert set(statuses) <= {200, 422, 503, "lost", "held"}
    assert statuses.count("lost") + statuses.count("held") <= 4  # what a replica works on and holds at most
    assert statuses[-15:].count(200) > 0
    load_until(deployed, lambda: ready(deployed) == 2 and name not in replicas())
    ((status, _),) = asyncio.run(load(deployed, ["rank"], 1))
    assert status == 200


@pytest.mark.slow
def test_the_token_is_in_no_log(deployed):
    asyncio.run(load(deployed, ["rank", "bad"], 1))
    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path(), "logs")
    files = [path for path in logs.rglob("*") if path.is_file()]
    assert any("serve" in path.name for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_told_to_stop(settings, number, code, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    port = str(free_port())
    given = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    lines = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in shells' jobs
    lines += "from sciqa.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", lines, "serve", *given, "--num-cpus", "2"]
    with subprocess.Popen([*command, "--port", port], stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        for line in run.stderr:
            if f"listening on http://127.0.0.1:{port}" in line:
                break
        ((status, _),) = asyncio.run(load(f"http://127.0.0.1:{port}", ["rank"], 1))
        second = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=120)
        os.kill(run.pid, number)
        rest = run.stderr.read()
    assert status == 200
    assert second.returncode == 2
    assert f"--port {port}: cannot be listened on" in second.stderr
    assert run.returncode == code, rest
    assert "Traceback" not in rest
