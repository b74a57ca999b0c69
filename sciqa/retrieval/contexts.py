"""The `retrieve` step: finds the passages nearest to each question, and writes the text for the reader."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.corpus.chunking import titled_chunk
from sciqa.exam.open_exam import Exam, open_exam, open_exam_table
from sciqa.exam.question_table import QuestionTable
from sciqa.retrieval.evidence import find_evidence
from sciqa.retrieval.index import (
    check_index,
    check_index_built_as,
    check_index_embedder,
    check_index_prefix,
    index_identity,
    is_same_index,
    read_index_manifest,
)
from sciqa.retrieval.options import ContextOptions, FindOptions, RetrieveOptions, SearchOptions
from sciqa.retrieval.passage_sentences import join_passage_sentences, passage_sentences
from sciqa.retrieval.queries import QueryRanker, query_texts, run_query_workers
from sciqa.retrieval.rerank import Reranker, check_reranker, is_embedding_reranker, note_reranked_by_beginning
from sciqa.retrieval.search import LocalSearch, ShardedSearch, fuse_search_hits, merge_search_hits

#: Version of what this module computes. Raise it with every change, so that contexts of earlier versions are not kept.
CONTEXTS_FORMAT = 6
#: Why a context is empty.
NOTHING = "nothing was found, or no sentence of at most --context-tokens"
TEXTS = ("passage_id", "title", "section", "text")
PASSAGE = pa.struct([*((name, pa.string()) for name in TEXTS), ("score", pa.float32())])
EVIDENCE = pa.struct(
    [
        *((name, pa.string()) for name in ("passage_id", "title", "sentence")),
        *((name, pa.int32()) for name in ("start", "end")),
        ("score", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [("id", pa.string()), ("passages", pa.list_(PASSAGE)), ("context", pa.string()), ("evidence", pa.list_(EVIDENCE))]
)


def retrieve(options: RetrieveOptions) -> Summary:
    """Write the contexts table: `id`, `passages` (best first, with scores), `context` and `evidence` of every question.

    `evidence` has an entry per option; see `sciqa.retrieval.evidence.find_evidence`.

    Raises:
        InputError: a bad exam, no index, an index of another embedding model, or one whose files were changed, also
            while it was searched.
    """
    exam = open_exam(options, write=False)
    if options.context != "given":
        check_index(options)
        check_index_built_as(options, read_index_manifest(options.index))
    return find_contexts(options, exam, options.contexts, options.evidence)


def find_contexts(options: FindOptions, exam: Exam, folder: str, evidence: bool) -> Summary:
    """Write the contexts table of an exam, with evidence or without, and the exam's own if it is missing."""
    started = time.monotonic()
    if options.context == "given":
        with lock(folder):
            given = _give_contexts(options, exam, folder)
        made = f"{given:,} questions have contexts of their own, nothing is looked up"
        return Summary("retrieve", folder, made, time.monotonic() - started)
    check_find_contexts(options)
    index = read_index_manifest(options.index)
    check_index_prefix(options, index)
    inputs = {
        "format": CONTEXTS_FORMAT,
        "exam": exam.sha256,
        "index": index_identity(index),
        "prefix": options.prefix("query"),
        "embed_backend": options.embed_backend,
        **options.finding(),
        "evidence": evidence,
        "rerank": find_model(options.rerank).revision if options.rerank else None,
    }
    with lock(folder):
        manifest, kept = _fill(options, exam, folder, index, inputs)
    made = f"contexts of {exam.questions:,} questions"
    if empty := manifest.get("empty"):
        made += f", {empty:,} of them empty ({NOTHING})"
    if manifest["recall"] is not None:
        made += f"; gold article among the first {options.top_k} for {manifest['recall']:.1%}"
    made += ", kept" * kept
    return Summary("retrieve", folder, made, time.monotonic() - started, manifest)


