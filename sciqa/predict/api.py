"""Reader of models behind an API in OpenAI's form: letters of options, ranked by log-probabilities or by votes.

Votes are letters that are drawn, or with `--completion reasoned` texts that end with one.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import numpy as np
import ray

from sciqa.core import cluster, worker_loss
from sciqa.core.errors import InputError
from sciqa.core.hashes import fingerprint
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.models.letters import LETTERS_FORMAT, read_letter, scores_by_letter_votes
from sciqa.models.prompt_format import Completion, PromptFormat
from sciqa.models.prompt_template import check_template, read_template, template_style
from sciqa.predict.api_client import (
    ApiClientServer,
    ApiRefusedError,
    Client,
    find_client_server,
)
from sciqa.predict.api_letters import api_letter_prompt, api_letter_scores
from sciqa.predict.api_records import RequestRecords, record_key
from sciqa.predict.api_reply import ApiIncompleteReplyError
from sciqa.predict.chain_options import chain_option_inputs
from sciqa.predict.question_sources import join_question_sources
from sciqa.predict.rotations import Rotation, mean_over_rotations, rotations_of
from sciqa.predict.scored_answers import ScoredAnswer

if TYPE_CHECKING:
    from sciqa.predict.options import PredictOptions


class ApiReader:
    """Reader that asks a server for the letter of the right option; see `sciqa.predict.api_options`.

    It may be called in several threads, which share the limit of requests: then no request waits for the slowest one
    of a shard.

    Args:
        server: the server and the form of its requests.
        answers: folder of the answers table, beside which every answer is kept as it comes.
        rotations: number of evenly spaced rotations of the options over which probabilities are averaged.
        completion: `letter`, or `reasoned` where the model writes its reasons before the letter.
        samples: answers per question and rotation, if the server gives no log-probabilities; a single one is the
            likeliest.
        temperature: temperature of several answers.
        seed: seed of the first answer; that of each further one is one more.
        concurrency: requests that this worker has under way at the same time.
        template: as `template_style` returns it; empty is the built-in prompt.
    """

    def __init__(
        self,
        server: ApiClientServer,
        answers: str,
        rotations: int,
        completion: Completion,
        samples: int,
        temperature: float,
        seed: int,
        concurrency: int,
        template: dict,
    ) -> None:
        self.server, self.rotations, self.completion, self.template = server, rotations, completion, template
        self.samples, self.temperature, self.seed = 1 if server.listed else samples, temperature, seed
        self.client, self.records = Client(server), RequestRecords(answers)
        self.pool = ThreadPoolExecutor(concurrency)
        self.error: Exception | None = None
        self.notes = server.notes

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `sciqa.predict.readers.Reader.score`; without contexts the model is asked the question alone.

        Raises:
            InputError: the server does not answer, or refuses a request; requests under way are finished and kept.
        """
        turns = rotations_of(questions, self.rotations)
        read = join_question_sources(questions, found)
        asked = [self._submit(*read[turn.number], turn, sample) for turn in turns for sample in range(self.samples)]
        wait(asked)
        if self.error:
            self.pool.shutdown(cancel_futures=True)  # waits for the requests of other threads
            raise self.error
        records = [future.result() for future in asked]
        by_turn = [records[at : at + self.samples] for at in range(0, len(records), self.samples)]
        letters = [list(answer_options_of(questions[turn.number])) for turn in turns]
        scores = [self._scores(*pair) for pair in zip(by_turn, letters, strict=True)]
        if self.completion == "reasoned":
            pairs = zip(scores, by_turn, strict=True)
            return [ScoredAnswer(each, chains=tuple(map(_chain_row, wrote))) for each, wrote in pairs]
        return mean_over_rotations(turns, scores, set())

    def _scores(self, records: list[dict], letters: list[str]) -> np.ndarray:
        if self.server.listed:
            return api_letter_scores(records[0]["logprobs"], letters)[0]
        return scores_by_letter_votes([record["letter"] for record in records], letters)

    def _submit(self, question: dict, context: str, turn: Rotation, sample: int) -> Future:
        try:
            return self.pool.submit(self._answer, question, context, turn.by, sample)
        except RuntimeError as closed:  # by an error in another thread
            raise self.error or closed from None

    def _answer(self, question: dict, context: str, by: int, sample: int) -> dict | None:
        """Return the record of one request, asked now or before; None after an error, which is kept in `error`."""
        if self.error:
            return None
        try:
            return self._ask(question, context, by, sample)
        except ApiRefusedError as error:
            hint = "if the prompt is too long for the model, pass fewer --context-sentences"
            self.error = self.error or InputError(f"{error}; {hint}")
        except (InputError, ApiIncompleteReplyError) as error:
            self.error = self.error or InputError(str(error))
        except Exception as error:
            self.error = self.error or error
        return None

    def _ask(self, question: dict, context: str, by: int, sample: int) -> dict:
        rotated = rotate_answer_options(question, by)
        prompt = api_letter_prompt(rotated, context, self.server.chat, self.template, self.completion)
        temperature = self.temperature if self.samples > 1 else 0.0
        request = self.server.request(prompt, self.seed + sample, temperature)
        key = record_key(question["id"], by, sample, request)
        if kept := self.records.get(key):
            return kept
        reply = self.client.ask(request, f"question {question['id']!r}")
        options = answer_options_of(rotated)
        if self.server.listed:
            letter = api_letter_scores(reply.logprobs, list(options))[1]
        else:
            letter = read_letter(reply.text, options)
        record = {"id": question["id"], "rotation": by, "sample": sample, "letter": letter} | vars(reply)
        self.records.put(key, record)
        return record


