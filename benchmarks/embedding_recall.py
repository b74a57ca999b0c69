"""Recall of dense search by this project's embeddings beside those of plain float32 sentence-transformers.

The whole demo corpus and the questions of the packaged exam (validation and test) are embedded with all-MiniLM-L6-v2,
by `SentenceTransformer.encode` in float32 and as `sciqa index` does on a CPU (OpenVINO, bfloat16 where the processor
has it), each in a process of its own. Questions are asked by the `mean` query, and all passages are compared.
Usage: python benchmarks/embedding_recall.py
"""

import multiprocessing
import tempfile

import numpy as np
import ray

from sciqa.core import cluster, tables
from sciqa.core.model_files import find_model
from sciqa.core.options import RunOptions
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval.evaluate import CUTS
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.queries import query_texts

MODEL = "all-MiniLM-L6-v2"
SPLITS = ("validation", "test")


def embed(kind: str, texts: list[list[str]], threads: int, result: multiprocessing.Queue) -> None:
    """Put the vectors of several lists of texts."""
    if kind == "sciqa":
        encode = load_embedder(MODEL, threads).encode
    else:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        model = SentenceTransformer(find_model(MODEL).folder, device="cpu", model_kwargs={"dtype": torch.float32})
        encode = lambda batch: model.encode(batch, normalize_embeddings=True)  # noqa: E731
    result.put([encode(each) for each in texts])


def ranks(vectors: np.ndarray, titles: list[str], prompts: np.ndarray, whole: np.ndarray, gold: list[str]) -> list[int]:
    """Return the place of each question's gold article among the distinct articles found, from 1."""
    queries = prompts + whole
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    orders = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :200]
    named = [list(dict.fromkeys(titles[row] for row in order)) for order in orders]
    return [names.index(title) + 1 if title in names else 0 for names, title in zip(named, gold, strict=True)]


def main() -> None:
    """Print recall of both, and how far their vectors are from each other."""
    cluster.connect_cluster(RunOptions())
    threads = cluster.cluster_cpus()
    with tempfile.TemporaryDirectory() as output:
        rows = tables.read_table(build_passages(CorpusOptions(output=output)).path).to_pylist()
    ray.shutdown()
    exams = {split: read_exam(split).to_pylist() for split in SPLITS}
    texts = [[titled_chunk(row["title"], row["section"], row["text"]) for row in rows]]
    for questions in exams.values():
        for query in ("prompt", "whole"):
            texts += query_texts(questions, query)
    context, made = multiprocessing.get_context("spawn"), {}
    for kind in ("float32", "sciqa"):
        result = context.Queue()
        process = context.Process(target=embed, args=(kind, texts, threads, result))
        process.start()
        made[kind] = result.get()
        process.join()
    cosines = np.einsum("pd,pd->p", made["float32"][0], made["sciqa"][0])
    print(f"{len(rows):,} passages; cosine of both {cosines.mean():.5f} on average, at least {cosines.min():.5f}")
    for number, (split, questions) in enumerate(exams.items()):
        for kind, (vectors, *asked) in made.items():
            gold = [question["title"] for question in questions]
            found = ranks(vectors, [row["title"] for row in rows], *asked[2 * number : 2 * number + 2], gold)
            recalls = (f"recall@{k} {np.mean([0 < rank <= k for rank in found]):.4f}" for k in CUTS)
            print(f"{split:<11} {kind:<8} {'  '.join(recalls)}  ({len(gold)} questions)")


if __name__ == "__main__":
    main()
