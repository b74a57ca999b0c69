"""From rankings to contexts: cross-encoder, sentences, figures of retrieval."""

import math
import shutil

import numpy as np
import pytest
import transformers
from conftest import write_jsonl
from sentence_transformers import CrossEncoder

from sciqa.ask.options import AskOptions
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, model_file_tokenizer
from sciqa.corpus.chunking import split_sentences, titled_chunk
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import ExamOptions, open_exam
from sciqa.retrieval import EvaluateOptions, IndexOptions, RetrieveOptions, build_index, evaluate_or_retrieve, retrieve
from sciqa.retrieval.contexts import FindContexts
from sciqa.retrieval.evaluate import evaluate_question
from sciqa.retrieval.index import index_identity, read_index_manifest
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import ContextOptions
from sciqa.retrieval.passage_sentences import join_passage_sentences, passage_sentences
from sciqa.retrieval.queries import query_texts
from sciqa.retrieval.search import LocalSearch

MINILM = "all-MiniLM-L6-v2"


def find(tmp_path, small_index, exam, **options):
    options = RetrieveOptions(output=str(tmp_path), index=f"{small_index}/index", exam=exam, **options)
    retrieve(options)
    return tables.read_table(options.contexts).to_pylist()


def test_sentences_nearest_to_the_question_within_a_budget(tmp_path, small_index, exam_file):
    settings = {"context_passages": 3, "context_tokens": 60}
    text = find(tmp_path / "text", small_index, exam_file, **settings)
    nearest = find(tmp_path / "nearest", small_index, exam_file, context_order="nearest", **settings)
    fewer = find(tmp_path / "fewer", small_index, exam_file, context_passages=3, context_sentences=1)
    tokenizer = model_file_tokenizer(MINILM)
    moved = 0
    for row, other, single in zip(text, nearest, fewer, strict=True):
        known = [s.strip() for passage in row["passages"][:3] for s in split_sentences(passage["text"])]
        used = [sentence for sentence in known if sentence in row["context"]]
        assert 0 < sum(len(tokenizer.encode(sentence, add_special_tokens=False).ids) for sentence in used) <= 60
        places = [row["context"].index(sentence) for sentence in used]
        assert places == sorted(places)
        assert sorted(used) == sorted(sentence for sentence in known if sentence in other["context"])
        moved += row["context"] != other["context"]
        (best,) = [sentence for sentence in known if sentence in single["context"]]
        assert best in other["context"][: len(best) + 80]
    assert moved


def test_sentences_of_a_question_for_which_nothing_was_found(tmp_path, small_index):
    rows = [{"prompt": prompt, "A": "qqzx", "B": "zzyq", "answer": "A"} for prompt in ("Xqzzq?", "What is the sun?")]
    write_jsonl(tmp_path / "exam.jsonl", rows)
    how = {"dense": (), "words": ("prompt",), "context_sentences": 2, "evidence": False}
    nothing, some = find(tmp_path / "run", small_index, str(tmp_path / "exam.jsonl"), **how)
    assert nothing["passages"] == []
    assert nothing["context"] == ""
    assert some["context"]
    # One line tells of empty contexts, and a table of nothing else is not kept.
    options = RetrieveOptions(
        output=str(tmp_path / "run"), index=f"{small_index}/index", exam=str(tmp_path / "exam.jsonl"), **how
    )
    assert "contexts of 2 questions, 1 of them empty (nothing was found" in retrieve(options).made
    with pytest.raises(InputError, match=r"every context is empty \(.* no sentence of at most --context-tokens\)"):
        find(tmp_path / "none", small_index, str(tmp_path / "exam.jsonl"), context_tokens=1)
    assert not (tmp_path / "none/contexts").exists()


def test_no_more_passages_are_asked_for_than_there_are(tmp_path, small_index, exam_file):
    many = {"top_k": 10**12, "depth": 10**13, "evidence": False}
    passages = read_index_manifest(f"{small_index}/index")["rows"]
    assert {len(row["passages"]) for row in find(tmp_path, small_index, exam_file, **many)} == {passages}


def test_as_many_passages_of_one_ranking_are_reranked_as_of_several(small_index):
    how = {"dense": ("options",), "words": (), "rerank": MINILM, "rerank_passages": 7}
    options = AskOptions(question="Why?", output=small_index, **how)
    index = LocalSearch(options.index, read_index_manifest(options.index))
    finder = FindContexts(None, options, index, options.embed_on("cpu", 2), ContextOptions())
    finder.take([options.as_row()])
    assert [len(passages) for passages in finder._passages(7)] == [7]


