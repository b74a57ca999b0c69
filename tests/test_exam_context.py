"""The exam's own contexts alone, what is found alone, and an exam that is only shown."""

import json
from dataclasses import replace

import pytest
from test_exam_shapes import ASKED, CONTEXTS, SHAPES, save
from tiny import tiny_folder

from sciqa import cli, run_training
from sciqa.audit.options import AuditOptions
from sciqa.core import cluster, storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import ExamOptions, open_exam
from sciqa.predict import PredictOptions, predict
from sciqa.predict.options import PromptOptions
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.run import RunExamOptions, run_exam
from sciqa.run_training import RunFinetuneOptions, run_finetune


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    return save(tmp_path_factory.mktemp("race"), *SHAPES["RACE"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llama")


def test_an_exam_with_contexts_is_answered_without_corpus_and_index(tmp_path, cluster, race, model):
    given = {"exam": race, "output": str(tmp_path), "context": "given", "model": model, "name": "own"}
    made = run_exam(RunExamOptions(**given, corpus=("absent.jsonl",), compare=True, baselines=False, shard_questions=3))
    assert [summary.stage for summary in made] == ["retrieve", "predict", "predict", "report"]
    assert not {"passages", "index"} & set(storage.list_folders(str(tmp_path)))
    contexts = tables.read_table(f"{tmp_path}/contexts").to_pylist()
    assert [row["context"] for row in contexts] == CONTEXTS
    assert [row["passages"] for row in contexts] == [[]] * 4
    folders = storage.list_folders(f"{tmp_path}/answers")
    answers = [tables.read_table(f"{tmp_path}/answers/{name}")["probabilities"].to_pylist() for name in folders]
    assert len(answers) == 2
    assert answers[0] != answers[1], "the context does not reach the reader"
    assert predict(PredictOptions(**given, shard_questions=3)).made.endswith("kept")
    with pytest.raises(InputError, match="contexts: made with --context given"):
        predict(PredictOptions(**given | {"context": "both"}))


def test_contexts_that_were_looked_up_are_not_taken_for_given_ones(tmp_path, race, small_index, model):
    both = {"exam": race, "output": str(tmp_path)}
    retrieve(RetrieveOptions(**both, index=f"{small_index}/index"))
    found = tables.read_table(f"{tmp_path}/contexts").to_pylist()
    alone = RetrieveOptions(**both, context="found", index=f"{small_index}/index")
    assert all(row["context"].startswith(f"{context}\n") for row, context in zip(found, CONTEXTS, strict=True))
    for step in (lambda: predict(PredictOptions(**both, context="given", model=model)), lambda: retrieve(alone)):
        with pytest.raises(InputError, match=r"another exam|made without --context given|made from other inputs"):
            step()
    retrieve(replace(alone, overwrite=True))
    rows = tables.read_table(f"{tmp_path}/contexts").to_pylist()
    assert [f"{own}\n{row['context']}" for own, row in zip(CONTEXTS, rows, strict=True)] == [
        row["context"] for row in found
    ]
    retrieve(RetrieveOptions(**both, context="given", overwrite=True))
    assert [row["passages"] for row in tables.read_table(f"{tmp_path}/contexts").to_pylist()] == [[]] * 4


def test_given_contexts_must_be_there(tmp_path, race):
    path = save(tmp_path, *SHAPES["MMLU"])
    with pytest.raises(InputError, match=r"--context given, but no question has one.*--columns context="):
        run_exam(RunExamOptions(exam=path, output=str(tmp_path / "run"), context="given"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="--reader retrieval: ranks by what is found"):
        PredictOptions(exam=race, context="given", reader="retrieval")


def test_questions_without_a_context_are_counted(tmp_path, capsys):
    kind, cells = SHAPES["SciQ"]
    path = save(tmp_path, kind, [cells[0] | {"support": ""}, *cells[1:]])
    exam = open_exam(ExamOptions(exam=path, output=str(tmp_path / "run"), context="given"))
    assert exam.questions == 4
    said = capsys.readouterr().err
    assert "1 of 4 questions have no context of their own" in said
    assert "correct=correct_answer" in said
    open_exam(ExamOptions(exam=path, output=str(tmp_path / "run"), context="given"))
    assert capsys.readouterr().err == "", "once in a process is enough"


def test_the_runs_own_exam_is_read_whatever_columns_it_keeps(tmp_path):
    kind, cells = SHAPES["SciQ"]
    path = save(tmp_path, kind, [row | {"Subject": "physics"} for row in cells])
    for exam in (path, None):
        assert open_exam(ExamOptions(exam=exam, output=str(tmp_path / "run"), context="given")).questions == 4


@pytest.mark.parametrize("option", [{"columns": ("prompt=question",)}, {"answers_from": "0"}])
def test_how_a_file_is_read_is_refused_where_no_file_is(tmp_path, race, option):
    flag = f"--{next(iter(option)).replace('_', '-')}"
    for exam, what in ((None, "test is packaged"), ("train+direct-train", r"train\+direct-train is packaged")):
        with pytest.raises(InputError, match=rf"{flag}: says how a file is read, and {what}; name the file by --exam"):
            open_exam(ExamOptions(output=str(tmp_path), exam=exam, **option))
    assert not list(tmp_path.iterdir())
    open_exam(ExamOptions(output=str(tmp_path), exam=race))
    with pytest.raises(InputError, match=rf"{flag}: .* the run's own exam is read already"):
        open_exam(ExamOptions(output=str(tmp_path), **option))
    for options in (
        AuditOptions(output=str(tmp_path), against=(race,), **option),
        PredictOptions(output=str(tmp_path), shots=1, shots_from=race, **option),
        PredictOptions(output=str(tmp_path), shots=0, shots_from=race, **option),  # a trial of a sweep beside others
        PromptOptions(output=str(tmp_path), shots=1, shots_from=race, **option),
    ):
        assert open_exam(options).questions == len(CONTEXTS)
    with pytest.raises(InputError, match=flag):
        open_exam(PredictOptions(output=str(tmp_path), shots=1, **option))


def test_training_takes_given_contexts_and_columns(tmp_path, cluster, monkeypatch):
    cells = [
        {"q": prompt, "o": options, "k": options[right], "c": context}
        for (prompt, options, right), context in zip(ASKED, CONTEXTS, strict=True)
    ]
    path = save(tmp_path, "jsonl", cells)
    monkeypatch.setattr(run_training, "finetune", lambda options: options)
    monkeypatch.setattr(run_training, "check_before_finetune", lambda options: None)
    columns = ("prompt=q", "options=o", "answer=k", "context=c")
    given = {"train": path, "validation": path, "columns": columns, "context": "given", "output": str(tmp_path / "run")}
    run_finetune(RunFinetuneOptions(**given, corpus=("absent.jsonl",)))
    for split in ("train", "validation"):
        assert tables.read_table(f"{tmp_path}/run/{split}/contexts")["context"].to_pylist() == CONTEXTS


def test_an_exam_is_shown_and_nothing_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "connect_cluster", lambda options: pytest.fail("started Ray"))
    cells = SHAPES["SciQ"][1]
    cells = [*cells, cells[0] | {"id": "again"}, cells[1] | {"distractor1": "Eight", "correct_answer": None}]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [{"id": str(n)} | c for n, c in enumerate(cells[:5])]))
    output = tmp_path / "run"
    cli.main(["exam", "--exam", str(path), "--check", "--output", str(output)])
    shown = capsys.readouterr().out
    assert not output.exists()
    assert "columns: prompt=question correct=correct_answer incorrect=distractor1,distractor2,distractor3" in shown
    assert all(prompt in shown for prompt, _, _ in ASKED[:3])
    assert ASKED[3][0] not in shown
    assert shown.count("  * ") == 3
    assert CONTEXTS[0] in shown
    assert "questions that stand there again: 1, the first again as 0" in shown
    assert "by chance: accuracy 0.250, MAP@3 0.458" in shown
    assert "5 with 4" in shown
    path = save(
        tmp_path, "jsonl", [{"question": "p", "choices": ["a", "b", "a"], "answer": n} for n in (0, 0, 2, None)]
    )
    cli.main(["exam", "--exam", path, "--check", "--output", str(output)])
    shown = capsys.readouterr().out
    assert "right options: A 2, B 0, C 1; 1 of 4 questions without an answer" in shown
    assert "options of the same text: 4, the first is 1" in shown
    assert "by chance: accuracy 0.333, MAP@3 0.611" in shown
