"""Build the queries of questions, dense and BM25, and rank passages by them, here or in workers on a cluster."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from sciqa.core import cluster, model_workers, progress
from sciqa.core.local_stage import is_local_stage
from sciqa.core.model_files import model_file_bytes
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.open_exam import Exam
from sciqa.retrieval.embedder import Kind, embed_one_by_one
from sciqa.retrieval.index import check_index_unchanged
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import FindOptions, Query, SearchOptions
from sciqa.retrieval.query_limit import QueryLimit
from sciqa.retrieval.search import SEARCH_MEMORY, LocalSearch, SearchHits, ShardedSearch, count_search_rows

#: Embedding fewer questions than this takes less time than starting a worker for them.
QUESTIONS_PER_WORKER = 1024
#: Most passages of an index that each worker opens itself; those of a larger one are searched by actors.
SMALL_INDEX = 50_000


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


def rank_queries(texts: list[list[str | None]], rank: Callable[[np.ndarray], SearchHits], k: int) -> list[SearchHits]:
    """Return for each ranking the k best rows for each question that has a text, and none for the others.

    Args:
        texts: for each ranking, a text or None for each question, from `query_texts`.
        rank: function that returns the hits of texts, given by their numbers among all of all rankings that are not
            None. It is called once; the texts of a question stand together.
        k: rows per question.
    """
    given = np.array([[text is not None for text in ranking] for ranking in texts], bool)
    questions, rankings = np.nonzero(given.T)
    found = rank((given.cumsum() - 1).reshape(given.shape)[rankings, questions])
    scores, rows = np.full((*given.shape, k), -np.inf, np.float32), np.full((*given.shape, k), -1, np.int64)
    width = found.rows.shape[1]
    scores[rankings, questions, :width], rows[rankings, questions, :width] = found.scores, found.rows
    return [SearchHits(*each) for each in zip(scores, rows, strict=True)]


class QueryRanker:
    """Ray Data worker that finds the passages of one shard of questions at a time."""

    def __init__(
        self, exam: Exam | None, options: SearchOptions, index: ShardedSearch | LocalSearch, embed: dict
    ) -> None:
        self.exam, self.options, self.index = exam, options, index
        self.embedder = load_embedder(**embed)
        self.prefixes = {kind: options.prefix(kind) for kind in ("query", "passage")}
        self.limit = QueryLimit(self.embedder, self.prefixes["query"])
        self.questions: list[dict] = []
        self.cut: set[int] = set()
        self._vectors: dict[Query, list[np.ndarray]] = {}

    def read(self, part: int) -> list[dict]:
        """Return the questions of one shard of the exam; there are none without an exam."""
        return self.exam.read_shard(part) if self.exam else []

    def take(self, questions: list[dict]) -> None:
        """Set the questions that the other methods work on; `cut` gets the numbers of those that are cut to fit."""
        self.questions, self.cut, self._vectors = questions, set(), {}

    def embed(self, texts: list[str], kind: Kind, names: list[str] | None = None) -> np.ndarray:
        """Return unit vectors of texts, shape (texts, dimension), each by its own text alone; messages use `names`."""
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
                texts = [self._cut(ranking) for ranking in query_texts(self.questions, query)]
                names = [f"question {question['id']!r}" for question in self.questions]
                asked = [[number for number, text in enumerate(ranking) if text is not None] for ranking in texts]
                self._vectors[query] = [
                    self.embed([ranking[n] or "" for n in numbers], "query", [names[n] for n in numbers])
                    for ranking, numbers in zip(texts, asked, strict=True)
                ]
        return self._vectors[query]

    def _cut(self, texts: list[str | None]) -> list[str | None]:
        """Return a text for each question in which the prompt, with which it begins, is cut to what is embedded."""
        cut = [
            (None, False) if text is None else self.limit.cut(text[: len(prompt)], text[len(prompt) :])
            for text, prompt in zip(texts, (question["prompt"] for question in self.questions), strict=True)
        ]
        reads = f"reads no more than {self.limit.tokens} tokens"
        note = f"{self.embedder.model} {reads}: longer questions are cut before their options"
        self.cut |= {number for number, (_, is_cut) in enumerate(cut) if is_cut}
        if self.cut and note not in self.embedder.notes:
            self.embedder.notes.append(note)
        return [text for text, _ in cut]

    def rank_dense(self, query: Query, k: int) -> list[SearchHits]:
        """Return the rankings of a kind of query by vector similarity, of k passages, or all if there are fewer."""
        k = min(k, self.index.rows)
        texts, vectors = query_texts(self.questions, "whole" if query == "mean" else query), self.vectors(query)
        return rank_queries(texts, lambda numbers: self.index.search(np.concatenate(vectors)[numbers], k), k)

    def rank_words(self, query: Query, k: int) -> list[SearchHits]:
        """Return the rankings of a kind of query by BM25, of k passages, or all if there are fewer."""
        k = min(k, self.index.rows)
        rankings = query_texts(self.questions, query)
        texts = [text for ranking in rankings for text in ranking if text is not None]
        return rank_queries(rankings, lambda numbers: self.index.search_words([texts[n] for n in numbers], k), k)


def is_small_query_index(manifest: dict) -> bool:
    """Whether an index is so small that each worker opens it."""
    return count_search_rows(manifest) <= SMALL_INDEX


@contextmanager
def open_query_index(options: SearchOptions, manifest: dict) -> Iterator[ShardedSearch | LocalSearch]:
    """Check the files of an index, and open it for workers of the connected cluster, or a small one for this process.

    A small index is opened by each worker, since that takes less time than the start of another process. Other ones
    have search actors, which end with the context: Python may keep its last reference to them for long, and a later
    stage could wait for their CPUs for ever.
    """
    check_index_unchanged(options, manifest)
    how = (options.search_parameters, options.candidates, options.cache_bytes)
    if is_small_query_index(manifest):
        yield LocalSearch(options.index, manifest, *how)
        return
    actors = min(len(manifest["shards"]), cluster.num_cluster_actors(SEARCH_MEMORY))
    index = ShardedSearch(options.index, manifest, actors, *how)
    try:
        yield index
    finally:
        index.close()


def run_query_workers(
    worker: type, exam: Exam, options: FindOptions, index: dict, parts: list[int], **more: object
) -> Iterator[dict]:
    """Open the index, start a pool of workers that search it, and yield a result row per shard of questions.

    `more` are further arguments of the workers.
    """
    if not parts:
        return
    weights = model_file_bytes(options.embedder) + (model_file_bytes(options.rerank) if options.rerank else 0)
    if is_small_query_index(index) and is_local_stage(options, exam.questions, weights):
        importlib.import_module("sciqa.retrieval.bm25")  # before `local_stage_rows` imports in a thread
    else:
        cluster.connect_cluster(options)
    most = min(len(parts), 1 + exam.questions // QUESTIONS_PER_WORKER)
    workers = cluster.num_cluster_workers(options, most)
    with open_query_index(options, index) as opened:
        embed = options.embed_arguments(workers) | {"revision": index["revision"]}
        arguments = {"exam": exam, "options": options, "index": opened, "embed": embed} | more
        pool = {"workers": workers, "parts": most, "weights": model_file_bytes(options.embedder)}
        rows = model_workers.run_model_workers(options, worker, arguments, parts, pool)
        total = exam.questions_of(parts)
        yield from progress.rows_with_progress(rows, "retrieve", total, "questions", lambda row: row["questions"])
