"""Build the queries of questions, dense and BM25, and rank passages by them, here or in workers on a cluster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from sciqa.core import cluster, model_workers, progress
from sciqa.core.model_files import model_file_bytes
from sciqa.core.model_workers import model_worker_arguments
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.open_exam import Exam
from sciqa.retrieval.embedder import Kind, embed_one_by_one
from sciqa.retrieval.index import check_index_unchanged
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import FindOptions, Query, SearchOptions
from sciqa.retrieval.search import SEARCH_MEMORY, LocalSearch, SearchHits, ShardedSearch

#: Embedding fewer questions than this takes less time than starting a worker for them.
QUESTIONS_PER_WORKER = 1024


def query_texts(questions: list[dict], query: Query) -> list[list[str | None]]:
    """Return the texts of a kind of query: for each ranking that it makes, a list with one text per question.

    A question with fewer options than others has None in the rankings beyond its own. Options are sorted
    alphabetically, so that their order in the question does not change the query.
    """
    prompts = [question["prompt"] for question in questions]
    options = [sorted(answer_options_of(question).values()) for question in questions]
    if query == "prompt" or not any(options):
        return [prompts]
    if query == "whole":
        return [[" ".join([prompt, *given]) for prompt, given in zip(prompts, options, strict=True)]]
    pairs = list(zip(prompts, options, strict=True))
    return [
        [f"{prompt} {given[number]}" if number < len(given) else None for prompt, given in pairs]
        for number in range(max(map(len, options)))
    ]


def rank_queries(texts: list[str | None], rank: Callable[[np.ndarray], SearchHits], k: int) -> SearchHits:
    """Return the k best rows for each question that has a text, and none for the others.

    Args:
        texts: a text or None for each question, from `query_texts`.
        rank: function that takes the numbers of the questions with a text, and returns their hits.
        k: rows per question.
    """
    asking = np.array([number for number, text in enumerate(texts) if text is not None])
    hits = SearchHits(np.full((len(texts), k), -np.inf, np.float32), np.full((len(texts), k), -1, np.int64))
    found = rank(asking)
    width = found.rows.shape[1]
    hits.scores[asking, :width], hits.rows[asking, :width] = found.scores, found.rows
    return hits


class QueryRanker:
    """Ray Data worker that finds the passages of one shard of questions at a time."""

    def __init__(
        self, exam: Exam | None, options: SearchOptions, index: ShardedSearch | LocalSearch, embed: dict
    ) -> None:
        self.exam, self.options, self.index = exam, options, index
        self.embedder = load_embedder(**embed)
        self.prefixes = {kind: options.prefix(kind) for kind in ("query", "passage")}
        self.questions: list[dict] = []
        self._vectors: dict[Query, list[np.ndarray]] = {}

    def read(self, part: int) -> list[dict]:
        """Return the questions of one shard of the exam; there are none without an exam."""
        return self.exam.read_shard(part) if self.exam else []

    def take(self, questions: list[dict]) -> None:
        """Set the questions that the other methods work on."""
        self.questions, self._vectors = questions, {}

    def embed(self, texts: list[str], kind: Kind, names: list[str] | None = None) -> np.ndarray:
        """Return unit vectors of texts, shape (texts, dimension); each depends on its own text alone.

        Args:
            texts: texts to embed.
            kind: kind of the texts.
            names: label of each text for error messages.
        """
        return embed_one_by_one(self.embedder, texts, prefix=self.prefixes[kind], kind=kind, names=names)

    def vectors(self, query: Query) -> list[np.ndarray]:
        """Return the vectors of a kind of query, one array for each of its rankings.

        The shape of an array is (questions, dimension), for the questions that have a text.
        """
        if query not in self._vectors:
            if query == "mean":
                mean = self.vectors("prompt")[0] + self.vectors("whole")[0]
                self._vectors[query] = [mean / np.linalg.norm(mean, axis=1, keepdims=True)]
            else:
                texts = query_texts(self.questions, query)
                names = [f"question {question['id']!r}" for question in self.questions]
                asked = [[number for number, text in enumerate(ranking) if text is not None] for ranking in texts]
                self._vectors[query] = [
                    self.embed([ranking[n] or "" for n in numbers], "query", [names[n] for n in numbers])
                    for ranking, numbers in zip(texts, asked, strict=True)
                ]
        return self._vectors[query]

    def rank_dense(self, query: Query, k: int) -> list[SearchHits]:
        """Return the rankings of a kind of query by vector similarity."""
        asked = query_texts(self.questions, "whole" if query == "mean" else query)
        pairs = zip(asked, self.vectors(query), strict=True)
        return [rank_queries(texts, partial(self._near, vectors, k), k) for texts, vectors in pairs]

    def rank_words(self, query: Query, k: int) -> list[SearchHits]:
        """Return the rankings of a kind of query by BM25."""
        return [rank_queries(texts, partial(self._worded, texts, k), k) for texts in query_texts(self.questions, query)]

    def _near(self, vectors: np.ndarray, k: int, asking: np.ndarray) -> SearchHits:
        return self.index.search(vectors, k)

    def _worded(self, texts: list[str | None], k: int, asking: np.ndarray) -> SearchHits:
        return self.index.search_words([texts[number] or "" for number in asking], k)


@contextmanager
def start_query_actors(options: SearchOptions, manifest: dict) -> Iterator[ShardedSearch]:
    """Check the files of an index, and start its search actors on the connected cluster.

    They end with the context: Python may keep its last reference to them for long, and a later stage could wait for
    their CPUs for ever.
    """
    check_index_unchanged(options, manifest)
    index = ShardedSearch(
        options.index,
        manifest,
        min(len(manifest["shards"]), cluster.num_cluster_actors(SEARCH_MEMORY)),
        parameters=options.search_parameters,
        candidates=options.candidates,
        cache_bytes=options.cache_bytes,
    )
    try:
        yield index
    finally:
        index.close()


def run_query_workers(
    worker: type, exam: Exam, options: FindOptions, index: dict, parts: list[int], **more: object
) -> Iterator[dict]:
    """Start the search actors and a pool of workers that use them, and yield a result row per shard of questions.

    `more` are further arguments of the workers.
    """
    if not parts:
        return
    cluster.connect_cluster(options)
    most = min(len(parts), 1 + exam.questions // QUESTIONS_PER_WORKER)
    workers = cluster.num_cluster_workers(options, most)
    with start_query_actors(options, index) as actors:
        embed = options.embed_arguments(workers)
        arguments = {"exam": exam, "options": options, "index": actors, "embed": embed} | more
        pool = model_workers.model_worker_pool(options, workers, most, model_file_bytes(options.embedder))
        rows = cluster.cluster_dataset(parts).map(**model_worker_arguments(worker, arguments, pool))
        yield from progress.rows_with_progress(
            rows, "retrieve", exam.questions, "questions", lambda row: row["questions"]
        )
