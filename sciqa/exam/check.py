"""`sciqa exam --check`: show how an exam is understood, without running or writing anything."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sciqa.core.summary import Summary
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.baselines import baseline_answer_counts, baseline_scores
from sciqa.exam.metrics import average_precision_at_3, metric_rank_range, metrics_by_chance, right_at_first
from sciqa.exam.options import ExamOptions
from sciqa.exam.row import LETTERS

#: Number of questions shown, and of characters shown of each text.
SHOWN, WIDTH = 3, 300
#: Scores of the options of a question, from its row; None if it cannot be scored.
Scores = Callable[[dict], np.ndarray | None]


def check_exam(options: ExamOptions, gold_texts: Callable[[set[str]], dict[str, str]]) -> Summary:
    """Return how an exam is understood, as lines in `details["lines"]`; nothing is started or written.

    Args:
        options: options that name the exam.
        gold_texts: function from titles of articles to their texts, for the overlap with gold articles.

    Raises:
        InputError: names file, line, row and column of the problem.
    """
    started = time.monotonic()
    exam = options.exam_name()
    questions = options.read(exam)
    rows = questions.table.to_pylist()
    lines = [f"columns: {questions.columns.said()}"]
    for row in rows[:SHOWN]:
        lines += ["", *_shown(row)]
    given = [answer_options_of(row) for row in rows]
    lines += ["", _letters(rows), *_repeats(rows, given), _chance(rows, given), *_shallow(rows, gold_texts)]
    made = f"{len(rows):,} questions of {exam}, only shown"
    return Summary("check", "", made, time.monotonic() - started, {"lines": lines})


def _shown(row: dict) -> list[str]:
    """Return the lines that show a question, with its right option marked."""
    lines = [f"{row['id']}: {_cut(row['prompt'])}"]
    if row["context"]:
        lines.append(f"    context: {_cut(row['context'])}")
    marks = {row["answer"]: "*"}
    return lines + [
        f"  {marks.get(letter, ' ')} {letter} {_cut(text)}" for letter, text in answer_options_of(row).items()
    ]


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[:WIDTH] + "…"


def _letters(rows: list[dict]) -> str:
    counts = Counter(row["answer"] for row in rows if row["answer"])
    letters = [letter for letter in LETTERS if letter in rows[0]]
    said = ", ".join(f"{letter} {counts[letter]:,}" for letter in letters) if counts else "none"
    return f"right options: {said}; {len(rows) - counts.total():,} of {len(rows):,} questions without an answer"


def _repeats(rows: list[dict], given: list[dict[str, str]]) -> list[str]:
    """Return lines that count repeated questions, repeated prompts, and questions with options of the same text."""
    whole, prompts = defaultdict(list), defaultdict(list)
    for row, options in zip(rows, given, strict=True):
        whole[row["prompt"], row["context"], tuple(sorted(options.values()))].append(row["id"])
        prompts[row["prompt"]].append(row["id"])
    same = [row["id"] for row, options in zip(rows, given, strict=True) if len(set(options.values())) < len(options)]
    return [
        f"questions that stand there again: {_several(whole)}",
        f"prompts that stand there again: {_several(prompts)}",
        f"questions with options of the same text: {len(same):,}" + (f", the first is {same[0]}" if same else ""),
    ]


def _several(groups: Mapping[Any, list[str]]) -> str:
    again = [ids for ids in groups.values() if len(ids) > 1]
    said = f"{sum(len(ids) - 1 for ids in again):,}"
    return said + (f", the first {again[0][1]} as {again[0][0]}" if again else "")


def _chance(rows: list[dict], given: list[dict[str, str]]) -> str:
    """Return a line with the scores of random guesses, on the questions with answers, or on all if none has one."""
    numbers = [len(options) for row, options in zip(rows, given, strict=True) if row["answer"]]
    accuracy, map_at_3 = metrics_by_chance(numbers or [len(options) for options in given])
    counts = Counter(map(len, given))
    said = ", ".join(f"{number:,} with {options}" for options, number in sorted(counts.items()))
    return f"by chance: accuracy {accuracy:.3f}, MAP@3 {map_at_3:.3f} (questions by number of options: {said})"


def _shallow(rows: list[dict], gold_texts: Callable[[set[str]], dict[str, str]]) -> list[str]:
    """Return lines with the scores of the shallow baselines, each on the answered questions that it can rank."""
    rows = [row for row in rows if row["answer"]]
    titles = {row["title"] for row in rows if row.get("title")}
    articles = gold_texts(titles) if titles else {}
    longest, majority = (baseline_scores(name, baseline_answer_counts(rows)) for name in ("longest", "majority"))
    scores: dict[str, Scores] = {
        "overlap with the prompt": _overlap_with(lambda row: row["prompt"]),
        "overlap with the context": _overlap_with(lambda row: row["context"]),
        "overlap with the gold article": _overlap_with(lambda row: articles.get(row.get("title", ""))),
        "longest option": lambda row: longest(row, ""),
        "shortest option": lambda row: -longest(row, ""),
        "most frequent letter": lambda row: majority(row, ""),
    }
    lines = []
    for name, score in scores.items():
        scored = [(row, found) for row in rows if (found := score(row)) is not None]
        if scored:
            ranks, tied = np.array([metric_rank_range(found, LETTERS.index(row["answer"])) for row, found in scored]).T
            accuracy, map_at_3 = right_at_first(ranks, tied).mean(), average_precision_at_3(ranks, tied).mean()
            on = f" (on {len(scored):,} questions)" * (len(scored) < len(rows))
            lines.append(f"by {name}: accuracy {accuracy:.3f}, MAP@3 {map_at_3:.3f}{on}")
    return lines


def _overlap_with(text: Callable[[dict], str | None]) -> Scores:
    overlap = baseline_scores("overlap", {})
    return lambda row: overlap(row, said) if (said := text(row)) else None
