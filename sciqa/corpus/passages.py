"""Articles to passages: windows of whole sentences with stable ids, each said once, in shards of even size."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sciqa import cluster, storage
from sciqa.cluster import RunOptions, Summary
from sciqa.corpus import duplicates
from sciqa.corpus.articles import Piece, find_sources, read_articles, split_sources
from sciqa.corpus.windows import Splitter
from sciqa.errors import InputError
from sciqa.hub import find_model, load_tokenizer, local_path, longest_text

#: Of what this module, and what it reads with, compute; raised with every change of it, so that passages cut otherwise
#: are not kept.
PASSAGES_FORMAT = 2
SCHEMA = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "section", "text", "url")])


@dataclass(kw_only=True)
class CorpusOptions(RunOptions):
    """What the passages are made from."""

    corpus: tuple[str, ...] = ("demo",)
    """`demo` (10,033 leads of English Wikipedia articles), and files or folders: MediaWiki dumps (.xml.bz2), Parquet
    or JSONL with title and text, .txt, .pdf. What is added behind the others leaves their shards as they are."""
    remove: str | None = None
    """Text file with the titles of articles to leave out, one a line."""
    passages: str | None = None
    """Folder of the passages table; by default OUTPUT/passages."""
    embedder: str = "all-MiniLM-L6-v2"
    """Model whose tokens are counted."""
    passage_tokens: int = 256
    """Most tokens of a passage, headings included; longer texts are cut between sentences."""
    passage_overlap: int = 1
    """Sentences that a passage repeats from the one before."""
    shard_passages: int = 1024
    """Passages in a shard, the unit of work and of resuming."""
    part_bytes: int = 8_000_000
    """Bytes of the corpus that one task reads."""

    def __post_init__(self) -> None:
        """Fill the default folder and check the numbers."""
        super().__post_init__()
        self.embedder = local_path(self.embedder)
        self.fill_folder("passages", "passages")
        self.corpus = tuple(path if path == "demo" else storage.absolute(path) for path in self.corpus)
        self.at_least(32, "passage_tokens")
        self.at_least(0, "passage_overlap")
        self.at_least(1, "shard_passages", "part_bytes")


def build_passages(options: CorpusOptions) -> Summary:
    """Write the passages table: Parquet shards and a manifest that lists them in order.

    Columns: `passage_id` (the same text has the same id in every run), `title`, `section`, `text`, `url`.
    Three passes over parts of the corpus, each a task that keeps what it has finished: texts are cut into passages,
    duplicates among all parts are found, and shards are written without them.

    Raises:
        InputError: a corpus that cannot be read, with file, row and column.
    """
    started = time.monotonic()
    sources = check_corpus(options)
    removed = _read_titles(options.remove) if options.remove else []
    storage.check_writable(options.passages)
    cut = {
        "format": PASSAGES_FORMAT,
        "tokenizer": find_model(options.embedder).tokenizer,
        "tokens": options.passage_tokens,
        "overlap": options.passage_overlap,
        "shard": options.shard_passages,
    }
    inputs = storage.fingerprint([sources, removed, options.part_bytes])
    whole = storage.MANIFEST in storage.begin(options.passages, cut, storage.defaults_of(CorpusOptions)).names
    manifest = storage.read_manifest(options.passages, "corpus") if whole else {}
    if not (kept := manifest.get("inputs") == inputs):
        storage.delete(storage.join(options.passages, storage.MANIFEST))
        cluster.connect(options)
        manifest = _build(options, sources, removed) | {"inputs": inputs, "format": PASSAGES_FORMAT}
        storage.finish(options.passages, manifest)
        _tidy(options.passages, manifest)
    return Summary("corpus", options.passages, _made(manifest, kept), time.monotonic() - started, manifest)


def check_corpus(options: CorpusOptions) -> list[tuple[str, list]]:
    """Return the files of the corpus, as `find_sources` does.

    Raises:
        InputError: a corpus that cannot be read, or passages longer than the embedder reads.
    """
    longest = longest_text(options.embedder)
    if longest and options.passage_tokens > longest:
        raise InputError(
            f"--passage-tokens: {options.passage_tokens} given, but {options.embedder} reads no more than {longest}"
        )
    return find_sources(options.corpus)


def _read_titles(path: str) -> list[str]:
    try:
        lines = storage.read_bytes(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start + 1}: not UTF-8; titles, one a line, expected") from error
    return sorted({line.strip() for line in lines if line.strip()})


def _made(manifest: dict, kept: bool) -> str:
    made = f"{manifest['passages']:,} passages of {manifest['articles']:,} articles in {len(manifest['shards'])} shards"
    left = [f"{number:,} {reason}" for reason, number in manifest["skipped"].items()]
    made += f"; articles left out: {', '.join(left)}" * bool(left)
    made += f"; {manifest['duplicates']:,} passages said before" * bool(manifest["duplicates"])
    made += f"; {manifest['removed']:,} passages removed" * bool(manifest["removed"])
    return made + ", kept" * kept


def _build(options: CorpusOptions, sources: list[tuple[str, list]], removed: list[str]) -> dict:
    about = dict(sources)
    parts = [
        {"number": number, "pieces": pieces, "key": storage.fingerprint([[p, about[p["path"]]] for p in pieces])}
        for number, pieces in enumerate(split_sources(sources, options.part_bytes))
    ]
    if not parts:
        raise InputError(f"{', '.join(options.corpus)}: empty; files with articles expected")
    split = _run(parts, split_part, "parts read", options=options)
    paths = [_part_path(options.passages, part, "entries.arrow") for part in range(len(parts))]
    hashes = np.array([duplicates.title_hash(title) for title in removed], np.uint64)
    tasks = min(duplicates.BUCKETS, 1 + sum(row["passages"] for row in split) // 100_000)
    ranges = [
        {"number": number, "buckets": buckets.tolist()}
        for number, buckets in enumerate(np.array_split(np.arange(duplicates.BUCKETS), tasks))
    ]
    storage.delete(storage.join(options.passages, "_duplicates"))
    arguments = {"folder": options.passages, "paths": paths, "removed": hashes}
    _run(ranges, write_duplicates, "ranges compared", **arguments)
    arguments = {"folder": options.passages, "removed": removed}
    written = _run(parts, write_shards, "parts written", **arguments)
    skipped = sum((Counter(row["skipped"]) for row in split), Counter())
    return {
        "articles": sum(row["articles"] for row in split),
        "skipped": dict(sorted(skipped.items())),
        **{key: sum(row[key] for row in written) for key in ("passages", "duplicates", "removed")},
        "shards": [shard for row in written for shard in row["shards"]],
    }


def _tidy(folder: str, manifest: dict) -> None:
    """Delete the shards of an earlier corpus that this one does not have."""
    current = {f"{shard['name']}.parquet" for shard in manifest["shards"]}
    for name in storage.names(folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete(storage.join(folder, name))


def _run(parts: list[dict], function: object, unit: str, **arguments: object) -> list[dict]:
    rows = cluster.from_parts(parts).map(function, fn_kwargs=arguments, num_cpus=1)
    done = cluster.rows_with_progress(rows, "corpus", len(parts), unit, lambda row: 1)
    return sorted((row["done"] for row in done), key=lambda row: row["number"])


def _part_path(folder: str, part: int, *names: str) -> str:
    return storage.join(folder, "_parts", f"{part:05d}", *names)


def split_part(row: dict, options: CorpusOptions) -> dict:
    """Write one part's passages, duplicates and all, and the entries that find those; its record comes last."""
    part = row["part"]
    folder = _part_path(options.passages, part["number"])
    record = storage.join(folder, "part.json")
    if storage.exists(record) and (done := storage.read_json(record))["key"] == part["key"]:
        return {"done": done}
    storage.delete(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    splitter = Splitter(load_tokenizer(options.embedder), options.passage_tokens, options.passage_overlap)
    counts: Counter = Counter()
    passages = _split_all(part["pieces"], splitter, counts)
    signatures, titles = [np.empty((0, duplicates.BANDS), np.uint32)], [np.empty(0, np.uint64)]
    chunks = rows = 0
    while chunk := list(islice(passages, options.shard_passages)):
        table = pa.Table.from_pylist(chunk, schema=SCHEMA)
        storage.write_table(storage.join(folder, f"{chunks:05d}.parquet"), table)
        signatures.append(duplicates.sign([passage["text"] for passage in chunk]))
        titles.append(np.array([duplicates.title_hash(passage["title"]) for passage in chunk], np.uint64))
        chunks, rows = chunks + 1, rows + len(chunk)
    entries = storage.join(folder, "entries.arrow")
    duplicates.write_entries(entries, np.concatenate(signatures), np.concatenate(titles))
    done = {"number": part["number"], "key": part["key"], "articles": counts.pop("articles", 0)}
    done |= {"skipped": dict(counts), "passages": rows, "chunks": chunks}
    storage.write_json(record, done)
    return {"done": done}


def _split_all(pieces: list[Piece], splitter: Splitter, counts: Counter) -> Iterator[dict[str, str]]:
    for piece in pieces:
        for section in read_articles(**piece, counts=counts):
            for text in splitter.split(section["title"], section["section"], section["text"]):
                name = "\x1f".join([section["title"], section["section"], text])
                yield section | {"passage_id": hashlib.sha256(name.encode()).hexdigest()[:16], "text": text}


def write_duplicates(row: dict, folder: str, paths: list[str], removed: np.ndarray) -> dict:
    """Write which rows of which parts repeat an earlier passage, for some of the buckets."""
    part = row["part"]
    found = {pair for bucket in part["buckets"] for pair in duplicates.find_duplicates(paths, bucket, removed)}
    table = pa.Table.from_pylist([{"part": p, "row": r} for p, r in sorted(found)], schema=duplicates.DROPPED)
    storage.write_table(storage.join(folder, "_duplicates", f"{part['number']:05d}.parquet"), table, 10_000)
    return {"done": {"number": part["number"]}}


def write_shards(row: dict, folder: str, removed: list[str]) -> dict:
    """Write a part's shards, each what is left of one chunk; its record comes last."""
    number = row["part"]["number"]
    table = storage.read_table(storage.join(folder, "_duplicates"))
    dropped = np.unique(table.filter(pc.equal(table["part"], number))["row"].to_numpy())
    record = _part_path(folder, number, "shards.json")
    key = storage.fingerprint([row["part"]["key"], dropped.tolist(), removed])
    if storage.exists(record) and (done := storage.read_json(record))["key"] == key:
        return {"done": done}
    done = {"number": number, "key": key, "passages": 0, "duplicates": len(dropped), "removed": 0, "shards": []}
    first = 0
    for chunk in range(storage.read_json(_part_path(folder, number, "part.json"))["chunks"]):
        table = storage.read_table(_part_path(folder, number, f"{chunk:05d}.parquet"))
        keep = ~np.isin(np.arange(first, first + len(table)), dropped)
        named = pc.is_in(table["title"], pa.array(removed, pa.string())).to_numpy()
        done["removed"] += int((keep & named).sum())
        first += len(table)
        table = table.filter(pa.array(keep & ~named))
        if len(table):
            name = f"{number:05d}-{chunk:05d}"
            digest = storage.write_table(storage.join(folder, f"{name}.parquet"), table)
            content = storage.rows_hash(table.to_pylist())
            done["shards"].append({"name": name, "rows": len(table), "sha256": digest, "content": content})
            done["passages"] += len(table)
    storage.write_json(record, done)
    return {"done": done}
