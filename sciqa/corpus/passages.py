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

from sciqa.core import cluster, progress, storage
from sciqa.core.errors import InputError
from sciqa.core.hub import find_model, load_tokenizer, local_path, longest_text
from sciqa.core.lock import lock
from sciqa.core.options import RunOptions, Summary
from sciqa.corpus import dedup as duplicates
from sciqa.corpus.articles import Piece, Tally, find_sources, read_articles, split_sources
from sciqa.corpus.chunking import Splitter
from sciqa.corpus.sources import decode

#: Of what this module, and what it reads with, compute; raised with every change of it, so that passages cut otherwise
#: are not kept.
PASSAGES_FORMAT = 3
#: Names the corpus that passages are being made from.
CORPUS = "corpus.json"
SCHEMA = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "section", "text", "url")])
#: Tables of what is not among the passages, in folders beside them: files and articles left out, passages that repeat
#: another, whose id `repeats` is, exactly or nearly.
LEFT_OUT, REPEATS = "left_out", "repeats"
LEFT_OUT_SCHEMA = pa.schema([(name, pa.string()) for name in ("path", "title", "reason")])
REPEATS_SCHEMA = pa.schema([*SCHEMA, ("repeats", pa.string()), ("kind", pa.string())])
#: Names that a summary line shows of many.
SHOWN = 3


@dataclass(kw_only=True)
class CorpusOptions(RunOptions):
    """What the passages are made from."""

    corpus: tuple[str, ...] | None = None
    """`demo` (10,033 leads of English Wikipedia articles), and files or folders: MediaWiki dumps (.xml.bz2), tables
    with title and text (.parquet, .jsonl, .csv, .tsv), .txt, .md, .html, .pdf, what wikiextractor wrote; also
    compressed (.gz, .bz2, .xz, .zst). What is added behind the others leaves their shards as they are. By default
    passages that are finished are used as they are, and where there are none they are made from `demo`."""
    remove: str | None = None
    """Text file with the titles of articles to leave out, one a line."""
    near_duplicates: bool = False
    """Leave out passages that are nearly those of an article with the same title; exact repeats always are."""
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
        if self.corpus is not None:
            self.corpus = tuple(path if path == "demo" else storage.absolute(path) for path in self.corpus)
        self.at_least(32, "passage_tokens")
        self.at_least(0, "passage_overlap")
        self.at_least(1, "shard_passages", "part_bytes")

    def cut(self) -> dict[str, int | bool]:
        """Return the options that say how texts are cut into passages, and these into shards."""
        names = ("passage_tokens", "passage_overlap", "shard_passages", "near_duplicates")
        return {name: getattr(self, name) for name in names}


def build_passages(options: CorpusOptions) -> Summary:
    """Write the passages table: Parquet shards and a manifest that lists them in order.

    Columns: `passage_id` (the same text has the same id in every run), `title`, `section`, `text`, `url`. What is not
    among them stands in `_passages` beside them: `left_out/` (path, title, reason) and `repeats/` (a passage, the id
    of the one that it `repeats`, and its `kind`: exact or near).
    Three passes over parts of the corpus, each a task that keeps what it has finished: texts are cut into passages,
    duplicates among all parts are found, and shards are written without them.

    Raises:
        InputError: a corpus that cannot be read, with file, row and column.
    """
    started = time.monotonic()
    if as_it_is := finished_passages(options):
        return Summary("corpus", options.passages, _made(as_it_is, kept=True), time.monotonic() - started, as_it_is)
    left_out: dict[str, str] = {}
    sources = check_corpus(options, left_out)
    removed = _read_titles(options.remove) if options.remove else []
    with lock(options.passages):
        manifest, kept = _fill(options, sources, left_out, removed)
    return Summary("corpus", options.passages, _made(manifest, kept), time.monotonic() - started, manifest)


def _fill(
    options: CorpusOptions, sources: list[tuple[str, list]], left_out: dict[str, str], removed: list[str]
) -> tuple[dict, bool]:
    """Write what the passages table lacks; return its manifest, and whether it was whole."""
    cut = options.cut() | {"format": PASSAGES_FORMAT, "tokenizer": find_model(options.embedder).tokenizer}
    inputs = storage.fingerprint([sources, removed, options.part_bytes, left_out])
    begun = storage.begin(options.passages, cut, storage.defaults_of(CorpusOptions), overwrite=options.overwrite)
    manifest = storage.read_manifest(options.passages, "corpus") if begun.whole else {}
    if not (kept := manifest.get("inputs") == inputs):
        _check_sources(options, manifest, sources)
        storage.write_json(storage.records(options.passages, CORPUS), {"corpus": _corpus_of(options)})
        storage.delete(storage.records(options.passages, storage.MANIFEST))
        cluster.connect(options)
        manifest = _build(options, sources, left_out, removed)
        manifest |= {"inputs": inputs, "format": PASSAGES_FORMAT, "sources": [path for path, _ in sources]}
        storage.finish(options.passages, manifest)
        _tidy(options.passages, manifest)
    return manifest, kept


