"""The `report` step: one self-contained HTML page with metrics, calibration, and questions with their passages."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from sciqa.audit.contamination import (
    contamination_mark,
    contamination_slice_scores,
    contamination_summary,
    read_contamination,
)
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.options import RunOptions
from sciqa.core.summary import Summary
from sciqa.exam.finished_answers import readers_of_finished_answers
from sciqa.exam.metrics import answer_rank_range, calibration_bins, metric_bootstrap_interval, right_at_first
from sciqa.exam.open_exam import open_exam
from sciqa.exam.options import ExamOptions
from sciqa.report.page import render_page
from sciqa.report.report_questions import report_question_chains, report_questions
from sciqa.report.sweeps import read_sweeps, sweeps_plot

#: Figures of objectives besides `rank` that are drawn, as the history names them.
TRAINER_FIGURES = {
    "loss": "Loss",
    "reward": "Reward of sampled answers",
    "kl": "KL divergence from the reference, per token",
    "rewards/margins": "Reward of chosen less rejected answers",
    "rewards/accuracies": "Share of pairs whose chosen answer has the higher reward",
    "margin": "Score of chosen less rejected answers",
    "accuracy": "Share of pairs whose chosen answer has the higher score",
}
#: Keys of a question that the page's script reads.
ASKED = ("id", "prompt", "answer", "slices", "contamination")


@dataclass(kw_only=True)
class ReportOptions(ExamOptions, RunOptions):
    """Options of the `report` step."""

    show: str | None = None
    """Reader shown first, a name in OUTPUT/answers; by default the one that `sciqa exam` ran, else the best MAP@3."""
    report_questions: int = 1000
    """Most questions listed on the page; metrics always cover all questions."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(0, "report_questions")


def report(options: ReportOptions) -> Summary:
    """Render `OUTPUT/report.html` from the tables of a run.

    Raises:
        InputError: the run's folder has no answers to this exam, or none by the reader to show.
    """
    started = time.monotonic()
    exam = open_exam(options, write=False)
    readers = readers_of_finished_answers(options.output, exam)
    if not readers:
        raise InputError(f"{options.output}: no answers to the exam {exam.name}; run `sciqa predict` first")
    check_report_reader(options.show, readers)
    shown = options.show or next(iter(readers))
    questions, answers = report_questions(options.output, exam, readers, shown, options.report_questions)
    chains = report_question_chains(options.output, readers, len(questions))
    audited = read_contamination(options.output, exam)
    for number, question in enumerate(questions):
        question |= _stands(audited, number)
        question["slices"] += [f"contamination: {question['contamination']}"] * bool(question["contamination"])
    metrics = {name: reader["metrics"][0] for name, reader in readers.items() if reader["metrics"]}
    page = render_page(
        "report.html.j2",
        exam=exam.name,
        total=exam.questions,
        shown=shown,
        readers={name: _figures(reader) for name, reader in readers.items()},
        metrics=metrics,
        differences=report_gains(readers, shown),
        contamination=_contamination(audited, readers),
        questions=questions,
        asked=[{name: each[name] for name in ASKED} for each in questions],
        slices=sorted(Counter(name for each in questions for name in each["slices"]).items()),
        answers=answers,
        chains=chains,
        curves=_training_curves(options.output),
        sweeps=read_sweeps(options.output),
        cost=sweeps_plot(list(metrics.values()), "MAP@3 against seconds", "map_at_3", "seconds"),
    )
    path = storage.join_paths(options.output, "report.html")
    storage.write_bytes(path, page)
    made = f"one page on {', '.join([shown, *(name for name in readers if name != shown)])}"
    return Summary("report", path, made, time.monotonic() - started, {"readers": readers, "shown": shown})


def check_report_reader(show: str | None, readers: "list[str] | dict") -> None:
    """Raise `InputError` unless the reader to show first has answered the exam."""
    if show is not None and show not in readers:
        raise InputError(f"--show: no reader {show!r} has answered this exam; there are {', '.join(sorted(readers))}")


def report_gains(readers: dict[str, dict], first: str) -> list[dict]:
    """Return the gain in MAP@3 of one reader over each other reader, with 95 % paired-bootstrap intervals."""
    precisions = {name: report_answer_precisions(reader["answers"]) for name, reader in readers.items()}
    gains = []
    for other in (name for name in precisions if name != first):
        gain = precisions[first] - precisions[other]
        if len(gain):
            low, high = metric_bootstrap_interval(gain)
            about = {"reader": first, "other": other, "questions": len(gain)}
            gains.append(about | {"gain": float(gain.mean()), "low": low, "high": high})
    return gains


def report_answer_precisions(answers: list[dict]) -> np.ndarray:
    """Return the AP@3 of the questions with a known answer, shape (questions,), from rows of the answers table."""
    return np.array([row["average_precision"] for row in answers if row["answer"]])