def test_a_sentence_that_two_passages_have_counts_once():
    texts = ["Iron is a metal. It rusts.", "It rusts. It melts."]
    passages = [
        {"passage_id": str(n), "title": "Iron", "section": "", "text": text, "score": 1.0}
        for n, text in enumerate(texts)
    ]
    passages.append(passages[0] | {"passage_id": "2", "title": "Steel", "text": "It rusts."})
    sentences = passage_sentences(passages)
    found = [(each["passage_id"], each["text"]) for each in sentences]
    assert found == [("0", "Iron is a metal."), ("0", "It rusts."), ("1", "It melts."), ("2", "It rusts.")]
    joined = [each["text"] for each in join_passage_sentences(sentences)]
    assert joined == ["Iron is a metal. It rusts.", "It melts.", "It rusts."]


@pytest.mark.slow
def test_a_cross_encoder_puts_the_passages_in_its_order(tmp_path, small_index, exam_file):
    folder = tmp_path / "judge"
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_model(MINILM).folder)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.set_seed(0)
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **size)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    plain = find(tmp_path / "plain", small_index, exam_file, top_k=8)
    judged = find(tmp_path / "run", small_index, exam_file, rerank=str(folder), rerank_passages=8, top_k=3)
    judge = CrossEncoder(str(folder))
    questions = tables.read_table(f"{tmp_path}/run/exam.parquet").to_pylist()
    changed = 0
    for question, before, after in zip(questions, plain, judged, strict=True):
        ((asked,),) = query_texts([question], "whole")
        texts = [titled_chunk(p["title"], p["section"], p["text"]) for p in before["passages"]]
        scores = judge.predict([(asked, text) for text in texts])
        best = np.argsort(-scores, kind="stable")[:3]
        assert [p["passage_id"] for p in after["passages"]] == [before["passages"][n]["passage_id"] for n in best]
        np.testing.assert_allclose([p["score"] for p in after["passages"]], scores[best], atol=1e-4)
        changed += best.tolist() != [0, 1, 2]
    assert changed


def test_figures_of_a_rank():
    assert evaluate_question(1) == {"recall_at_1": 1, "recall_at_5": 1, "recall_at_10": 1, "mrr": 1, "ndcg_at_10": 1}
    assert evaluate_question(3)["mrr"] == pytest.approx(1 / 3)
    assert evaluate_question(3)["ndcg_at_10"] == pytest.approx(1 / math.log2(4))
    assert (evaluate_question(3)["recall_at_1"], evaluate_question(3)["recall_at_5"]) == (0, 1)
    assert set(evaluate_question(0).values()) == {0}
    assert evaluate_question(11) == {
        "recall_at_1": 0,
        "recall_at_5": 0,
        "recall_at_10": 0,
        "mrr": 1 / 11,
        "ndcg_at_10": 0,
    }


def test_evaluation_agrees_with_the_contexts_that_the_same_queries_find(tmp_path, small_index, exam_file):
    options = {"index": f"{small_index}/index", "exam": exam_file}
    made = evaluate_or_retrieve(EvaluateOptions(output=str(tmp_path / "all"), evaluate=True, **options))
    rows = tables.read_table(made.path).to_pylist()
    gold = tables.read_table(f"{tmp_path}/all/exam.parquet")["title"].to_pylist()
    for dense, words in ((("mean",), ()), ((), ("prompt",)), (("mean",), ("options",))):
        (row,) = [row for row in rows if (row["dense"], row["words"]) == (list(dense), list(words))]
        found = find(tmp_path / "-".join(dense + words), small_index, exam_file, dense=dense, words=words, top_k=20)
        articles = [list(dict.fromkeys(p["title"] for p in contexts["passages"])) for contexts in found]
        for k in (1, 5):
            hits = [title in names[:k] for title, names in zip(gold, articles, strict=True)]
            assert row[f"recall_at_{k}"] == pytest.approx(np.mean(hits)), (dense, words, k)
        assert row["questions"] == len(gold)
    exam = open_exam(ExamOptions(output=str(tmp_path / "all"))).sha256
    assert {(row["exam"], row["index"]) for row in rows} == {
        (exam, index_identity(read_index_manifest(options["index"])))
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 5}, "--depth: 5 given, at least 10 expected"),
        ({"factory": "IVF4,Flat"}, "built with --factory Flat, not IVF4,Flat; leave --factory out"),
        ({"passage_prefix": "passage: "}, "built with --passage-prefix '', not 'passage: '"),
        ({"rerank": MINILM}, "--rerank: --evaluate measures the rankings before it; leave it out"),
        ({}, "exam.jsonl: no question has a title"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, small_index, wrong, message):
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"id": "1", "prompt": "Which?", "A": "x", "B": "y", "title": ""}\n')
    options = {"index": f"{small_index}/index", "exam": str(exam), "output": str(tmp_path / "run")}
    with pytest.raises(InputError, match=message):
        evaluate_or_retrieve(EvaluateOptions(evaluate=True, **options, **wrong))
    if "factory" in wrong:
        with pytest.raises(InputError, match=message):
            evaluate_or_retrieve(EvaluateOptions(**options, **wrong))
    assert not (tmp_path / "run/retrieval.parquet").exists()


