"""One copy of the models: ranks and writes in a thread of its own, so that the event loop of its process stays free."""

import asyncio
import logging
import queue
import string
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sciqa.ask.answerer import Answerer, check_answerer_model, passages_answerer_read
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_family
from sciqa.serve.options import ServeOptions

LOGGER = logging.getLogger("ray.serve")


class Replica:
    """Index, embedder and reader behind two asynchronous methods.

    Results are dictionaries with a `type`; bad input gives `error` with a `message`, and nothing is raised for it. The
    manifest of the index is what `sciqa.ask.answerer.check_answerer` returns.
    """

    def __init__(self, options: ServeOptions, manifest: dict, device: Device, threads: int) -> None:
        self.options = options
        self.writes = model_file_family(options.model) != "multiple-choice"  # asked once: a URI is listed each time
        self.waiting: queue.SimpleQueue[tuple[Future, Callable[[], dict]]] = queue.SimpleQueue()
        self.thread = ThreadPoolExecutor(1, "models")
        self.answerer = self.thread.submit(Answerer, options, manifest, device, threads).result()
        self.thread.submit(self._warm_up).result()

    def _warm_up(self) -> None:
        """Answer once, so that the first request waits for no check of the models and no compilation."""
        options = self.options.for_question("Which?", ("One", "Two"))
        self.answerer.rank(options, self.answerer.find(options))
        if self.writes:
            options = self.options.for_question("Which?", max_new_tokens=1)
            found = self.answerer.find(options)
            self.answerer.write(options, found, self.answerer.encode(options, found), lambda text: None)

    async def rank(self, question: str, options: list[str], evidence: bool) -> dict:
        """Rank the options of a question.

        Returns:
            `type` `ranked`, `ranking` (for each option, likeliest first, its `option`, `letter`, `probability` and
            `evidence`), `tied`, `context_cut` and `passages`.
        """

        def work() -> dict:
            asked = self.options.for_question(question, tuple(options))
            found = self.answerer.find(asked)
            ranked = self.answerer.rank(asked, found)
            every = (self.answerer.evidence(asked, found) if evidence else None) or []
            of_letter = dict(zip(string.ascii_uppercase, every, strict=False))
            ranking = [
                {"option": option, "letter": letter, "probability": probability, "evidence": of_letter.get(letter)}
                for letter, (option, probability) in zip(ranked.letters, ranked.ranking, strict=True)
            ]
            about = {"type": "ranked", "ranking": ranking, "tied": ranked.tied, "context_cut": ranked.cut}
            return about | {"passages": replica_passages(found, ranked.kept)}

        done: Future = Future()
        self.waiting.put((done, work))
        self.thread.submit(self._rank_next)
        return await asyncio.wrap_future(done)

    def _rank_next(self) -> None:
        """Rank for the request that has waited longest, if any is left."""
        try:
            done, work = self.waiting.get_nowait()
        except queue.Empty:
            return
        if not done.set_running_or_notify_cancel():  # the client has gone
            return
        try:
            done.set_result(work())
        except InputError as error:
            done.set_result({"type": "error", "message": str(error)})
        except Exception as error:
            done.set_exception(error)

    async def write(self, question: str, earlier: list[dict], settings: dict) -> AsyncIterator[dict]:
        """Answer a question in words; between words, requests to rank that wait are answered.

        `earlier` are messages of the conversation before it, `settings` fields of `AskOptions` for this answer.

        Yields:
            `type` `passages` with the `passages`; `text` with a piece of `text`, as often as there is one; last `done`
            with the numbers of the passages `cited`, `tokens`, `prompt_tokens`, `finish_reason` (`stop` or `length`)
            and `context_cut`. `error` or `failure` comes instead where there is one.
        """
        loop, events, gone = asyncio.get_running_loop(), asyncio.Queue[dict | None](), threading.Event()

        def send(event: dict | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def show(text: str) -> None:
            if gone.is_set():
                raise _ClientGoneError
            if text:
                send({"type": "text", "text": text})
            self._rank_next()

        self.thread.submit(self._write, question, earlier, settings, send, show)
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            gone.set()

    def _write(
        self,
        question: str,
        earlier: list[dict],
        settings: dict,
        send: Callable[[dict | None], None],
        show: Callable[[str], None],
    ) -> None:
        """Write one answer in the thread of the models; `send` takes its events, and None at their end."""
        try:
            show("")  # ends at once if the client has gone while it waited
            options = self.options.for_question(question, **settings)
            if not self.writes:
                check_answerer_model(options.model)
            found = self.answerer.find(options)
            prompt = self.answerer.encode(options, found, earlier)
            send({"type": "passages", "passages": replica_passages(found, prompt.kept)})
            written = self.answerer.write(options, found, prompt, show)
            reason = "length" if written.tokens == options.max_new_tokens else "stop"
            send({"type": "done", "finish_reason": reason, "context_cut": prompt.cut} | written._asdict())
        except _ClientGoneError:
            pass
        except InputError as error:
            send({"type": "error", "message": str(error)})
        except Exception:
            LOGGER.exception("an answer failed")
            send({"type": "failure", "message": "the answer failed; the log of the server says why"})
        finally:
            send(None)


class _ClientGoneError(Exception):
    """Ends the writing of an answer that nobody reads."""


def replica_passages(found: dict, kept: int | None) -> list[dict]:
    """Return the passages found, best first, each with its `number` and whether the model `read` it.

    For `kept` see `passages_answerer_read`.
    """
    read = passages_answerer_read(found, kept)
    return [passage | {"number": n, "read": n in read} for n, passage in enumerate(found["passages"], 1)]
