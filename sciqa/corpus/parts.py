"""Worker functions of the `corpus` step: split parts of the corpus, find repeats, write shards."""

import hashlib
import os
import socket
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sciqa.core import hashes, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, model_file_tokenizer
from sciqa.corpus import dedup as duplicates
from sciqa.corpus.articles import ArticleCounts, ArticleRange, read_articles
from sciqa.corpus.chunking import ChunkSplitter
from sciqa.corpus.options import CorpusOptions

SCHEMA = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "section", "text", "url")])
#: Folders of two tables beside the passages: files and articles left out, and passages that repeat another one, exactly
#: or nearly; the column `repeats` has the id of that other passage.
LEFT_OUT, REPEATS = "left_out", "repeats"
LEFT_OUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("path", "title", "reason")])
REPEATS_SCHEMA = pa.schema([*SCHEMA, ("repeats", pa.string()), ("kind", pa.string())])


def write_corpus_part_rows(path: str, rows: list[dict], schema: pa.Schema) -> None:
    """Write rows as a table; without rows, delete an existing table."""
    if rows:
        tables.write_table(path, pa.Table.from_pylist(rows, schema=schema))
    else:
        storage.delete_path(path)


def part_path(folder: str, part: int, *names: str) -> str:
    """Return a path in the folder with the intermediate results of a part of the corpus."""
    return tables.table_records_path(folder, "parts", f"{part:05d}", *names)


