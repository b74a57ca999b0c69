"""The server under a steady load of mixed requests: latencies, refusals, the first words of an answer, memory.

Requests are sent at their rate whether or not earlier ones are answered, as many clients would. Of ten, five rank
options, two ask for words, one of them streamed, one is a streamed chat completion, one is invalid and one loads the
page. Before the load, answers are asked for one by one, and the time to their first words is taken.
Usage: python benchmarks/serving.py RUN [REQUESTS_A_SECOND [SECONDS [REPLICAS]]]
"""

import asyncio
import collections
import json
import socket
import sys
import time

import aiohttp
import numpy as np
import psutil

from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.serve import ServeOptions
from sciqa.serve.serve import start_serve, stop_serve

KINDS = ["rank", "ask", "rank", "page", "rank", "chat", "rank", "stream", "rank", "invalid"]
ALONE = 20


def request_of(kind, row):
    """Return the method, path and body of a request of a kind on a question of the exam."""
    chat = {"messages": [{"role": "user", "content": row["prompt"]}], "stream": True}
    return {
        "rank": ("POST", "/v1/rank", {"question": row["prompt"], "options": list(answer_options_of(row).values())}),
        "ask": ("POST", "/v1/ask", {"question": row["prompt"], "max_new_tokens": 32}),
        "stream": ("POST", "/v1/ask", {"question": row["prompt"], "stream": True, "max_new_tokens": 32}),
        "chat": ("POST", "/v1/chat/completions", chat | {"max_tokens": 32}),
        "invalid": ("POST", "/v1/rank", {"question": row["prompt"]}),
        "page": ("GET", "/", None),
    }[kind]


def has_words(line):
    """Return whether a line of a stream holds words of the answer."""
    event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
    return bool(event.get("text") or any(each["delta"].get("content") for each in event.get("choices", ())))


async def send(session, url, kind, row):
    """Send one request; return its kind, status, seconds, and seconds to the first words of a streamed answer."""
    method, path, body = request_of(kind, row)
    started, first = time.monotonic(), None
    async with session.request(method, url + path, json=body) as response:
        async for line in response.content:
            if first is None and has_words(line):
                first = time.monotonic() - started
    return kind, response.status, time.monotonic() - started, first


async def load(url, rows, rate, seconds):
    """Return the results of all requests of a load."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        alone = [await send(session, url, "stream", rows[number % len(rows)]) for number in range(ALONE)]
        started, sent = time.monotonic(), []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0, started + number / rate - time.monotonic()))
            kind = KINDS[number % len(KINDS)]
            sent.append(asyncio.create_task(send(session, url, kind, rows[number % len(rows)])))
        return alone, await asyncio.gather(*sent)


def memory():
    """Return the bytes that the processes of Ray keep to themselves."""
    ours = [each for each in psutil.process_iter(["name", "cmdline"]) if "ray" in " ".join(each.info["cmdline"] or [])]
    total = 0
    for each in ours:
        try:
            total += each.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def main():
    """Print the figures of the load, by kind."""
    run, rate, seconds, replicas = [*sys.argv[1:], *("", "50", "60", "1")[len(sys.argv) - 1 :]]
    rows = read_exam("validation").to_pylist()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scaled = {"min_replicas": int(replicas), "max_replicas": int(replicas)}
    url = start_serve(ServeOptions(output=run, port=port, **scaled))
    before = memory()
    alone, made = asyncio.run(load(url, rows, float(rate), float(seconds)))
    after = memory()
    stop_serve()
    firsts = [first for *_, first in alone if first is not None]
    print(
        f"first words, alone and warm: median {np.median(firsts):.2f} s, longest {max(firsts):.2f} s of {len(firsts)}"
    )
    heads = ("p50 s", "p95 s", "p99 s", "first p50", "first p95")
    print(f"\n{'':<9}{'sent':>6}{'answered':>10}{'refused':>9}" + "".join(f"{head:>11}" for head in heads))
    for kind in dict.fromkeys(KINDS):
        own = [each for each in made if each[0] == kind]
        good = [each for each in own if each[1] in (200, 422)]
        figures = np.percentile([seconds for *_, seconds, _ in good], [50, 95, 99]) if good else []
        if first := [first for *_, first in good if first is not None]:
            figures = [*figures, *np.percentile(first, [50, 95])]
        refused = sum(status == 503 for _, status, *_ in own)
        print(f"{kind:<9}{len(own):>6}{len(good):>10}{refused:>9}" + "".join(f"{each:>11.3f}" for each in figures))
    statuses = collections.Counter(status for _, status, *_ in made)
    print(f"\nstatuses {json.dumps(statuses)}; answered a second {(statuses[200]) / float(seconds):.1f}")
    if refusals := [seconds for _, status, seconds, _ in made if status == 503]:
        print(f"a refusal took {np.median(refusals):.3f} s (median), {max(refusals):.3f} s at most")
    print(f"memory of Ray's processes: {before / 1e9:.2f} GB before, {after / 1e9:.2f} GB after the load")


if __name__ == "__main__":
    main()
