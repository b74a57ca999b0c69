"""The `audit` step: which questions of an exam stand in other questions or in texts, and the scores on the others."""

import time
from dataclasses import replace

import pyarrow as pa

from sciqa.audit.compare_questions import EmbedComparedQuestions, compare_part
from sciqa.audit.contamination import (
    AUDIT_FORMAT,
    KINDS,
    METRICS,
    SCHEMA,
    ContaminationFindings,
    contamination_rows,
    contamination_slice_scores,
    contamination_summary,
    read_contamination,
)
from sciqa.audit.options import AuditOptions
from sciqa.audit.sources import OtherSource, TextSource, find_audit_source, read_other_sources, say_sources_left_out
from sciqa.audit.words import SEED
from sciqa.core import cluster, model_workers, progress, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, model_file_bytes
from sciqa.core.model_workers import model_worker_arguments
from sciqa.core.summary import Summary, summary_interval_text
from sciqa.exam.finished_answers import readers_of_finished_answers
from sciqa.exam.open_exam import Exam, open_exam

__all__ = ["AuditOptions", "audit"]

#: Questions that a worker embeds or compares at once.
QUESTIONS = 512
#: Most questions that are printed by name.
SHOWN = 20


def audit(options: AuditOptions) -> Summary:
    """Write the audit table, a row per question, and `contamination.parquet`, the readers' scores on its slices.

    Raises:
        InputError: a bad exam or other file, trained questions that are not known, nothing to compare with, or a corpus
            of which no article can be read.
    """
    started = time.monotonic()
    exam = open_exam(options, write=False)
    readers = readers_of_finished_answers(options.output, exam)
    against, texts = read_other_sources(options, readers), find_audit_source(options)
    if not against and not texts:
        raise InputError(
            f"{options.output}: nothing to compare {exam.name} with: no passages, no index and no trained reader whose "
            "questions are known; pass --against FILE or --corpus"
        )
    inputs = _inputs(options, exam, against, texts)
    with lock(options.folder):
        kept = _fill(options, exam, inputs, against, texts)
    say_sources_left_out(tables.read_table_manifest(options.folder, "audit").get("left_out", []))
    found = read_contamination(options.output, exam)
    assert found is not None  # it has just been written
    rows, inputs = found
    scored = contamination_slice_scores(rows, inputs, readers)
    path = storage.join_paths(options.output, "contamination.parquet")
    tables.write_table(path, pa.Table.from_pylist(scored, schema=METRICS))
    made = contamination_summary(rows, inputs) + ", kept" * kept
    return Summary("audit", options.folder, made, time.monotonic() - started, _shown(rows, scored))


def _inputs(options: AuditOptions, exam: Exam, against: list[OtherSource], texts: TextSource | None) -> dict:
    """Return everything that determines the table; of the embedder only if it is used."""
    inputs = {"format": AUDIT_FORMAT, "exam": exam.sha256, "against": {each.name: each.sha256 for each in against}}
    inputs |= {"texts": texts and texts.identity, "texts_name": texts and texts.name}
    inputs |= {name: getattr(options, name) for name in ("ngram", "similarity", "share")}
    if against:
        inputs |= {"embedder": find_model(options.embedder).revision, "backend": options.embed_backend}
        inputs |= {"prefix": options.prefix("query")}
    return inputs


def _fill(
    options: AuditOptions, exam: Exam, inputs: dict, against: list[OtherSource], texts: TextSource | None
) -> bool:
    """Complete the audit table; return whether it was already complete."""
    folder = options.folder
    begun = tables.begin_table(folder, inputs, rows=exam.shard_questions, overwrite=options.overwrite)
    if begun.whole:
        return True
    open_exam(options)
    exam = replace(exam, shard_questions=begun.rows or exam.shard_questions)
    cluster.connect_cluster(options)
    seed = min(SEED, inputs["ngram"])
    exam_parts, parts = _parts(folder, exam, against, texts)
    if against:
        _embed(options, [*exam_parts, *(part for part in parts if part.get("table"))])
    _compare(exam, seed, exam_parts if against else [], parts)
    findings = ContaminationFindings()
    for part in parts:
        findings.read(part["findings"])
    left_out = sorted(findings.left_out)
    if options.corpus and not findings.articles:
        say_sources_left_out(left_out)
        tables.delete_table(folder)  # so that nothing stands in the way of a mended corpus
        raise InputError(f"{', '.join(options.corpus)}: 0 articles read; files with articles that have text expected")
    questions = [question for number in range(exam.shards) for question in exam.read_shard(number)]
    rows = contamination_rows(questions, findings, inputs, seed)
    for number in range(exam.shards):
        shard = rows[exam.first(number) : exam.first(number + 1)]
        tables.write_table(tables.table_part_path(folder, number), pa.Table.from_pylist(shard, schema=SCHEMA))
    manifest = {"format": AUDIT_FORMAT, "inputs": inputs, "rows": begun.rows, "left_out": left_out}
    tables.finish_table(folder, manifest)
    for name in ("questions", "vectors", "findings"):
        storage.delete_path(tables.table_records_path(folder, name))
    return False