def finished_passages(options: CorpusOptions) -> dict | None:
    """Return the manifest of passages that are used as they are, since they are finished and no corpus is named.

    Raises:
        InputError: passages are asked for in another form than those.
    """
    if options.corpus is not None or not storage.is_finished(options.passages):
        return None
    manifest = storage.read_manifest(options.passages, "corpus")
    if manifest.get("format") != PASSAGES_FORMAT:
        raise InputError(f"{options.passages}: {storage.OTHERWISE}; pass --corpus and --overwrite to make it anew")
    made = storage.read_json(storage.records(options.passages, storage.INPUTS))["inputs"]
    defaults = storage.defaults_of(CorpusOptions)
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


def _check_sources(options: CorpusOptions, manifest: dict, sources: list[tuple[str, list]]) -> None:
    """Raise `InputError` where finished passages have none of a corpus's sources: it is another one, none with more."""
    made = set(manifest.get("sources", ()))
    if made and not made & {path for path, _ in sources} and not options.overwrite:
        raise InputError(
            f"{options.passages}: made from other inputs ({min(made)} is not in --corpus); {storage.REMEDY}"
        )


def check_corpus(options: CorpusOptions, left_out: dict[str, str] | None = None) -> list[tuple[str, list]]:
    """Return the files of the corpus, and those left out, as `find_sources` does.

    Raises:
        InputError: a corpus that cannot be read, or passages longer than the embedder reads.
    """
    longest = longest_text(options.embedder)
    if longest and options.passage_tokens > longest:
        raise InputError(
            f"--passage-tokens: {options.passage_tokens} given, but {options.embedder} reads no more than {longest}"
        )
    return find_sources(_corpus_of(options), left_out)


def _corpus_of(options: CorpusOptions) -> tuple[str, ...]:
    """Return the corpus that is asked for; without one that of passages which are begun here, else `demo`."""
    begun = storage.records(options.passages, CORPUS)
    if options.corpus is not None or not storage.exists(begun):
        return options.corpus or ("demo",)
    return tuple(storage.read_json(begun)["corpus"])


def _read_titles(path: str) -> list[str]:
    lines = decode(storage.read_bytes(path), path).split("\n")
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
    """Write a number of things and the first of them."""
    more = ", …" * (found["number"] > len(found["first"]))
    return text.format(f"{found['number']:,}", ", ".join(found["first"]) + more) if found["number"] else ""


def _summed(names: list[str]) -> dict:
    return {"number": len(names), "first": names[:SHOWN]}


