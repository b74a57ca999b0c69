"""Answers of all readers of a run to its exam."""

from collections.abc import Iterable

from sciqa.core import hashes, storage, tables
from sciqa.exam.metrics import metric_scores
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable


def finished_answers_path(output: str, name: str) -> str:
    """Return the folder of a reader's answers table in a run."""
    return storage.join_paths(output, "answers", name)


def finished_answers_fingerprint(inputs: dict, rows: Iterable[dict]) -> str:
    """Return a fingerprint of a reader's answers: of what they follow from, and of their scores.

    Args:
        inputs: recorded in the manifest of the table.
        rows: its rows, with `id` and `scores`.
    """
    scores = ({name: row[name] for name in ("id", "scores")} for row in rows)
    return hashes.fingerprint([inputs, hashes.rows_hash(scores)])


def finished_answers(output: str, exam: Exam) -> dict[str, dict]:
    """Return the manifests of all finished answers tables for this exam, by reader."""
    found = tables.finished_tables(storage.join_paths(output, "answers"))
    manifests = {name: tables.read_table_manifest(folder, "predict") for name, folder in found}
    return {name: each for name, each in manifests.items() if each["inputs"]["exam"] == exam.sha256}


def readers_of_finished_answers(output: str, exam: Exam) -> dict[str, dict]:
    """Return the results of each reader of this exam, best MAP@3 first.

    Returns:
        By reader: `answers` (rows), `metrics` (rows, the whole exam first), `inputs` (recorded in the manifest), and
        the names of its `model` and `adapter` and the folder of its `contexts`, each None if it has none.
    """
    readers = {}
    for name, manifest in finished_answers(output, exam).items():
        folder = finished_answers_path(output, name)
        metrics = tables.read_table(storage.join_paths(output, "metrics", f"{name}.parquet")).to_pylist()
        answers = QuestionTable(folder, manifest["rows"]).read_all(exam).to_pylist()
        for row in answers:
            metric_scores(row, None, folder)
        whole = metrics[0] if metrics else {}  # where versions before kept the names, without which an exam has none
        about = {kind: manifest.get(kind, whole.get(kind)) for kind in ("model", "adapter", "contexts")}
        readers[name] = {"answers": answers, "metrics": metrics, "inputs": manifest["inputs"]} | about
    return dict(
        sorted(readers.items(), key=lambda item: -item[1]["metrics"][0]["map_at_3"] if item[1]["metrics"] else 0)
    )
