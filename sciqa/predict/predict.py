"""The `predict` step: a pool of workers writes ranked answers, and their metrics, to Parquet."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import ray

from sciqa.core import adapter_files, cluster, progress, tables, worker_loss
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.imports import quick_imports
from sciqa.core.local_stage import is_local_stage
from sciqa.core.lock import lock
from sciqa.core.model_files import (
    find_model,
    model_file_bytes,
    model_file_family,
    model_files_have_head,
    read_model_file,
)
from sciqa.core.model_workers import model_worker_pool, run_model_workers
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.exam.baselines import BASELINES, baseline_answer_counts
from sciqa.exam.open_exam import Exam, open_exam
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import check_template, check_template_context
from sciqa.models.streamed_weights import StreamedWeightsSettings, check_streamed_weights, streamed_weight_bytes
from sciqa.predict.api import (
    ApiReader,
    api_inputs,
    api_prompt_format,
    api_server_arguments,
    api_server_pool,
    api_workers,
    check_api,
)
from sciqa.predict.api_records import record_usage_summary
from sciqa.predict.baseline_reader import BaselineReader
from sciqa.predict.options import PredictOptions, ReaderModelOptions
from sciqa.predict.reasoned_work import (
    check_reasoned_work,
    check_reasoned_work_model,
    reasoned_work_arguments,
    reasoned_work_inputs,
)
from sciqa.predict.results import result_metrics_path, result_reader, update_results_cost, write_results
from sciqa.predict.scored_answers import (
    ANSWERS_FORMAT,
    read_scored_answer_sources,
    write_scored_answers,
)
from sciqa.predict.streamed_passes import show_streamed_passes, split_passes
from sciqa.predict.vllm import VllmShards, answer_vllm_requests, check_vllm
from sciqa.predict.work import (
    ReaderWork,
    blend_work,
    cascade_work,
    check_work_files,
    check_work_fit,
    replaced_work_source,
    work_files,
    work_sources,
)
from sciqa.retrieval.contexts import open_contexts
from sciqa.retrieval.options import RetrieveOptions

#: Module of the readers, which takes seconds to import.
READERS_MODULE = "sciqa.predict.readers"
#: Readers that load no model, by their keys in `sciqa.predict.readers.READERS`.
WITHOUT_MODEL: dict[str, type] = {"baseline": BaselineReader, "api": ApiReader}


def predict(options: PredictOptions) -> Summary:
    """Write the answers table of one reader, and its metrics where the exam has answers.

    The tables are `OUTPUT/answers/NAME/` and `OUTPUT/metrics/NAME.parquet`; `OUTPUT/submissions/NAME.csv` is in the
    format of the Kaggle competition. Finished shards of an earlier run with the same inputs are kept.

    Raises:
        InputError: the exam is invalid, contexts for it or the model are missing, or the adapter belongs to another
            model.
    """
    started = time.monotonic()
    exam = open_exam(options, write=False)
    inputs, folder = predict_inputs(options, exam), options.folder
    with lock(folder):
        manifest, kept = _fill(options, exam, inputs, started)
    made = f"{exam.questions:,} questions ranked, {options.name}" + kept + manifest["about"]
    if manifest["cut"]:
        what = "questions cut to the embedder's" if options.reader == "retrieval" else "contexts cut to the model's"
        made += f"; {manifest['cut']:,} {what} limit"
    if manifest["tied"]:
        made += f"; {manifest['tied']:,} questions with ties among their first three options"
    made += record_usage_summary(options.price, manifest, "the server" if options.in_api else "the model")
    metrics = tables.read_table(result_metrics_path(options.output, options.name)).to_pylist()
    return Summary("predict", folder, made, time.monotonic() - started, metrics[0] if metrics else {})


def _fill(options: PredictOptions, exam: Exam, inputs: dict, started: float) -> tuple[dict, str]:
    """Write the missing shards of the answers table; return its manifest, and a note on the shards kept."""
    folder = options.folder
    defaults = defaults_of(PredictOptions, RetrieveOptions)
    begun = tables.begin_table(folder, inputs, defaults, exam.shard_questions, options.overwrite)
    if begun.whole:
        update_results_cost(options)
        return tables.read_table_manifest(folder, "predict"), ", kept"
    open_exam(options)
    exam = replace(exam, shard_questions=begun.rows or exam.shard_questions)
    missing = [part for part in range(exam.shards) if tables.table_part_name(part) not in begun.names]
    if not is_local_predict(options, exam):
        cluster.connect_cluster(options)
    with show_streamed_passes() if options.streams else nullcontext() as say:
        work = cascade_work(options, exam, _work(options, exam, missing, say))
        check_work_files(options, inputs)
        list(_answer_all(exam, options, folder, work))
    if replaced := replaced_work_source(options, exam, inputs):
        tables.delete_table(folder)
        raise InputError(
            f"{replaced} while {options.name} read them, so its answers were deleted; run `sciqa predict` again"
        )
    seconds = time.monotonic() - started + work.seconds_before
    counts = write_results(options, exam, folder, seconds)
    manifest = {"format": ANSWERS_FORMAT, "inputs": inputs, "rows": begun.rows}
    manifest |= {"seconds": seconds, "about": work.about} | result_reader(options) | counts
    tables.finish_table(folder, manifest)
    kept = exam.shards - len(missing)
    return manifest, f", {kept} of {exam.shards} shards kept" if kept and missing else ""


def check_predict_model(
    options: PredictOptions, question: dict | None = None, instead: str = "--reader closed-book"
) -> None:
    """Raise `InputError` unless the chosen engine can run the model, or as `check_predict_reader` does.

    A reader with contexts also needs a prompt that has them; `instead` says what to pass where it has none.
    """
    if options.is_reasoned:
        check_reasoned_work(options)
    if options.engine == "openai":
        check_api(options, question)
        style = api_prompt_format(options)
    else:
        if options.engine == "vllm":
            check_vllm(options)
        if options.stream:
            check_streamed_weights(options.model)
        style = check_predict_reader(options, question)
    if options.has_context:
        check_template_context(style, instead)


def check_predict_reader(options: ReaderModelOptions, question: dict | None = None) -> PromptFormat:
    """Check that the model can rank options, the adapter belongs to it, and the template has no error.

    Args:
        options: options of the reader.
        question: row of the exam table, on which the template is tried; None does not try it.

    Returns:
        The format of the prompts: as the options say, else as in training.

    Raises:
        InputError: one of these is not so, or an option would have no effect on the model.
    """
    _check_extras(options)
    family = model_file_family(options.model)
    if options.adapter:
        if said := adapter_files.check_adapter_files(options.adapter, options.model):
            console.print(said, markup=False, soft_wrap=True)
    elif family == "multiple-choice" and not model_files_have_head(options.model):
        raise InputError(
            f"{options.model}: an encoder whose multiple-choice head has not been trained; "
            "run `sciqa finetune` on it and pass what it makes as --adapter or --model"
        )
    trained = adapter_files.read_adapter_record(options.adapter or find_model(options.model).folder).get("style", {})
    style = PromptFormat(**trained | options.style())
    options.check_family(family)
    check_template(style, None if question is None else question | {"examples": options.read_shots()[: options.shots]})
    if style.completion == "reasoned":
        check_reasoned_work_model(options.model, family)
    if options.rotations > 1 and (family == "multiple-choice" or style.completion != "letter"):
        raise InputError(
            f"--rotations {options.rotations}: this reader scores every option without the others, so their order "
            "changes nothing; it is for prompts that list them (--completion letter)"
        )
    return style


def _check_extras(options: ReaderModelOptions) -> None:
    stored = read_model_file(options.model, "config.json").get("quantization_config") or {}
    if options.adapter:
        require_extra("train", "--adapter")
    if options.nf4 or stored.get("quant_method") == "bitsandbytes":
        require_extra("train", f"{options.model} in 4 or 8 bits")


def predict_inputs(options: PredictOptions, exam: Exam, found: bool = True) -> dict:
    """Check the reader's prerequisites and return the inputs that determine its answers.

    Args:
        options: options of the step.
        exam: questions to rank the options of.
        found: whether their contexts are found already; otherwise these are not looked at.
    """
    options.check_effects()
    inputs = {"format": ANSWERS_FORMAT, "exam": exam.sha256, "reader": options.name}
    inputs |= work_sources(options, exam, found)
    if options.blend:
        check_work_fit(options)
        return inputs
    if options.cascade:
        inputs |= {"share": options.cascade_share, "by": options.cascade_by}
    if options.reader == "overlap-gold" and "title" not in exam.columns:
        raise InputError(f"--reader overlap-gold: needs the column `title` (gold article), which {exam.name} lacks")
    if options.reader in BASELINES:
        return inputs | {"baseline": options.reader}
    if options.reader == "retrieval":
        inputs |= work_files(options) | {"backend": options.embed_backend}
        return inputs | {"prefixes": [options.prefix("query"), options.prefix("passage")]}
    check_predict_model(options, exam.sample)
    if options.in_api:
        return inputs | api_inputs(options)
    inputs |= work_files(options) | {"precision": options.precision, "nf4": options.nf4}
    given = ("prompt", "completion", "normalise", "rotations", "engine")
    return inputs | {name: getattr(options, name) for name in given} | reasoned_work_inputs(options)


def is_local_predict(options: PredictOptions, exam: Exam) -> bool:
    """Whether this process ranks a small exam by itself; see `is_local_stage`."""
    if options.blend or options.cascade or options.streams or options.in_vllm or options.in_api or options.is_reasoned:
        return False
    return is_local_stage(options, exam.questions, _weights(options))


def _weights(options: PredictOptions) -> int:
    """Return the bytes of the weights that each worker of one reader loads."""
    embeds = options.reader == "retrieval" or (options.has_model and options.shots)
    weights = model_file_bytes(options.embedder) if embeds else 0
    if options.streams:
        return weights + streamed_weight_bytes(options.model) + options.stream_memory
    return weights + (model_file_bytes(options.model) if options.has_model and not options.in_api else 0)


def _work(options: PredictOptions, exam: Exam, parts: list, say: Callable[[str], object] | None) -> ReaderWork:
    if options.blend:
        return blend_work(options, exam, parts)
    parts = split_passes(options, exam.shard_questions, parts) if options.streams else parts
    workers = cluster.num_cluster_workers(options, len(parts), whole_nodes=options.streams or options.in_vllm)
    sources = (open_contexts(options.contexts, exam)[0],) if options.has_context else ()
    if options.reader in BASELINES:
        counts = baseline_answer_counts(exam.open_table().read(["answer"]).to_pylist())
        arguments: dict = {"name": options.reader, "counts": counts}
        return ReaderWork(parts, workers, "baseline", arguments, options.reader, sources)
    if options.reader == "retrieval":
        prefixes = {f"{text}_prefix": options.prefix(text) for text in ("query", "passage")}
        arguments = {"embed": options.embed_arguments(workers), **prefixes}
        return ReaderWork(parts, workers, "retrieval", arguments, options.embedder, sources, _weights(options))
    if options.in_api:
        workers = api_workers(options, len(parts))
        arguments = api_server_arguments(options, options.folder, workers)
        return ReaderWork(parts, workers, "api", arguments, options.model, sources)
    arguments = options.reader_arguments(cluster.cluster_device(options), cluster.cluster_threads_per_worker(workers))
    if options.streams:
        arguments["streaming"] = StreamedWeightsSettings(options.stream_memory, say)
    kind = "model"
    if options.is_reasoned:
        kind, arguments = "reasoned", reasoned_work_arguments(options, arguments)
    return ReaderWork(parts, workers, kind, arguments, options.model, sources, _weights(options))


def _answer_all(exam: Exam, options: PredictOptions, folder: str, work: ReaderWork) -> Iterator[dict]:
    if not work.parts:
        return
    arguments = {"exam": exam, "folder": folder, "work": work}
    pool = {"workers": work.workers, "parts": len(work.parts), "weights": work.weights}
    rows: Any
    if options.in_vllm:
        shards = cluster.cluster_dataset(work.parts)
        requests = answer_vllm_requests(shards, exam, options, work, model_worker_pool(options, **pool))
        rows = VllmShards(requests, exam, folder, work.by, work.sources)
    elif options.in_api:
        about = api_server_pool(work.workers, 2 + options.concurrency // work.workers // exam.shard_questions)
        rows = cluster.cluster_dataset(work.parts).map(PredictShard, fn_constructor_kwargs=arguments, **about)
    elif work.kind == "baseline" and ray.is_initialized():
        how = {"num_cpus": cluster.TASK_CPUS, "max_retries": worker_loss.MOST}
        rows = cluster.cluster_dataset(work.parts).map(_answer_shard, fn_kwargs=arguments, **how)
    else:
        rows = run_model_workers(options, PredictShard, arguments, work.parts, pool)
    total = exam.questions_of(np.hstack(work.parts).tolist())
    by = folder.rsplit("/", 1)[-1]
    yield from progress.rows_with_progress(rows, "predict", total, "questions", lambda row: row["questions"], by)


class PredictShard:
    """Ray Data worker that holds a reader and writes answers shard by shard."""

    def __init__(self, exam: Exam, folder: str, work: ReaderWork) -> None:
        self.exam, self.folder, self.work = exam, folder, work
        self.reader = _reader(work.kind)(**work.arguments)

    def __call__(self, row: dict) -> dict:
        """Rank the options of the questions in shard `row["part"]`, or in all shards of a pass."""
        parts = np.atleast_1d(row["part"]).tolist()
        shards = [self.exam.read_shard(part) for part in parts]
        questions = list(chain(*shards))
        firsts = map(self.exam.first, parts)
        found = [read_scored_answer_sources(self.work.sources, *each) for each in zip(shards, firsts, strict=True)]
        scored = iter(self.reader.score(questions, list(chain(*found))))
        for part, shard, rows in zip(parts, shards, found, strict=True):
            write_scored_answers(self.folder, part, shard, [next(scored) for _ in shard], self.work.by, rows)
        return {"part": row["part"], "questions": len(questions), "notes": getattr(self.reader, "notes", [])}


def _reader(kind: str) -> type:
    """Return a class of readers; one without a model here is found without PyTorch."""
    if kind in WITHOUT_MODEL:
        return WITHOUT_MODEL[kind]
    with quick_imports():
        return importlib.import_module(READERS_MODULE).READERS[kind]


def _answer_shard(row: dict, exam: Exam, folder: str, work: ReaderWork) -> dict:
    """Answer one shard in a task of its own, for readers that are made in no time."""
    return PredictShard(exam, folder, work)(row)