def test_an_exam_without_gold_articles_cannot_be_evaluated(tmp_path, small_index):
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"id": "1", "prompt": "Which?", "A": "x", "B": "y"}\n')
    options = {"index": f"{small_index}/index", "exam": str(exam), "output": str(tmp_path / "run")}
    with pytest.raises(InputError, match="no column 'title'"):
        evaluate_or_retrieve(EvaluateOptions(evaluate=True, **options))


@pytest.mark.slow
def test_prefixes_come_from_the_model_or_the_options(tmp_path, cluster, corpus_file):
    folder = tmp_path / "model"
    shutil.copytree(find_model(MINILM).folder, folder)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: ", "document": "d: "}}')
    options = IndexOptions(output=str(tmp_path / "run"), embedder=str(folder))
    assert (options.prefix("query"), options.prefix("passage")) == ("q: ", "d: ")
    assert IndexOptions(embedder=str(folder), passage_prefix="p: ").prefix("passage") == "p: "
    assert IndexOptions().prefix("query") == ""
    build_passages(CorpusOptions(output=options.output, corpus=(corpus_file,), shard_passages=400))
    build_index(options)
    (shard,) = storage.read_json(f"{options.output}/index/manifest.json")["shards"]
    row = tables.read_table(f"{options.output}/index/{shard['name']}/passages.parquet").slice(0, 1).to_pylist()[0]
    text = "d: " + titled_chunk(row["title"], row["section"], row["text"])
    vector = np.load(f"{options.output}/index/{shard['name']}/vectors.npy")[0]
    assert vector @ load_embedder(MINILM, threads=1).encode([text])[0] > 0.9999


def test_a_changed_shard_keeps_the_vectors_of_what_it_still_holds(tmp_path, cluster, corpus_file):
    settings = {"output": str(tmp_path), "shard_passages": 25}
    build_passages(CorpusOptions(corpus=(corpus_file,), **settings))
    build_index(IndexOptions(output=str(tmp_path)))
    path = tmp_path / "index" / "00000-00000"
    before, names = (
        np.load(path / "vectors.npy"),
        tables.read_table(str(path / "passages.parquet"))["title"].to_pylist(),
    )
    (tmp_path / "gone.txt").write_text(names[4])
    build_passages(CorpusOptions(corpus=(corpus_file,), remove=str(tmp_path / "gone.txt"), **settings))
    summary = build_index(IndexOptions(output=str(tmp_path)))
    assert summary.details["built"] == 1
    kept = [row for row, name in enumerate(names) if name != names[4]]
    np.testing.assert_array_equal(np.load(path / "vectors.npy"), before[kept])


def test_another_factory_keeps_the_vectors(tmp_path, small_index):
    shutil.copytree(small_index, tmp_path / "run")
    files = sorted((tmp_path / "run" / "index").glob("*/vectors.npy"))
    before = [file.stat().st_mtime_ns for file in files]
    options = {"output": str(tmp_path / "run"), "factory": "IVF4,Flat"}
    assert build_index(IndexOptions(**options)).details == {"built": len(files), "kept": 0}
    assert build_index(IndexOptions(**options)).details == {"built": 0, "kept": len(files)}
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(InputError, match=r"--factory PQ7: FAISS makes no index of 384 dimensions"):
        build_index(IndexOptions(**options | {"factory": "PQ7"}))
    with pytest.raises(Exception, match=r"cannot be trained on \d+ vectors"):
        build_index(IndexOptions(**options | {"factory": "IVF4096,Flat"}))
