"""Worker functions of the `index` step: embed a shard, train FAISS, write a shard's files."""

import hashlib
import io
import re
from typing import TYPE_CHECKING

import numpy as np

from sciqa.core import hashes, storage, tables
from sciqa.core.device import device_cpus
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, model_file_tokenizer
from sciqa.corpus.chunking import LEAST_TOKENS, titled_chunk
from sciqa.corpus.passage_shards import read_passage_shard
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import IndexOptions
from sciqa.retrieval.vectors import StoredVectors

if TYPE_CHECKING:
    import faiss

#: Passages per row group of a shard's table, which are read together.
ROW_GROUP = 128
#: Vectors that are added to FAISS at once, in float32.
ADDED = 16_384


class EmbedIndexShard:
    """Ray Data worker that embeds one shard of passages at a time and writes its rows and vectors."""

    def __init__(self, options: IndexOptions, embed: dict, embedding: dict) -> None:
        self.embedder = load_embedder(**embed)
        self.options, self.embedding = options, embedding
        self.longest, self.made = self.embedder.longest, _made_within(options)
        self.tokenizer = model_file_tokenizer(options.embedder) if self.longest else None
        if self.tokenizer and self.longest:
            self.longest -= len(self.tokenizer.encode(embedding["prefix"], add_special_tokens=False).ids)

    def __call__(self, row: dict) -> dict:
        """Write `passages.parquet`, `vectors.npy` and `embedded.json` of the shard that `row["part"]` names."""
        shard, options, embedding = row["part"], self.options, self.embedding
        path = storage.join_paths(options.passages, f"{shard['name']}.parquet")
        table = read_passage_shard(path, shard["content"])
        rows = table.to_pylist()
        folder = storage.join_paths(options.index, shard["name"])
        known = _stored_vectors(folder, embedding)
        texts = {row["passage_id"]: titled_chunk(row["title"], row["section"], row["text"]) for row in rows}
        new = [name for name in texts if name not in known]
        headings = {row["passage_id"]: f"{row['title']}{row['section']}" for row in rows}
        self._check_tokens(path, {name: texts[name] for name in new if self._may_be_too_long(headings[name])})
        vectors = self.embedder.encode(
            [texts[name] for name in new],
            prefix=embedding["prefix"],
            kind="passage",
            names=[f"passage {name!r} of {shard['name']}" for name in new],
        )
        known |= dict(zip(new, vectors, strict=True))
        vectors = np.stack([known[row["passage_id"]] for row in rows]).astype(options.vector_type)
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        storage.delete_path(storage.join_paths(folder, "embedded.json"))
        passages = tables.write_table(storage.join_paths(folder, "passages.parquet"), table, ROW_GROUP)
        stored = storage.write_bytes(storage.join_paths(folder, "vectors.npy"), buffer.getvalue())
        record = {
            "name": shard["name"],
            "key": index_shard_key(shard, embedding),
            "embedding": embedding,
            "rows": len(vectors),
            "dimension": vectors.shape[1],
            "sha256": {"passages.parquet": passages, "vectors.npy": stored},
        }
        storage.write_json(storage.join_paths(folder, "embedded.json"), _with_sizes(folder, record))
        return {"shard": shard["name"], "rows": len(vectors), "notes": self.embedder.notes}

    def _may_be_too_long(self, headings: str) -> bool:
        """Whether a passage with these headings may have more tokens than the embedder reads, by how it was made.

        Headings are cut to leave `LEAST_TOKENS` for the text, and a whole may have a few tokens more than its parts, so
        passages with the longest headings are counted. No token has less than a byte.
        """
        if self.longest is None or self.made is None or self.made > self.longest:
            return True
        return len(headings.encode()) > self.made - 2 * LEAST_TOKENS

    def _check_tokens(self, path: str, texts: dict[str, str]) -> None:
        """Raise `InputError` if the embedder would read only the beginning of one of the passages of a file."""
        if self.tokenizer is None or self.longest is None:
            return
        embedder, longest = self.options.embedder, self.longest
        for name, found in zip(texts, self.tokenizer.encode_batch(list(texts.values())), strict=True):
            if (tokens := len(found.ids)) > longest:
                remedy = (
                    f"run `sciqa corpus --embedder {embedder} --passage-tokens {longest}` with the same --corpus and "
                    "another --passages, or pass another --embedder"
                )
                if self.made is not None and self.made <= longest:  # however short passages are, it has its headings
                    remedy = "shorten its headings, or leave its article out (--remove of `sciqa corpus`)"
                if longest < 1:
                    remedy = "pass a shorter --passage-prefix"
                raise InputError(
                    f"{path}: passage {name!r} has {tokens} tokens, but {embedder} reads no more than {longest}"
                    f"{' after the prefix' * bool(self.embedding['prefix'])}; {remedy}"
                )


def _made_within(options: IndexOptions) -> int | None:
    """Return the tokens that passages were cut to with the embedder's tokenizer, None if it was another one's."""
    made = storage.read_json(tables.table_records_path(options.passages, tables.INPUTS))["inputs"]
    return made["passage_tokens"] if made.get("tokenizer") == find_model(options.embedder).tokenizer else None


def _with_sizes(folder: str, record: dict) -> dict:
    """Return a shard's record with the size in bytes of each file that it has the sha256 of."""
    sizes = {path.removeprefix(f"{folder}/"): size for path, (size, _) in storage.stat_files(folder)}
    return record | {"bytes": {name: sizes[name] for name in record["sha256"]}}