def _chain_row(record: dict) -> dict:
    """Return the row of the table of chains for an answer of a server."""
    row = {name: record[name] for name in ("id", "sample", "text", "letter", "finished")}
    return row | {"prompt_tokens": record["tokens_in"], "tokens": record["tokens_out"]}


def check_api(options: "PredictOptions", question: dict | None) -> None:
    """Raise `InputError` unless the server answers and has the model, and the template has no error.

    Args:
        options: options of the run.
        question: row of the exam table, on which the template is tried; None does not try it.
    """
    if options.shots:
        raise InputError("--shots: not with --engine openai; write the examples into a --template, or leave it out")
    check_template(api_prompt_format(options), question)
    find_client_server(options)


def api_prompt_format(options: "PredictOptions") -> PromptFormat:
    """Return the format of the prompts but for `prompt`, which the server decides on."""
    return PromptFormat(**{"completion": _completion(options)} | _template(options))


def _completion(options: "PredictOptions") -> Completion:
    return "reasoned" if options.is_reasoned else "letter"


def _template(options: "PredictOptions") -> dict:
    return template_style(options.template, _completion(options))


def api_server_arguments(options: "PredictOptions", answers: str, workers: int) -> dict:
    """Return the arguments of `ApiReader`, of which each of the workers gets its share of `--concurrency`."""
    return {
        "server": find_client_server(options),
        "answers": answers,
        "rotations": options.rotations,
        "completion": _completion(options),
        "samples": options.samples_of_question(options.is_reasoned),
        "temperature": options.temperature or 1.0,
        "seed": options.seed,
        "concurrency": max(1, options.concurrency // workers),
        "template": _template(options),
    }


def api_inputs(options: "PredictOptions") -> dict:
    """Return what a server's answers follow from, for the inputs of a table; none of it is secret."""
    server = find_client_server(options)
    given = {"engine": options.engine, "model": options.model, "rotations": options.rotations}
    given |= {"server": server.url, "prompt": "chat" if server.chat else "plain"}
    if template := _template(options).get("template"):
        given["template"] = fingerprint(template)
        if options.has_context and read_template(str(options.template)).reads_passages:
            given["passages"] = "sent"  # versions that did not record this sent none
    if server.listed:
        return given | {"ranked_by": f"{server.listed} log-probabilities"}
    given |= {"ranked_by": "votes", "letters": LETTERS_FORMAT}
    return given | {"completion": _completion(options)} | chain_option_inputs(options, options.is_reasoned)


def api_workers(options: "PredictOptions", parts: int) -> int:
    """Return the number of workers: one, which waits for the server most of the time, unless more are asked for."""
    return max(1, min(options.worker_range[-1] if options.worker_range else 1, parts, options.concurrency))


def api_server_pool(workers: int, shards: int) -> dict:
    """Return the arguments of `Dataset.map` for workers that ask a server, each about several shards at a time."""
    return {
        "compute": ray.data.ActorPoolStrategy(
            size=workers, max_concurrent_calls_per_actor=shards, enable_true_multi_threading=True
        ),
        "num_cpus": cluster.TASK_CPUS,
        "max_restarts": worker_loss.MOST,
        "max_task_retries": worker_loss.MOST,
    }
