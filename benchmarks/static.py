"""Static embedders beside a transformer: passages a second, and recall of one and of two stages.

Speed: the passages of the demo corpus are embedded in one process on all cores, in turn, start-up left out: by
all-MiniLM-L6-v2 in PyTorch (`SentenceTransformer.encode`, float32) and as `sciqa index` does on a CPU (OpenVINO), and
by an embedder distilled from it, in both ways. Since other processes may take a share of the cores, rates are also
given by CPU seconds, and ratios are of those.
Recall: the validation split of the packaged exam is looked up by the `mean` query in indexes of the same passages, by
MiniLM, by embedders distilled and trained on these passages, and by MiniLM among the first 100 of each of those.
Usage: python benchmarks/static.py [speed] [recall]
"""

import statistics
import sys
import tempfile
import time

import numpy as np
import ray

from sciqa.core import cluster, tables
from sciqa.core.model_files import find_model
from sciqa.core.options import RunOptions
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.evaluate import evaluate_question
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import EmbedderOptions
from sciqa.retrieval.static_training import make_embedder

MODEL = "all-MiniLM-L6-v2"
ROUNDS = 5
#: Texts that the slow settings embed in a round.
FEW = 512
FIGURES = ("recall_at_1", "recall_at_5", "mrr")
STAGES = {"one stage": {}, "MiniLM of 100": {"rerank": MODEL, "rerank_passages": 100}}


def speed(texts: list[str], distilled: str, threads: int) -> None:
    """Print passages a second, by the clock and by CPU seconds."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    plain = {
        name: SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
        for name, folder in (("MiniLM", find_model(MODEL).folder), ("distilled", distilled))
    }
    settings = {
        "MiniLM, plain encode": (lambda batch: plain["MiniLM"].encode(batch, batch_size=32), texts[:FEW]),
        "MiniLM, sciqa": (load_embedder(MODEL, threads).encode, texts[:FEW]),
        "distilled, plain encode": (lambda batch: plain["distilled"].encode(batch, batch_size=32), texts),
        "distilled, sciqa": (load_embedder(distilled, threads).encode, texts),
    }
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    for number in range(ROUNDS + 1):
        for name, (encode, given) in settings.items():
            started, used = time.perf_counter(), time.process_time()
            encode(given)
            rates[name].append(
                (len(given) / (time.perf_counter() - started), len(given) / (time.process_time() - used))
            )
        if not number:  # nothing is warm yet
            rates = {name: [] for name in settings}
    for name, rate in rates.items():
        clock, cpu = (statistics.median(each) for each in zip(*rate, strict=True))
        to = (
            f"{statistics.median(a / b for (_, a), (_, b) in zip(rate, rates[other], strict=True)):6.1f} x {other}"
            for other in ("MiniLM, plain encode", "MiniLM, sciqa")
        )
        print(f"{name:<24} {clock:8.0f}/s {cpu:8.0f} per CPU second; {'; '.join(to)}")


def recall(output: str, embedders: dict[str, str]) -> None:
    """Print recall and seconds of every embedder, in one stage and in two."""
    gold = {question["id"]: question["title"] for question in read_exam("validation").to_pylist()}
    for name, folder in embedders.items():
        options = {"output": f"{output}/{name}", "passages": f"{output}/passages", "embedder": folder}
        seconds = build_index(IndexOptions(**options)).seconds
        for stage, more in STAGES.items() if folder != MODEL else [("one stage", {})]:
            finding = {"dense": ("mean",), "words": (), "depth": 100, "top_k": 100, "exam": "validation"} | more
            found = retrieve(RetrieveOptions(**options, **finding, contexts=f"{output}/{name}/{stage}"))
            figures = []
            for row in tables.read_table(found.path).to_pylist():
                titles = list(dict.fromkeys(passage["title"] for passage in row["passages"]))
                figures.append(evaluate_question(titles.index(gold[row["id"]]) + 1 if gold[row["id"]] in titles else 0))
            means = "  ".join(f"{key} {np.mean([each[key] for each in figures]):.3f}" for key in FIGURES)
            print(
                f"{name:<10} {stage:<14} {means}  index {seconds:5.1f} s, retrieve {found.seconds:5.1f} s", flush=True
            )


def main() -> None:
    """Print both tables."""
    cluster.connect_cluster(RunOptions())
    threads = cluster.cluster_cpus()
    wanted = sys.argv[1:] or ["speed", "recall"]
    with tempfile.TemporaryDirectory() as output:
        made = build_passages(CorpusOptions(output=output))
        embedders = {"MiniLM": MODEL}
        for method in ("distil", "skip-gram", "cbow") if "recall" in wanted else ("distil",):
            embedder = make_embedder(EmbedderOptions(output=output, method=method))
            print(f"{method}: {embedder.made}, {embedder.seconds:.0f} s", flush=True)
            embedders[method] = embedder.path
        if "recall" in wanted:
            recall(output, embedders)
        if "speed" in wanted:
            rows = tables.read_table(made.path, ["title", "section", "text"]).to_pylist()
            speed([titled_chunk(**row) for row in rows], embedders["distil"], threads)
    ray.shutdown()


if __name__ == "__main__":
    main()
