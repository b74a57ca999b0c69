"""Rows of the answers table, made from the scores of each question's options."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.chain_table import write_chain_rows
from sciqa.exam.finished_answers import finished_answers_fingerprint, finished_answers_path
from sciqa.exam.metrics import answer_rank_range, average_precision_at_3
from sciqa.exam.open_exam import Exam
from sciqa.exam.probabilities import settle_probability_ties, softmax
from sciqa.exam.question_table import QuestionTable
from sciqa.retrieval.contexts import EVIDENCE

#: Version of what readers compute. Raise it with every change, so that older answers are not reused.
ANSWERS_FORMAT = 6
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ranking", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
        ("scores", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("average_precision", pa.float64()),
        ("context_cut", pa.bool_()),
        ("evidence", EVIDENCE),
    ]
)


@dataclass(frozen=True)
class ScoredAnswer:
    """The scores of one question.

    Attributes:
        scores: score of each option in nats, shape (options,); probabilities are their softmax.
        cut: whether the context was truncated to fit the model.
        chains: rows of the table of chains, if the answer follows from texts that the model wrote.
    """

    scores: np.ndarray
    cut: bool = False
    chains: tuple[dict, ...] = ()


def tie_scored_answers(scores: np.ndarray, keys: Sequence[Hashable]) -> np.ndarray:
    """Return scores, shape (options,), in which options with equal keys share their largest score.

    Options with the same text or tokens are then tied, whatever their positions in a batch.
    """
    return np.array([scores[[other == key for other in keys]].max() for key in keys], float)


def open_scored_answers(folder: str, exam: Exam | None = None) -> tuple[QuestionTable, dict]:
    """Return a finished answers table and the inputs recorded in its manifest.

    They must be answers to the exam, unless it is None.

    Raises:
        InputError: the table is missing, belongs to another exam, or was made by another version of the program.
    """
    manifest = tables.read_table_manifest(folder, "predict", ANSWERS_FORMAT)
    if exam and manifest["inputs"]["exam"] != exam.sha256:
        raise InputError(f"{folder}: answers to another exam; run `sciqa predict` on this one first")
    return QuestionTable(folder, manifest["rows"]), manifest["inputs"]


def scored_answer_inputs(output: str, readers: tuple[str, ...], exam: Exam | None = None) -> dict[str, str]:
    """Return the fingerprint of the answers of each reader of a run, by name; see `finished_answers_fingerprint`.

    Raises:
        InputError: as `open_scored_answers`, or the readers answered different exams.
    """
    folders = {name: finished_answers_path(output, name) for name in readers}
    inputs = {name: open_scored_answers(folder, exam)[1] for name, folder in folders.items()}
    for name, each in inputs.items():
        if each["exam"] != inputs[readers[0]]["exam"]:
            raise InputError(
                f"{folders[name]}: answers to another exam than those of {readers[0]}, the same exam expected; run "
                "`sciqa predict` for both on one exam"
            )
    return {
        name: finished_answers_fingerprint(each, tables.table_rows(tables.read_table(folders[name], ["id", "scores"])))
        for name, each in inputs.items()
    }


def read_scored_answer_sources(
    sources: Sequence[QuestionTable], questions: list[dict], first: int
) -> list[tuple[dict, ...]]:
    """Return each question's rows, one from every source table.

    Args:
        sources: tables with one row per question, such as contexts.
        questions: consecutive questions of the exam.
        first: index of the first one in the exam, from 0.
    """
    found = [source.read(questions, first) for source in sources]
    return list(zip(*found, strict=True)) if found else [()] * len(questions)


def write_scored_answers(
    folder: str,
    part: int,
    questions: list[dict],
    scored: Sequence[ScoredAnswer],
    by: str,
    found: Sequence[tuple[dict, ...]] | None = None,
) -> None:
    """Write one shard of the answers table, and before it that of the chains that the answers follow from, if any.

    The evidence for the option ranked first is taken from that of contexts in `found`, the rows that each question was
    answered from, as `read_scored_answer_sources` returns them. `folder` is that of the answers table, `part` the
    number of the shard; for `by` see `scored_answer_row`.

    Raises:
        InputError: a score is not a finite number.
    """
    rows = [scored_answer_row(*pair, by) for pair in zip(questions, scored, strict=True)]
    for row, sources in zip(rows, found or (), strict=False):
        if sources and isinstance(every := sources[0].get("evidence"), list):  # of contexts: an entry per option
            row["evidence"] = every[ord(row["ranking"][0]) - ord("A")]
    if chains := [row for each in scored for row in each.chains]:
        write_chain_rows(folder, part, chains)
    tables.write_table(tables.table_part_path(folder, part), pa.Table.from_pylist(rows, schema=SCHEMA))


def scored_answer_row(question: dict, scored: ScoredAnswer, by: str) -> dict:
    """Return a question's row of the answers table; all readers use this function.

    Tied options are ordered by a hash of the texts of question and option. The order looks random and depends on
    nothing else, so no letter is preferred.

    Args:
        question: row of the exam table.
        scored: scores of the question.
        by: name of the model or reader that scored it, for messages.

    Raises:
        InputError: a score is not a finite number.
    """
    options = answer_options_of(question)
    check_scored_answer(question, scored, by)
    scores = settle_probability_ties(tie_scored_answers(np.asarray(scored.scores, float), list(options.values())))
    drawn = [hashlib.sha256(f"{question['prompt']}\n{text}".encode()).digest() for text in options.values()]
    ranking = [letter for *_, letter in sorted(zip(-scores, drawn, options, strict=True))]
    row = {
        "id": question["id"],
        "ranking": ranking,
        "prediction": " ".join(ranking[:3]),
        "probabilities": softmax(scores).tolist(),
        "scores": scores.tolist(),
        "answer": question["answer"],
        "average_precision": None,
        "context_cut": scored.cut,
        "evidence": None,
    }
    if row["answer"]:
        row["average_precision"] = float(average_precision_at_3(*map(np.array, answer_rank_range(row))))
    return row


def check_scored_answer(question: dict, scored: ScoredAnswer, by: str) -> None:
    """Raise `InputError` if a score of a question is not a finite number; see `scored_answer_row`."""
    for letter, score in zip(answer_options_of(question), scored.scores, strict=True):
        if not np.isfinite(score):
            raise InputError(
                f"question {question['id']!r}, option {letter}: {by} gives it the score {score}, a finite number "
                "expected; numbers in 16 bits overflow where a model was not made for them: pass --precision float32 "
                "(or bfloat16), for an embedder another --embed-backend"
            )


def has_tied_scored_answers(row: dict) -> bool:
    """Return whether a tie affects the first three ranks of a row."""
    falling = sorted(row["scores"], reverse=True)
    return any(first == second for first, second in pairwise(falling[:4]))
