"""Articles to passages: pieces of whole sentences, with stable ids, in shards of even size."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
from semantic_text_splitter import TextSplitter

from sciqa import cluster, storage
from sciqa.cluster import RunOptions, Summary
from sciqa.corpus.articles import find_sources, read_articles

SCHEMA = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "section", "text", "url")])


@dataclass(kw_only=True)
class CorpusOptions(RunOptions):
    """What the passages are made from."""

    corpus: str = "demo"
    """`demo` (10,033 leads of English Wikipedia articles), or a JSONL or Parquet file or folder of title, text."""
    passages: str | None = None
    """Folder of the passages table; by default OUTPUT/passages."""
    passage_characters: int = 1000
    """Longest passage, in characters; longer articles are cut between sentences."""
    shard_passages: int = 1024
    """Passages in a shard, the unit of work and of resuming."""

    def __post_init__(self) -> None:
        """Fill the default folder and check the numbers."""
        super().__post_init__()
        self.passages = self.passages or storage.join(self.output, "passages")
        self.at_least(50, "passage_characters")
        self.at_least(1, "shard_passages")


def build_passages(options: CorpusOptions) -> Summary:
    """Write the passages table: Parquet shards and a manifest that lists them in order.

    Columns: `passage_id` (the same text has the same id in every run), `title`, `section`, `text`, `url`.
    Nothing is done where the table is there already, made from the same corpus and options.

    Raises:
        InputError: a corpus that cannot be read, with file, row and column.
    """
    started = time.monotonic()
    sources = find_sources(options.corpus)
    storage.check_writable(options.passages)
    inputs = {"sources": sources, "characters": options.passage_characters, "shard": options.shard_passages}
    present = storage.begin(options.passages, inputs)
    if kept := storage.MANIFEST in present:
        manifest = storage.read_manifest(options.passages, "corpus")
    else:
        cluster.connect(options)
        parts = [{"number": number, "path": path} for number, (path, _) in enumerate(sources)]
        rows = cluster.from_parts(parts).map(
            _write_source,
            fn_kwargs={
                "folder": options.passages,
                "characters": options.passage_characters,
                "shard_passages": options.shard_passages,
            },
            num_cpus=cluster.TASK_CPUS,
        )
        done = list(cluster.rows_with_progress(rows, "corpus", len(parts), "sources", lambda row: 1))
        done.sort(key=lambda row: row["number"])
        manifest = {key: sum(row[key] for row in done) for key in ("articles", "passages", "skipped")}
        manifest["shards"] = [shard for row in done for shard in row["shards"]]
        storage.finish(options.passages, manifest)
    made = f"{manifest['passages']:,} passages of {manifest['articles']:,} articles in {len(manifest['shards'])} shards"
    made += f", {manifest['skipped']:,} without text skipped" * bool(manifest["skipped"]) + ", kept" * kept
    return Summary("corpus", options.passages, made, time.monotonic() - started, manifest)


def split_article(article: dict[str, str], splitter: TextSplitter) -> Iterator[dict[str, str]]:
    """Yield an article's passages, each with the id that its title, section and text give it."""
    for text in splitter.chunks(article["text"]):
        name = "\x1f".join([article["title"], article["section"], text])
        yield article | {"passage_id": hashlib.sha256(name.encode()).hexdigest()[:16], "text": text}


def _write_source(row: dict, folder: str, characters: int, shard_passages: int) -> dict:
    """Write one source's shards; its own small manifest comes last and makes a rerun skip it."""
    number, path = row["part"]["number"], row["part"]["path"]
    marker = storage.join(folder, f"_source-{number:05d}.json")
    if storage.exists(marker):
        return storage.read_json(marker)
    counts = {"number": number, "articles": 0, "passages": 0, "skipped": 0, "shards": []}
    passages = _split_all(path, characters, counts)
    while shard := list(islice(passages, shard_passages)):
        name = f"{number:05d}-{len(counts['shards']):05d}"
        table = pa.Table.from_pylist(shard, schema=SCHEMA)
        digest = storage.write_table(storage.join(folder, f"{name}.parquet"), table)
        counts["shards"].append({"name": name, "rows": len(shard), "sha256": digest})
        counts["passages"] += len(shard)
    storage.write_json(marker, counts)
    return counts


def _split_all(path: str, characters: int, counts: dict) -> Iterator[dict[str, str]]:
    splitter = TextSplitter(characters)
    seen: set[str] = set()
    for article in read_articles(path):
        counts["articles"] += 1
        if not article["text"].strip():
            counts["skipped"] += 1
        for passage in split_article(article, splitter):
            if passage["passage_id"] not in seen:
                seen.add(passage["passage_id"])
                yield passage