def _give_contexts(options: FindOptions, exam: Exam, folder: str) -> int:
    """Write the contexts that the exam itself gives as a contexts table; return how many questions have one."""
    inputs = {"format": CONTEXTS_FORMAT, "exam": exam.sha256, "context": "given"}
    begun = tables.begin_table(folder, inputs, {}, exam.shard_questions, options.overwrite)
    exam, given = _write_exam(options, exam, begun.rows), 0
    for part in range(exam.shards):
        questions = exam.read_shard(part)
        given += sum(bool(question["context"]) for question in questions)
        if begun.whole:
            continue
        contexts = [{"id": each["id"], "passages": [], "context": context_text(each, [])} for each in questions]
        tables.write_table(tables.table_part_path(folder, part), pa.Table.from_pylist(contexts, schema=SCHEMA))
    if not begun.whole:
        tables.finish_table(folder, {"format": CONTEXTS_FORMAT, "inputs": inputs, "rows": begun.rows})
    return given


def _write_exam(options: FindOptions, exam: Exam, rows: int | None) -> Exam:
    """Write the exam's table if it is missing; return the exam with the rows per shard of a table begun earlier."""
    exam = open_exam_table(options, exam.name, exam.path, exam.shard_questions)
    return replace(exam, shard_questions=rows or exam.shard_questions)


def _fill(options: FindOptions, exam: Exam, folder: str, index: dict, inputs: dict) -> tuple[dict, bool]:
    """Complete the contexts table; return its manifest, and whether it was already complete."""
    defaults = defaults_of(RetrieveOptions)
    begun = tables.begin_table(folder, inputs, defaults, exam.shard_questions, options.overwrite)
    if begun.whole:
        return tables.read_table_manifest(folder, "retrieve"), True
    exam = _write_exam(options, exam, begun.rows)
    table = QuestionTable(folder, exam.shard_questions)
    finished = [part for part in range(exam.shards) if tables.table_part_name(part) in begun.names]
    rows = [_count(questions := exam.read_shard(part), table.read(questions, exam.first(part))) for part in finished]
    missing = sorted(set(range(exam.shards)) - set(finished))
    more = {"context": options, "folder": folder, "evidence": inputs["evidence"], "rerank": inputs["rerank"]}
    rows.extend(run_query_workers(FindContexts, exam, options, index, missing, **more))
    _check_filled(options, exam, folder, inputs)
    empty, gold, found = (sum(row[name] for row in rows) for name in ("empty", "gold", "found"))
    if empty == exam.questions:
        tables.delete_table(folder)
        raise InputError(f"{folder}: every context is empty ({NOTHING}); give more tokens, or other --dense or --words")
    about = {"questions": exam.questions, "empty": empty, "recall": found / gold if gold else None}
    manifest = {"format": CONTEXTS_FORMAT, "inputs": inputs, "rows": begun.rows} | about
    tables.finish_table(folder, manifest)
    return manifest, False


def _check_filled(options: FindOptions, exam: Exam, folder: str, inputs: dict) -> None:
    """Raise `InputError` if shards were written where this process does not see them, or the index has been replaced.

    Contexts of a replaced index are deleted, since some may come from the index that replaced it.
    """
    seen = set(storage.list_names(folder))
    if unseen := sum(tables.table_part_name(part) not in seen for part in range(exam.shards)):
        raise InputError(
            f"{folder}: {unseen} of {exam.shards} shards, written on other nodes, are not seen here; pass a folder "
            "that all nodes mount, or a URI such as s3://bucket/run/contexts"
        )
    if not is_same_index(options.index, inputs["index"]):
        tables.delete_table(folder)
        raise InputError(
            f"{options.index}: built anew while it was searched, so the contexts from it in {folder} were deleted; "
            "run this step again"
        )


def open_contexts(folder: str, exam: Exam, context: str | None = None) -> tuple[QuestionTable, dict]:
    """Return the finished contexts table of an exam, and the inputs that it was made from.

    It must match `context`, the value of `--context`, which is None if it has been compared before.

    Raises:
        InputError: no finished table, or one for another exam or `--context`, or of another version of the program.
    """
    manifest = tables.read_table_manifest(folder, "retrieve", CONTEXTS_FORMAT)
    if manifest["inputs"]["exam"] != exam.sha256:
        raise InputError(
            f"{folder}: these contexts belong to another exam than {exam.name}; "
            f"run `sciqa retrieve` with --exam {exam.name} and another --contexts"
        )
    given = manifest["inputs"].get("context") == "given"
    if context and given != (context == "given"):
        raise InputError(
            f"{folder}: made with{'' if given else 'out'} --context given; run `sciqa retrieve --context {context}` "
            f"again, or leave{' out' * (not given)} --context given{' as it was' * given} here"
        )
    return QuestionTable(folder, manifest["rows"]), manifest["inputs"]


