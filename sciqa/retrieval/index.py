"""Passages to the index: each shard embedded by a pool of workers, each with its FAISS file and its BM25 files."""

import io
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sciqa import __version__
from sciqa.core import cluster, progress, storage
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.hub import find_model, local_path, read_about, vector_size, weight_bytes
from sciqa.core.lock import lock
from sciqa.core.options import RunOptions, Summary
from sciqa.corpus.chunking import embedded_text
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.retrieval.embedder import Backend, load_embedder

MANIFEST = "manifest.json"
#: Of the vectors, and of what else a shard holds; each is raised with every change of what the program computes for
#: them, so that what was computed otherwise is not kept.
VECTORS_FORMAT, INDEX_FORMAT = 3, 3
#: Names of a model's prompts for each kind of text, in the order in which sentence-transformers takes them.
PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}
#: Passages that are read together from a shard's table.
ROW_GROUP = 128
#: Vectors that FAISS is given at once, in float32.
ADDED = 16_384


@dataclass(kw_only=True)
class EmbedOptions(RunOptions):
    """What turns text into vectors."""

    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-transformers model: the packaged one, a local folder or a hub id."""
    embed_backend: Backend = "auto"
    """`auto` embeds with torch on a GPU and with OpenVINO on a CPU."""
    query_prefix: str | None = None
    """Put before every query; by default what the model's own configuration names as its prompt for queries."""
    passage_prefix: str | None = None
    """Put before every passage; by default what the model's own configuration names for passages or documents."""

    def __post_init__(self) -> None:
        """Make the path of an embedder that is here absolute."""
        super().__post_init__()
        self.embedder = local_path(self.embedder)

    def embed_arguments(self, workers: int) -> dict:
        """Return the arguments of `load_embedder` for each of a number of workers of the connected cluster."""
        return self.embed_on(cluster.device(self), cluster.threads_per_worker(workers))

    def embed_on(self, device: Device, threads: int) -> dict:
        """Return the arguments of `load_embedder` for a device and a number of CPU threads."""
        backend = self.embed_backend
        if backend == "auto":
            backend = "torch" if device == "cuda" else "openvino"
        return {"model": self.embedder, "threads": threads, "backend": backend, "device": device}

    def prefix(self, kind: Literal["query", "passage"]) -> str:
        """Return what is put before every text of a kind."""
        given = self.query_prefix if kind == "query" else self.passage_prefix
        if given is not None:
            return given
        prompts = read_about(self.embedder, "config_sentence_transformers.json").get("prompts") or {}
        return next((prompts[name] for name in PROMPTS[kind] if prompts.get(name)), "")


@dataclass(kw_only=True)
class IndexOptions(EmbedOptions):
    """What the index is built from and with."""

    passages: str | None = None
    """Folder of the passages table; by default OUTPUT/passages."""
    index: str | None = None
    """Folder of the index; by default OUTPUT/index."""
    factory: str = "Flat"
    """FAISS factory string of every shard: Flat is exact; IVF1024,Flat, OPQ48,IVF1024,PQ48, HNSW32 and others are not,
    so their candidates are scored again with the stored vectors."""
    metric: Literal["inner-product", "l2"] = "inner-product"
    """What nearness is; vectors have length 1, so both rank alike."""
    vector_type: Literal["float32", "float16"] = "float32"
    """Type of the stored vectors."""
    train_vectors: int = 100_000
    """Most vectors that a factory which needs training is trained on, once for all shards."""

    def __post_init__(self) -> None:
        """Fill the default folders and check the numbers."""
        super().__post_init__()
        self.fill_folder("passages", "passages")
        self.fill_folder("index", "index")
        self.at_least(1, "train_vectors")

    def embedding(self) -> dict:
        """Return all that a shard's vectors follow from, besides its passages."""
        return {
            "format": VECTORS_FORMAT,
            "revision": find_model(self.embedder).revision,
            "prefix": self.prefix("passage"),
            "vector_type": self.vector_type,
        }

    def building(self, embedding: dict) -> dict:
        """Return all that a trained FAISS index follows from, besides the passages: `embedding` and more."""
        building = {"index_format": INDEX_FORMAT, "factory": self.factory, "metric": self.metric}
        if self.factory != "Flat":
            building["train_vectors"] = self.train_vectors
        return embedding | building