def _stands(audited: tuple[list[dict], dict] | None, number: int) -> dict[str, str]:
    """Return the kind of a question, if the exam was compared with others, and in words where the question stands."""
    if audited is None:
        return {"contamination": "", "stands": ""}
    rows, inputs = audited
    return {
        "contamination": rows[number]["kind"] if inputs["against"] else "",
        "stands": contamination_mark(rows[number], inputs),
    }


def _contamination(audited: tuple[list[dict], dict] | None, readers: dict[str, dict]) -> dict | None:
    """Return the page's figures on contamination, None if `sciqa audit` has not run on this exam."""
    if audited is None:
        return None
    rows, inputs = audited
    asked = {name: inputs[name] for name in ("ngram", "similarity", "share")}
    return asked | {
        "said": contamination_summary(rows, inputs),
        "rows": contamination_slice_scores(rows, inputs, readers),
    }


def _figures(reader: dict) -> dict:
    """Return the page's figures on one reader, besides its answers."""
    whole, *slices = reader["metrics"] or [None]
    scored = [row for row in reader["answers"] if row["answer"]]
    return {
        "metrics": whole,
        "slices": sorted(slices, key=lambda row: -row["questions"]),
        "bins": _reliability(scored),
        "ranks": _rank_counts(scored),
        "confusion": report_confusion(scored),
        "letters": ascii_uppercase[: max((len(row["scores"]) for row in scored), default=0)],
        "options": list(report_inputs(reader["inputs"])),
    }


def report_inputs(inputs: dict, before: str = "") -> list[tuple[str, str]]:
    """Return names and values of the inputs; a nested name has its parent's name as prefix, `outer: inner`."""
    rows: list[tuple[str, str]] = []
    for name, value in inputs.items():
        if isinstance(value, dict):
            rows += report_inputs(value, f"{before}{name}: ")
        else:
            rows.append((before + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows


def _reliability(scored: list[dict]) -> list[dict]:
    if not scored:
        return []
    confidence = np.array([max(row["probabilities"]) for row in scored])
    return calibration_bins(confidence, right_at_first(*np.array([answer_rank_range(row) for row in scored]).T))


def _rank_counts(scored: list[dict]) -> list[float]:
    """Return how often the right option is ranked first, second, …; a tied one counts in equal parts at its ranks."""
    places = [answer_rank_range(row) for row in scored]
    ranks = [first - 1 + more for first, tied in places for more in range(tied)]
    return np.bincount(ranks, [1 / tied for _, tied in places for _ in range(tied)]).tolist() if ranks else []


def report_confusion(scored: list[dict]) -> dict[str, list[float]]:
    """Return for each right letter how often each letter, from A on, is ranked first.

    Options tied for the first rank count in equal parts. The rows are of the answers table, with a known answer.
    """
    letters = max((len(row["scores"]) for row in scored), default=0)
    counts = {row["answer"]: np.zeros(letters) for row in sorted(scored, key=lambda row: row["answer"])}
    for row in scored:
        scores = np.array(row["scores"])
        first = np.flatnonzero(scores == scores.max())
        counts[row["answer"]][first] += 1 / len(first)
    return {letter: row.tolist() for letter, row in counts.items()}


def _training_curves(output: str) -> list[dict]:
    """Return losses and validation metrics by step, scaled to 0…1, of every model trained in this folder."""
    curves = []
    for name, folder in tables.finished_tables(storage.join_paths(output, "trained")):
        rows = tables.read_table(storage.join_paths(folder, "metrics.parquet")).to_pylist()
        last = max(1, rows[-1]["step"])
        curve = {"name": name, "steps": last, "figures": tables.read_table_manifest(folder, "finetune"), "charts": []}
        if "map_at_3" not in rows[0]:  # of an objective besides `rank`
            curves.append(curve | {"charts": _trainer_charts(rows, last), "map_at_3": []})
            continue
        highest = max(max(row["loss"] or 0, row["validation_loss"] or 0) for row in rows) or 1
        lines = {
            key: [(row["step"] / last, row[key] / scale) for row in rows if row.get(key) is not None]
            for key, scale in (("loss", highest), ("validation_loss", highest), ("map_at_3", 1))
        }
        curves.append(curve | {"highest": highest} | lines)
    return curves


def _trainer_charts(rows: list[dict], last: int) -> list[dict]:
    """Return the figures of one of TRL's trainers by step, each scaled to 0…1: of batches, and of validation."""
    charts = []
    for name, title in TRAINER_FIGURES.items():
        names = (name, f"validation_{name}")
        lines = [[(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in names]
        values = [value for line in lines for _, value in line]
        if not values:
            continue
        low, high = min(0.0, *values), max(0.0, *values)
        width = high - low or 1.0
        lines = [[(step / last, (value - low) / width) for step, value in line] for line in lines]
        charts.append({"title": title, "low": low, "high": low + width, "lines": lines})
    return charts
