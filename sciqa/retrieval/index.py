"""Passages to the index: each shard embedded by a pool of workers, each with its FAISS file."""

import io
import time
from dataclasses import dataclass

import numpy as np

from sciqa import __version__, cluster, storage
from sciqa.cluster import RunOptions, Summary
from sciqa.errors import InputError
from sciqa.hub import find_model
from sciqa.retrieval.embedder import Backend, load_embedder

MANIFEST = "manifest.json"


@dataclass(kw_only=True)
class EmbedOptions(RunOptions):
    """What turns text into vectors."""

    embedder: str = "all-MiniLM-L6-v2"
    """Sentence-transformers model: the packaged one, a local folder or a hub id."""
    embed_backend: Backend = "auto"
    """`auto` embeds with torch on a GPU and with OpenVINO on a CPU."""

    def embed_arguments(self, workers: int) -> dict:
        """Return the arguments of `load_embedder` for each of a number of workers of the connected cluster."""
        backend = self.embed_backend
        if backend == "auto":
            backend = "torch" if cluster.has_gpu() else "openvino"
        return {"model": self.embedder, "threads": cluster.threads_per_worker(workers), "backend": backend}


@dataclass(kw_only=True)
class IndexOptions(EmbedOptions):
    """What the index is built from and with."""

    passages: str | None = None
    """Folder of the passages table; by default OUTPUT/passages."""
    index: str | None = None
    """Folder of the index; by default OUTPUT/index."""

    def __post_init__(self) -> None:
        """Fill the default folders."""
        super().__post_init__()
        self.passages = self.passages or storage.join(self.output, "passages")
        self.index = self.index or storage.join(self.output, "index")


def build_index(options: IndexOptions) -> Summary:
    """Embed every passage and write the index: a folder per shard and `manifest.json`, written last.

    A shard holds `passages.parquet`, `vectors.npy` (float32, one unit vector per passage), `index.faiss` and
    `shard.json`, which is written last: a shard that has it, made from the same passages, is kept.

    Raises:
        InputError: no passages, or an index there that another embedding model made.
    """
    started = time.monotonic()
    passages = storage.read_manifest(options.passages, "corpus")
    check_index(options)
    storage.check_writable(options.index)
    revision = find_model(options.embedder).revision
    wanted = {shard["name"]: shard for shard in passages["shards"]}
    shards = {name: _read_shard(options.index, shard, revision) for name, shard in wanted.items()}
    missing = [wanted[name] for name, shard in shards.items() if shard is None]
    if missing:
        storage.delete(storage.join(options.index, MANIFEST))
        for row in _build_shards(missing, options, revision):
            shards[row["name"]] = row
    manifest = {
        "model": options.embedder,
        "revision": revision,
        "dimension": next(iter(shards.values()))["dimension"] if shards else 0,
        "normalised": True,
        "metric": "inner product",
        "rows": sum(shard["rows"] for shard in shards.values()),
        "shards": list(shards.values()),
        "version": __version__,
    }
    storage.write_json(storage.join(options.index, MANIFEST), manifest)
    made = f"{manifest['rows']:,} vectors of {manifest['dimension']} dimensions; {len(missing)} shards built"
    made += f", {len(shards) - len(missing)} kept"
    details = {"built": len(missing), "kept": len(shards) - len(missing)}
    return Summary("index", options.index, made, time.monotonic() - started, details)


def read_index_manifest(index: str) -> dict:
    """Return a whole index's manifest, or raise `InputError`."""
    path = storage.join(index, MANIFEST)
    if not storage.exists(path):
        raise InputError(f"{index}: no finished index; run `sciqa index` with the same --output first")
    return storage.read_json(path)


def check_index(options: IndexOptions) -> None:
    """Raise `InputError` where the index folder was built, or begun, with another embedding model."""
    for name in (MANIFEST, "model.json"):
        path = storage.join(options.index, name)
        if storage.exists(path):
            made = storage.read_json(path)
            if made.get("revision") != (revision := find_model(options.embedder).revision):
                raise InputError(
                    f"{path}: this index was built with the embedding model {made.get('model')} "
                    f"(revision {made.get('revision')}), not {options.embedder} ({revision}); "
                    "pass that model as --embedder, or another folder as --index"
                )


def embedded_text(title: str, section: str, text: str) -> str:
    """Return what is embedded of a passage: its headings, unless the text begins with them, and its text."""
    headings = [heading for heading in (title, section) if heading and not text.startswith(heading)]
    return ". ".join([*headings, text])


def _read_shard(index: str, passages: dict, revision: str) -> dict | None:
    """Return a finished shard's record, or None where it is missing or made from other passages."""
    path = storage.join(index, passages["name"], "shard.json")
    if not storage.exists(path):
        return None
    shard = storage.read_json(path)
    current = shard["passages_sha256"] == passages["sha256"] and shard["revision"] == revision
    return shard if current else None


def _build_shards(missing: list[dict], options: IndexOptions, revision: str) -> list[dict]:
    storage.write_json(storage.join(options.index, "model.json"), {"model": options.embedder, "revision": revision})
    cluster.connect(options)
    workers = cluster.num_workers(options, len(missing))
    rows = (
        cluster.from_parts(missing)
        .map(
            EmbedShard,
            fn_constructor_kwargs={
                "passages": options.passages,
                "index": options.index,
                "embed": options.embed_arguments(workers),
            },
            **cluster.model_pool(workers),
        )
        # FAISS and PyTorch each bring an OpenMP runtime, so they work in different processes.
        .map(write_faiss, fn_kwargs={"index": options.index, "revision": revision}, num_cpus=cluster.TASK_CPUS)
    )
    total = sum(shard["rows"] for shard in missing)
    return list(cluster.rows_with_progress(rows, "index", total, "passages", lambda row: row["rows"]))


class EmbedShard:
    """Ray Data worker that embeds one shard of passages at a time and writes its rows and vectors."""

    def __init__(self, passages: str, index: str, embed: dict) -> None:
        self.embedder = load_embedder(**embed)
        self.passages, self.index = passages, index

    def __call__(self, row: dict) -> dict:
        """Write `passages.parquet` and `vectors.npy` of the shard that `row["part"]` names."""
        shard = row["part"]
        table = storage.read_table(storage.join(self.passages, f"{shard['name']}.parquet"))
        columns = (table[name].to_pylist() for name in ("title", "section", "text"))
        vectors = self.embedder.encode([embedded_text(*texts) for texts in zip(*columns, strict=True)])
        folder = storage.join(self.index, shard["name"])
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        return {
            "name": shard["name"],
            "passages_sha256": shard["sha256"],
            "rows": len(vectors),
            "sha256": {
                "passages.parquet": storage.write_table(storage.join(folder, "passages.parquet"), table),
                "vectors.npy": storage.write_bytes(storage.join(folder, "vectors.npy"), buffer.getvalue()),
            },
        }


def write_faiss(shard: dict, index: str, revision: str) -> dict:
    """Write a shard's flat inner-product FAISS file from its vectors, then its `shard.json`."""
    import faiss

    folder = storage.join(index, shard["name"])
    vectors = np.load(io.BytesIO(storage.read_bytes(storage.join(folder, "vectors.npy"))))
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    digest = storage.write_bytes(storage.join(folder, "index.faiss"), faiss.serialize_index(flat).tobytes())
    shard = shard | {
        "dimension": vectors.shape[1],
        "revision": revision,
        "sha256": shard["sha256"] | {"index.faiss": digest},
    }
    storage.write_json(storage.join(folder, "shard.json"), shard)
    return shard
