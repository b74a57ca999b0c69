"""Evidence: the sentence and the clause that decide on an option, in the tables and for right and wrong options."""

import numpy as np
import pytest

from sciqa.core import tables
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.retrieval.embedder import embed_one_by_one
from sciqa.retrieval.evidence import find_evidence, split_evidence_clauses
from sciqa.retrieval.load_embedder import load_embedder

TEXT = (
    "Iron is a metal with many uses. In moist air it rusts, since oxygen and water attack it (slowly at first); "
    "oil keeps both away. Its ores were smelted long before steel was known."
)


@pytest.fixture(scope="module")
def embed():
    embedder = load_embedder("all-MiniLM-L6-v2", 2)
    return lambda texts, kind: embed_one_by_one(embedder, texts, kind=kind)


def question(**options):
    return {"id": "1", "prompt": "Why does iron decay outdoors?", "answer": "A", **options}


def test_clauses_cover_a_sentence_and_none_is_a_fragment():
    sentence = TEXT.split(". ")[1]
    clauses = [sentence[start:end] for start, end in split_evidence_clauses(sentence)]
    assert " ".join(clauses) == sentence
    assert clauses[0] == "In moist air it rusts,"
    assert all(len(clause.split()) >= 4 for clause in clauses)
    assert split_evidence_clauses("It rusts, fast.") == [(0, 15)]
    assert split_evidence_clauses("A") == [(0, 1)]


def test_each_option_has_its_own_sentence_and_clause(embed):
    passage = {"passage_id": "p", "title": "Iron", "text": TEXT}
    asked = question(A="Water and oxygen attack the metal", B="People smelted its ores before steel")
    (found,) = find_evidence([asked], [[passage]], embed)
    assert [each["sentence"][:7] for each in found] == ["In mois", "Its ore"]
    assert all(each["sentence"] in TEXT and each["title"] == "Iron" for each in found)
    first = found[0]
    assert "oxygen and water" in first["sentence"][first["start"] : first["end"]]
    assert all(each["score"] <= 0 for each in found)


def test_no_other_question_and_no_order_changes_it(embed):
    passages = [{"passage_id": str(n), "title": "Iron", "text": text} for n, text in enumerate((TEXT, "Tin is soft."))]
    one, other = question(A="It rusts", B="It melts"), question(A="Tin", B="Steel", C="Oil keeps water away")
    alone = find_evidence([one], [passages], embed)[0]
    assert find_evidence([other, one, one], [passages, [], passages], embed)[1:] == [None, alone]
    turned = find_evidence([one | {"A": one["B"], "B": one["A"]}], [passages[::-1]], embed)[0]
    assert [{**each, "score": 0} for each in turned[::-1]] == [{**each, "score": 0} for each in alone]


def test_answers_hold_the_evidence_of_the_option_ranked_first(tmp_path, cluster, exam_file, small_index):
    common = {"output": str(tmp_path), "exam": exam_file}
    retrieve(RetrieveOptions(index=f"{small_index}/index", **common))
    contexts = tables.read_table(str(tmp_path / "contexts")).to_pylist()
    answers = tables.read_table(predict(PredictOptions(reader="overlap", **common)).path).to_pylist()
    for context, answer in zip(contexts, answers, strict=True):
        assert answer["evidence"] == context["evidence"]["ABCD".index(answer["ranking"][0])]
        assert answer["evidence"]["sentence"] in context["context"]
    assert all(
        row["evidence"] is None
        for row in tables.read_table(predict(PredictOptions(reader="longest", **common)).path).to_pylist()
    )
    retrieve(RetrieveOptions(index=f"{small_index}/index", evidence=False, overwrite=True, **common))
    assert tables.read_table(str(tmp_path / "contexts"))["evidence"].null_count == len(contexts)


def test_right_options_have_their_evidence_in_the_gold_article_more_often(embed):
    """Passages: the gold article of a question, and that of the next question."""
    from sciqa.corpus.articles import read_articles

    texts = {article["title"]: article["text"] for article in read_articles("demo")}
    rows = read_exam("validation").to_pylist()[:60]
    titles = [(row["title"], after["title"]) for row, after in zip(rows, [*rows[1:], rows[0]], strict=True)]
    read = [[{"passage_id": t, "title": t, "text": texts[t]} for t in pair] for pair in titles]
    right, wrong, annotated = [], [], []
    for row, found in zip(rows, find_evidence(rows, read, embed), strict=True):
        for letter, each in zip(answer_options_of(row), found, strict=True):
            (right if letter == row["answer"] else wrong).append(each["title"] == row["title"])
            if letter == row["answer"]:
                gold = row["evidence"].split(" … ")
                annotated.append(any(each["sentence"] in text or text in each["sentence"] for text in gold))
    assert np.mean(right) > np.mean(wrong)
    assert np.mean(right) > 0.95
    assert np.mean(annotated) > 0.8