def build_index(options: IndexOptions) -> Summary:
    """Embed every passage and write the index: a folder per shard and `manifest.json`, written last.

    A shard holds `passages.parquet`, `vectors.npy` (one unit vector per passage), `index.faiss`, `words/` and the
    records `embedded.json` and `shard.json`, each written after what it tells of: a shard whose records tell of the
    same passages and options is kept, and of one with some other passages, the vectors of those it still has.

    Raises:
        InputError: no passages, an index there that another embedding model made, or a factory that FAISS refuses.
    """
    started = time.monotonic()
    passages = storage.read_manifest(options.passages, "corpus", PASSAGES_FORMAT)
    check_index(options, options.overwrite)
    shards = passages["shards"]
    if not shards:
        raise InputError(f"{options.passages}: holds no passages; give `sciqa corpus` articles with text")
    embedding = options.embedding()
    building = options.building(embedding)
    built_of = {"passages": options.passages, "contents": [shard["content"] for shard in shards]}
    _check_format(options)
    trained = _trained_hash(options.index, building)
    embedded = {shard["name"]: _read_record(options.index, shard, "embedded.json", embedding) for shard in shards}
    finished = {shard["name"]: _read_record(options.index, shard, "shard.json", trained) for shard in shards}
    missing = [shard for shard in shards if not (embedded[shard["name"]] and finished[shard["name"]])]
    if missing:
        _check_passages(options, shards)
        with lock(options.index):
            storage.check_writable(options.index)
            storage.delete(storage.join(options.index, MANIFEST))
            about = {"model": options.embedder, **built_of, **embedding}
            storage.write_json(storage.join(options.index, "model.json"), about)
            cluster.connect(options)
            _embed([shard for shard in missing if not embedded[shard["name"]]], options, embedding)
            trained = trained or train_factory(options, shards, building)
            for record in index_shards(missing, options, trained):
                finished[record["name"]] = record
    manifest = {
        "model": options.embedder,
        "dimension": next(iter(finished.values()))["dimension"],
        "normalised": True,
        "rows": sum(shard["rows"] for shard in finished.values()),
        "shards": list(finished.values()),
        "version": __version__,
        **built_of,
        **building,
    }
    path = storage.join(options.index, MANIFEST)
    if not storage.exists(path) or index_identity(storage.read_json(path)) != index_identity(manifest):
        _check_passages(options, shards)
        storage.write_json(path, manifest)
    kept = len(shards) - len(missing)
    made = f"{manifest['rows']:,} vectors of {manifest['dimension']} dimensions, {options.factory}; "
    made += f"{len(missing)} shards built, {kept} kept"
    return Summary("index", options.index, made, time.monotonic() - started, {"built": len(missing), "kept": kept})


def _check_passages(options: IndexOptions, shards: list[dict]) -> None:
    """Raise `InputError` where the index that is there was built, or begun, of another table with none of its shards.

    Args:
        options: of the index.
        shards: of the passages that it would be built of.
    """
    contents = {shard["content"] for shard in shards}
    for name in (MANIFEST, "model.json"):
        path = storage.join(options.index, name)
        about = storage.read_json(path) if storage.exists(path) else {}
        made, held = about.get("passages", options.passages), about.get("contents", contents)
        if made != options.passages and not contents & set(held) and not options.overwrite:
            raise InputError(
                f"{options.index}: made from other inputs (passages: {made} there, {options.passages} now); "
                "pass another --index, or --overwrite to replace it"
            )


