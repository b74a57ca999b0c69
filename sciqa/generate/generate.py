"""The `generate` step: passages to exam questions or instructions, by a local model or a server, filtered."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np

from sciqa.audit.sources import OtherSource, read_named_sources
from sciqa.core import cluster, hashes, model_workers, progress, storage, tables, worker_loss
from sciqa.core.adapter_files import adapter_hash, check_adapter_files
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, model_file_bytes, model_file_family, model_files_name
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.corpus import dedup
from sciqa.corpus.parts import write_part_duplicates
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.exam.read_exam import read_exam_questions
from sciqa.generate.candidates import CandidatePart, WriteCandidates, candidate_entries_path
from sciqa.generate.distractors import (
    distractor_inputs,
    distractor_parts,
    distractor_workers,
    read_distractor_questions,
    write_distractor_questions,
)
from sciqa.generate.filter_results import (
    SHAPES,
    WriteFilterResults,
    filter_result_counts_path,
    filter_result_exams_folder,
    filter_result_jsonl_folder,
)
from sciqa.generate.filters import FILTER_FAULTS
from sciqa.generate.options import GenerateOptions
from sciqa.generate.passage_template import PassageTemplate, read_passage_template
from sciqa.generate.replies import REPLY_FAULTS
from sciqa.generate.server_writer import find_writer_server
from sciqa.predict.api import api_server_arguments, api_server_pool
from sciqa.predict.api_records import collect_records, record_usage_summary
from sciqa.predict.options import PredictOptions
from sciqa.predict.predict import check_predict_model

#: Version of what this step computes. Raise it with every change, so that tables of earlier versions are not kept.
GENERATE_FORMAT = 3
#: Options that decide what is written, besides the model and the template.
DECIDING = (
    *("kind", "choices", "per_passage", "reply_tokens", "first_passages", "reply_batch", "seed", "temperature"),
    *("skip_filters", "licence"),
)
#: Parts of a table's records that only an unfinished run needs.
ASIDE = ("candidates", "entries", "replies", "_checks", "asked")


def generate(options: GenerateOptions) -> Summary:
    """Write the generated table, OUTPUT/generated/NAME, and its rows as JSONL, OUTPUT/jsonl/NAME/{trl,alpaca}.

    A reply to a passage becomes a candidate; candidates without a fault become rows. The folder `_NAME` beside the
    table holds `rejected/`, all other replies with their `fault`, which is one of `REPLY_FAULTS` and `FILTER_FAULTS`.
    Each part of the passages is a task, and finished ones are kept.

    Raises:
        InputError: no passages, a template with an error, a model that cannot write, or a server that does not answer.
    """
    started = time.monotonic()
    if options.engine == "torch" and not options.distractors:
        require_extra("json", "--engine torch")
    asked = read_distractor_questions(options.distractors) if options.distractors else []
    parts, contents = distractor_parts(options, asked) if asked else generate_parts(options)
    against = read_named_sources(
        options.against, lambda name: read_exam_questions(name, options.columns, options.answers_from).table
    )
    if asked:
        writing, about = None, distractor_inputs(options)
    else:
        writing, about = _find_writer(options, read_passage_template(options.template, options.kind))
    checker = _find_checker(options)
    inputs = {"format": GENERATE_FORMAT, "passages": contents} | about
    inputs |= {name: getattr(options, name) for name in DECIDING}
    inputs |= _filter_inputs(options, against, checker)
    with lock(options.folder):
        begun = tables.begin_table(
            options.folder, inputs, defaults_of(GenerateOptions), options.part_passages, options.overwrite
        )
        if begun.whole:
            manifest = tables.read_table_manifest(options.folder, "generate")
        else:
            if begun.rows != options.part_passages:
                parted = replace(options, part_passages=begun.rows or options.part_passages)
                parts, _ = distractor_parts(parted, asked) if asked else generate_parts(parted)
            if asked:
                write_distractor_questions(options.folder, asked)
            counts = _fill(options, parts, writing, against, checker, inputs)
            manifest = {"format": GENERATE_FORMAT, "inputs": inputs, "rows": begun.rows} | counts
            tables.finish_table(options.folder, manifest)
            for name in ASIDE:
                storage.delete_path(tables.table_records_path(options.folder, name))
    made = _made(options, manifest) + ", kept as it was" * begun.whole
    return Summary("generate", options.folder, made, time.monotonic() - started, {"Replies": _outcomes(manifest)})


def generate_parts(options: GenerateOptions) -> tuple[list[CandidatePart], str]:
    """Return the parts of the passages that are asked for, and a hash of the whole table's content.

    Raises:
        InputError: there is no finished passages table.
    """
    manifest = tables.read_table_manifest(options.passages, "corpus", PASSAGES_FORMAT)
    parts: list[CandidatePart] = []
    left = manifest["passages"] if options.first_passages is None else options.first_passages
    for shard in manifest["shards"]:
        rows = min(shard["rows"], left)
        left -= rows
        for first in range(0, rows, options.part_passages):
            path = storage.join_paths(options.passages, f"{shard['name']}.parquet")
            last = min(first + options.part_passages, rows)
            parts.append(CandidatePart(len(parts), path, first, last, shard["content"]))
    return parts, hashes.fingerprint([shard["content"] for shard in manifest["shards"]])


def _find_writer(options: GenerateOptions, template: PassageTemplate) -> tuple[dict, dict]:
    """Return the arguments of `WriteCandidates` for which no cluster is needed, and what the replies follow from."""
    writing: dict = {"options": options, "template": (template.text, template.name)}
    about: dict = {"template": hashes.fingerprint(template.text), "engine": options.engine}
    if options.engine == "openai":
        server, form = find_writer_server(options)
        about |= {"model": options.model, "server": server.url, "schema": form}
        return writing | {"server": server, "form": form}, about
    if (family := model_file_family(options.model)) != "causal":
        raise InputError(f"--model {options.model}: a {family} model, which writes no text; a causal model expected")
    about |= {"model": find_model(options.model).revision, "precision": options.precision}
    if options.adapter:
        require_extra("train", "--adapter")
        if said := check_adapter_files(options.adapter, options.model):
            console.print(said, markup=False, soft_wrap=True)
    about["adapter"] = options.adapter and adapter_hash(options.adapter)
    return writing | {"recorded": {"revision": about["model"], "adapter_revision": about["adapter"]}}, about


def _find_checker(options: GenerateOptions) -> PredictOptions | None:
    if options.checker is None:
        return None
    from sciqa.generate.checks import checker_options

    reader = checker_options(options)
    check_predict_model(reader, instead="another --checker")
    return reader


def _filter_inputs(options: GenerateOptions, against: list[OtherSource], checker: PredictOptions | None) -> dict:
    """Return what the filters with a model follow from."""
    inputs: dict = {}
    if against:
        inputs |= {"against": {each.name: each.sha256 for each in against}, "prefix": options.prefix("query")}
        inputs |= {"embedder": find_model(options.embedder).revision, "backend": options.embed_backend}
        inputs |= {name: getattr(options, name) for name in ("ngram", "similarity", "share")}
    if checker:
        inputs["precision"] = options.precision
        inputs["checker"] = options.checker if checker.in_api else find_model(checker.model).revision
        inputs["checker_adapter"] = checker.adapter and adapter_hash(checker.adapter)
    return inputs


def _fill(
    options: GenerateOptions,
    parts: list[CandidatePart],
    writing: dict | None,
    against: list[OtherSource],
    checker: PredictOptions | None,
    inputs: dict,
) -> dict:
    """Write what is missing of the table; return its counts."""
    done = set(storage.list_names(options.folder))
    jsonl = [storage.join_paths(filter_result_jsonl_folder(options), shape) for shape in SHAPES]
    for folder in () if done else jsonl:
        tables.delete_table(folder)  # of a table that this one replaces
        tables.begin_table(folder, {})  # so that no step takes it for whole
    cluster.connect_cluster(options)
    written = done | set(storage.list_names(tables.table_records_path(options.folder, "candidates")))
    missing = [part for part in parts if tables.table_part_name(part.number) not in written]
    _write_candidates(options, writing, missing)
    if not done:
        _find_duplicates(options.folder, parts)
        for number, others in enumerate(against):
            path = tables.table_part_path(filter_result_exams_folder(options.folder), number)
            tables.write_table(path, others.table.replace_schema_metadata(None))
    left = [part.number for part in parts if tables.table_part_name(part.number) not in done]
    _filter(options, _provenance(options, inputs), left, bool(against), checker)
    for folder in jsonl:
        tables.finish_table(folder, {})
    counts = _sum_counts(options, parts)
    if checker and checker.in_api:
        asked = collect_records(tables.table_records_path(options.folder, "checks")).values()
        counts |= {name: counts[name] + sum(each[name] for each in asked) for name in ("tokens_in", "tokens_out")}
    return counts


def _provenance(options: GenerateOptions, inputs: dict) -> dict[str, str]:
    """Return what every row says of its making."""
    if options.distractors:
        made = {"generator": "nearest in the corpus", "generator_revision": inputs["index"], "template": ""}
    elif options.engine == "openai":
        made = {"generator": options.model, "generator_revision": inputs["server"], "template": inputs["template"]}
    else:
        made = {"generator": model_files_name(options.adapter or options.model), "template": inputs["template"]}
        made |= {"generator_revision": inputs["adapter"] or inputs["model"]}
    return made | {"licence": options.licence}


def _write_candidates(options: GenerateOptions, writing: dict | None, parts: list[CandidatePart]) -> None:
    if not parts:
        return
    if writing is None:
        with distractor_workers(options, len(parts)) as mapped:
            _map_parts(mapped, parts, "questions")
        return
    if options.engine == "openai":
        workers = 1 if options.num_workers == "auto" else cluster.num_cluster_workers(options, len(parts))
        concurrency = max(1, options.concurrency // workers)
        pool = api_server_pool(workers, 2 + concurrency // options.part_passages)
        arguments = writing | {"concurrency": concurrency}
        mapped = {"fn": WriteCandidates, "fn_constructor_kwargs": arguments, **pool}
    else:
        workers = cluster.num_cluster_workers(options, len(parts))
        pool = model_workers.model_worker_pool(options, workers, len(parts), model_file_bytes(options.model))
        threads = cluster.cluster_threads_per_worker(workers)
        arguments = writing | {"device": cluster.cluster_device(options), "threads": threads}
        mapped = model_workers.model_worker_arguments(WriteCandidates, arguments, pool)
    _map_parts(mapped, parts, "passages")


def _map_parts(mapped: dict, parts: list[CandidatePart], unit: str) -> None:
    rows = cluster.cluster_dataset([part._asdict() for part in parts]).map(**mapped)
    total = sum(part.last - part.first for part in parts)
    for _ in progress.rows_with_progress(rows, "generate", total, unit, lambda row: row["passages"]):
        pass


def _find_duplicates(folder: str, parts: list[CandidatePart]) -> None:
    """Write which candidates are near duplicates of earlier ones, by the method of the passages; see `dedup`."""
    storage.delete_path(tables.table_records_path(folder, "duplicates"))
    tasks = min(dedup.BUCKETS, 1 + len(parts) // 1000)
    ranges = [
        {"number": number, "buckets": buckets.tolist()}
        for number, buckets in enumerate(np.array_split(np.arange(dedup.BUCKETS), tasks))
    ]
    paths = [candidate_entries_path(folder, part.number) for part in parts]
    arguments = {"folder": folder, "paths": paths, "removed": np.zeros(0, np.uint64)}
    rows = cluster.cluster_dataset(ranges)
    rows = rows.map(
        write_part_duplicates, fn_kwargs=arguments, num_cpus=cluster.TASK_CPUS, max_retries=worker_loss.MOST
    )
    for _ in progress.rows_with_progress(rows, "generate", len(ranges), "ranges compared", lambda row: 1):
        pass


def _filter(
    options: GenerateOptions,
    provenance: dict[str, str],
    parts: list[int],
    compares: bool,
    checker: PredictOptions | None,
) -> None:
    if not parts:
        return
    arguments: dict = {"options": options, "provenance": provenance}
    weights = model_file_bytes(options.embedder) if compares else 0
    workers = cluster.num_cluster_workers(options, len(parts)) if compares or checker else 1
    if checker and checker.in_api:
        workers = 1
        asking = api_server_arguments(checker, tables.table_records_path(options.folder, "checks"), workers)
        arguments["checker"] = ("api", asking)
    elif checker:
        threads = cluster.cluster_threads_per_worker(workers)
        arguments["checker"] = ("model", checker.reader_arguments(cluster.cluster_device(options), threads))
        weights += model_file_bytes(checker.model)
    if compares:
        arguments["embed"] = options.embed_arguments(workers)
    if weights:
        pool = model_workers.model_worker_pool(options, workers, len(parts), weights)
        mapped = model_workers.model_worker_arguments(WriteFilterResults, arguments, pool)
    else:
        pool = api_server_pool(workers, 1)
        mapped = {"fn": WriteFilterResults, "fn_constructor_kwargs": arguments, **pool}
    rows = cluster.cluster_dataset(parts).map(**mapped)
    for _ in progress.rows_with_progress(rows, "generate", len(parts), "parts filtered", lambda row: 1):
        pass


def _sum_counts(options: GenerateOptions, parts: list[CandidatePart]) -> dict:
    sums: Counter = Counter(passages=sum(part.last - part.first for part in parts))
    faults: Counter = Counter()
    for part in parts:
        counts = storage.read_json(filter_result_counts_path(options.folder, part.number))
        faults.update(counts.pop("faults"))
        sums.update(counts)
    return {**sums, "faults": dict(faults)}


def _made(options: GenerateOptions, manifest: dict) -> str:
    names = [*REPLY_FAULTS, *FILTER_FAULTS]
    faults = [f"{manifest['faults'][name]:,} {name}" for name in names if name in manifest["faults"]]
    asked = "open questions" if options.distractors else f"replies to {manifest['passages']:,} passages"
    made = f"{manifest['kept']:,} {options.kind} of {manifest['replies']:,} {asked}"
    made += f"; rejected: {', '.join(faults)}" * bool(faults)
    return made + (record_usage_summary(options.price, manifest) if options.engine == "openai" else "")


def _outcomes(manifest: dict) -> list[dict]:
    """Return what became of the replies, for printing."""
    rows = [{"outcome": "kept", "replies": manifest["kept"], "means": "no fault"}]
    for name, means in (REPLY_FAULTS | FILTER_FAULTS).items():
        if number := manifest["faults"].get(name):
            rows.append({"outcome": name, "replies": number, "means": means})
    return rows
