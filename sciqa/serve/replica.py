"""One copy of the models: ranks and writes in a thread of its own, so that the event loop of its process stays free."""

import asyncio
import logging
import os
import queue
import string
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from sciqa.ask.answerer import Answerer, answerer_identity, check_answerer_model, passages_answerer_read
from sciqa.core.device import Device
from sciqa.core.errors import InputError, QuestionError
from sciqa.core.model_files import model_file_family
from sciqa.retrieval.index import check_index_unchanged, read_index_manifest
from sciqa.serve.options import ServeOptions

LOGGER = logging.getLogger("ray.serve")


class Replica:
    """Index, embedder and reader behind two asynchronous methods.

    Results are dictionaries with a `type`; a question that is refused gives `error` with a `message`, any other fault
    `failure`, and nothing is raised for either.

    Args:
        options: options of the server.
        manifest: manifest of the index, of `sciqa.ask.answerer.check_answerer`.
        identity: identity of the files that were checked, of `sciqa.ask.answerer.answerer_identity`.
        device: device that computes.
        threads: CPU threads.

    Raises:
        InputError: the files are no longer those that were checked, or do not suit the options.
    """

    def __init__(self, options: ServeOptions, manifest: dict, identity: str, device: Device, threads: int) -> None:
        self.options, self.device = replace(options, verify=False), device  # the command has read every file
        self.writes = model_file_family(options.model) != "multiple-choice"  # asked once: a URI is listed each time
        self.waiting: queue.SimpleQueue[tuple[Future, Callable[[], dict]]] = queue.SimpleQueue()
        self.thread = ThreadPoolExecutor(1, "models")
        self._check_unchanged(manifest, identity)  # before models are loaded for nothing
        self.answerer = self.thread.submit(Answerer, self.options, manifest, device, threads).result()
        self.thread.submit(self._warm_up).result()
        self.answerer.open_files()
        # Every file is open now, so that none is replaced between this check and its use.
        self._check_unchanged(manifest, identity)

    def _check_unchanged(self, manifest: dict, identity: str) -> None:
        """Raise `InputError` unless the files are those that were checked."""
        check_index_unchanged(self.options, manifest)
        if answerer_identity(self.options, read_index_manifest(self.options.index)) != identity:
            raise InputError(
                f"{self.options.index}: the index, a model, the template or the examples are not those that the server "
                "was started with; start it again"
            )

    def _failed(self, error: Exception) -> dict:
        """Return what is answered in place of what failed: a client is told what it can change, the log all else.

        If the GPU computes nothing any more, this process ends, and Ray Serve starts another replica.
        """
        import torch

        if isinstance(error, QuestionError):
            return {"type": "error", "message": str(error)}
        LOGGER.error("an answer failed", exc_info=error)
        if self.device != "cpu":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)
        return {"type": "failure", "message": "the answer failed; the log of the server says why"}

    def _warm_up(self) -> None:
        """Answer once, so that the first request waits for no check of the models and no compilation."""
        options = self.options.for_question("Which?", ("One", "Two"))
        self.answerer.rank(options, self.answerer.find(options))
        if self.writes:
            options = self.options.for_question("Which?")
            found = self.answerer.find(options)
            try:
                prompt = self.answerer.encode(options, found)
            except QuestionError as error:
                raise InputError(
                    f"--max-new-tokens: {options.max_new_tokens} given, which leave no room for a question; "
                    f"give fewer ({error})"
                ) from error
            self.answerer.write(replace(options, max_new_tokens=1), found, prompt, lambda text: None)

    async def rank(self, question: str, options: list[str], evidence: bool) -> dict:
        """Rank the options of a question.

        Returns:
            `type` `ranked`, `ranking` (for each option, likeliest first, its `option`, `letter`, `probability` and
            `evidence`), `tied`, `context_cut`, `question_cut` (whether the passages were found by the beginning of the
            question alone) and `passages`.
        """

        def work() -> dict:
            asked = self.options.for_question(question, tuple(options))
            found = self.answerer.find(asked)
            ranked = self.answerer.rank(asked, found)
            every = (self.answerer.evidence(asked, found, ranked.kept) if evidence else None) or []
            of_letter = dict(zip(string.ascii_uppercase, every, strict=False))
            ranking = [
                {"option": option, "letter": letter, "probability": probability, "evidence": of_letter.get(letter)}
                for letter, (option, probability) in zip(ranked.letters, ranked.ranking, strict=True)
            ]
            about = {"type": "ranked", "ranking": ranking, "tied": ranked.tied, "context_cut": ranked.cut}
            about |= {"question_cut": found["question_cut"]}
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
            try:
                made = work()
            except Exception as error:
                made = self._failed(error)
            done.set_result(made)
        except Exception as error:
            done.set_exception(error)

    async def write(self, question: str, earlier: list[dict], settings: dict) -> AsyncIterator[dict]:
        """Answer a question in words; between words, requests to rank that wait are answered.

        `earlier` are messages of the conversation before it, `settings` fields of `AskOptions` for this answer.

        Yields:
            `type` `passages` with the `passages`; `text` with a piece of `text`, as often as there is one; last `done`
            with the numbers of the passages `cited`, `tokens`, `prompt_tokens`, `finish_reason` (`stop` or `length`),
            `context_cut` and `question_cut`. `error` or `failure` comes instead where there is one.
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

        writing = self.thread.submit(self._write, question, earlier, settings, send, show)
        try:
            while (event := await events.get()) is not None:
                yield event
            await asyncio.wrap_future(writing)  # raises what no event tells of
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
            cut = {"context_cut": prompt.cut, "question_cut": found["question_cut"]}
            send({"type": "done"} | cut | written._asdict())
        except _ClientGoneError:
            pass
        except Exception as error:
            send(self._failed(error))
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