def check_find_contexts(options: SearchOptions, replaced: bool = False) -> None:
    """Raise `InputError` as `check_index_embedder` does, or if `--rerank` names no model for it."""
    check_index_embedder(options, replaced)
    if options.rerank:
        check_reranker(options.rerank)


class FindContexts(QueryRanker):
    """Ray Data worker that writes the contexts of one shard of questions at a time.

    Attributes:
        context: form of the contexts.
        folder: folder of the contexts table; only `find` needs none.
        evidence: whether evidence is found too.
    """

    def __init__(
        self,
        exam: Exam | None,
        options: SearchOptions,
        index: ShardedSearch | LocalSearch,
        embed: dict,
        context: ContextOptions,
        folder: str = "",
        evidence: bool = False,
        rerank: str | None = None,  # revision of the reranker that is recorded
    ) -> None:
        super().__init__(exam, options, index, embed)
        self.context, self.folder, self.evidence = context, folder, evidence
        self.judge: Reranker | QueryRanker | None = None
        if options.rerank and is_embedding_reranker(options.rerank):
            own = replace(options, embedder=options.rerank, query_prefix=None, passage_prefix=None)
            self.judge = QueryRanker(None, own, index, embed | {"model": options.rerank, "revision": rerank})
        elif options.rerank:
            self.judge = Reranker(options.rerank, embed.get("device", "cpu"), rerank)

    def __call__(self, row: dict) -> dict:
        """Write the shard of the contexts table with the number `row["part"]`."""
        questions = self.read(row["part"])
        contexts = self.find(questions)
        if self.evidence:
            read = [context["read"] for context in contexts]
            for context, evidence in zip(contexts, find_evidence(questions, read, self.embed), strict=True):
                context["evidence"] = evidence
        table = pa.Table.from_pylist(contexts, schema=SCHEMA)
        tables.write_table(tables.table_part_path(self.folder, row["part"]), table)
        return _count(questions, contexts) | {"notes": self.notes}

    @property
    def notes(self) -> list[str]:
        """Messages for the user on how vectors and scores are computed."""
        judge = self.judge.embedder if isinstance(self.judge, QueryRanker) else self.judge
        return [*self.embedder.notes, *(judge.notes if judge else [])]

    def find(self, questions: list[dict]) -> list[dict]:
        """Return a row of the contexts table for each question, and more.

        `read` has the passages that form its context; `question_cut` tells whether its end was cut off for the search.
        """
        options = self.options
        self.take(questions)
        found = self._passages(options.rerank_passages if options.rerank else options.top_k)
        if self.judge:
            found = self._judge(self.judge, found)
        found = [passages[: options.top_k] for passages in found]
        read = [passages[: self.context.context_passages] for passages in found]
        if self.context.context_sentences or options.context_tokens:
            read = self._sentences(read)
        rows = [
            {"id": question["id"], "passages": passages, "context": context_text(question, chosen), "read": chosen}
            for question, passages, chosen in zip(questions, found, read, strict=True)
        ]
        return [row | {"question_cut": number in self.cut} for number, row in enumerate(rows)]

    def _passages(self, k: int) -> list[list[dict]]:
        dense, words = self.options.dense, self.options.words
        fused = len(dense + words) > 1 or "options" in dense + words
        depth = max(k, self.options.depth) if fused else k
        lists = [hits for query in dense for hits in self.rank_dense(query, depth)]
        lists += [hits for query in words for hits in self.rank_words(query, depth)]
        hits = fuse_search_hits(lists, k) if len(lists) > 1 else merge_search_hits(lists, k)
        there = hits.rows >= 0
        passages = iter(self.index.passages(hits.rows[there]))
        return [
            [next(passages) | {"score": float(score)} for score in scores[mask]]
            for scores, mask in zip(hits.scores, there, strict=True)
        ]

    def _judge(self, judge: Reranker | QueryRanker, found: list[list[dict]]) -> list[list[dict]]:
        """Rerank each question's passages by the scores of the cross-encoder or embedder."""
        scored = self._scores(judge, found) if isinstance(judge, Reranker) else self._cosines(judge, found)
        judged = []
        for passages, scores in zip(found, scored, strict=True):
            order = np.argsort(-scores, kind="stable")
            judged.append([passages[number] | {"score": float(scores[number])} for number in order])
        return judged

    def _scores(self, judge: Reranker, found: list[list[dict]]) -> Iterator[np.ndarray]:
        """Yield the scores of each question's passages by the cross-encoder."""
        (asked,) = query_texts(self.questions, "whole")
        for question, text, passages in zip(self.questions, asked, found, strict=True):
            pairs = [(text or "", titled_chunk(p["title"], p["section"], p["text"])) for p in passages]
            names = [f"question {question['id']!r} with passage {p['passage_id']!r}" for p in passages]
            yield judge.score(pairs, names)

    def _cosines(self, finder: QueryRanker, found: list[list[dict]]) -> Iterator[np.ndarray]:
        """Yield the cosines of each question's `mean` query and its passages; each passage is embedded once."""
        texts = {p["passage_id"]: titled_chunk(p["title"], p["section"], p["text"]) for each in found for p in each}
        note_reranked_by_beginning(finder.embedder, finder.prefixes["passage"], texts.values())
        vectors = finder.embed([*texts.values()], "passage", [f"passage {name!r}" for name in texts])
        rows = {name: number for number, name in enumerate(texts)}
        finder.take(self.questions)
        (queries,) = finder.vectors("mean")
        for query, passages in zip(queries, found, strict=True):
            own = vectors[[rows[passage["passage_id"]] for passage in passages]]
            yield (own * query).sum(axis=1)  # not a matrix product, which may sum each row in another order

    def _sentences(self, found: list[list[dict]]) -> list[list[dict]]:
        """Return the sentences nearest to each question, in the form of passages, as many as the options allow."""
        (queries,) = self.vectors("mean")
        sentences = list(map(passage_sentences, found))
        texts = [titled_chunk(s["title"], s["section"], s["text"]) for several in sentences for s in several]
        names = [f"a sentence of passage {s['passage_id']!r}" for several in sentences for s in several]
        vectors = self.embed(texts, "passage", names) if texts else np.zeros((0, queries.shape[1]))
        chosen: list[list[dict]] = []
        first = 0
        for query, several in zip(queries, sentences, strict=True):
            # No matrix product, which may sum each row in another order.
            nearness = (vectors[first : first + len(several)] * query).sum(axis=1)
            first += len(several)
            nearest = np.argsort(-nearness, kind="stable")[: self.context.context_sentences]
            order = self._within_budget(several, nearest.tolist())
            if self.context.context_order == "text":
                order = sorted(order)
            chosen.append(join_passage_sentences([several[number] for number in order]))
        return chosen

    def _within_budget(self, sentences: list[dict], order: list[int]) -> list[int]:
        """Return, in order, the numbers of the sentences that fit the token budget; sentences too long are skipped."""
        if (left := self.options.context_tokens) is None:
            return order
        taken = []
        for number in order:
            length = len(self.limit.tokenizer.encode(sentences[number]["text"], add_special_tokens=False).ids)
            if length <= left:
                taken.append(number)
                left -= length
        return taken


def context_text(question: dict, passages: list[dict]) -> str:
    """Return the text for the reader: the exam's context, if any, then `title`, `section` and `text` of passages."""
    given = [question["context"]] if question["context"] else []
    return "\n".join(given + [titled_chunk(p["title"], p["section"], p["text"]) for p in passages])


def _count(questions: list[dict], contexts: list[dict]) -> dict[str, int]:
    """Return how many questions have no context, name their gold article (column `title`), and found it."""
    gold = [(q["title"], c["passages"]) for q, c in zip(questions, contexts, strict=True) if q.get("title")]
    counts = {"questions": len(questions), "empty": sum(not each["context"] for each in contexts), "gold": len(gold)}
    return counts | {"found": sum(title in {passage["title"] for passage in found} for title, found in gold)}
