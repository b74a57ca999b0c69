"""The contamination audit: what is the same, what is near, which words stand elsewhere, and the scores on the rest."""

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_jsonl
from test_report import READERS, SURE, make_run, write_audit
from test_sources import write_pdf

from sciqa.audit import audit as step
from sciqa.audit import sources
from sciqa.audit.compare_questions import compare_question_cosines, compare_question_vectors
from sciqa.audit.contamination import (
    ContaminationFindings,
    contamination_rows,
    contamination_slice_scores,
    contamination_slices,
    contamination_summary,
    read_contamination,
)
from sciqa.audit.options import AuditOptions
from sciqa.audit.sources import read_other_sources
from sciqa.audit.words import ExamWords, question_words, share_of_words_found, split_words
from sciqa.cli_results import print_cli_results
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED
from sciqa.exam import ExamOptions, open_exam
from sciqa.exam.finished_answers import readers_of_finished_answers
from sciqa.exam.metrics import score_metrics
from sciqa.exam.question_key import question_key, question_keys_with_context
from sciqa.predict.results import METRICS as RESULTS
from sciqa.predict.results import result_metrics_path
from sciqa.report import ReportOptions, report

GAS = "Which gas do plants take in during photosynthesis?"
EXAM = [
    {"prompt": GAS, "A": "Carbon dioxide", "B": "Helium", "C": "Argon", "answer": "A", "title": "Plant"},
    {"prompt": "Why do most ships of steel float on water?", "A": "They are magnetic", "answer": "C", "title": "Ship"}
    | {"B": "Water is sticky", "C": "They displace water of at least their own weight"},
    {"prompt": "Which metal is liquid at room temperature?", "A": "Iron", "B": "Mercury", "C": "Tin", "answer": "B"}
    | {"title": "Metal"},
    {"prompt": "Who wrote the play about a prince of Denmark?", "A": "Marlowe", "B": "Shakespeare", "answer": "B"},
]
EXAM = [{"id": f"q{number}"} | row for number, row in enumerate(EXAM, 1)]
#: A copy of q1 with its options in another order, q2 in other words, a question on the article of q3, and another one.
COPY = {"id": "t1", "prompt": f"{GAS[:-1].upper()} ?", "A": "argon", "B": "helium.", "C": "carbon  dioxide"}
PARAPHRASE = {"id": "t2", "prompt": "Why is it that most ships made of steel float on water?", "A": "Water is sticky"}
PARAPHRASE |= {"B": "They are magnetic", "C": "They displace water of no less than their own weight"}
ARTICLE = {"id": "t3", "prompt": "How dense is lead?", "A": "Very", "B": "Not at all", "title": "Metal"}
OTHER = {"id": "t4", "prompt": "In which year did the war begin?", "A": "1914", "B": "1918"}
#: Ten words of q2 with its right option, over the end of the prompt, and four words of q4.
TEXTS = [
    {"title": "Boats", "text": "Ships OF steel float on water: they displace water of another weight."},
    {"title": "Ships", "text": "Nothing. Of steel, float on water. They displace water! Of a prince of Denmark."},
    {"title": "Gases", "text": "Plants take in a gas."},
]


def write(path, rows):
    write_jsonl(path, rows)
    return str(path)


def test_the_same_question_is_known_in_any_order_of_its_options():
    question = {"prompt": "Is H₂O “wet”?", "A": "It is 0.5", "B": "-5", "C": "no", "answer": "B"}
    turned = {"prompt": 'is  H2O "wet"', "A": "No.", "B": "it is 0.5", "C": "-5", "answer": "A"}
    assert question_key(question) == question_key(turned)
    for other in ({"B": "5"}, {"A": "It is 05"}, {"C": "nothing"}, {"D": "no"}, {"prompt": "Is H2O dry?"}):
        assert question_key(question) != question_key(question | other)
    asked, read = (question_keys_with_context(1, context) for context in ("A text.", "a  TEXT."))
    assert set(asked[1]) & set(read[0])
    without = question_keys_with_context(1, None)
    assert set(asked[1]) & set(without[0])
    assert set(without[1]) & set(asked[0])
    assert not set(asked[1]) & set(question_keys_with_context(1, "Another text.")[0])
    assert split_words("It's CO₂, _5_ µm") == ["it", "s", "co2", "5", "μm"]
    assert question_words(question) == (["is", "h2o", "wet", "5"], 3)
    assert question_words(question | {"answer": None}) == (["is", "h2o", "wet"], 3)


