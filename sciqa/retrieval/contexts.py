"""Questions to contexts: the passages nearest to each question, and the text that the reader gets."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sciqa import cluster, storage
from sciqa.cluster import Summary
from sciqa.errors import InputError
from sciqa.exam.questions import Exam, ExamOptions, open_exam, options_of
from sciqa.retrieval.embedder import Embedder, load_embedder
from sciqa.retrieval.index import IndexOptions, check_index, embedded_text, read_index_manifest
from sciqa.retrieval.search import ShardedIndex

PASSAGE = pa.struct(
    [("passage_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("score", pa.float32())]
)
SCHEMA = pa.schema([("id", pa.string()), ("passages", pa.list_(PASSAGE)), ("context", pa.string())])


#: Embedding fewer questions than this takes less time than starting a worker for them.
QUESTIONS_PER_WORKER = 1024


@dataclass(kw_only=True)
class RetrieveOptions(ExamOptions, IndexOptions):
    """What is found for each question."""

    contexts: str | None = None
    """Folder of the contexts table; by default OUTPUT/contexts."""
    top_k: int = 5
    """Passages kept for each question, best first."""
    context_passages: int = 1
    """How many of them make the text that the reader gets."""

    def __post_init__(self) -> None:
        """Fill the default folder and check the numbers."""
        super().__post_init__()
        self.contexts = self.contexts or storage.join(self.output, "contexts")
        if not 1 <= self.context_passages <= self.top_k:
            raise InputError(f"--context-passages: {self.context_passages} given, 1 to --top-k ({self.top_k}) expected")


def retrieve(options: RetrieveOptions) -> Summary:
    """Write the contexts table: `id`, `passages` (best first, with scores) and `context` of every question.

    Raises:
        InputError: a bad exam, no index, or an index of another embedding model.
    """
    started = time.monotonic()
    exam = open_exam(options)
    check_index(options)
    index = read_index_manifest(options.index)
    storage.check_writable(options.contexts)
    inputs = {
        "exam": exam.sha256,
        "index": storage.fingerprint(index),
        "top_k": options.top_k,
        "context_passages": options.context_passages,
    }
    present = storage.begin(options.contexts, inputs)
    if kept := storage.MANIFEST in present:
        manifest = storage.read_manifest(options.contexts, "retrieve")
    else:
        paths = {part: _part_path(options.contexts, part) for part in range(exam.shards)}
        finished = [part for part, path in paths.items() if path.rsplit("/", 1)[-1] in present]
        rows = [_count(exam.read_shard(part), storage.read_table(paths[part]).to_pylist()) for part in finished]
        rows.extend(_find_all(exam, options, index, sorted(paths.keys() - set(finished))))
        manifest = _manifest(exam, rows)
        storage.finish(options.contexts, manifest | {"inputs": inputs})
    made = f"contexts of {exam.questions:,} questions"
    if manifest["recall"] is not None:
        made += f"; gold article among the first {options.top_k} for {manifest['recall']:.1%}"
    made += ", kept" * kept
    return Summary("retrieve", options.contexts, made, time.monotonic() - started, manifest)


def embed_questions(embedder: Embedder, questions: list[dict]) -> np.ndarray:
    """Return a query per question, unit vectors of shape (questions, dimension).

    A query is the mean of two: the prompt, and the prompt with all options. The first finds the subject of a
    question, the second the fact; together they find more than either (README, "What was measured").
    """
    prompts = [question["prompt"] for question in questions]
    whole = [" ".join([question["prompt"], *options_of(question).values()]) for question in questions]
    both = embedder.encode(prompts + whole)
    queries = both[: len(prompts)] + both[len(prompts) :]
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def _manifest(exam: Exam, rows: list[dict]) -> dict:
    gold = sum(row["gold"] for row in rows)
    return {"questions": exam.questions, "recall": sum(row["found"] for row in rows) / gold if gold else None}


def _part_path(folder: str, part: int) -> str:
    return storage.join(folder, f"{part:05d}.parquet")


def _find_all(exam: Exam, options: RetrieveOptions, index: dict, parts: list[int]) -> Iterator[dict]:
    if not parts:
        return iter(())
    cluster.connect(options)
    workers = cluster.num_workers(options, 1 + exam.questions // QUESTIONS_PER_WORKER)
    groups = ShardedIndex(options.index, index["shards"], min(len(index["shards"]), cluster.cluster_cpus()))
    rows = (
        cluster.from_parts(parts)
        .map(
            EmbedQuestions,
            fn_constructor_kwargs={"exam": exam, "embed": options.embed_arguments(workers)},
            **cluster.model_pool(workers),
        )
        .map(
            write_contexts,
            fn_kwargs={
                "exam": exam,
                "index": groups,
                "folder": options.contexts,
                "top_k": options.top_k,
                "context_passages": options.context_passages,
            },
            num_cpus=cluster.TASK_CPUS,
        )
    )
    return cluster.rows_with_progress(rows, "retrieve", exam.questions, "questions", lambda row: row["questions"])


class EmbedQuestions:
    """Ray Data worker that embeds one shard of questions at a time."""

    def __init__(self, exam: Exam, embed: dict) -> None:
        self.exam = exam
        self.embedder = load_embedder(**embed)

    def __call__(self, row: dict) -> dict:
        """Add `vectors`, shape (questions, dimension), of the shard that `row["part"]` numbers."""
        queries = embed_questions(self.embedder, self.exam.read_shard(row["part"]))
        return {"part": row["part"], "vectors": queries}


def write_contexts(row: dict, exam: Exam, index: ShardedIndex, folder: str, top_k: int, context_passages: int) -> dict:
    """Search for one shard of questions and write its part of the contexts table."""
    questions = exam.read_shard(row["part"])
    hits = index.search(row["vectors"], top_k)
    passages = iter(index.passages(hits.rows.ravel()))
    contexts = []
    for question, scores in zip(questions, hits.scores.tolist(), strict=True):
        best = [next(passages) | {"score": score} for score in scores]
        context = context_text(question, best[:context_passages])
        contexts.append({"id": question["id"], "passages": best, "context": context})
    storage.write_table(_part_path(folder, row["part"]), pa.Table.from_pylist(contexts, schema=SCHEMA))
    return _count(questions, contexts)


def context_text(question: dict, passages: list[dict]) -> str:
    """Return what the reader gets: the context that the exam gives, if any, then the passages.

    Args:
        question: row of the exam table.
        passages: `title`, `text` and, where it is known, `section` of each.
    """
    given = [question["context"]] if question["context"] else []
    return "\n".join(given + [embedded_text(p["title"], p.get("section") or "", p["text"]) for p in passages])


def _count(questions: list[dict], contexts: list[dict]) -> dict[str, int]:
    """Return how many questions name their gold article (column `title`) and how many found it."""
    pairs = [(q["title"], c["passages"]) for q, c in zip(questions, contexts, strict=True) if q.get("title")]
    found = sum(title in {passage["title"] for passage in passages} for title, passages in pairs)
    return {"questions": len(questions), "gold": len(pairs), "found": found}
