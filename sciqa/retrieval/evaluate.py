"""Measure retrieval: recall@k, MRR and nDCG of every kind of query, against the gold article or passage."""

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.summary import Summary
from sciqa.exam.open_exam import open_exam
from sciqa.retrieval.contexts import retrieve
from sciqa.retrieval.index import check_index, check_index_built_as, index_identity, is_same_index, read_index_manifest
from sciqa.retrieval.options import EvaluateOptions, Query, RetrieveOptions
from sciqa.retrieval.queries import QueryRanker, run_query_workers
from sciqa.retrieval.search import fuse_search_hits

#: Combinations of queries (dense, BM25) to measure; the rankings of a combination are fused.
SETTINGS: tuple[tuple[tuple[Query, ...], tuple[Query, ...]], ...] = (
    (("prompt",), ()),
    (("whole",), ()),
    (("mean",), ()),
    (("options",), ()),
    ((), ("prompt",)),
    ((), ("whole",)),
    ((), ("options",)),
    (("mean",), ("prompt",)),
    (("mean",), ("whole",)),
    (("mean",), ("options",)),
    (("mean",), ("prompt", "whole")),
    (("mean",), ("prompt", "options")),
    (("options",), ("options",)),
)
CUTS = (1, 5, 10)
SCHEMA = pa.schema(
    [("dense", pa.list_(pa.string())), ("words", pa.list_(pa.string())), ("questions", pa.int64())]
    + [(f"recall_at_{k}", pa.float64()) for k in CUTS]
    + [("mrr", pa.float64()), ("ndcg_at_10", pa.float64())]
    + [("exam", pa.string()), ("index", pa.string())]
)
FIGURES = SCHEMA.names[3:-2]


def evaluate_or_retrieve(options: EvaluateOptions) -> Summary:
    """Write the contexts table, or measure retrieval if `evaluate` is set; see `retrieve` and `evaluate`."""
    return evaluate(options) if options.evaluate else retrieve(options)


def evaluate(options: RetrieveOptions) -> Summary:
    """Measure all `SETTINGS` and write the figures to OUTPUT/retrieval.parquet.

    Its columns `exam` and `index` tell by their hashes what was measured.

    Raises:
        InputError: a bad exam or index, an exam without gold articles or passages, fewer passages than are measured, or
            a reranker, which is not.
    """
    started = time.monotonic()
    if options.rerank:
        raise InputError("--rerank: --evaluate measures the rankings before it; leave it out")
    if options.depth < max(CUTS):
        raise InputError(f"--depth: {options.depth} given, at least {max(CUTS)} expected for recall@{max(CUTS)}")
    # Retrieval may be measured on another exam, which must not replace that of the run.
    aside = options.exam and storage.path_exists(storage.join_paths(options.output, "exam.parquet"))
    file = "evaluated.parquet" if aside else "exam.parquet"
    options = replace(options, overwrite=bool(aside))
    exam = open_exam(options, write=False, file=file)
    check_index(options)
    index = read_index_manifest(options.index)
    check_index_built_as(options, index)
    if not set(exam.columns) & {"title", "passage_id"}:
        raise InputError(f"{exam.name}: no column 'title' (gold article) or 'passage_id' to measure retrieval by")
    open_exam(options, file=file)
    sums: Counter = Counter()
    for row in run_query_workers(EvaluateRankings, exam, options, index, list(range(exam.shards))):
        sums.update(dict(zip(row["names"], row["sums"], strict=True)))
    if not sums["gold"]:
        raise InputError(f"{exam.name}: no question has a title (gold article) or a passage_id to measure retrieval by")
    measured = {"exam": exam.sha256, "index": index_identity(index)}
    if not is_same_index(options.index, measured["index"]):
        raise InputError(f"{options.index}: built anew while it was searched; run this step again")
    rows: list[dict] = []
    for number, (dense, words) in enumerate(SETTINGS):
        figures = {name: sums[f"{number} {name}"] / sums["gold"] for name in FIGURES}
        rows.append({"dense": dense, "words": words, "questions": int(sums["gold"]), **figures})
    path = storage.join_paths(options.output, "retrieval.parquet")
    tables.write_table(path, pa.Table.from_pylist([row | measured for row in rows], schema=SCHEMA))
    best = max(rows, key=lambda row: (row["recall_at_5"], row["mrr"]))
    made = f"{len(rows)} settings on {int(sums['gold']):,} questions; best recall@5 {best['recall_at_5']:.3f} by "
    made += " and ".join(f"{kind} {' '.join(best[kind])}" for kind in ("dense", "words") if best[kind])
    return Summary("retrieve", path, made, time.monotonic() - started, {"evaluation": rows})


def evaluate_question(rank: int) -> dict[str, float]:
    """Return the metrics of one question.

    Args:
        rank: rank of the gold article among the distinct articles found, from 1; 0 if it was not found. With one
            relevant item, nDCG is 1 / log2(1 + rank) (Järvelin and Kekäläinen 2002).
    """
    figures = {f"recall_at_{k}": float(0 < rank <= k) for k in CUTS}
    figures["mrr"] = 1 / rank if rank else 0.0
    figures["ndcg_at_10"] = 1 / float(np.log2(1 + rank)) if 0 < rank <= 10 else 0.0
    return figures


class EvaluateRankings(QueryRanker):
    """Ray Data worker that ranks one shard of questions at a time by every setting."""

    def __call__(self, row: dict) -> dict:
        """Return sums of the metrics over the shard of questions with the number `row["part"]`."""
        questions = self.read(row["part"])
        asked = [question for question in questions if question.get("title") or question.get("passage_id")]
        self.take(asked)
        sums: Counter = Counter(gold=len(asked))
        for number, fused in enumerate(self._rankings() if asked else ()):
            for question, passages in zip(asked, fused, strict=True):
                figures = evaluate_question(_rank_of(question, passages))
                sums.update({f"{number} {name}": figure for name, figure in figures.items()})
        values = [float(value) for value in sums.values()]
        return {"questions": len(questions), "names": list(sums), "sums": values, "notes": self.embedder.notes}

    def _rankings(self) -> list[list[list[dict]]]:
        """Return the passages for every setting and question, best first; each passage is fetched only once."""
        depth = self.options.depth
        lists = {
            (kind, query): rank(query, depth)
            for kind, rank in enumerate((self.rank_dense, self.rank_words))
            for query in {query for setting in SETTINGS for query in setting[kind]}
        }
        fused = [
            fuse_search_hits(
                [hits for kind in (0, 1) for query in setting[kind] for hits in lists[kind, query]], depth
            ).rows
            for setting in SETTINGS
        ]
        rows = np.unique(np.concatenate([found[found >= 0] for found in fused]))
        passages = dict(zip(rows.tolist(), self.index.passages(rows), strict=True))
        return [[[passages[row] for row in found.tolist() if row >= 0] for found in setting] for setting in fused]


def _rank_of(question: dict, passages: list[dict]) -> int:
    """Return the rank of the gold passage, or of the gold article among the distinct ones, from 1; 0 if not found."""
    if question.get("passage_id"):
        names, gold = [passage["passage_id"] for passage in passages], question["passage_id"]
    else:
        names, gold = list(dict.fromkeys(passage["title"] for passage in passages)), question["title"]
    return names.index(gold) + 1 if gold in names else 0
