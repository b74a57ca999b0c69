"""Passages a second: the index step through Ray Data beside one process, start-up left out.

Embeds the same demo passages with the packaged all-MiniLM-L6-v2, in turn: plain `SentenceTransformer.encode`
(float32, batches of 32, all cores), the same in bfloat16, OpenVINO in one process on all cores (the quickest
single-process setting we know), and this project's pool of workers, which also writes the shards. Every setting has
processes of its own. A process's time runs from the first passage taken to the last one done, the pool's while all of
its workers are at work: from the last one's first passage to the first one's last.
Usage: python benchmarks/embedding.py [PASSAGES]
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time

import pandas
import ray

from sciqa.core import cluster, model_workers, storage, tables
from sciqa.core.model_files import find_model
from sciqa.core.options import RunOptions
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.retrieval.index_shards import EmbedIndexShard
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import IndexOptions

MODEL = "all-MiniLM-L6-v2"
ROUNDS = 3
SHARD = 1024  # the default of `sciqa corpus`


class TimedShard(EmbedIndexShard):
    """The worker of the index step, which also says when it took its shard and when it was done."""

    def __call__(self, row: dict) -> dict:
        """Add `worker`, the process, and `started` and `finished`, seconds."""
        started = time.time()
        made = super().__call__(row)
        return {"worker": os.getpid(), "rows": made["rows"], "started": started, "finished": time.time()}


def pool(folder: str, shards: list[dict]) -> float:
    """Return passages a second of the index step's pool while all workers are at work, writing included."""
    workers = cluster.num_cluster_workers(RunOptions(), len(shards))
    with tempfile.TemporaryDirectory() as index:
        options = IndexOptions(passages=folder, index=index)
        rows = (
            cluster.cluster_dataset(shards)
            .map(
                TimedShard,
                fn_constructor_kwargs={
                    "options": options,
                    "embed": options.embed_arguments(workers),
                    "embedding": options.embedding(),
                },
                **model_workers.model_worker_pool(RunOptions(), workers, len(shards), 0),
            )
            .take_all()
        )
    found = pandas.DataFrame(rows)
    begun, ended = found.groupby("worker").started.min().max(), found.groupby("worker").finished.max().min()
    within = (found.finished.clip(upper=ended) - found.started.clip(lower=begun)).clip(lower=0)
    return (found.rows * within / (found.finished - found.started)).sum() / (ended - begun)


def single(kind: str, texts: list[str], threads: int, result: multiprocessing.Queue) -> None:
    """Put passages a second of one process on all cores."""
    import torch

    torch.set_num_threads(threads)
    if kind == "OpenVINO":
        encode = load_embedder(MODEL, threads, "openvino").encode
    else:
        from sentence_transformers import SentenceTransformer

        settings = {"dtype": getattr(torch, kind)}
        model = SentenceTransformer(find_model(MODEL).folder, device="cpu", model_kwargs=settings)
        encode = lambda batch: model.encode(batch, batch_size=32, normalize_embeddings=True)  # noqa: E731
    encode(texts[:64])
    started = time.time()
    encode(texts)
    result.put(len(texts) / (time.time() - started))


def main() -> None:
    """Print the speed of every setting and its ratio to plain encode, round by round in turn."""
    passages = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    cluster.connect_cluster(RunOptions())
    threads = cluster.cluster_cpus()
    rates: dict[str, list[float]] = {name: [] for name in ("float32", "bfloat16", "OpenVINO", "sciqa index")}
    with tempfile.TemporaryDirectory() as output:
        options = CorpusOptions(output=output, shard_passages=SHARD)
        shards = build_passages(options).details["shards"][: passages // SHARD]
        files = [storage.join_paths(options.passages, f"{shard['name']}.parquet") for shard in shards]
        rows = [row for file in files for row in tables.read_table(file).to_pylist()]
        texts = [titled_chunk(row["title"], row["section"], row["text"]) for row in rows]
        context = multiprocessing.get_context("spawn")
        for number in range(ROUNDS):
            for name in rates:
                if name == "sciqa index":
                    rates[name].append(pool(options.passages, shards))
                    continue
                result = context.Queue()
                process = context.Process(target=single, args=(name, texts, threads, result))
                process.start()
                rates[name].append(result.get())
                process.join()
            print(f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.0f}/s" for name, rate in rates.items()))
    ray.shutdown()
    print(f"{len(texts):,} passages, {threads} cores; median passages a second and ratios to each")
    best = max((name for name in rates if name != "sciqa index"), key=lambda name: statistics.median(rates[name]))
    for name, rate in rates.items():
        to_plain = statistics.median(a / b for a, b in zip(rate, rates["float32"], strict=True))
        to_best = statistics.median(a / b for a, b in zip(rate, rates[best], strict=True))
        print(f"{name:<12} {statistics.median(rate):6.0f}  {to_plain:5.2f} x float32  {to_best:5.2f} x {best}")


if __name__ == "__main__":
    main()