def _build(
    options: CorpusOptions, sources: list[tuple[str, list]], left_out: dict[str, str], removed: list[str]
) -> dict:
    about = dict(sources)
    parts = [
        {"number": number, "pieces": pieces, "key": storage.fingerprint([[p, about[p["path"]]] for p in pieces])}
        for number, pieces in enumerate(split_sources(sources, options.part_bytes))
    ]
    if not parts:
        raise InputError(f"{', '.join(_corpus_of(options))}: empty; files with articles expected")
    split = _run(parts, split_part, "parts read", options=options)
    paths = [_part_path(options.passages, part, "entries.arrow") for part in range(len(parts))]
    hashes = np.array([duplicates.title_hash(title) for title in removed], np.uint64)
    tasks = min(duplicates.BUCKETS, 1 + sum(row["passages"] for row in split) // 100_000)
    ranges = [
        {"number": number, "buckets": buckets.tolist()}
        for number, buckets in enumerate(np.array_split(np.arange(duplicates.BUCKETS), tasks))
    ]
    storage.delete(storage.records(options.passages, "duplicates"))
    arguments = {"folder": options.passages, "paths": paths, "removed": hashes}
    _run(ranges, write_duplicates, "ranges compared", **arguments)
    arguments = {"folder": options.passages, "removed": removed}
    written = _run(parts, write_shards, "parts written", **arguments)
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
    _write_rows(storage.records(options.passages, LEFT_OUT, "files.parquet"), rows, LEFT_OUT_SCHEMA)
    return manifest


def _write_rows(path: str, rows: list[dict], schema: pa.Schema) -> None:
    """Write a table where there are rows; delete what is there where there are none."""
    if rows:
        storage.write_table(path, pa.Table.from_pylist(rows, schema=schema))
    else:
        storage.delete(path)


def _tidy(folder: str, manifest: dict) -> None:
    """Delete the shards, and the tables beside them, of parts that this corpus does not have."""
    current = {f"{shard['name']}.parquet" for shard in manifest["shards"]}
    for name in storage.names(folder):
        if name.endswith(".parquet") and name not in current:
            storage.delete(storage.join(folder, name))
    parts = set(storage.list_folders(storage.records(folder, "parts")))
    for beside in (LEFT_OUT, REPEATS):
        for name in storage.names(storage.records(folder, beside)):
            if name != "files.parquet" and name.removesuffix(".parquet") not in parts:
                storage.delete(storage.records(folder, beside, name))


def _run(parts: list[dict], function: object, unit: str, **arguments: object) -> list[dict]:
    rows = cluster.from_parts(parts).map(function, fn_kwargs=arguments, num_cpus=1)
    done = progress.rows_with_progress(rows, "corpus", len(parts), unit, lambda row: 1)
    return sorted((row["done"] for row in done), key=lambda row: row["number"])


def _part_path(folder: str, part: int, *names: str) -> str:
    return storage.records(folder, "parts", f"{part:05d}", *names)


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
    tally = Tally()
    passages = _split_all(part["pieces"], splitter, tally)
    entries = [duplicates.make_entries([], 0, options.near_duplicates)]
    chunks = rows = 0
    while chunk := list(islice(passages, options.shard_passages)):
        table = pa.Table.from_pylist(chunk, schema=SCHEMA)
        storage.write_table(storage.join(folder, f"{chunks:05d}.parquet"), table)
        entries.append(duplicates.make_entries(chunk, rows, options.near_duplicates))
        chunks, rows = chunks + 1, rows + len(chunk)
    duplicates.write_entries(storage.join(folder, "entries.arrow"), np.concatenate(entries))
    beside = storage.part_path(storage.records(options.passages, LEFT_OUT), part["number"])
    _write_rows(beside, tally.named, LEFT_OUT_SCHEMA)
    done = {"number": part["number"], "key": part["key"], "articles": tally.pop("articles", 0)}
    done |= {"skipped": dict(tally), "named": len(tally.named), "passages": rows, "chunks": chunks}
    storage.write_json(record, done)
    return {"done": done}


def _split_all(pieces: list[Piece], splitter: Splitter, tally: Tally) -> Iterator[dict[str, str]]:
    for piece in pieces:
        for section in read_articles(**piece, tally=tally):
            for text in splitter.split(section["title"], section["section"], section["text"]):
                name = "\x1f".join([section["title"], section["section"], text])
                yield section | {"passage_id": hashlib.sha256(name.encode()).hexdigest()[:16], "text": text}


def write_duplicates(row: dict, folder: str, paths: list[str], removed: np.ndarray) -> dict:
    """Write which rows of which parts repeat an earlier passage, for some of the buckets."""
    part = row["part"]
    found = [row for bucket in part["buckets"] for row in duplicates.find_repeats(paths, bucket, removed)]
    table = pa.Table.from_pylist(found, schema=duplicates.REPEATS)
    storage.write_table(storage.records(folder, "duplicates", f"{part['number']:05d}.parquet"), table, 10_000)
    return {"done": {"number": part["number"]}}


def write_shards(row: dict, folder: str, removed: list[str]) -> dict:
    """Write a part's shards, each what is left of one chunk; its record comes last."""
    number = row["part"]["number"]
    table = storage.read_table(storage.records(folder, "duplicates"))
    table = table.filter(pc.equal(table["part"], number)).sort_by(
        [(name, "ascending") for name in ("row", "kind", "repeats")]
    )
    repeats: dict[int, dict] = {}
    for about in table.to_pylist():
        repeats.setdefault(about["row"], about)
    dropped = np.array(list(repeats), np.int64)
    record = _part_path(folder, number, "shards.json")
    key = storage.fingerprint([row["part"]["key"], list(repeats.values()), removed])
    if storage.exists(record) and (done := storage.read_json(record))["key"] == key:
        return {"done": done}
    done = {"number": number, "key": key, "passages": 0, "duplicates": len(dropped), "removed": 0, "shards": []}
    titles: set[str] = set()
    repeated: list[dict] = []
    first = 0
    for chunk in range(storage.read_json(_part_path(folder, number, "part.json"))["chunks"]):
        table = storage.read_table(_part_path(folder, number, f"{chunk:05d}.parquet"))
        keep = ~np.isin(np.arange(first, first + len(table)), dropped)
        for at in np.flatnonzero(~keep):
            about = repeats[first + int(at)]
            row = table.slice(int(at), 1).to_pylist()[0]
            repeated.append(row | {"repeats": f"{about['repeats']:016x}", "kind": about["kind"]})
        named = pc.is_in(table["title"], pa.array(removed, pa.string())).to_numpy()
        done["removed"] += int((keep & named).sum())
        titles.update(table.filter(pa.array(named))["title"].to_pylist())
        first += len(table)
        table = table.filter(pa.array(keep & ~named))
        if len(table):
            name = f"{number:05d}-{chunk:05d}"
            digest = storage.write_table(storage.join(folder, f"{name}.parquet"), table)
            content = storage.rows_hash(table.to_pylist())
            done["shards"].append({"name": name, "rows": len(table), "sha256": digest, "content": content})
            done["passages"] += len(table)
    _write_rows(storage.part_path(storage.records(folder, REPEATS), number), repeated, REPEATS_SCHEMA)
    done["titles"] = sorted(titles)
    storage.write_json(record, done)
    return {"done": done}