def finished_index(options: IndexOptions) -> dict | None:
    """Return the manifest of an index that can be used as it is, whatever passages and factory it was built from.

    None where there is no finished one, where another version of the program built it, or where its own passages, those
    of the options, have changed since.

    Raises:
        InputError: it was built with another embedding model, or with another value of an option that is given.
    """
    check_index(options)
    path = storage.join(options.index, MANIFEST)
    manifest = storage.read_json(path) if storage.exists(path) else {}
    if not _is_current(manifest):
        return None
    defaults = storage.defaults_of(IndexOptions)
    for name in ("factory", "metric", "vector_type"):
        if (wanted := getattr(options, name)) not in (defaults[name], manifest[name]):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{options.index}: built with {flag} {manifest[name]}, not {wanted}; "
                f"leave {flag} out, or run `sciqa index` with it"
            )
    if manifest.get("passages") == options.passages and storage.is_finished(options.passages):
        shards = storage.read_manifest(options.passages, "corpus")["shards"]
        if [shard.get("content") for shard in shards] != manifest["contents"]:
            return None
    return manifest


def read_index_manifest(index: str) -> dict:
    """Return a whole index's manifest, or raise `InputError`."""
    path = storage.join(index, MANIFEST)
    if not storage.exists(path):
        raise InputError(f"{index}: no finished index; run `sciqa index` with the same --output first")
    manifest = storage.read_json(path)
    if not _is_current(manifest):
        raise InputError(f"{path}: {storage.OTHERWISE}; run `sciqa index --overwrite`")
    return manifest


def _is_current(manifest: dict) -> bool:
    return (manifest.get("format"), manifest.get("index_format")) == (VECTORS_FORMAT, INDEX_FORMAT)


def _check_format(options: IndexOptions) -> None:
    """Raise `InputError` where another version of the program built the index, and it may not be replaced."""
    path = storage.join(options.index, MANIFEST)
    if storage.exists(path) and not _is_current(storage.read_json(path)) and not options.overwrite:
        raise InputError(f"{path}: {storage.OTHERWISE}; pass another --index, or --overwrite to build it anew")


def index_identity(manifest: dict) -> str:
    """Return a hash of all that an index follows from: passages, embedding model, factory, formats."""
    return storage.fingerprint([shard["key"] for shard in manifest["shards"]])


def built_like(options: IndexOptions) -> IndexOptions:
    """Return the options with what a finished index was built by, where they leave it at the default."""
    path = storage.join(options.index, MANIFEST)
    if not storage.exists(path) or not _is_current(manifest := storage.read_json(path)):
        return options
    defaults = storage.defaults_of(IndexOptions)
    names = [name for name in ("factory", "metric", "vector_type", "train_vectors") if name in manifest]
    return replace(options, **{n: manifest[n] for n in names if getattr(options, n) == defaults[n]})


def check_index(options: IndexOptions, replaced: bool = False) -> None:
    """Raise `InputError` where the index was built, or begun, with another model, or the factory is none of FAISS.

    Args:
        options: of the index.
        replaced: whether one of another model may be.
    """
    for name in (MANIFEST, "model.json"):
        path = storage.join(options.index, name)
        if storage.exists(path):
            made = storage.read_json(path)
            files = find_model(options.embedder)
            # Earlier versions kept a hash of the weights alone.
            revision = files.revision if made.get("format") else files.weights_hash
            if made.get("revision") != revision and not replaced:
                raise InputError(
                    f"{path}: this index was built with the embedding model {made.get('model')} "
                    f"(revision {made.get('revision')}), not {options.embedder} as it is now ({revision}: weights, "
                    "configuration, tokenizer, pooling); pass that model as --embedder, another folder as --index, "
                    "or --overwrite to build it anew"
                )
    if options.factory != "Flat" and (dimension := vector_size(options.embedder)):
        empty_index(options, dimension)


def empty_index(options: IndexOptions, dimension: int) -> object:
    """Return a FAISS index by the factory string, with nothing in it."""
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT if options.metric == "inner-product" else faiss.METRIC_L2
    try:
        return faiss.index_factory(dimension, options.factory, metric)
    except RuntimeError as error:
        reason = str(error).rpartition("Error: ")[2].strip()
        raise InputError(
            f"--factory {options.factory}: FAISS makes no index of {dimension} dimensions from it ({reason})"
        ) from error


