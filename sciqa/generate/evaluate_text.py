"""The `evaluate` step: free answers of a base model and a tuned one to held-out instructions, and their scores."""

import time

import pyarrow as pa

from sciqa.core import cluster, hashes, model_workers, progress, storage, tables
from sciqa.core.adapter_files import adapter_hash, check_adapter_files
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.lock import lock
from sciqa.core.model_files import ADAPTER_CONFIG, find_model, model_file_bytes, model_file_family, model_files_name
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.exam.instructions import read_instructions
from sciqa.generate.options import EvaluateTextOptions
from sciqa.generate.text_metrics import FIGURES, text_metric_rows

#: Version of what this step computes. Raise it with every change, so that tables of earlier versions are not kept.
EVALUATE_FORMAT = 4
#: Instructions per part, the unit of work and of resuming.
PART_INSTRUCTIONS = 32
FIGURES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "figure")),
        ("answers", pa.int64()),
        *((name, pa.float64()) for name in ("mean", "low", "high", "gain", "gain_low", "gain_high")),
    ]
)


def evaluate_text(options: EvaluateTextOptions) -> Summary:
    """Write the answers of each model, OUTPUT/text/NAME, and the figures of all, OUTPUT/text_figures.parquet.

    Raises:
        InputError: bad instructions, a model that writes no text or for which they all are too long, or an adapter of
            another model.
    """
    started = time.monotonic()
    require_extra("rouge", "evaluate")
    rows = read_instructions(options.text)
    models = _models(options)
    answers, folders = {}, []
    for name, (model, adapter) in models.items():
        folder = storage.join_paths(options.output, "text", name)
        with lock(folder):
            _answer_all(options, folder, rows, model, adapter)
        answers[name] = tables.read_table(folder).to_pylist()
        folders.append(folder)
    unasked = _unasked(options, answers)
    figures = text_metric_rows(answers)
    path = storage.join_paths(options.output, "text_figures.parquet")
    tables.write_table(path, pa.Table.from_pylist(figures, schema=FIGURES_SCHEMA))
    made = f"{len(rows):,} instructions answered by {', '.join(models)}{unasked}; answers in {', '.join(folders)}"
    details = {"Free answers, 95 % bootstrap intervals": _shown(figures)}
    return Summary("evaluate", path, made, time.monotonic() - started, details)


def _models(options: EvaluateTextOptions) -> dict[str, tuple[str, str | None]]:
    """Return the models to compare, each with its adapter, by the names of their tables; the base first."""
    models: dict[str, tuple[str, str | None]] = {model_files_name(options.model): (options.model, None)}
    if options.tuned and storage.path_exists(storage.join_paths(options.tuned, ADAPTER_CONFIG)):
        require_extra("train", "--tuned")
        check_adapter_files(options.tuned, options.model)
        models[f"tuned-{model_files_name(options.tuned)}"] = (options.model, options.tuned)
    elif options.tuned:
        models[f"tuned-{model_files_name(options.tuned)}"] = (options.tuned, None)
    for model, _ in models.values():
        if (family := model_file_family(model)) != "causal":
            raise InputError(f"{model}: a {family} model, which writes no text; a causal model expected")
    return models


def _answer_all(
    options: EvaluateTextOptions, folder: str, rows: list[dict[str, str]], model: str, adapter: str | None
) -> None:
    """Write what is missing of a model's answers."""
    names = ("precision", "reply_tokens", "reply_batch", "seed", "temperature", "embed_backend")
    inputs = {"format": EVALUATE_FORMAT, "text": hashes.rows_hash(rows), "model": find_model(model).revision}
    inputs |= {"adapter": adapter and adapter_hash(adapter), "embedder": find_model(options.embedder).revision}
    inputs |= {"prefix": options.prefix("passage")} | {name: getattr(options, name) for name in names}
    begun = tables.begin_table(folder, inputs, defaults_of(EvaluateTextOptions), PART_INSTRUCTIONS, options.overwrite)
    if begun.whole:
        return
    cluster.connect_cluster(options)
    parts = [
        {"number": number, "rows": rows[first : first + PART_INSTRUCTIONS]}
        for number, first in enumerate(range(0, len(rows), PART_INSTRUCTIONS))
        if tables.table_part_name(number) not in begun.names
    ]
    if parts:
        _run_workers(options, folder, parts, model, adapter)
    tables.finish_table(folder, {"format": EVALUATE_FORMAT, "inputs": inputs, "rows": PART_INSTRUCTIONS})


def _run_workers(options: EvaluateTextOptions, folder: str, parts: list[dict], model: str, adapter: str | None) -> None:
    from sciqa.generate.text_answers import WriteTextAnswers

    workers = cluster.num_cluster_workers(options, len(parts))
    weights = model_file_bytes(model) + model_file_bytes(options.embedder)
    pool = {"workers": workers, "parts": len(parts), "weights": weights}
    writer = options.writer_arguments(cluster.cluster_device(options), cluster.cluster_threads_per_worker(workers))
    writer |= {"model": model, "revision": find_model(model).revision, "adapter": adapter}
    writer["adapter_revision"] = adapter_hash(adapter) if adapter else None
    arguments = {"folder": folder, "writer": writer}
    arguments |= {"embed": options.embed_arguments(workers), "prefix": options.prefix("passage")}
    dataset = model_workers.run_model_workers(options, WriteTextAnswers, arguments, parts, pool)
    total = sum(len(part["rows"]) for part in parts)
    for _ in progress.rows_with_progress(dataset, "evaluate", total, "instructions", lambda row: row["answers"]):
        pass


def _unasked(options: EvaluateTextOptions, answers: dict[str, list[dict]]) -> str:
    """Return in words how many instructions each model was not asked, for the summary; empty if all were asked."""
    said = ""
    for name, rows in answers.items():
        left = sum(row["fault"] is not None for row in rows)
        if left == len(rows):
            raise InputError(
                f"{options.text}: all {left:,} instructions are too long for {name} with --reply-tokens "
                f"{options.reply_tokens}; pass fewer, shorter instructions, or another --model"
            )
        said += f"; {left:,} of them too long for {name}, which counts as an empty answer" * bool(left)
    return said


def _shown(figures: list[dict]) -> list[dict]:
    """Return the figures for printing, a row for each figure and model."""
    rows = []
    for row in figures:
        shown = {"figure": FIGURES[row["figure"]], "model": row["model"]}
        shown["mean"] = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        if row["gain"] is not None:
            shown["gain, paired"] = f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        rows.append(shown)
    return rows
