"""The `generate` step: passages to exam questions or instructions, by a local model or a server, filtered."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np

from sciqa.audit.sources import OtherSource, read_named_sources
from sciqa.core import cluster, model_workers, progress, storage, tables, worker_loss
from sciqa.core.adapter_files import adapter_hash, check_adapter_base
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, model_family, short_model_name, weight_bytes
from sciqa.core.options import Summary
from sciqa.corpus import dedup
from sciqa.corpus.parts import write_part_duplicates
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.exam.read_exam import read_exam_questions
from sciqa.generate.candidates import Part, WriteCandidates, WriterSettings, entries_path
from sciqa.generate.distractors import (
    distractor_inputs,
    distractor_workers,
    question_parts,
    read_open_questions,
    write_open_questions,
)
from sciqa.generate.filters import FILTER_FAULTS
from sciqa.generate.options import GenerateOptions
from sciqa.generate.parse import REPLY_FAULTS
from sciqa.generate.results import FilterPart, FilterSettings, against_folder, counts_path, jsonl_folder
from sciqa.generate.server_writer import find_json_server
from sciqa.generate.template import PassageTemplate, read_passage_template
from sciqa.predict.api import api_arguments, api_server_pool
from sciqa.predict.api_records import usage_summary
from sciqa.predict.options import PredictOptions
from sciqa.predict.predict import check_model

#: Version of what this step computes. Raise it with every change, so that tables of earlier versions are not kept.
GENERATE_FORMAT = 2
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
        require("json", "--engine torch")
    asked = read_open_questions(options.distractors) if options.distractors else []
    parts, contents = question_parts(options, asked) if asked else passage_parts(options)
    against = _read_against(options)
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
            options.folder, inputs, tables.defaults_of(GenerateOptions), options.part_passages, options.overwrite
        )
        if begun.whole:
            manifest = tables.read_manifest(options.folder, "generate")
        else:
            if begun.rows != options.part_passages:
                parted = replace(options, part_passages=begun.rows or options.part_passages)
                parts, _ = question_parts(parted, asked) if asked else passage_parts(parted)
            if asked:
                write_open_questions(options.folder, asked)
            counts = _fill(options, parts, writing, against, checker, inputs)
            manifest = {"format": GENERATE_FORMAT, "inputs": inputs, "rows": begun.rows} | counts
            tables.finish_table(options.folder, manifest)
            for name in ASIDE:
                storage.delete(tables.records_path(options.folder, name))
    made = _made(options, manifest) + ", kept as it was" * begun.whole
    return Summary("generate", options.folder, made, time.monotonic() - started, {"Replies": _outcomes(manifest)})


def passage_parts(options: GenerateOptions) -> tuple[list[Part], str]:
    """Return the parts of the passages that are asked for, and a hash of the whole table's content.

    Raises:
        InputError: there is no finished passages table.
    """
    manifest = tables.read_manifest(options.passages, "corpus", PASSAGES_FORMAT)
    parts: list[Part] = []
    left = manifest["passages"] if options.first_passages is None else options.first_passages
    for shard in manifest["shards"]:
        rows = min(shard["rows"], left)
        left -= rows
        for first in range(0, rows, options.part_passages):
            path = storage.join(options.passages, f"{shard['name']}.parquet")
            parts.append(Part(len(parts), path, first, min(first + options.part_passages, rows)))
    return parts, tables.fingerprint([shard["content"] for shard in manifest["shards"]])


def _read_against(options: GenerateOptions) -> list[OtherSource]:
    return read_named_sources(
        options.against, lambda name: read_exam_questions(name, options.columns, options.answers_from).table
    )


def _find_writer(options: GenerateOptions, template: PassageTemplate) -> tuple[WriterSettings, dict]:
    """Return how workers write, so far as no cluster is needed for it, and what the replies follow from."""
    writing = WriterSettings(options, (template.text, template.name))
    asking = {"template": tables.fingerprint(template.text)}
    if options.engine == "openai":
        server, form = find_json_server(options)
        about = asking | {"engine": options.engine, "model": options.model, "server": server.url, "schema": form}
        return writing._replace(server=server, form=form), about
    if (family := model_family(options.model)) != "causal":
        raise InputError(f"--model {options.model}: a {family} model, which writes no text; a causal model expected")
    about = asking | {
        "engine": options.engine,
        "model": find_model(options.model).revision,
        "precision": options.precision,
    }
    return writing, about | {"adapter": options.adapter and _check_adapter(options.adapter, options.model, "--adapter")}


def _check_adapter(folder: str, model: str, option: str) -> str:
    """Return the hash of an adapter for a model."""
    require("train", option)
    if said := check_adapter_base(folder, model):
        console.print(said, markup=False, soft_wrap=True)
    return adapter_hash(folder)


def _find_checker(options: GenerateOptions) -> PredictOptions | None:
    if options.checker is None:
        return None
    from sciqa.generate.checks import checker_options

    reader = checker_options(options)
    check_model(reader)
    return reader


def _filter_inputs(options: GenerateOptions, against: list[OtherSource], checker: PredictOptions | None) -> dict:
    """Return what the filters with a model follow from."""
    inputs: dict = {}
    if against:
        inputs |= {"against": {each.name: each.sha256 for each in against}, "prefix": options.prefix("query")}
        inputs |= {"embedder": find_model(options.embedder).revision, "backend": options.embed_backend}
        inputs |= {name: getattr(options, name) for name in ("ngram", "similarity", "share")}
    if checker:
        inputs["checker"] = options.checker if checker.in_api else find_model(checker.model).revision
        inputs["checker_adapter"] = checker.adapter and adapter_hash(checker.adapter)
    return inputs


def _fill(
    options: GenerateOptions,
    parts: list[Part],
    writing: WriterSettings | None,
    against: list[OtherSource],
    checker: PredictOptions | None,
    inputs: dict,
) -> dict:
    """Write what is missing of the table; return its counts."""
    cluster.connect_cluster(options)
    done = set(storage.list_names(options.folder))
    written = done | set(storage.list_names(tables.records_path(options.folder, "candidates")))
    missing = [part for part in parts if tables.table_part_name(part.number) not in written]
    _write_candidates(options, writing, missing)
    if not done:
        storage.delete(jsonl_folder(options))  # of a table that this one replaces
        _find_duplicates(options.folder, parts)
        for number, others in enumerate(against):
            path = tables.table_part_path(against_folder(options.folder), number)
            storage.write_table(path, others.table.replace_schema_metadata(None))
    provenance = _provenance(options, inputs)
    left = [part.number for part in parts if tables.table_part_name(part.number) not in done]
    _filter(options, FilterSettings(options, provenance), left, bool(against), checker)
    return _sum_counts(options, parts)


def _provenance(options: GenerateOptions, inputs: dict) -> dict[str, str]:
    """Return what every row says of its making."""
    if options.distractors:
        made = {"generator": "nearest in the corpus", "generator_revision": inputs["index"], "template": ""}
    elif options.engine == "openai":
        made = {"generator": options.model, "generator_revision": inputs["server"], "template": inputs["template"]}
    else:
        made = {"generator": short_model_name(options.adapter or options.model), "template": inputs["template"]}
        made |= {"generator_revision": inputs["adapter"] or inputs["model"]}
    return made | {"licence": options.licence}


def _write_candidates(options: GenerateOptions, writing: WriterSettings | None, parts: list[Part]) -> None:
    if not parts:
        return
    if writing is None:
        with distractor_workers(options, len(parts)) as mapped:
            _map_parts(mapped, parts, "questions")
        return
    if options.engine == "openai":
        workers = 1 if options.num_workers == "auto" else cluster.num_workers(options, len(parts))
        concurrency = max(1, options.concurrency // workers)
        arguments = {"writing": writing._replace(concurrency=concurrency)}
        pool = api_server_pool(workers, 2 + concurrency // options.part_passages)
        mapped = {"fn": WriteCandidates, "fn_constructor_kwargs": arguments, **pool}
    else:
        workers = cluster.num_workers(options, len(parts))
        pool = model_workers.model_pool(options, workers, len(parts), weight_bytes(options.model))
        device, threads = cluster.cluster_device(options), cluster.threads_per_worker(workers)
        arguments = {"writing": writing._replace(device=device, threads=threads)}
        mapped = model_workers.map_arguments(WriteCandidates, arguments, pool)
    _map_parts(mapped, parts, "passages")


def _map_parts(mapped: dict, parts: list[Part], unit: str) -> None:
    rows = cluster.dataset_of_parts([part._asdict() for part in parts]).map(**mapped)
    total = sum(part.last - part.first for part in parts)
    for _ in progress.rows_with_progress(rows, "generate", total, unit, lambda row: row["passages"]):
        pass


def _find_duplicates(folder: str, parts: list[Part]) -> None:
    """Write which candidates are near duplicates of earlier ones, by the method of the passages; see `dedup`."""
    storage.delete(tables.records_path(folder, "duplicates"))
    tasks = min(dedup.BUCKETS, 1 + len(parts) // 1000)
    ranges = [
        {"number": number, "buckets": buckets.tolist()}
        for number, buckets in enumerate(np.array_split(np.arange(dedup.BUCKETS), tasks))
    ]
    paths = [entries_path(folder, part.number) for part in parts]
    arguments = {"folder": folder, "paths": paths, "removed": np.zeros(0, np.uint64)}
    rows = cluster.dataset_of_parts(ranges)
    rows = rows.map(
        write_part_duplicates, fn_kwargs=arguments, num_cpus=cluster.TASK_CPUS, max_retries=worker_loss.MOST
    )
    for _ in progress.rows_with_progress(rows, "generate", len(ranges), "ranges compared", lambda row: 1):
        pass


def _filter(
    options: GenerateOptions,
    filtering: FilterSettings,
    parts: list[int],
    compares: bool,
    checker: PredictOptions | None,
) -> None:
    if not parts:
        return
    weights = weight_bytes(options.embedder) if compares else 0
    workers = cluster.num_workers(options, len(parts)) if compares or checker else 1
    if checker and checker.in_api:
        workers = 1
        arguments = api_arguments(checker, tables.records_path(options.folder, "checks"), workers)
        filtering = filtering._replace(checker=("api", arguments))
    elif checker:
        arguments = checker.reader_arguments(cluster.cluster_device(options), cluster.threads_per_worker(workers))
        filtering = filtering._replace(checker=("model", arguments))
        weights += weight_bytes(checker.model)
    if compares:
        filtering = filtering._replace(embed=options.embed_arguments(workers))
    mapped: dict = {"fn": FilterPart, "fn_constructor_kwargs": {"filtering": filtering}, **api_server_pool(workers, 1)}
    if weights:
        pool = model_workers.model_pool(options, workers, len(parts), weights)
        mapped = model_workers.map_arguments(FilterPart, {"filtering": filtering}, pool)
    rows = cluster.dataset_of_parts(parts).map(**mapped)
    for _ in progress.rows_with_progress(rows, "generate", len(parts), "parts filtered", lambda row: 1):
        pass


def _sum_counts(options: GenerateOptions, parts: list[Part]) -> dict:
    sums: Counter = Counter(passages=sum(part.last - part.first for part in parts))
    faults: Counter = Counter()
    for part in parts:
        counts = storage.read_json(counts_path(options.folder, part.number))
        faults.update(counts.pop("faults"))
        sums.update(counts)
    return {name: int(number) for name, number in sums.items()} | {"faults": dict(faults)}


def _made(options: GenerateOptions, manifest: dict) -> str:
    names = [*REPLY_FAULTS, *FILTER_FAULTS]
    faults = [f"{manifest['faults'][name]:,} {name}" for name in names if name in manifest["faults"]]
    asked = "open questions" if options.distractors else f"replies to {manifest['passages']:,} passages"
    made = f"{manifest['kept']:,} {options.kind} of {manifest['replies']:,} {asked}"
    made += f"; rejected: {', '.join(faults)}" * bool(faults)
    return made + (usage_summary(options.price, manifest) if options.engine == "openai" else "")


def _outcomes(manifest: dict) -> list[dict]:
    """Return what became of the replies, for printing."""
    rows = [{"outcome": "kept", "replies": manifest["kept"], "means": "no fault"}]
    for name, means in (REPLY_FAULTS | FILTER_FAULTS).items():
        if number := manifest["faults"].get(name):
            rows.append({"outcome": name, "replies": number, "means": means})
    return rows