def contains(text, gram):
    return any(text[at : at + len(gram)] == gram for at in range(len(text) - len(gram) + 1))


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_runs_and_shares_are_those_of_a_plain_search(seed):
    drawn = random.Random(seed)
    questions = [[drawn.choice("abc") for _ in range(drawn.randint(0, 14))] for _ in range(30)]
    texts = [[drawn.choice("abcd") for _ in range(drawn.randint(0, 30))] for _ in range(12)]
    runs = ExamWords(questions, seed).runs(texts)
    found = {number: [] for number in range(len(questions))}
    for question, start, length, text in zip(*(each.tolist() for each in runs), strict=True):
        assert contains(texts[text], questions[question][start : start + length])
        found[question].append((start, length))
    for number, words in enumerate(questions):
        sizes = range(seed, len(words) + 1)
        held = [
            n for n in sizes if any(contains(t, words[at : at + n]) for t in texts for at in range(len(words) - n + 1))
        ]
        assert max((length for _, length in found[number]), default=0) == max(held, default=0)
        for ngram in (seed, 6):
            size = min(ngram, len(words))
            grams = [words[at : at + size] for at in range(len(words) - size + 1)]
            expected = np.mean([any(contains(text, gram) for text in texts) for gram in grams])
            assert share_of_words_found(found[number], len(words), ngram, seed) == (expected if size >= seed else None)
    assert not len(ExamWords(questions, seed).runs([]).lengths)
    assert not len(ExamWords([[]], seed).runs(texts).lengths)


def test_a_share_counts_ngrams_of_the_prompt_and_short_ones_as_a_whole():
    assert share_of_words_found([(2, 9)], words=10, ngram=8, seed=5) == pytest.approx(1 / 3)
    assert share_of_words_found([(0, 6)], words=6, ngram=8, seed=5) == 1.0
    assert share_of_words_found([(1, 5)], words=6, ngram=8, seed=5) == 0.0
    assert share_of_words_found([(0, 4)], words=4, ngram=8, seed=5) is None