def _parts(
    folder: str, exam: Exam, against: list[OtherSource], texts: TextSource | None
) -> tuple[list[dict], list[dict]]:
    """Return the parts of the exam, and those that it is compared with; write the other questions for workers."""
    exam_parts = _cut("the exam", exam.path, exam.questions)
    parts = []
    for number, others in enumerate(against):
        path = tables.table_records_path(folder, "questions", f"{number:05d}.parquet")
        if not storage.path_exists(path):
            tables.write_table(path, others.table.replace_schema_metadata(None), row_group_size=QUESTIONS)
        parts += _cut(others.name, path, len(others.table))
    for number, part in enumerate([*exam_parts, *parts]):
        part["vectors"] = tables.table_records_path(folder, "vectors", f"{number:05d}.npy")
    parts += texts.parts if texts else []
    for number, part in enumerate(parts):
        part["findings"] = tables.table_records_path(folder, "findings", f"{number:05d}.parquet")
    return exam_parts, parts


def _cut(source: str, table: str, rows: int) -> list[dict]:
    starts = range(0, rows, QUESTIONS)
    return [{"source": source, "table": table, "first": at, "last": min(at + QUESTIONS, rows)} for at in starts]


def _embed(options: AuditOptions, parts: list[dict]) -> None:
    """Write the vectors of all questions, except those that are there from an earlier run."""
    parts = [part for part in parts if not storage.path_exists(part["vectors"])]
    if not parts:
        return
    workers = cluster.num_cluster_workers(options, len(parts))
    arguments = {"embed": options.embed_arguments(workers), "prefix": options.prefix("query")}
    pool = model_workers.model_worker_pool(options, workers, len(parts), model_file_bytes(options.embedder))
    rows = cluster.cluster_dataset(parts).map(**model_worker_arguments(EmbedComparedQuestions, arguments, pool))
    total = sum(part["last"] - part["first"] for part in parts)
    for _ in progress.rows_with_progress(rows, "audit", total, "questions embedded", lambda row: row["questions"]):
        pass


def _compare(exam: Exam, seed: int, exam_parts: list[dict], parts: list[dict]) -> None:
    """Write the findings of all parts, except those that are there from an earlier run."""
    parts = [part for part in parts if not storage.path_exists(part["findings"])]
    if not parts:
        return
    arguments = {"exam": exam, "seed": seed, "exam_parts": exam_parts}
    rows = cluster.cluster_dataset(parts).map(compare_part, fn_kwargs=arguments, num_cpus=1)
    for _ in progress.rows_with_progress(rows, "audit", len(parts), "parts compared", lambda row: row["done"]):
        pass


def _shown(rows: list[dict], scored: list[dict]) -> dict[str, list[dict]]:
    """Return tables to print, by title: the contaminated questions, and the readers' scores on each slice."""
    dirty = [row for row in rows if row["kind"] in KINDS[:2]]
    shown = {}
    if dirty:
        title = "Contaminated questions" + f", the first {SHOWN} of {len(dirty):,}" * (len(dirty) > SHOWN)
        names = ("id", "kind", "nearest", "nearest_source", "cosine", "question_share", "question_run")
        shown[title] = [{name.replace("_", " "): row[name] for name in names} for row in dirty[:SHOWN]]
    if scored:
        shown["Scores by contamination, 95 % bootstrap intervals"] = [
            {"slice": row["slice"], "reader": row["reader"], "questions": row["questions"]}
            | {"MAP@3": summary_interval_text(row, "map_at_3"), "accuracy": summary_interval_text(row, "accuracy")}
            | {"MAP@3 by chance": f"{row['chance_map_at_3']:.3f}"}
            for row in scored
        ]
    return shown
