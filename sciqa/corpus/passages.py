"""The `corpus` step: turns articles into passages of whole sentences, with stable ids and without repeats."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from sciqa.core import cluster, hashes, progress, storage, tables, worker_loss
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import (
    find_model,
    model_file_prompt,
    model_file_sequence_length,
    model_file_tokenizer,
)
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.corpus import dedup as duplicates
from sciqa.corpus.articles import find_article_files, split_articles
from sciqa.corpus.corpus_files import decode_corpus_file
from sciqa.corpus.options import ChunkingOptions, CorpusOptions
from sciqa.corpus.parts import (
    LEFT_OUT,
    LEFT_OUT_SCHEMA,
    REPEATS,
    part_path,
    split_part,
    write_corpus_part_rows,
    write_part_duplicates,
    write_parts,
)

#: Version of what this module and its readers compute. Raise it with every change, so that passages of earlier versions
#: are not kept.
PASSAGES_FORMAT = 6
#: Name of the file that records which corpus the passages are made from.
CORPUS = "corpus.json"
#: Maximum number of names that a summary line shows.
SHOWN = 3


def build_passages(options: CorpusOptions) -> Summary:
    """Write the passages table: Parquet shards and a manifest that lists them in order.

    Columns: `passage_id` (the same text has the same id in every run), `title`, `section`, `text`, `url`. The folder
    `_passages` beside them records what is left out: `left_out/` (path, title, reason) and `repeats/` (a passage, the
    id of the one that it `repeats`, and its `kind`: exact or near).
    There are three passes over parts of the corpus: split texts into passages, find duplicates among all parts, write
    shards without them. Each part is a task, and finished ones are kept.

    Raises:
        InputError: a corpus that cannot be read, with file, row and column.
    """
    started = time.monotonic()
    manifest, kept = finished_passages(options), True
    if manifest is None:
        left_out: dict[str, str] = {}
        sources = check_passage_sources(options, left_out)
        removed = _removed_titles(options)
        with lock(options.passages):
            manifest, kept = _fill(options, sources, left_out, removed)
    return Summary("corpus", options.passages, _made(manifest, kept), time.monotonic() - started, manifest)


def _fill(
    options: CorpusOptions, sources: list[tuple[str, list]], left_out: dict[str, str], removed: list[str]
) -> tuple[dict, bool]:
    """Complete the passages table; return its manifest, and whether it was already complete."""
    tokenizer = find_model(options.embedder).tokenizer
    cut = options.cut() | {"format": PASSAGES_FORMAT, "tokenizer": tokenizer}
    inputs = hashes.fingerprint([sources, removed, options.part_bytes, left_out])
    paths = [path for path, _ in sources]
    _check_sources(options, paths)
    begun = tables.begin_table(options.passages, cut, defaults_of(CorpusOptions), overwrite=options.overwrite)
    manifest = tables.read_table_manifest(options.passages, "corpus") if begun.whole else {}
    if not (kept := manifest.get("inputs") == inputs):
        about = {"corpus": _corpus_of(options), "sources": paths, "remove": removed}
        storage.write_json(tables.table_records_path(options.passages, CORPUS), about)
        storage.delete_path(tables.table_records_path(options.passages, tables.MANIFEST))
        cluster.connect_cluster(options)
        manifest = _build(options, sources, left_out, removed, tokenizer)
        manifest |= {"inputs": inputs, "format": PASSAGES_FORMAT}
        tables.finish_table(options.passages, manifest)
    return manifest, kept


def finished_passages(options: CorpusOptions) -> dict | None:
    """Return the manifest of finished passages that are used unchanged because no corpus is named, else None.

    Raises:
        InputError: the options, or this version of the program, do not match the finished passages.
    """
    if options.corpus is not None or not tables.is_finished_table(options.passages):
        return None
    manifest = tables.read_table_manifest(options.passages, "corpus")
    if manifest.get("format") != PASSAGES_FORMAT:
        raise InputError(f"{options.passages}: {tables.OTHERWISE}; pass --corpus and --overwrite to make it anew")
    made = storage.read_json(tables.table_records_path(options.passages, tables.INPUTS))["inputs"]
    defaults = defaults_of(CorpusOptions)
    for name, wanted in options.cut().items():
        if wanted != defaults[name] and wanted != made[name]:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{options.passages}: made with {flag} {made[name]}, not {wanted}; "
                f"leave {flag} out, or pass --corpus and another --passages"
            )
    if options.remove:
        raise InputError("--remove: takes articles out of a corpus; pass --corpus too")
    return manifest


def _check_sources(options: CorpusOptions, paths: list[str]) -> None:
    """Raise `InputError` if the passages, finished or only begun, share no source with the corpus: it is another.

    A manifest without a shard is that of passages that were deleted; there is nothing left to keep.
    """
    begun = tables.table_records_path(options.passages, CORPUS)
    made = set(storage.read_json(begun).get("sources", ())) if storage.path_exists(begun) else set()
    manifest = tables.table_records_path(options.passages, tables.MANIFEST)
    deleted = storage.path_exists(manifest) and not storage.path_exists(options.passages)
    if made and not deleted and made.isdisjoint(paths) and not options.overwrite:
        raise InputError(
            f"{options.passages}: made from other inputs ({min(made)} is not in --corpus); {tables.REMEDY}"
        )


def check_passage_sources(options: CorpusOptions, left_out: dict[str, str] | None = None) -> list[tuple[str, list]]:
    """Check the corpus and return its files; see `find_article_files`.

    Raises:
        InputError: a corpus that cannot be read, or passages longer than the embedder reads.
    """
    check_passage_tokens(options)
    return find_article_files(_corpus_of(options), left_out)


def check_passage_tokens(options: ChunkingOptions) -> None:
    """Raise `InputError` if passages would be longer than the embedder reads after their prefix."""
    if not (longest := model_file_sequence_length(options.embedder)):
        return
    prefix = getattr(options, "passage_prefix", None)  # of a run; `corpus` alone knows the model's own
    if prefix := model_file_prompt(options.embedder, "passage") if prefix is None else prefix:
        longest -= len(model_file_tokenizer(options.embedder).encode(prefix, add_special_tokens=False).ids)
    if options.passage_tokens > longest:
        raise InputError(
            f"--passage-tokens: {options.passage_tokens} given, but {options.embedder} reads no more than {longest}"
            f"{' after the prefix' * bool(prefix)}"
        )


def _corpus_of(options: CorpusOptions) -> tuple[str, ...]:
    """Return the requested corpus; by default that of passages already begun in the folder, else `demo`."""
    return options.corpus or tuple(_begun_with(options).get("corpus", ("demo",)))


def _begun_with(options: CorpusOptions) -> dict:
    """Return the record of what passages in the folder were begun from, {} if there is none or a corpus is named."""
    begun = tables.table_records_path(options.passages, CORPUS)
    return storage.read_json(begun) if options.corpus is None and storage.path_exists(begun) else {}


def _removed_titles(options: CorpusOptions) -> list[str]:
    """Return the titles of articles to leave out; by default, with the corpus, those of passages already begun."""
    return _read_titles(options.remove) if options.remove else _begun_with(options).get("remove", [])


def _read_titles(path: str) -> list[str]:
    lines = decode_corpus_file(storage.read_bytes(path), path).split("\n")
    return sorted({line.strip() for line in lines if line.strip()})


def _made(manifest: dict, kept: bool) -> str:
    made = f"{manifest['passages']:,} passages of {manifest['articles']:,} articles in {len(manifest['shards'])} shards"
    left = [f"{number:,} {reason}" for reason, number in manifest["skipped"].items()]
    made += f"; articles left out: {', '.join(left)}" * bool(left)
    made += _some("; {} files left out: {}", manifest["left_out"])
    made += "; all that was left out by name: _passages/left_out/" * manifest["left_out_named"]
    made += f"; {manifest['duplicates']:,} passages said before: _passages/repeats/" * bool(manifest["duplicates"])
    made += f"; {manifest['removed']:,} passages removed" * bool(manifest["removed"])
    made += _some("; {} titles to remove are of no article here: {}", manifest["not_removed"])
    return made + ", kept" * kept


def _some(text: str, found: dict) -> str:
    """Format a number of names, and the first of them."""
    more = ", …" * (found["number"] > len(found["first"]))
    return text.format(f"{found['number']:,}", ", ".join(found["first"]) + more) if found["number"] else ""


def _summed(names: list[str]) -> dict:
    return {"number": len(names), "first": names[:SHOWN]}


def _build(
    options: CorpusOptions,
    sources: list[tuple[str, list]],
    left_out: dict[str, str],
    removed: list[str],
    tokenizer: str,
) -> dict:
    about = dict(sources)
    parts = [
        {
            "number": number,
            "pieces": pieces,
            "files": {piece["path"]: about[piece["path"]] for piece in pieces},
            "key": hashes.fingerprint([[p, about[p["path"]]] for p in pieces]),
        }
        for number, pieces in enumerate(split_articles(sources, options.part_bytes))
    ]
    if not parts:
        raise InputError(f"{', '.join(_corpus_of(options))}: empty; files with articles expected")
    split = _run(parts, split_part, "parts read", options=options, tokenizer=tokenizer)
    paths = [part_path(options.passages, part, "entries.arrow") for part in range(len(parts))]
    digests = np.array([duplicates.dedup_title_hash(title) for title in removed], np.uint64)
    tasks = min(duplicates.BUCKETS, 1 + sum(row["passages"] for row in split) // 100_000)
    ranges = [
        {"number": number, "buckets": buckets.tolist()}
        for number, buckets in enumerate(np.array_split(np.arange(duplicates.BUCKETS), tasks))
    ]
    storage.delete_path(tables.table_records_path(options.passages, "duplicates"))
    _run(ranges, write_part_duplicates, "ranges compared", folder=options.passages, paths=paths, removed=digests)
    written = _run(parts, write_parts, "parts written", folder=options.passages, removed=removed)
    skipped = sum((Counter(row["skipped"]) for row in split), Counter())
    files = [f"{path} ({reason.partition(';')[0]})" for path, reason in sorted(left_out.items())]
    found = {title for row in written for title in row["titles"]}
    manifest = {
        "articles": sum(row["articles"] for row in split),
        "skipped": dict(sorted(skipped.items())),
        "left_out": _summed(files),
        "left_out_named": bool(files) or any(row["named"] for row in split),
        "not_removed": _summed([title for title in removed if title not in found]),
        **{key: sum(row[key] for row in written) for key in ("passages", "duplicates", "removed")},
        "shards": [shard for row in written for shard in row["shards"]],
    }
    if not manifest["passages"]:
        raise InputError(f"{', '.join(_corpus_of(options))}: {_made(manifest, False)}; articles with text expected")
    rows = [{"path": path, "title": "", "reason": reason} for path, reason in sorted(left_out.items())]
    write_corpus_part_rows(
        tables.table_records_path(options.passages, LEFT_OUT, "files.parquet"), rows, LEFT_OUT_SCHEMA
    )
    _tidy(options.passages, manifest, len(parts))
    return manifest


def _tidy(folder: str, manifest: dict, parts: int) -> None:
    """Delete shards, parts and side tables that do not belong to this corpus, which has this number of parts."""
    current = {f"{shard['name']}.parquet" for shard in manifest["shards"]}
    for name in storage.list_names(folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete_path(storage.join_paths(folder, name))
    numbers = {f"{number:05d}" for number in range(parts)}
    for beside in ("parts", LEFT_OUT, REPEATS):
        for name in storage.list_names(tables.table_records_path(folder, beside)):
            if name != "files.parquet" and name.removesuffix(".parquet") not in numbers:
                storage.delete_path(tables.table_records_path(folder, beside, name))


def _run(parts: list[dict], function: Callable[..., dict], unit: str, **arguments: object) -> list[dict]:
    rows = cluster.cluster_dataset(parts).map(function, fn_kwargs=arguments, num_cpus=1, max_retries=worker_loss.MOST)
    done = progress.rows_with_progress(rows, "corpus", len(parts), unit, lambda row: 1)
    return sorted((row["done"] for row in done), key=lambda row: row["number"])
