"""Results of a reader: the metrics of its answers by slice of the exam, and the competition's file."""

import io

import pyarrow as pa
import pyarrow.csv

from sciqa.core import storage, tables
from sciqa.core.local_stage import run_local_or_task
from sciqa.exam.chain_table import USAGE, chain_table_usage
from sciqa.exam.metrics import score_metrics
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable
from sciqa.predict.api_records import collect_records, record_token_cost, sum_record_usage
from sciqa.predict.options import PredictOptions
from sciqa.predict.scored_answers import has_tied_scored_answers

METRICS = pa.schema(
    [
        *((name, pa.string()) for name in ("slice", "reader", "model", "adapter", "contexts")),
        *((name, pa.int64()) for name in ("questions", "ties")),
        *((f"{name}{end}", pa.float64()) for name in ("map_at_3", "accuracy") for end in ("", "_low", "_high")),
        *((name, pa.float64()) for name in ("chance_map_at_3", "chance_accuracy")),
        *((name, pa.float64()) for name in ("log_loss", "calibration_error", "position_bias", "seconds")),
        *((name, pa.int64()) for name in USAGE),
        ("cost", pa.float64()),
    ]
)


def result_metrics_path(output: str, name: str) -> str:
    """Return the path of a reader's metrics table."""
    return storage.join_paths(output, "metrics", f"{name}.parquet")


def result_reader(options: PredictOptions) -> dict[str, str | None]:
    """Return the `model`, the `adapter` and the folder of `contexts` of a reader; None for what it does not have."""
    model = options.model if options.has_model else options.embedder if options.reader == "retrieval" else None
    return {
        "model": " + ".join(options.blend) or model,
        "adapter": options.adapter if options.has_model else None,
        "contexts": options.contexts if options.has_context else None,
    }


def write_results(options: PredictOptions, exam: Exam, folder: str, seconds: float) -> dict[str, int]:
    """Write the metrics table and the competition's file.

    Returns:
        The counts of truncated contexts (`cut`) and of ties (`tied`); of written answers also those
        of `sciqa.exam.chain_table.USAGE`.
    """
    about = {"reader": options.name, "seconds": seconds} | result_reader(options)
    submission = storage.join_paths(options.output, "submissions", f"{options.name}.csv")
    rows, counts = run_local_or_task(_sum_up, exam, folder, submission)
    rows = [about | row | {"cost": record_token_cost(options.price, row)} for row in rows]
    table = pa.Table.from_pylist(rows, schema=METRICS)
    tables.write_table(result_metrics_path(options.output, options.name), table)
    return counts


def update_results_cost(options: PredictOptions) -> None:
    """Write the metrics of finished answers anew if `--price` gives another cost of their tokens than that in them."""
    path = result_metrics_path(options.output, options.name)
    rows = tables.read_table(path).to_pylist() if options.price else []
    priced = [row | {"cost": record_token_cost(options.price, row)} for row in rows]
    if priced != rows:
        tables.write_table(path, pa.Table.from_pylist(priced, schema=METRICS))


def _sum_up(exam: Exam, folder: str, submission: str) -> tuple[list[dict], dict[str, int]]:
    """Write the competition's file, score all answers and each slice, and count as `write_results` returns it."""
    table = QuestionTable(folder, exam.shard_questions).read_all(exam)
    lines = io.BytesIO()
    pa.csv.write_csv(table.select(["id", "prediction"]), lines)
    storage.write_bytes(submission, lines.getvalue())
    asked = collect_records(folder) or chain_table_usage(folder)
    answers = [row | asked.get(row["id"], {}) for row in table.to_pylist()]
    slices = _slices(exam, answers)
    scored = {name: score_metrics(rows) for name, rows in slices.items()}
    rows = [{"slice": name} | figures | sum_record_usage(slices[name]) for name, figures in scored.items() if figures]
    counts = {"cut": sum(row["context_cut"] for row in answers), "tied": sum(map(has_tied_scored_answers, answers))}
    return rows, counts | sum_record_usage(answers)


def _slices(exam: Exam, answers: list[dict]) -> dict[str, list[dict]]:
    """Return named subsets of the answers: all, each topic, subject and kind, and prompts that are not questions."""
    columns = ["topic", "subject", "kind", "is_question"]
    file = exam.open_table()
    present = [name for name in columns if name in file.schema_arrow.names]
    slices: dict[str, list[dict]] = {"all": answers}
    for question, answer in zip(file.read(present).to_pylist(), answers, strict=True):
        for name in (name for name in present[:-1] if question[name] is not None):
            slices.setdefault(f"{name}: {question[name]}", []).append(answer)
        if not question["is_question"]:
            slices.setdefault("instructions", []).append(answer)
    return slices