def test_the_nearest_vector_does_not_depend_on_what_else_is_compared():
    vectors = np.random.default_rng(0).normal(size=(300, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[200] = vectors[7]
    asked = vectors[[7, 40]] + 0.05 * vectors[[1, 2]]
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    first, second = compare_question_vectors(asked, vectors)
    assert [at for at, _ in first] == [7, 200]
    assert second == [(40, compare_question_cosines(asked[1], vectors[[40]])[0])]
    alone = [
        max(next(compare_question_vectors(asked[1:], vectors[at : at + 7])), key=lambda pair: pair[1])[1]
        for at in range(0, 300, 7)
    ]
    assert max(alone) == second[0][1]


def against_of(folder, *names):
    rows = {"first": [OTHER, COPY], "second": [ARTICLE, PARAPHRASE | {"answer": "C"}]}
    return tuple(write(folder / f"{name}.jsonl", rows[name]) for name in names)


@pytest.fixture
def base(tmp_path, cluster):
    """Options of an audit of the exam against two files and a corpus."""
    corpus = (write(tmp_path / "texts.jsonl", TEXTS[:1]), write(tmp_path / "more.jsonl", TEXTS[1:]))
    return {"exam": write(tmp_path / "exam.jsonl", EXAM), "against": against_of(tmp_path, "first", "second")} | {
        "corpus": corpus
    }


def test_copies_paraphrases_articles_and_words_are_found(tmp_path, base, monkeypatch, capsys):
    made = step.audit(AuditOptions(output=str(tmp_path / "run"), **base))
    rows = tables.read_table(made.path).to_pylist()
    assert [row["id"] for row in rows] == ["q1", "q2", "q3", "q4"]
    assert [row["kind"] for row in rows] == ["exact", "near", "same article", "clean"]
    assert [(row["nearest_source"], row["nearest"]) for row in rows[:2]] == [
        ("first.jsonl", "t1"),
        ("second.jsonl", "t2"),
    ]
    assert rows[0]["cosine"] > 0.98
    assert 0.9 <= rows[1]["cosine"] < 0.999
    assert all(row["cosine"] < 0.6 for row in rows[2:])
    # Of q1 the prompt has 8 words, one 8-gram, and its right option stands after it in the copy.
    assert [rows[0][name] for name in ("question_prompt_share", "question_share", "question_run")] == [1, 1, 10]
    # Of q2, "ships made of steel" breaks the run; the right option of nine words follows "no less than".
    assert rows[1]["question_run"] == 9
    assert (rows[1]["question_run_source"], rows[1]["question_run_id"]) == ("second.jsonl", "t2")
    assert rows[1]["question_share"] == pytest.approx(2 / 11)
    # q2 has 18 words, eleven 8-grams, of which the first text holds "ships of steel … displace water of".
    assert rows[1]["passage_run"] == 10
    assert rows[1]["passage_share"] == pytest.approx(3 / 11)
    assert (rows[1]["passage"], rows[1]["passage_title"]) == (base["corpus"][0], "Boats")
    assert [row["passage_run"] for row in rows] == [0, 10, 0, 0]
    counts = "2 of 4 questions stand in first.jsonl, second.jsonl (1 exact, 1 near); with only their article there: 1"
    assert made.made == f"{counts}; 1 of 4 questions have an n-gram of 8 words in texts.jsonl, more.jsonl"
    print_cli_results([made], 0.0)
    assert re.search(r"q1 +│ exact +│ t1", capsys.readouterr().out)
    # Another order of files, other shards and parts change nothing.
    monkeypatch.setattr(step, "QUESTIONS", 1)
    monkeypatch.setattr(sources, "PART_BYTES", 20)
    turned = {name: base[name][::-1] for name in ("against", "corpus")}
    again = step.audit(AuditOptions(output=str(tmp_path / "again"), shard_questions=3, **base | turned))
    assert tables.read_table(again.path).to_pylist() == rows
    assert len(storage.list_files(again.path, "parquet")) == 2


def test_what_of_a_corpus_is_not_compared_is_named(tmp_path, cluster, monkeypatch, capsys):
    papers = tmp_path / "papers"
    papers.mkdir()
    write(papers / "texts.jsonl", TEXTS)
    (papers / "notes.docx").write_bytes(b"x")
    (papers / "empty.txt").write_text("")
    write_pdf(papers / "scan.pdf")
    write_pdf(papers / "secret.pdf", "Secret", user_password="a", owner_password="b")
    exam = write(tmp_path / "exam.jsonl", EXAM)
    options = AuditOptions(output=str(tmp_path / "run"), exam=exam, corpus=(str(papers),))
    expected = ("notes.docx: an archive or document", "empty.txt: no text", "scan.pdf: no text")
    expected += ("secret.pdf: unreadable PDF: FileNotDecryptedError",)
    for _ in range(2):  # the second run keeps all
        made = step.audit(options)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audit: not compared: ")]
        for line, start in zip(lines, expected, strict=True):
            assert line.startswith(f"audit: not compared: {papers}/{start}")
    assert made.made.endswith("in papers, kept")
    monkeypatch.setattr(sources, "NAMED", 1)
    step.audit(options)
    assert "audit: not compared: 2 more; `sciqa corpus` writes all to" in capsys.readouterr().err


def test_a_corpus_of_which_no_article_is_read_is_bad_input(tmp_path, cluster):
    exam, corpus = write(tmp_path / "exam.jsonl", EXAM), write(tmp_path / "a.jsonl", [])
    options = AuditOptions(output=str(tmp_path / "run"), exam=exam, corpus=(corpus,))
    with pytest.raises(InputError, match=r"a\.jsonl: empty; files with articles expected"):
        step.audit(options)
    write(tmp_path / "a.jsonl", [{"title": "Nothing", "text": " "}])
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.jsonl: 0 articles read; files with articles that have text"):
            step.audit(options)
    write(tmp_path / "a.jsonl", TEXTS)
    assert step.audit(options).made.endswith("1 of 4 questions have an n-gram of 8 words in a.jsonl")


def test_a_corpus_that_changes_while_it_is_read_is_bad_input(tmp_path, cluster, monkeypatch):
    exam, corpus = write(tmp_path / "exam.jsonl", EXAM), write(tmp_path / "a.jsonl", TEXTS)
    monkeypatch.setattr(sources, "find_article_files", lambda *_: [(corpus, [1, 0])])
    with pytest.raises(InputError, match=r"a\.jsonl: changed while the corpus was read, or not the same file on"):
        step.audit(AuditOptions(output=str(tmp_path / "run"), exam=exam, corpus=(corpus,)))


def test_an_audit_that_was_stopped_goes_on_from_its_parts(tmp_path, base, monkeypatch):
    options = AuditOptions(output=str(tmp_path / "run"), **base)
    monkeypatch.setattr(step, "contamination_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step.audit(options)
    assert not list(Path(options.folder).glob("*"))
    monkeypatch.undo()
    monkeypatch.setattr(step.cluster, "cluster_dataset", lambda parts: 1 / 0)
    assert step.audit(options).made.startswith("2 of 4")
    kept = {path: path.stat().st_mtime_ns for path in Path(options.folder).iterdir()}
    assert step.audit(options).made.endswith(", kept")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(path.name for path in (tmp_path / "run" / "_audit").iterdir()) == ["inputs.json", "manifest.json"]
    with pytest.raises(InputError, match=r"made from other inputs .ngram: 8 there, 13 now."):
        step.audit(AuditOptions(output=str(tmp_path / "run"), ngram=13, **base))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_passages_and_an_index_are_looked_up_alike(tmp_path, cluster, small_index, exam_file):
    rows = []
    for number, given in enumerate(({"passages": f"{small_index}/passages"}, {"index": f"{small_index}/index"})):
        made = step.audit(AuditOptions(output=str(tmp_path / str(number)), exam=exam_file, **given))
        rows.append(tables.read_table(made.path).to_pylist())
        assert made.made.endswith("in passages")
    assert rows[0] == rows[1]
    texts = {row["passage_id"]: row["text"] for row in tables.read_table(f"{small_index}/passages").to_pylist()}
    found = [row for row in rows[0] if row["passage_run"]]
    assert found
    questions = {row["id"]: row for row in open_exam(ExamOptions(output=str(tmp_path / "0"))).read_shard(0)}
    for row in found:
        words, run = question_words(questions[row["id"]])[0], row["passage_run"]
        grams = [words[at : at + run] for at in range(len(words) - run + 1)]
        assert any(contains(split_words(texts[row["passage"]]), gram) for gram in grams)
    assert {row["kind"] for row in rows[0]} == {"clean"}
    assert rows[0][0]["question_share"] is rows[0][0]["cosine"] is None


def test_passages_that_are_not_those_of_the_manifest_are_not_looked_up(tmp_path, cluster, small_index, exam_file):
    for name in ("passages", "_passages"):
        shutil.copytree(Path(small_index, name), tmp_path / name)
    shards = tables.read_table_manifest(str(tmp_path / "passages"), "corpus")["shards"]
    first, second = (tmp_path / f"passages/{shard['name']}.parquet" for shard in shards[:2])
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=f"{second}: not the passages that the manifest names; delete this file"):
        step.audit(AuditOptions(output=str(tmp_path), exam=exam_file))


def trained_run(folder, train, validation):
    """Write what `sciqa finetune` leaves of a run's questions, and return the model's folder."""
    model, inputs = folder / "trained" / "reader", {}
    model.mkdir(parents=True)
    for split, rows in (("train", train), ("validation", validation)):
        options = ExamOptions(output=str(folder / split), exam=write(folder / f"{split}.jsonl", rows))
        inputs[f"{split} questions"] = open_exam(options).sha256
    (model / ABOUT_TRAINED).write_text("{}")
    tables.finish_table(str(model), {"inputs": inputs})
    return str(model)


def test_a_trained_model_stands_for_the_questions_it_was_trained_on(tmp_path, capsys):
    model = trained_run(tmp_path, [COPY | {"answer": "A"}], [OTHER | {"answer": "A"}])
    named = read_other_sources(AuditOptions(output=str(tmp_path / "run"), against=(model,)), {})
    assert [(each.name, each.table["id"].to_pylist()) for each in named] == [("train", ["t1"]), ("validation", ["t4"])]
    readers = {"one": {"adapter": model, "model": "some/model"}, "two": {"adapter": None, "model": None}}
    assert read_other_sources(AuditOptions(output=str(tmp_path / "run")), readers) == named
    alike = read_other_sources(AuditOptions(output=str(tmp_path / "run"), against=(model, "train")), {})
    assert [each.name for each in alike] == [f"{tmp_path}/train", "train", "validation"]
    trained_run(tmp_path / "other", [OTHER | {"answer": "A"}], [COPY | {"answer": "B"}])
    (tmp_path / "train" / "exam.parquet").write_bytes((tmp_path / "other/train/exam.parquet").read_bytes())
    with pytest.raises(InputError, match=r"its train questions are not known .* as --against"):
        read_other_sources(AuditOptions(output=str(tmp_path / "run"), against=(model,)), {})
    assert read_other_sources(AuditOptions(output=str(tmp_path / "run")), readers) == []
    assert "not compared" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("answered", [True, False])
def test_trained_readers_are_known_whether_or_not_the_exam_has_answers(tmp_path, answered):
    """From the manifest, or in runs of earlier versions from the metrics, which are empty without answers."""
    model = trained_run(tmp_path, [COPY | {"answer": "A"}], [OTHER | {"answer": "A"}])
    rows = EXAM if answered else [row | {"answer": None} for row in EXAM]
    output = make_run(tmp_path, {"sure": (SURE, {})}, rows, ["a"] * 4)
    if answered:
        path = result_metrics_path(output, "sure")
        metrics = [row | {"adapter": model} for row in tables.read_table(path).to_pylist()]
        tables.write_table(path, pa.Table.from_pylist(metrics, schema=RESULTS))
    else:
        manifest = tables.read_table_manifest(f"{output}/answers/sure", "predict")
        tables.finish_table(f"{output}/answers/sure", manifest | {"adapter": model, "model": "m", "contexts": None})
    readers = readers_of_finished_answers(output, open_exam(ExamOptions(output=output)))
    found = read_other_sources(AuditOptions(output=output), readers)
    assert [each.name for each in found] == ["train", "validation"]


def test_nothing_to_compare_is_bad_input(tmp_path):
    for given in ({}, {"passages": str(tmp_path / "none")}, {"against": ("none.jsonl",)}, {"corpus": ("none.jsonl",)}):
        with pytest.raises(InputError):
            step.audit(AuditOptions(output=str(tmp_path / "run"), exam="test", **given))
    assert not (tmp_path / "run").exists()
    for wrong in ({"ngram": 1}, {"similarity": 0.0}, {"share": 1.2}, {"corpus": ("demo",), "index": "index"}):
        with pytest.raises(InputError):
            AuditOptions(**wrong)


INPUTS = {"against": {"train.jsonl": "hash"}, "texts": "hash", "texts_name": "passages", "ngram": 8}
INPUTS |= {"similarity": 0.9, "share": 0.8}


def test_scores_and_page_part_the_contaminated_questions(tmp_path):
    output = make_run(tmp_path, READERS)
    exam = open_exam(ExamOptions(output=output))
    questions = [question for part in range(exam.shards) for question in exam.read_shard(part)]
    findings = ContaminationFindings()
    findings.add("exact", 0, 1.0, ("train.jsonl", "t1", ""))
    findings.add("near", 0, 0.97, ("train.jsonl", "t9", ""))
    findings.add("near", 2, 0.93, ("train.jsonl", "<t2>", ""))
    findings.add("article", 3, 1.0, ("train.jsonl", "t2", ""))
    findings.add("passage run", 5, 8, ("", "p1", "<Last>"), 0)
    findings.add("near", 1, 0.5, ("train.jsonl", "t9", ""))
    findings.add("question run", 2, 6, ("other.jsonl", "o1", ""))
    inputs = INPUTS | {"exam": exam.sha256}
    rows = contamination_rows(questions, findings, inputs, 2)
    assert [row["kind"] for row in rows] == ["exact", "clean", "near", "same article", "clean", "clean"]
    assert (rows[0]["nearest"], rows[0]["cosine"]) == ("t1", 1.0)
    answers = tables.read_table(f"{output}/answers/sure").to_pylist()
    readers = {"sure": {"answers": answers}}
    scored = {row["slice"]: row for row in contamination_slice_scores(rows, inputs, readers)}
    wanted = {"all": range(6), "clean": (1, 4, 5), "contaminated": (0, 2), "same article": (3,)}
    wanted |= {"8-gram in passages": (5,), "8-gram not in passages": range(5)}
    assert list(scored) == list(wanted)
    for name, numbers in wanted.items():
        expected = score_metrics([answers[number] for number in numbers])
        assert scored[name] == {"reader": "sure", "slice": name} | expected
    assert scored["clean"]["questions"] == 2, "q5 has no answer"
    assert "Contamination" not in Path(report(ReportOptions(output=output)).path).read_text()
    write_audit(output, rows, inputs)
    page = Path(report(ReportOptions(output=output)).path).read_text()
    assert contamination_summary(*read_contamination(output, exam)) in page
    clean = f'<td dir="auto">clean</td><td>sure</td><td>2</td><td>{scored["clean"]["map_at_3"]:.3f} '
    assert clean in page
    marks = re.findall(r'class="stands" dir="auto">([^<]*)<', page)
    assert marks == [
        "exact: train.jsonl t1, cosine 1.00",
        "near: train.jsonl &lt;t2&gt;, cosine 0.93, 6 words in a row in other.jsonl o1",
        "same article as another question",
        "8 words in a row in passages, &lt;Last&gt;",
    ]
    assert '<option value="contamination: clean">contamination: clean (3)</option>' in page


def test_questions_too_short_to_be_looked_up_are_in_no_slice_of_those_that_were():
    inputs = {"against": {}, "texts": "0f", "texts_name": "passages", "ngram": 8}
    rows = [{"kind": "clean", "passage_share": share} for share in (None, 0.0, 0.5)]
    slices = {"all": [0, 1, 2], "8-gram in passages": [2], "8-gram not in passages": [1]}
    assert contamination_slices(rows, inputs) == slices
    assert contamination_summary(rows, inputs).endswith("too short to be looked up there: 1")


def test_an_audit_of_another_exam_is_not_shown(tmp_path):
    output = make_run(tmp_path, {"sure": (SURE, {})})
    exam = open_exam(ExamOptions(output=output))
    write_audit(output, [{"id": row["id"], "kind": "exact"} for row in EXAM], INPUTS | {"exam": "other"})
    assert read_contamination(output, exam) is None
    assert "Contamination" not in Path(report(ReportOptions(output=output)).path).read_text()