def _stored_vectors(folder: str, embedding: dict) -> dict[str, np.ndarray]:
    """Return the vectors in a shard's folder, by passage id, if they were made with the same settings and are whole."""
    path = storage.join_paths(folder, "embedded.json")
    if not storage.path_exists(path) or (record := storage.read_json(path))["embedding"] != embedding:
        return {}
    for name, digest in record["sha256"].items():
        path = storage.join_paths(folder, name)
        if not storage.path_exists(path) or hashes.file_sha256(path) != digest:
            return {}
    names = tables.read_table(storage.join_paths(folder, "passages.parquet"), ["passage_id"])["passage_id"].to_pylist()
    return dict(zip(names, _read_vectors(folder), strict=True))


def _read_vectors(folder: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.read_bytes(storage.join_paths(folder, "vectors.npy"))))


def train_index_shards(row: dict, options: IndexOptions) -> dict:
    """Train the factory's index on vectors taken evenly from all shards, and write it as `trained.faiss`."""
    import faiss

    faiss.omp_set_num_threads(device_cpus())  # nothing else of this job runs at the same time
    shards = row["part"]
    ends = np.cumsum([shard["rows"] for shard in shards])
    step = max(1, -(-int(ends[-1]) // options.train_vectors))
    rows = np.arange(0, ends[-1], step)
    chosen = np.split(rows, np.searchsorted(rows, ends[:-1]))

    def read(part: tuple[dict, int, np.ndarray]) -> np.ndarray:
        shard, end, rows = part
        stored = StoredVectors(storage.join_paths(options.index, shard["name"], "vectors.npy"))
        return stored.read(rows - (end - shard["rows"]))

    taken = [each for each in zip(shards, ends.tolist(), chosen, strict=True) if len(each[2])]
    sample: np.ndarray = np.concatenate(storage.map_storage(read, taken))
    index = empty_shards_index(options.factory, sample.shape[1], options.metric)
    try:
        index.train(sample)
    except RuntimeError as error:
        raise InputError(
            f"--factory {options.factory}: cannot be trained on {len(sample):,} vectors ({_reason(error)}); "
            "choose one with fewer lists or codes, or Flat"
        ) from error
    path = storage.join_paths(options.index, "trained.faiss")
    return {"rows": len(sample), "sha256": storage.write_bytes(path, faiss.serialize_index(index).tobytes())}


def write_index_shard(row: dict, options: IndexOptions, trained: dict) -> dict:
    """Write a shard's FAISS file and BM25 files, then its `shard.json`."""
    import faiss

    from sciqa.retrieval.bm25 import bm25_file

    faiss.omp_set_num_threads(1)
    shard = row["part"]
    folder = storage.join_paths(options.index, shard["name"])
    record = storage.read_json(storage.join_paths(folder, "embedded.json"))
    storage.delete_path(storage.join_paths(folder, "shard.json"))
    vectors = _read_vectors(folder)
    if trained["trained"]:
        data = storage.read_bytes(path := storage.join_paths(options.index, "trained.faiss"))
        if hashlib.sha256(data).hexdigest() != trained["trained"]:
            raise InputError(
                f"{path}: not the file that was written (its sha256 differs); delete trained.json beside it and run "
                "the command again, which trains it anew"
            )
        index: faiss.Index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    else:
        index = empty_shards_index(options.factory, vectors.shape[1], options.metric)
    try:
        for start in range(0, len(vectors), ADDED):
            index.add(vectors[start : start + ADDED].astype(np.float32))
    except RuntimeError as error:
        raise InputError(
            f"--factory {options.factory}: does not take the {len(vectors):,} vectors of {shard['name']} "
            f"({_reason(error)}); choose another one"
        ) from error
    path = storage.join_paths(folder, "index.faiss")
    digests = {"index.faiss": storage.write_bytes(path, faiss.serialize_index(index).tobytes())}
    table = tables.read_table(storage.join_paths(folder, "passages.parquet"), ["title", "section", "text"])
    words = bm25_file([titled_chunk(**passage) for passage in table.to_pylist()])
    digests["words.arrow"] = storage.write_bytes(storage.join_paths(folder, "words.arrow"), words)
    record.pop("embedding", None)
    record |= {"key": index_shard_key(shard, trained), "sha256": record["sha256"] | digests}
    record = _with_sizes(folder, record)
    storage.write_json(storage.join_paths(folder, "shard.json"), record)
    return {"record": record}


def _reason(error: RuntimeError) -> str:
    """Return what FAISS says, without the place in its code."""
    return re.split(r"failed: |Error: ", str(error))[-1].strip()


def check_index_factory(factory: str) -> None:
    """Raise `InputError` for a FAISS factory string of which indexes are made, but not filled or searched."""
    if "IDMap" in factory:
        raise InputError(f"--factory {factory}: an index that numbers vectors by itself is needed; leave IDMap out")
    if zero := re.search(r"[A-Za-z]+0+(?!\d)", factory):
        raise InputError(f"--factory {factory}: {zero[0]} given, a number of at least 1 expected")
    if re.search(r"(^|,)NSG", factory):
        raise InputError(
            f"--factory {factory}: NSG takes neither the few vectors of a small shard nor those of a large one in "
            "parts; HNSW32 is a graph that does"
        )


def empty_shards_index(factory: str, dimension: int, metric: str = "inner-product") -> "faiss.Index":
    """Return an empty FAISS index made from the factory string."""
    import faiss

    measure = faiss.METRIC_INNER_PRODUCT if metric == "inner-product" else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dimension, factory, measure)
    except RuntimeError as error:
        raise InputError(
            f"--factory {factory}: FAISS makes no index of {dimension} dimensions from it ({_reason(error)})"
        ) from error
    return index


def index_shard_key(shard: dict, about: dict) -> str:
    """Return a hash of a shard's passages and of the settings that determine its files."""
    return hashes.fingerprint([shard["content"], about])
