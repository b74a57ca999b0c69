"""A server in OpenAI's form, whose answers follow from the prompt alone, and which fails in every way when told to."""

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sciqa.predict.api_client import TRIAL, try_client_forms

#: Environment variable that the workers of the tests have, and the key in it.
KEY_NAME, KEY = "SCIQA_TESTS_KEY", "sk-4f1d0c8be2a97"
#: Ways to fail: status codes, connections that are lost, and answers that lack a part.
LOST = ("429", "500", "dropped", "cut short")
LACKING = ("half JSON", "a page", "no choices", "no log-probabilities", "NaN")
FAILURES = LOST + LACKING
#: Ways to refuse a request: status and message of each.
REFUSALS = {"refused": (400, "too long"), "402": (402, "no credit is left")}


def draw(*named: object) -> int:
    """Return a number that follows from the names alone."""
    return int.from_bytes(hashlib.sha256(json.dumps(named).encode()).digest()[:4])


def in_turns(failures: tuple[str, ...], times: int = 2) -> Callable[[str, int], str | None]:
    """Return a rule by which requests fail `times` times, in ways that differ between them; trials twice at most."""

    def rule(key: str, attempt: int) -> str | None:
        most = min(times, 2) if json.dumps(TRIAL)[1:-1] in key else times
        return failures[(draw(key) + attempt) % len(failures)] if attempt < most else None

    return rule