def _key(shard: dict, about: dict) -> str:
    return storage.fingerprint([shard["content"], about])


def _read_record(index: str, shard: dict, name: str, about: dict | None) -> dict | None:
    """Return a shard's record, or None where it is missing or tells of other passages or options."""
    path = storage.join(index, shard["name"], name)
    if about is None or not storage.exists(path):
        return None
    record = storage.read_json(path)
    return record if record["key"] == _key(shard, about) else None


def _embed(shards: list[dict], options: IndexOptions, embedding: dict) -> None:
    if not shards:
        return
    workers = cluster.num_workers(options, len(shards))
    rows = cluster.from_parts(shards).map(
        EmbedShard,
        fn_constructor_kwargs={
            "options": options,
            "embed": options.embed_arguments(workers),
            "embedding": embedding,
        },
        **cluster.model_pool(options, workers, len(shards), weight_bytes(options.embedder)),
    )
    total = sum(shard["rows"] for shard in shards)
    for _ in progress.rows_with_progress(rows, "index", total, "passages", lambda row: row["rows"]):
        pass


def _trained_hash(index: str, building: dict) -> dict | None:
    """Return `building` and what tells of the trained index that is there, or None where others trained it."""
    path = storage.join(index, "trained.json")
    if not storage.exists(path) or (made := storage.read_json(path))["building"] != building:
        return None
    return building | {"trained": made["sha256"]}


def train_factory(options: IndexOptions, shards: list[dict], building: dict) -> dict:
    """Train the factory's index once for all shards, where it needs that.

    Args:
        options: of the index.
        shards: of the passages, all embedded.
        building: all that the index follows from, besides the sample.

    Returns:
        `building` with `trained`, the sha256 of the trained index, empty where the factory needs none.
    """
    digest = ""
    dimension = storage.read_json(storage.join(options.index, shards[0]["name"], "embedded.json"))["dimension"]
    if options.factory != "Flat" and not empty_index(options, dimension).is_trained:
        rows = cluster.from_parts([shards]).map(train_index, fn_kwargs={"options": options}, num_cpus=1)
        total = min(options.train_vectors, sum(shard["rows"] for shard in shards))
        for row in progress.rows_with_progress(rows, "training", total, "vectors", lambda row: row["rows"]):
            digest = row["sha256"]
    storage.write_json(storage.join(options.index, "trained.json"), {"building": building, "sha256": digest})
    return building | {"trained": digest}


def index_shards(shards: list[dict], options: IndexOptions, trained: dict) -> list[dict]:
    """Write the FAISS and BM25 files of embedded shards, and return their records."""
    # FAISS and PyTorch each bring an OpenMP runtime, so they work in different processes.
    arguments = {"options": options, "trained": trained}
    rows = cluster.from_parts(shards).map(write_index, fn_kwargs=arguments, num_cpus=1)
    return [row["record"] for row in progress.rows_with_progress(rows, "index", len(shards), "shards", lambda row: 1)]


class EmbedShard:
    """Ray Data worker that embeds one shard of passages at a time and writes its rows and vectors."""

    def __init__(self, options: IndexOptions, embed: dict, embedding: dict) -> None:
        self.embedder = load_embedder(**embed)
        self.options, self.embedding = options, embedding

    def __call__(self, row: dict) -> dict:
        """Write `passages.parquet`, `vectors.npy` and `embedded.json` of the shard that `row["part"]` names."""
        shard, options, embedding = row["part"], self.options, self.embedding
        table = storage.read_table(storage.join(options.passages, f"{shard['name']}.parquet"))
        folder = storage.join(options.index, shard["name"])
        known = _stored_vectors(folder, embedding)
        columns = (table[name].to_pylist() for name in ("passage_id", "title", "section", "text"))
        texts = {name: embedded_text(*text) for name, *text in zip(*columns, strict=True)}
        new = [name for name in texts if name not in known]
        vectors = self.embedder.encode(
            [texts[name] for name in new],
            prefix=embedding["prefix"],
            kind="passage",
            names=[f"passage {name!r} of {shard['name']}" for name in new],
        )
        known |= dict(zip(new, vectors, strict=True))
        vectors = np.stack([known[name] for name in table["passage_id"].to_pylist()]).astype(options.vector_type)
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        storage.delete(storage.join(folder, "embedded.json"))
        record = {
            "name": shard["name"],
            "key": _key(shard, embedding),
            "embedding": embedding,
            "rows": len(vectors),
            "dimension": vectors.shape[1],
            "sha256": {
                "passages.parquet": storage.write_table(storage.join(folder, "passages.parquet"), table, ROW_GROUP),
                "vectors.npy": storage.write_bytes(storage.join(folder, "vectors.npy"), buffer.getvalue()),
            },
        }
        storage.write_json(storage.join(folder, "embedded.json"), record)
        return {"shard": shard["name"], "rows": len(vectors), "notes": self.embedder.notes}


