"""What an exam is compared with: other questions, and texts of a corpus, of passages or of an index."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa

from sciqa.audit.options import AuditOptions
from sciqa.core import hashes, storage, tables
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED
from sciqa.corpus.articles import find_article_files, split_articles
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.retrieval.index import MANIFEST, read_index_manifest

#: Bytes of a corpus that a task reads.
PART_BYTES = 8_000_000
#: Most files and articles that are named as not compared.
NAMED = 20


class OtherSource(NamedTuple):
    """Questions that an exam is compared with.

    Attributes:
        name: name for messages and tables.
        table: the questions, as `sciqa.exam.read_exam.read_exam` returns them.
        sha256: hash of their rows.
    """

    name: str
    table: pa.Table
    sha256: str


class TextSource(NamedTuple):
    """Texts that the words of an exam are looked up in.

    Attributes:
        name: name for messages.
        identity: hash of what they are made from.
        parts: a task's work each: `path` of a shard, of passages with `content`, its hash, or `pieces` of a corpus
            with the sizes and times of their `files`.
    """

    name: str
    identity: str
    parts: list[dict]


def read_other_sources(options: AuditOptions, readers: dict[str, dict]) -> list[OtherSource]:
    """Return the other questions, sorted by name; by default those of the trained models among the run's readers.

    Raises:
        InputError: names file, row and column of the problem; or a trained model whose questions are not known.
    """
    if options.against:
        return read_named_sources(options.against, lambda name: options.read(name).table)
    return _sorted_others(_of_readers(readers))


def read_named_sources(names: Iterable[str], read: Callable[[str], pa.Table]) -> list[OtherSource]:
    """Return the questions that `--against` names, sorted by name.

    They are packaged splits or files, which `read` reads, or folders of trained models, with what they were trained on.
    """
    found: dict[str, pa.Table] = {}
    for name in names:
        if _is_trained(name):
            found |= _trained_on(name)
        else:
            found[name] = read(name)
    return _sorted_others(found)


def _sorted_others(found: dict[str, pa.Table]) -> list[OtherSource]:
    """Return questions under the last parts of their paths where these differ, sorted by name."""
    short = [path.rstrip("/").rpartition("/")[2] for path in found]
    names = [last if short.count(last) == 1 else path for path, last in zip(found, short, strict=True)]
    digests = [hashes.rows_hash(table.to_pylist()) for table in found.values()]
    return sorted(map(OtherSource, names, found.values(), digests), key=lambda others: others.name)


def _of_readers(readers: dict[str, dict]) -> dict[str, pa.Table]:
    """Return the questions that the models of a run's readers were trained on, with a note where they are not known."""
    named = {each[kind] for each in readers.values() for kind in ("adapter", "model")}
    found: dict[str, pa.Table] = {}
    for folder in sorted(filter(None, named)):
        try:
            if _is_trained(folder):
                found |= _trained_on(folder)
        except InputError as error:
            say_sources_left_out([str(error)])
    return found


def say_sources_left_out(lines: list[str]) -> None:
    """Print what is not compared, each with its reason; of many, the first `NAMED`."""
    more = [f"{len(lines) - NAMED:,} more; `sciqa corpus` writes all to _passages/left_out/"] * (len(lines) > NAMED)
    for line in [*lines[:NAMED], *more]:
        console.print(f"audit: not compared: {line}", markup=False, soft_wrap=True)


def _is_trained(name: str) -> bool:
    return "*" not in name and storage.path_exists(storage.join_paths(name, ABOUT_TRAINED))


def _trained_on(folder: str) -> dict[str, pa.Table]:
    """Return the questions that a model was trained on and chosen by, from the run that `sciqa finetune` made."""
    record = tables.table_records_path(folder, tables.MANIFEST)
    inputs = storage.read_json(record)["inputs"] if storage.path_exists(record) else {}
    output = folder.rstrip("/").rpartition("/")[0].rpartition("/")[0]
    found = {}
    for split in ("train", "validation"):
        path = storage.join_paths(output, split, "exam.parquet")
        table = tables.open_parquet(path).read() if storage.path_exists(path) else None
        if table is None or hashes.rows_hash(table.to_pylist()) != inputs.get(f"{split} questions"):
            raise InputError(
                f"{folder}: its {split} questions are not known (they are where it was trained, in {path}); pass the "
                "file of them as --against"
            )
        found[storage.join_paths(output, split)] = table
    return found


def find_audit_source(options: AuditOptions) -> TextSource | None:
    """Return the corpus of the options, else the passages or index that are there, else None.

    Raises:
        InputError: a corpus that is empty or cannot be read, or passages or an index that are named but not finished.
    """
    if options.corpus is not None:
        return _corpus_source(options.corpus)
    passages = options.passages or storage.join_paths(options.output, "passages")
    if options.passages or (options.index is None and tables.is_finished_table(passages)):
        manifest = tables.read_table_manifest(passages, "corpus", PASSAGES_FORMAT)
        contents = [shard["content"] for shard in manifest["shards"]]
        paths = [storage.join_paths(passages, f"{shard['name']}.parquet") for shard in manifest["shards"]]
        found = [{"path": path, "content": each} for path, each in zip(paths, contents, strict=True)]
        return TextSource("passages", hashes.fingerprint(sorted(contents)), found)
    index = options.index or storage.join_paths(options.output, "index")
    if options.index is None and not storage.path_exists(storage.join_paths(index, MANIFEST)):
        return None
    manifest = read_index_manifest(index)
    found = [{"path": storage.join_paths(index, shard["name"], "passages.parquet")} for shard in manifest["shards"]]
    return TextSource("passages", hashes.fingerprint(sorted(manifest["contents"])), found)


def _corpus_source(corpus: tuple[str, ...]) -> TextSource:
    """Return the files of a corpus, and print which others lie in its folders."""
    left_out: dict[str, str] = {}
    sources = sorted(find_article_files(corpus, left_out))
    say_sources_left_out([f"{path}: {reason.partition(';')[0]}" for path, reason in sorted(left_out.items())])
    about = dict(sources)
    parts = [
        {"pieces": pieces, "files": {piece["path"]: about[piece["path"]] for piece in pieces}}
        for pieces in split_articles(sources, PART_BYTES)
    ]
    if not parts:
        raise InputError(f"{', '.join(corpus)}: empty; files with articles expected")
    names = [path.rstrip("/").rpartition("/")[2] for path in corpus]
    return TextSource(", ".join(names), hashes.fingerprint(sources), parts)