class ApiServer(ThreadingHTTPServer):
    """The server, and what it has seen.

    Attributes:
        fail: rule that gives the failure of a request's n-th attempt, or None.
        answered: good answers by request.
        reply: function that gives the text of a chat's answer from the request's body; by default a letter or a word.
        hold: when set to a number, requests after that many good answers wait until `go` is set, and are then dropped.
        revoke: when set to a number, the key is refused after that many good answers.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, model="small", key=None, logprobs=True, fail=lambda key, attempt: None, answers_as=None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        try_client_forms.cache_clear()  # an ended server may have had this port, and have been tried
        self.model, self.key, self.logprobs, self.fail, self.answers_as = model, key, logprobs, fail, answers_as
        self.reply = None
        self.attempts, self.answered, self.failed, self.early = Counter(), Counter(), Counter(), 0
        self.hold = self.revoke = math.inf
        self.go, self.lock, self.not_before, self.most, self.now = threading.Event(), threading.Lock(), {}, 0, 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """Say nothing of connections that the other side has closed."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self):
        self.send({"object": "list", "data": [{"id": self.server.model, "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        key = json.dumps(body, sort_keys=True)
        with server.lock:
            attempt = server.attempts[key]
            server.attempts[key] += 1
            server.now += 1
            server.most = max(server.most, server.now)
            server.early += time.monotonic() < server.not_before.get(key, 0)
            done = sum(server.answered.values())
        try:
            if done >= server.hold:
                server.go.wait()
                self.close_connection = True
                return
            self.answer(body, key, attempt, done)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, body, key, attempt, done):
        server = self.server
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if server.key and (given != server.key or done >= server.revoke):
            return self.send({"error": {"message": f"Incorrect API key provided: {given}"}}, 401)
        if body["model"] != server.model:
            return self.send({"error": {"message": f"no model for the key {given}"}}, 404)
        chat = self.path.endswith("/chat/completions")
        if not server.logprobs and body.get("logprobs"):
            return self.send({"error": {"message": f"logprobs are not supported, {given}"}}, 400)
        failure = server.fail(key, attempt)
        if failure:
            with server.lock:
                server.failed[failure] += 1
        if failure in REFUSALS:
            status, message = REFUSALS[failure]
            return self.send({"error": {"message": f"{message}, {given}"}}, status)
        if failure == "late":
            time.sleep(4)
        if failure in LOST:
            return self.lose(failure, key)
        sent = (chat_answer if chat else completion_answer)(body, server)
        if failure in LACKING:
            return self.lack(failure, sent)
        if TRIAL not in prompt_of(body) and failure != "late":
            with server.lock:
                server.answered[key] += 1
        return self.send(sent)

    def lose(self, failure, key):
        if failure == "429":
            self.server.not_before[key] = time.monotonic() + 0.05
            return self.send({"error": {"message": "slow down"}}, 429, {"Retry-After-Ms": "60", "Retry-After": "1"})
        if failure == "500":
            return self.send({"error": {"message": "a fault"}}, 500)
        if failure == "cut short":
            self.send({"id": "1"}, more=100)
        self.close_connection = True
        self.connection.close()
        return None

    def lack(self, failure, sent):
        choice = sent["choices"][0]
        if failure == "half JSON":
            return self.send_bytes(json.dumps(sent).encode()[:-40], 200, "application/json")
        if failure == "a page":
            return self.send_bytes(b"<html>busy</html>", 200, "text/html")
        if failure == "no choices":
            sent["choices"] = []
        elif failure == "no log-probabilities":
            choice["logprobs"] = None
        elif isinstance(choice["logprobs"].get("content"), list):
            choice["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = math.nan
        else:
            choice["logprobs"]["top_logprobs"][0][" x"] = math.nan
        return self.send(sent)

    def send(self, value, status=200, headers=None, more=0):
        self.send_bytes(json.dumps(value).encode(), status, "application/json", headers, more)

    def send_bytes(self, data, status, kind, headers=None, more=0):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) + more))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


def prompt_of(body) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def letters_of(prompt: str) -> list[str]:
    return re.findall(r"^([A-Z])\. ", prompt, re.MULTILINE)


def weights(prompt: str) -> dict[str, float]:
    """Return the probability of each letter, which follows from the texts of question and option."""
    asked = re.split(r"^A\. ", prompt, maxsplit=1, flags=re.MULTILINE)[0]
    options = dict(re.findall(r"^([A-Z])\. (.*)$", prompt, re.MULTILINE))
    drawn = {letter: 1 + draw(asked, text) % 1000 for letter, text in options.items()}
    return {letter: number / sum(drawn.values()) for letter, number in drawn.items()}


def listed_tokens(prompt: str, number: int) -> dict[str, float]:
    """Return log-probabilities of the likeliest tokens: each letter in two forms, and another word."""
    tokens = {"The": math.log(0.04)}
    for letter, share in weights(prompt).items():
        tokens |= {letter: math.log(0.72 * share), f" {letter}": math.log(0.24 * share)}
    return dict(sorted(tokens.items(), key=lambda item: -item[1])[:number])


def said(body, prompt: str) -> str:
    """Return an answer in words, which follows from the prompt and the seed."""
    seed, shares = body.get("seed"), weights(prompt)
    at = draw(prompt, seed) / 2**32
    for letter in shares:
        at -= shares[letter]
        if at < 0:
            break
    return (f"{letter}", f"({letter})", f"The answer is {letter}.", "I cannot tell.")[draw(prompt, seed, 1) % 4]


def chat_answer(body, server) -> dict:
    prompt = prompt_of(body)
    tokens = listed_tokens(prompt, body["top_logprobs"]) if body.get("logprobs") else None
    written = server.reply if server.reply and TRIAL not in prompt else lambda body: said(body, prompt)
    text = next(iter(tokens)).strip() if tokens else written(body)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "logprobs": None}
    if tokens:
        listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in tokens.items()]
        choice["logprobs"] = {"content": [listed[0] | {"top_logprobs": listed}]}
    return {"object": "chat.completion", **around(server, prompt, text), "choices": [choice]}


def completion_answer(body, server) -> dict:
    prompt = prompt_of(body)
    tokens = listed_tokens(prompt, body["logprobs"]) if body.get("logprobs") else None
    text = next(iter(tokens)) if tokens else f" {said(body, prompt)}"
    choice = {"index": 0, "finish_reason": "stop", "text": text, "logprobs": None}
    if tokens:
        choice["logprobs"] = {"tokens": [text], "token_logprobs": [tokens[text]], "top_logprobs": [tokens]}
    return {"object": "text_completion", **around(server, prompt, text), "choices": [choice]}


def around(server, prompt, text) -> dict:
    read, wrote = len(prompt.split()), len(text.split())
    usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
    return {"id": "1", "created": 0, "model": server.answers_as or server.model, "usage": usage}