def _stored_vectors(folder: str, embedding: dict) -> dict[str, np.ndarray]:
    """Return the vectors that a shard's folder has, by passage id, where they were made in the same way."""
    path = storage.join(folder, "embedded.json")
    if not storage.exists(path) or storage.read_json(path)["embedding"] != embedding:
        return {}
    names = storage.read_table(storage.join(folder, "passages.parquet"), ["passage_id"])["passage_id"].to_pylist()
    return dict(zip(names, _read_vectors(folder), strict=True))


def _read_vectors(folder: str) -> np.ndarray:
    return np.load(io.BytesIO(storage.read_bytes(storage.join(folder, "vectors.npy"))))


def train_index(row: dict, options: IndexOptions) -> dict:
    """Train the factory's index on vectors taken evenly from all shards, and write it as `trained.faiss`."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))  # nothing else of this job runs meanwhile
    shards = row["part"]
    step = max(1, -(-sum(shard["rows"] for shard in shards) // options.train_vectors))
    taken = [_read_vectors(storage.join(options.index, shard["name"]))[::step].copy() for shard in shards]
    sample = np.concatenate(taken).astype(np.float32)
    index = empty_index(options, sample.shape[1])
    try:
        index.train(sample)
    except RuntimeError as error:
        reason = str(error).rpartition("failed: ")[2].strip()
        raise InputError(
            f"--factory {options.factory}: cannot be trained on {len(sample):,} vectors ({reason}); "
            "choose one with fewer lists or codes, or Flat"
        ) from error
    path = storage.join(options.index, "trained.faiss")
    return {"rows": len(sample), "sha256": storage.write_bytes(path, faiss.serialize_index(index).tobytes())}


def write_index(row: dict, options: IndexOptions, trained: dict) -> dict:
    """Write a shard's FAISS file and BM25 files, then its `shard.json`."""
    import faiss

    from sciqa.retrieval.words import write_words

    faiss.omp_set_num_threads(1)
    shard = row["part"]
    folder = storage.join(options.index, shard["name"])
    record = storage.read_json(storage.join(folder, "embedded.json"))
    storage.delete(storage.join(folder, "shard.json"))
    vectors = _read_vectors(folder)
    if trained["trained"]:
        data = storage.read_bytes(storage.join(options.index, "trained.faiss"))
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    else:
        index = empty_index(options, vectors.shape[1])
    for start in range(0, len(vectors), ADDED):
        index.add(vectors[start : start + ADDED].astype(np.float32))
    digests = {"index.faiss": storage.write_bytes(storage.join(folder, "index.faiss"), faiss.serialize_index(index))}
    table = storage.read_table(storage.join(folder, "passages.parquet"), ["title", "section", "text"])
    with tempfile.TemporaryDirectory() as aside:
        write_words(Path(aside), [embedded_text(**passage) for passage in table.to_pylist()])
        for file in sorted(Path(aside).iterdir()):
            name = f"words/{file.name}"
            digests[name] = storage.write_bytes(storage.join(folder, name), file.read_bytes())
    record |= {"key": _key(shard, trained), "sha256": record["sha256"] | digests}
    storage.write_json(storage.join(folder, "shard.json"), record)
    return {"record": record}