def split_part(row: dict, options: CorpusOptions, tokenizer: str) -> dict:
    """Write one part's passages, including duplicates, and the entries to find these; write its record last.

    `tokenizer` is the hash of the embedder's tokenizer on record, which that of this machine must have.
    """
    part = row["part"]
    folder = part_path(options.passages, part["number"])
    record = storage.join_paths(folder, "part.json")
    if storage.path_exists(record) and (done := storage.read_json(record))["key"] == part["key"]:
        return {"done": done}
    check_corpus_files(part["files"])
    hashes.check_same_hash(options.embedder, find_model(options.embedder).tokenizer, tokenizer)
    storage.delete_path(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    splitter = ChunkSplitter(model_file_tokenizer(options.embedder), options.passage_tokens, options.passage_overlap)
    tally = ArticleCounts()
    passages = _split_all(part["pieces"], splitter, tally)
    entries = [duplicates.make_dedup_entries([], 0, options.near_duplicates)]
    chunks = rows = 0
    while chunk := list(islice(passages, options.shard_passages)):
        table = pa.Table.from_pylist(chunk, schema=SCHEMA)
        tables.write_table(storage.join_paths(folder, f"{chunks:05d}.parquet"), table)
        entries.append(duplicates.make_dedup_entries(chunk, rows, options.near_duplicates))
        chunks, rows = chunks + 1, rows + len(chunk)
    check_corpus_files(part["files"])
    duplicates.write_dedup_entries(storage.join_paths(folder, "entries.arrow"), np.concatenate(entries))
    beside = tables.table_records_path(options.passages, LEFT_OUT, tables.table_part_name(part["number"]))
    write_corpus_part_rows(beside, tally.named, LEFT_OUT_SCHEMA)
    done = {"number": part["number"], "key": part["key"], "articles": tally.pop("articles", 0)}
    done |= {"skipped": dict(tally), "named": len(tally.named), "passages": rows, "chunks": chunks}
    storage.write_json(record, done)
    return {"done": done}


def check_corpus_files(files: dict[str, list]) -> None:
    """Raise `InputError` if a file of the corpus has here another size or time of change than where it was listed."""
    paths = [path for path in files if path != "demo"]
    for path, found in zip(paths, storage.map_storage(storage.stat_files, paths), strict=True):
        if _comparable(path, found[0][1]) != _comparable(path, files[path]):
            raise InputError(
                f"{path}: changed while the corpus was read, or not the same file on {socket.gethostname()} (copies "
                "need the same size and time of change, as `rsync -a` makes them); run it again"
            )


def _comparable(path: str, state: list) -> list:
    """Return a file's size and time of change, in whole seconds if it is not on a disk.

    A listing of object storage has parts of a second on some servers; the header of a single file never has.
    """
    size, time = state
    return [size, time // 10**9 if "://" in path.removeprefix("file://") else time]


def _split_all(pieces: list[ArticleRange], splitter: ChunkSplitter, tally: ArticleCounts) -> Iterator[dict[str, str]]:
    for piece in pieces:
        for section in read_articles(**piece, tally=tally):
            title, name = splitter.headings(section["title"], section["section"])
            for text in splitter.split(title, name, section["text"]):
                named = "\x1f".join([title, name, text])
                about = {"passage_id": hashlib.sha256(named.encode()).hexdigest()[:16], "title": title, "section": name}
                yield section | about | {"text": text}


def write_part_duplicates(row: dict, folder: str, paths: list[str], removed: np.ndarray) -> dict:
    """Write the part and row of each passage that repeats an earlier one, for some buckets, ordered by part."""
    part = row["part"]
    found = [row for bucket in part["buckets"] for row in duplicates.find_duplicate_articles(paths, bucket, removed)]
    table = pa.Table.from_pylist(found, schema=duplicates.REPEATS).sort_by("part")
    tables.write_table(tables.table_records_path(folder, "duplicates", f"{part['number']:05d}.parquet"), table, 10_000)
    return {"done": {"number": part["number"]}}


def write_parts(row: dict, folder: str, removed: list[str]) -> dict:
    """Write a part's shards: each chunk without repeats and removed articles; write its record last."""
    number = row["part"]["number"]
    table = tables.read_table(tables.table_records_path(folder, "duplicates"), filters=[("part", "=", number)])
    table = table.sort_by([(name, "ascending") for name in ("row", "kind", "repeats")])
    repeats: dict[int, dict] = {}
    for about in table.to_pylist():
        repeats.setdefault(about["row"], about)
    dropped = np.array(list(repeats), np.int64)
    record = part_path(folder, number, "shards.json")
    key = hashes.fingerprint([row["part"]["key"], list(repeats.values()), removed])
    if done := _written_parts(folder, record, key):
        return {"done": done}
    storage.delete_path(record)  # its shards are written over
    done = {"number": number, "key": key, "passages": 0, "duplicates": len(dropped), "removed": 0, "shards": []}
    titles: set[str] = set()
    repeated: list[dict] = []
    first = 0
    for chunk in range(storage.read_json(part_path(folder, number, "part.json"))["chunks"]):
        table = tables.read_table(part_path(folder, number, f"{chunk:05d}.parquet"))
        keep = ~np.isin(np.arange(first, first + len(table)), dropped)
        for at, row in zip(np.flatnonzero(~keep), table.filter(pa.array(~keep)).to_pylist(), strict=True):
            about = repeats[first + int(at)]
            repeated.append(row | {"repeats": f"{about['repeats']:016x}", "kind": about["kind"]})
        named = pc.is_in(table["title"], pa.array(removed, pa.string())).to_numpy()
        done["removed"] += int((keep & named).sum())
        titles.update(table.filter(pa.array(named))["title"].to_pylist())
        first += len(table)
        table = table.filter(pa.array(keep & ~named))
        if len(table):
            name = f"{number:05d}-{chunk:05d}"
            digest = tables.write_table(storage.join_paths(folder, f"{name}.parquet"), table)
            content = hashes.rows_hash(table.to_pylist())
            done["shards"].append({"name": name, "rows": len(table), "sha256": digest, "content": content})
            done["passages"] += len(table)
    beside = tables.table_records_path(folder, REPEATS, tables.table_part_name(number))
    write_corpus_part_rows(beside, repeated, REPEATS_SCHEMA)
    done["titles"] = sorted(titles)
    storage.write_json(record, done)
    return {"done": done}


def _written_parts(folder: str, record: str, key: str) -> dict | None:
    """Return the record of a part's shards if it has this key and all of them are there, else None."""
    if not storage.path_exists(record) or (done := storage.read_json(record))["key"] != key:
        return None
    paths = [storage.join_paths(folder, f"{shard['name']}.parquet") for shard in done["shards"]]
    return done if all(storage.map_storage(storage.path_exists, paths)) else None
