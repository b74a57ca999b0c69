"""Approximate search beside exact search, and BM25: recall, queries a second, memory of the index and of every process.

Vectors are those of the demo corpus, each repeated with noise until there are enough (noise of length NOISE, then unit
length again), and queries are made the same way. Texts are its passages, each the first half of one and the second half
of another, and are asked by the prompts of the packaged exam. They stand in shards of 125,000, which are indexed and
searched as by `sciqa index --factory` and `sciqa retrieve`, by two search actors of one thread each. Memory is the
highest resident set of any worker, as the kernel keeps it.
Usage: python benchmarks/search.py [VECTORS ...]
"""

import contextlib
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray

from sciqa.core import cluster, storage, tables
from sciqa.core.options import RunOptions
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, build_index
from sciqa.retrieval.index import build_faiss_and_bm25, train_index_factory
from sciqa.retrieval.search import ShardedSearch

SHARD, NOISE, QUERIES, BATCH, ROUNDS = 125_000, 0.7, 1024, 256, 3
FACTORY, PARAMETERS, CANDIDATES = "IVF1024,PQ48", "nprobe=16", 100


def noisy(real: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Return unit vectors around real ones, the same for the same number."""
    rng = np.random.default_rng(number)
    noise = rng.standard_normal((rows, real.shape[1]), np.float32) * np.float32(NOISE / np.sqrt(real.shape[1]))
    noise += real[rng.integers(len(real), size=rows)]
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def write_shard(row: dict, index: str, real: str) -> dict:
    """Write what the embedding step writes of a shard."""
    name, number = row["part"]["name"], row["part"]["number"]
    folder = Path(index) / name
    folder.mkdir(parents=True)
    np.save(folder / "vectors.npy", noisy(np.load(real), number, SHARD).astype(np.float16))
    texts = tables.read_table(f"{real}.parquet")["text"].to_pylist()
    pairs = np.random.default_rng(number).integers(len(texts), size=(SHARD, 2)).tolist()
    halves = [texts[a][: len(texts[a]) // 2] + texts[b][len(texts[b]) // 2 :] for a, b in pairs]
    ids, none = pa.array([f"{number}-{row}" for row in range(SHARD)]), pa.array([""] * SHARD)
    table = pa.table({"passage_id": ids, "title": none, "section": none, "text": pa.array(halves)})
    tables.write_table(str(folder / "passages.parquet"), table, 128)
    dimension = np.load(folder / "vectors.npy", mmap_mode="r").shape[1]
    storage.write_json(
        str(folder / "embedded.json"), {"name": name, "rows": SHARD, "dimension": dimension, "sha256": {}}
    )
    return {"rows": SHARD}


class Peak(threading.Thread):
    """The highest resident set that any worker of this run has while it is watched, in MB, as the kernel keeps it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found, self.done = 0.0, threading.Event()
        for folder in self._workers():
            (folder / "clear_refs").write_text("5")
        self.start()

    def run(self) -> None:
        """Look again and again, since workers come and go."""
        while not self.done.wait(0.2):
            for folder in self._workers():
                with contextlib.suppress(OSError):
                    peak = re.search(r"VmHWM:\s+(\d+)", (folder / "status").read_text())
                    self.found = max(self.found, int(peak[1]) / 1000 if peak else 0)

    def stop(self) -> float:
        """Return the peak."""
        self.done.set()
        self.join()
        return self.found

    @staticmethod
    def _workers() -> list[Path]:
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [Path(f"/proc/{child.pid}")] if "ray::" in " ".join(child.cmdline()[:1]) else []
        return found


def build(index: str, shards: list[dict], factory: str) -> tuple[dict, float, float]:
    """Index all shards by a factory; return the manifest, seconds, and the peak memory of a process."""
    options = IndexOptions(index=index, factory=factory, vector_type="float16")
    peak, started = Peak(), time.monotonic()
    records = build_faiss_and_bm25(
        shards, options, train_index_factory(options, shards, options.building(options.embedding()))
    )
    records.sort(key=lambda record: record["name"])
    return {"shards": records, "factory": factory}, time.monotonic() - started, peak.stop()


def search(index: ShardedSearch, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the ten best rows of every query, and queries a second."""
    started = time.monotonic()
    rows = [index.search(queries[at : at + BATCH], 10).rows for at in range(0, len(queries), BATCH)]
    return np.concatenate(rows), len(queries) / (time.monotonic() - started)


def search_words(index: ShardedSearch) -> str:
    """Return queries a second of BM25, once its files are mapped, in words."""
    asked = read_exam("direct-train")["prompt"].to_pylist()
    index.search_words(asked[:BATCH], 10)
    started = time.monotonic()
    for at in range(0, len(asked), BATCH):
        index.search_words(asked[at : at + BATCH], 10)
    return f"BM25 {len(asked) / (time.monotonic() - started):.0f} queries/s"


def measure(folder: str, real: str, vectors: int) -> None:
    """Print one line of the table."""
    index = f"{folder}/{vectors}"
    names = [f"{number:05d}" for number in range(vectors // SHARD)]
    about = {"rows": SHARD, "sha256": ""}
    shards = [about | {"name": name, "number": number, "content": name} for number, name in enumerate(names)]
    rows = cluster.cluster_dataset(shards).map(write_shard, fn_kwargs={"index": index, "real": real}, num_cpus=1)
    assert sum(row["rows"] for row in rows.take_all()) == vectors
    queries = noisy(np.load(real), 1_000_000, QUERIES)
    made, flat_bytes = {}, 0
    for factory in ("Flat", FACTORY):
        manifest, seconds, building = build(index, shards, factory)
        size = sum(Path(index, shard["name"], "index.faiss").stat().st_size for shard in shards)
        flat_bytes = flat_bytes or size
        exact = factory == "Flat"
        groups = ShardedSearch(index, manifest, 2, parameters=None if exact else PARAMETERS, candidates=CANDIDATES)
        search(groups, queries[:BATCH])
        words = search_words(groups) if exact else ""
        peak = Peak()
        runs = [search(groups, queries) for _ in range(1 if exact else ROUNDS)]
        made[factory] = runs[0][0], sorted(run[1] for run in runs)[len(runs) // 2]
        found = np.mean([len(set(a) & set(b)) for a, b in zip(made["Flat"][0], runs[0][0], strict=True)]) / 10
        print(
            f"{vectors:>9,} {factory:<14} recall@10 {found:.3f}  {made[factory][1]:7.0f} queries/s "
            f"({made[factory][1] / made['Flat'][1]:5.1f} x Flat)  index {size / 1e6:6.0f} MB "
            f"(1/{flat_bytes / size:.1f})  peak of a process: building {building:.0f} MB, "
            f"searching {peak.stop():.0f} MB  built in {seconds:.0f} s  {words}",
            flush=True,
        )
        for group in groups.groups:
            ray.kill(group)


def main() -> None:
    """Measure at each number of vectors."""
    sizes = [int(size) for size in sys.argv[1:]] or [250_000, 500_000, 1_000_000]
    cluster.connect_cluster(RunOptions(num_cpus=2))
    with tempfile.TemporaryDirectory() as folder:
        build_passages(CorpusOptions(output=folder))
        options = IndexOptions(output=folder)
        build_index(options)
        names = sorted(Path(options.index).glob("*/vectors.npy"))
        np.save(f"{folder}/real.npy", np.concatenate([np.load(name) for name in names]))
        tables.write_table(f"{folder}/real.npy.parquet", tables.read_table(options.passages, ["text"]))
        for size in sizes:
            measure(folder, f"{folder}/real.npy", size)
    ray.shutdown()


if __name__ == "__main__":
    main()
