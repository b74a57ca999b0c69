"""One self-contained HTML page of a run: metrics, reliability, and every question with what was found for it."""

import time
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from sciqa import storage
from sciqa.cluster import Summary
from sciqa.errors import InputError
from sciqa.exam.metrics import bootstrap_interval, calibration_bins, place_of_answer, right_at_first, scores_of
from sciqa.exam.questions import Exam, ExamOptions, open_exam, options_of
from sciqa.exam.table import QuestionTable


@dataclass(kw_only=True)
class ReportOptions(ExamOptions):
    """What the page shows."""

    report_questions: int = 1000
    """Most questions listed on the page; the figures are of all."""


def report(options: ReportOptions) -> Summary:
    """Render `OUTPUT/report.html` from the tables of a run.

    Raises:
        InputError: no answers to this exam in the run's folder.
    """
    started = time.monotonic()
    exam = open_exam(options, write=False)
    readers = find_readers(options.output, exam)
    if not readers:
        raise InputError(f"{options.output}: no answers to the exam {exam.name}; run `sciqa predict` first")
    main = next(iter(readers))
    environment = Environment(
        loader=PackageLoader("sciqa.exam", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        exam=exam.name,
        total=exam.questions,
        main=main,
        metrics={name: reader["metrics"][0] for name, reader in readers.items() if reader["metrics"]},
        differences=differences(readers),
        slices=readers[main]["metrics"][1:],
        bins=_reliability(readers[main]["answers"]),
        ranks=_rank_counts(readers[main]["answers"]),
        questions=_questions(options, exam, readers[main]["answers"]),
        curves=_training_curves(options.output),
    )
    path = storage.join(options.output, "report.html")
    storage.write_bytes(path, page.encode())
    made = f"one page on {', '.join(readers)}"
    return Summary("report", path, made, time.monotonic() - started, {"readers": readers})


def find_readers(output: str, exam: Exam) -> dict[str, dict]:
    """Return `answers` and `metrics` (rows, the whole exam first) of each reader of this exam, best MAP@3 first."""
    readers = {}
    for name in storage.list_folders(storage.join(output, "answers")):
        folder = storage.join(output, "answers", name)
        if not storage.is_finished(folder):
            continue
        manifest = storage.read_manifest(folder, "predict")
        if manifest["inputs"]["exam"] == exam.sha256:
            metrics = storage.read_table(storage.join(output, "metrics", f"{name}.parquet")).to_pylist()
            answers = QuestionTable(folder, manifest["rows"]).read_all(exam).to_pylist()
            for row in answers:
                scores_of(row, None, folder)
            readers[name] = {"answers": answers, "metrics": metrics}
    return dict(
        sorted(readers.items(), key=lambda item: -item[1]["metrics"][0]["map_at_3"] if item[1]["metrics"] else 0)
    )


def differences(readers: dict[str, dict]) -> list[dict]:
    """Return the first reader's gain in MAP@3 over each other one, with its 95 % paired-bootstrap interval."""
    precisions = {
        name: np.array([row["average_precision"] for row in reader["answers"] if row["answer"]])
        for name, reader in readers.items()
    }
    first, *others = precisions
    gains = []
    for other in others:
        gain = precisions[first] - precisions[other]
        if len(gain):
            low, high = bootstrap_interval(gain)
            about = {"reader": first, "other": other, "questions": len(gain)}
            gains.append(about | {"gain": float(gain.mean()), "low": low, "high": high})
    return gains


def _training_curves(output: str) -> list[dict]:
    """Return, of every model trained in this folder, its losses and validation figures by step, scaled to 0…1."""
    curves = []
    for name in storage.list_folders(storage.join(output, "trained")):
        folder = storage.join(output, "trained", name)
        if not storage.is_finished(folder):
            continue
        rows = storage.read_table(storage.join(folder, "metrics.parquet")).to_pylist()
        last = max(1, rows[-1]["step"])
        highest = max(max(row["loss"] or 0, row["validation_loss"] or 0) for row in rows) or 1
        curves.append(
            {"name": name, "steps": last, "highest": highest, "figures": storage.read_manifest(folder, "finetune")}
            | {"loss": [(row["step"] / last, row["loss"] / highest) for row in rows if row["loss"] is not None]}
            | {
                key: [(row["step"] / last, row[key] / scale) for row in rows if row["map_at_3"] is not None]
                for key, scale in (("validation_loss", highest), ("map_at_3", 1))
            }
        )
    return curves


def _reliability(answers: list[dict]) -> list[dict]:
    scored = [row for row in answers if row["answer"]]
    if not scored:
        return []
    confidence = np.array([max(row["probabilities"]) for row in scored])
    return calibration_bins(confidence, right_at_first(*np.array([place_of_answer(row) for row in scored]).T))


def _rank_counts(answers: list[dict]) -> list[float]:
    """Return how often the correct option is ranked first, second, …; a tied one counts in parts, for each rank."""
    places = [place_of_answer(row) for row in answers if row["answer"]]
    ranks = [first - 1 + more for first, tied in places for more in range(tied)]
    return np.bincount(ranks, [1 / tied for _, tied in places for _ in range(tied)]).tolist() if ranks else []


def _questions(options: ReportOptions, exam: Exam, answers: list[dict]) -> list[dict]:
    """Return the questions listed, each with its options by probability and the passages found for it."""
    listed = []
    contexts = _contexts(options.output, exam)
    for part in range(exam.shards):
        if len(listed) >= options.report_questions:
            break
        questions = exam.read_shard(part)
        found = contexts.read(questions, exam.first(part), ["passages"]) if contexts else [{}] * len(questions)
        for question, passages in zip(questions, found, strict=True):
            answer = answers[len(listed)]
            given = options_of(question)
            probabilities = dict(zip(given, answer["probabilities"], strict=True))
            listed.append(
                question
                | {
                    "options": [
                        {"letter": letter, "text": given[letter], "probability": probabilities[letter]}
                        for letter in answer["ranking"]
                    ],
                    "rank": answer["ranking"].index(question["answer"]) + 1 if question["answer"] else None,
                    "tied": bool(question["answer"]) and place_of_answer(answer)[1] > 1,
                    "slice": question.get("topic") or question.get("subject"),
                    "passages": passages.get("passages", []),
                }
            )
    return listed[: options.report_questions]


def _contexts(output: str, exam: Exam) -> QuestionTable | None:
    """Return the run's contexts table, where there is one of this exam."""
    folder = storage.join(output, "contexts")
    if not storage.is_finished(folder):
        return None
    manifest = storage.read_manifest(folder, "retrieve")
    return QuestionTable(folder, manifest["rows"]) if manifest["inputs"]["exam"] == exam.sha256 else None
