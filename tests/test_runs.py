"""Run folders: what is there is used and never lost, one exam a folder, one writer a table."""

import importlib
import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import duckdb
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset
import pytest
from conftest import write_jsonl
from pyarrow import fs
from tiny import tiny_folder

from sciqa.ask import AskOptions
from sciqa.ask.answerer import check_answerer
from sciqa.core import hashes, progress, shared_folders, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import ExamOptions, open_exam, read_exam
from sciqa.exam.finished_answers import readers_of_finished_answers
from sciqa.predict import PredictOptions, predict
from sciqa.report import ReportOptions, report
from sciqa.retrieval import EvaluateOptions, IndexOptions, RetrieveOptions, build_index, evaluate_or_retrieve, retrieve
from sciqa.run import RunExamOptions, check_run_passages, find_run_passages
from sciqa.run_training import RunFinetuneOptions, run_finetune
from sciqa.training import FinetuneOptions
from sciqa.training.examples import check_training_examples
from sciqa.training.finetune import check_before_finetune

ROWS = [
    {"id": "1", "prompt": "Which is a noble gas?", "A": "iron", "B": "helium", "answer": "B", "title": "Helium"},
    {"id": "2", "prompt": "Which rusts?", "A": "iron", "B": "helium", "answer": "A", "title": "Iron"},
    {"id": "3", "prompt": "Which swims?", "A": "a whale", "B": "a bird", "answer": "A", "title": "A"},
]


@pytest.fixture
def exam(tmp_path):
    write_jsonl(tmp_path / "exam.jsonl", ROWS)
    return str(tmp_path / "exam.jsonl")


def files(folder):
    """What every file of a folder holds, and when it was written."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.mark.parametrize("given", [("passages", "index"), ("index",), ("passages",)])
def test_finished_tables_are_used_as_they_are(tmp_path, indexed, given):
    run = indexed["output"]
    build_index(IndexOptions(factory="HNSW4", **indexed))
    before = files(run)
    mine = {name: f"{run}/{name}" for name in given}
    options = RunExamOptions(**indexed | {"output": str(tmp_path / "other")}, **mine)
    check_run_passages(options)
    find_run_passages(options)
    assert files(run) == before
    rows = storage.read_json(f"{options.index}/manifest.json")["rows"]
    assert rows == storage.read_json(f"{run}/index/manifest.json")["rows"] == 3
    if "index" in given:
        wrongs = [{"factory": "IVF1,Flat"}, {"vector_type": "float16"}, {"train_vectors": 9}, {"passage_prefix": "p: "}]
        for wrong in ({"passage_tokens": 64}, *wrongs):
            with pytest.raises(InputError, match="--" + next(iter(wrong)).replace("_", "-")):
                check_run_passages(RunExamOptions(**indexed | {"output": str(tmp_path / "other")}, **mine, **wrong))
    assert files(run) == before


def test_passages_that_have_changed_are_indexed_by_the_same_factory(tmp_path, indexed):
    build_index(IndexOptions(factory="HNSW4", **indexed))
    more = tmp_path / "more.jsonl"
    write_jsonl(more, [{"title": "Lead", "text": "Lead is heavy. It is grey."}])
    corpus = (str(tmp_path / "articles.jsonl"), str(more))
    build_passages(CorpusOptions(corpus=corpus, shard_passages=2, **indexed))
    find_run_passages(RunExamOptions(**indexed))
    manifest = storage.read_json(f"{indexed['output']}/index/manifest.json")
    assert (manifest["rows"], manifest["factory"]) == (4, "HNSW4")


def test_passages_of_a_copied_run_that_have_changed_are_indexed_too(tmp_path, indexed):
    manifest = f"{indexed['output']}/index/manifest.json"
    assert storage.read_json(manifest)["passages"] != f"{indexed['output']}/passages"  # but of the run it is a copy of
    assert find_run_passages(RunExamOptions(**indexed))[-1].details == {"built": 0, "kept": 2}
    write_jsonl(tmp_path / "more.jsonl", [{"title": "Lead", "text": "Lead is heavy. It is grey."}])
    corpus = {"corpus": (str(tmp_path / "articles.jsonl"), str(tmp_path / "more.jsonl")), "shard_passages": 2}
    other = indexed | {"output": str(tmp_path / "other")}
    build_passages(CorpusOptions(**corpus, **other))
    find_run_passages(RunExamOptions(index=f"{indexed['output']}/index", **other))
    assert storage.read_json(manifest)["rows"] == 3, "an index of another run is used as it is"
    build_passages(CorpusOptions(**corpus, **indexed))
    find_run_passages(RunExamOptions(**indexed))
    assert storage.read_json(manifest)["rows"] == 4


def test_passages_that_are_being_made_anew_are_finished_before_their_index_is_used(tmp_path, indexed):
    more, options = tmp_path / "more.jsonl", RunExamOptions(shard_passages=2, **indexed)
    more.write_text('{"title": "Lead"}\n')
    with pytest.raises(InputError, match="row 1: no column 'text'"):
        build_passages(CorpusOptions(corpus=(str(tmp_path / "articles.jsonl"), str(more)), shard_passages=2, **indexed))
    with pytest.raises(InputError, match="row 1: no column 'text'"):
        find_run_passages(options)
    write_jsonl(more, [{"title": "Lead", "text": "Lead is heavy. It is grey."}])
    check_run_passages(options)
    find_run_passages(options)
    assert storage.read_json(f"{options.index}/manifest.json")["rows"] == 4


def test_an_index_that_was_being_built_anew_goes_on_with_its_own_options(indexed):
    build_index(IndexOptions(factory="HNSW4", vector_type="float16", **indexed))
    Path(indexed["output"], "index", "manifest.json").unlink()  # as a run that was killed amid its work leaves it
    assert find_run_passages(RunExamOptions(**indexed))[-1].details == {"built": 0, "kept": 2}
    manifest = storage.read_json(f"{indexed['output']}/index/manifest.json")
    assert (manifest["factory"], manifest["vector_type"]) == ("HNSW4", "float16")


def test_passages_are_not_looked_up_for_a_prompt_without_them(indexed):
    given = {"question": "Which rusts?", **indexed}
    for asked in (
        AskOptions(options=("iron", "helium"), template="arc", **given),
        AskOptions(template="openbookqa", **given),
    ):
        with pytest.raises(InputError, match="the template names neither `context` nor `passages`"):
            check_answerer(asked, asked.as_row())
    read = AskOptions(options=("iron", "helium"), template="sciq", **given)
    assert check_answerer(read, read.as_row())["rows"] == 3


def test_another_prefix_than_that_of_the_passages_in_the_index_is_refused(indexed, exam):
    options = RetrieveOptions(exam=exam, passage_prefix="p: ", **indexed)
    build_index(options)
    asked = AskOptions(question="Which rusts?", **indexed)
    for step in (
        lambda: retrieve(RetrieveOptions(exam=exam, **indexed)),
        lambda: check_answerer(asked, asked.as_row()),
        lambda: find_run_passages(RunExamOptions(**indexed)),
    ):
        with pytest.raises(
            InputError, match=r"index: built with --passage-prefix 'p: ', not ''; pass --passage-prefix"
        ):
            step()
    retrieve(options)
    assert find_run_passages(RunExamOptions(passage_prefix="p: ", **indexed))[-1].details["built"] == 0


def test_another_corpus_replaces_passages_and_index_only_when_told(tmp_path, indexed):
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"title": "Lead", "text": "Lead is heavy. It is grey."}])
    before = files(indexed["output"])
    options = {"corpus": (str(other),), "shard_passages": 2, **indexed}
    manifest = Path(indexed["output"], "_passages", tables.MANIFEST)
    refused = r"passages: made from other inputs \(.*articles\.jsonl is not in --corpus"
    with pytest.raises(InputError, match=refused):
        build_passages(CorpusOptions(**options))
    aside = manifest.rename(tmp_path / "manifest.json")  # as a run that was killed before its end leaves it
    with pytest.raises(InputError, match=refused):
        build_passages(CorpusOptions(**options))
    aside.rename(manifest)
    elsewhere = str(tmp_path / "elsewhere")
    build_passages(CorpusOptions(**options | {"output": elsewhere}))
    index = {"passages": f"{elsewhere}/passages", **indexed}
    with pytest.raises(InputError, match=r"index: made from other inputs \(passages: .*--overwrite"):
        build_index(IndexOptions(**index))
    assert files(indexed["output"]) == before
    build_index(IndexOptions(overwrite=True, **index))
    assert storage.read_json(f"{indexed['output']}/index/manifest.json")["rows"] == 1
    build_passages(CorpusOptions(overwrite=True, **options))
    assert tables.read_table(f"{indexed['output']}/passages")["title"].to_pylist() == ["Lead"]
    assert build_passages(CorpusOptions(**options)).made.endswith("kept")


def test_a_folder_of_other_files_is_left_alone(tmp_path, indexed, exam):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    options = RetrieveOptions(exam=exam, contexts=str(tmp_path / "papers"), overwrite=True, **indexed)
    with pytest.raises(InputError, match="papers: holds files that no step of sciqa made"):
        retrieve(options)
    assert (tmp_path / "papers" / "thesis.txt").read_text() == "mine"
    (tmp_path / "papers").rename(tmp_path / "_contexts")  # where the records of a table of that name would be
    with pytest.raises(InputError, match="_contexts: holds files that no step of sciqa made"):
        retrieve(RetrieveOptions(exam=exam, contexts=str(tmp_path / "contexts"), overwrite=True, **indexed))
    assert [path.name for path in (tmp_path / "_contexts").iterdir()] == ["thesis.txt"]


def test_a_run_keeps_its_exam(tmp_path, indexed, exam):
    run = indexed["output"]
    retrieve(RetrieveOptions(exam=exam, **indexed))
    before = files(run)
    for step in (
        lambda: predict(PredictOptions(exam="test", reader="retrieval", **indexed)),
        lambda: predict(PredictOptions(exam="test", reader="closed-book", **indexed)),
        lambda: retrieve(RetrieveOptions(exam="direct-validation", **indexed)),
        lambda: report(ReportOptions(exam="test", output=run)),
    ):
        with pytest.raises(InputError, match=r"exam\.parquet: the run's exam is another exam than (test|direct-val)"):
            step()
    with pytest.raises(InputError, match=r"no answers to the exam .*exam\.parquet"):
        report(ReportOptions(output=run))
    assert files(run) == before
    made = predict(PredictOptions(reader="retrieval", **indexed))
    assert [row["id"] for row in tables.read_table(made.path).to_pylist()] == ["1", "2", "3"]
    report(ReportOptions(output=run))
    assert retrieve(RetrieveOptions(**indexed)).made.endswith("kept")
    other = tmp_path / "other.jsonl"
    write_jsonl(other, ROWS[:2])
    evaluated = evaluate_or_retrieve(EvaluateOptions(exam=str(other), evaluate=True, **indexed))
    assert evaluated.details["evaluation"][0]["questions"] == 2
    assert evaluate_or_retrieve(EvaluateOptions(evaluate=True, **indexed)).details["evaluation"][0]["questions"] == 3
    after = files(run)
    assert all(after[path] == held for path, held in before.items())


def test_a_packaged_exam_reads_back_as_itself(tmp_path):
    for split in ("train", "validation", "test"):
        table = read_exam(split)
        tables.write_table(str(tmp_path / "exam.parquet"), table)
        again = read_exam(str(tmp_path / "exam.parquet"))
        assert hashes.rows_hash(again.to_pylist()) == hashes.rows_hash(table.to_pylist())


def test_submissions_stand_beside_the_answers(indexed, exam):
    retrieve(RetrieveOptions(exam=exam, **indexed))
    made = predict(PredictOptions(reader="retrieval", **indexed))
    submission = pd.read_csv(f"{indexed['output']}/submissions/retrieval.csv")
    assert submission["prediction"].tolist() == pd.read_parquet(made.path)["prediction"].tolist()


def test_the_same_questions_are_not_trained_on_and_validated_by(tmp_path, exam):
    with pytest.raises(InputError, match=r"exam\.jsonl, row 1: the same question as row 1 of .*exam\.jsonl"):
        check_before_finetune(FinetuneOptions(train=exam, validation=exam, output=str(tmp_path / "run")))
    turned = {"id": "9", "prompt": "which  rusts?", "A": "helium", "B": "iron", "answer": "B"}
    write_jsonl(tmp_path / "other.jsonl", [ROWS[2], turned])
    write_jsonl(tmp_path / "train.jsonl", ROWS[:2])
    data = {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "other.jsonl")}
    with pytest.raises(InputError, match=r"other\.jsonl, row 2: the same question as row 2 of .*train\.jsonl"):
        check_before_finetune(FinetuneOptions(**data, output=str(tmp_path / "run")))


def test_questions_in_the_same_words_about_other_texts_are_trained_on_and_validated_by():
    rows = [{"prompt": "True?", "A": "yes", "B": "no", "answer": "A", "context": text} for text in ("one", "two", None)]
    exams = [(pa.Table.from_pylist([row]), name) for row, name in zip(rows, "abc", strict=True)]
    check_training_examples(*exams[:2])
    for pair in (exams[::2], exams[:0:-1], (exams[0], exams[0])):
        with pytest.raises(InputError, match="row 1: the same question as row 1 of"):
            check_training_examples(*pair)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"batch_size": 7, "num_workers": 2}, "--batch-size: 7"),
        ({"peft": "{target_modules: [nowhere]}"}, "--peft"),
        ({"mlflow": True}, "--mlflow"),
    ],
)
def test_options_of_training_are_checked_before_anything_is_built(tmp_path, monkeypatch, wrong, part):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name))
    monkeypatch.setattr("sciqa.run.find_run_passages", lambda options: pytest.fail("built something"))
    with pytest.raises(InputError, match=part):
        run_finetune(RunFinetuneOptions(output=str(tmp_path / "run"), **wrong))
    assert not (tmp_path / "run").exists()


def test_a_step_waits_for_no_other_one(indexed, exam):
    options = RetrieveOptions(exam=exam, **indexed)
    with lock(options.contexts), pytest.raises(InputError, match=r"contexts: process .* is writing there"):
        retrieve(options)
    assert not Path(options.contexts).exists()


def read_only(monkeypatch, folder):
    """Make every attempt to write to a folder fail, as on a mount that is only shared."""
    write = storage.write_bytes

    def refuse(path, data):
        if path.startswith(folder):
            raise InputError(f"{path}: cannot be written (read-only)")
        return write(path, data)

    monkeypatch.setattr(storage, "write_bytes", refuse)


def test_a_finished_index_that_is_only_shared_is_enough(tmp_path, indexed, exam, monkeypatch):
    shared = str(Path(indexed["output"]).rename(tmp_path / "shared"))
    build_index(IndexOptions(**indexed | {"output": shared}, overwrite=True))
    read_only(monkeypatch, shared)
    tables = {"index": f"{shared}/index", "passages": f"{shared}/passages"}
    options = indexed | {"output": str(tmp_path / "run")} | tables
    assert build_index(IndexOptions(**options)).details == {"built": 0, "kept": 2}
    corpus = {name: options[name] for name in ("output", "embedder", "passages")}
    assert build_passages(CorpusOptions(**corpus)).made.endswith("kept")
    retrieve(RetrieveOptions(exam=exam, **options))


@pytest.mark.parametrize("when", ["written", "moved"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, when):
    class Full(fs.LocalFileSystem):
        def open_output_stream(self, *given, **more):
            if when == "written":
                raise OSError(28, "No space left on device")
            return super().open_output_stream(*given, **more)

        def move(self, *given):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "resolve_storage", lambda path: (Full(), str(path)))
    with pytest.raises(InputError, match=r"table\.parquet: cannot be written \(.*No space left on device\)"):
        storage.write_bytes(str(tmp_path / "run" / "table.parquet"), b"rows")
    assert not list((tmp_path / "run").iterdir())
    shutil.rmtree(tmp_path / "run")


def test_tables_open_as_they_are_in_other_programs(tmp_path, indexed, exam, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    retrieve(RetrieveOptions(exam=exam, **indexed))
    predict(PredictOptions(reader="retrieval", **indexed))
    for table in ("passages", "contexts", "answers/retrieval"):
        folder = f"{indexed['output']}/{table}"
        expected = tables.read_table(folder).to_pylist()
        assert pd.read_parquet(folder).iloc[:, 0].tolist() == [next(iter(row.values())) for row in expected]
        assert pyarrow.dataset.dataset(folder).to_table().to_pylist() == expected
        assert polars.read_parquet(folder).to_dicts() == expected
        assert duckdb.sql(f"SELECT * FROM read_parquet('{folder}')").to_arrow_table().to_pylist() == expected
        for given in ({"path": folder}, {"path": "parquet", "data_dir": folder}):
            read = datasets.load_dataset(**given, cache_dir=str(tmp_path / "cache"))
            assert read["train"].to_list() == expected


def test_tables_of_an_earlier_version_are_replaced_only_when_told(tmp_path, indexed, exam):
    options = RetrieveOptions(exam=exam, **indexed)
    contexts = Path(options.contexts)
    contexts.mkdir()
    (contexts / "_manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"contexts: made by another version of sciqa.*--overwrite"):
        retrieve(options)
    with pytest.raises(InputError, match=r"contexts: made by another version of sciqa.*retrieve --overwrite"):
        predict(PredictOptions(reader="retrieval", exam=exam, **indexed))
    retrieve(RetrieveOptions(exam=exam, overwrite=True, **indexed))
    assert [path.name for path in contexts.iterdir()] == ["00000.parquet"]


def test_a_table_that_has_lost_a_shard_is_not_whole(indexed, exam):
    options = RetrieveOptions(exam=exam, shard_questions=2, **indexed)
    retrieve(options)
    before = files(options.contexts)
    Path(options.contexts, "00001.parquet").unlink()
    assert "kept" not in retrieve(options).made
    assert {path: held for path, (_, held) in files(options.contexts).items()} == {p: h for p, (_, h) in before.items()}
    shutil.rmtree(options.contexts)
    with pytest.raises(InputError, match="contexts: not there, or not finished"):
        predict(PredictOptions(reader="retrieval", **indexed))
    assert "kept" not in retrieve(options).made


def test_contexts_that_are_replaced_while_they_are_read_leave_no_answers(indexed, exam, monkeypatch):
    step = importlib.import_module("sciqa.predict.predict")
    retrieve(RetrieveOptions(exam=exam, **indexed))
    answer_all, options = step._answer_all, PredictOptions(reader="retrieval", **indexed)

    def replaced(*given):
        yield from answer_all(*given)
        retrieve(RetrieveOptions(exam=exam, top_k=1, overwrite=True, **indexed))

    with monkeypatch.context() as patch:
        patch.setattr(step, "_answer_all", replaced)
        with pytest.raises(InputError, match=r"contexts: replaced by other contexts while retrieval read them"):
            predict(options)
    assert not Path(options.folder).exists()
    assert not Path(indexed["output"], "submissions").exists()
    assert "kept" not in predict(options).made


@pytest.mark.parametrize("step", ["contexts", "evaluate"])
def test_an_index_that_is_built_anew_while_it_is_searched_leaves_nothing(indexed, exam, monkeypatch, step):
    module = importlib.import_module(f"sciqa.retrieval.{step}")
    run_query_workers, options = module.run_query_workers, RetrieveOptions(exam=exam, **indexed)

    def replaced(*given, **more):
        yield from run_query_workers(*given, **more)
        build_index(IndexOptions(vector_type="float16", **indexed))

    function = retrieve if step == "contexts" else module.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_query_workers", replaced)
        with pytest.raises(InputError, match=r"index: built anew while it was searched.*; run this step again"):
            function(options)
    made = Path(options.contexts) if step == "contexts" else Path(options.output, "retrieval.parquet")
    assert not made.exists()
    assert "kept" not in function(options).made
    assert made.exists()


def test_contexts_that_were_written_on_other_nodes_are_not_taken_for_finished(indexed, exam, monkeypatch):
    options = RetrieveOptions(exam=exam, **indexed)
    monkeypatch.setattr("sciqa.retrieval.contexts.run_query_workers", lambda *given, **more: iter(()))
    with pytest.raises(InputError, match=r"contexts: 1 of 1 shards, written on other nodes, are not seen here"):
        retrieve(options)
    assert not tables.is_finished_table(options.contexts)


def test_every_folder_of_a_run_is_seen_by_all_nodes(tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    asked = []

    def find_blind_nodes(path, nodes):
        asked.append(path)
        return [node["NodeManagerAddress"] for node in nodes if tmp_path / "private" in path.parents]

    monkeypatch.setattr(shared_folders, "find_blind_nodes", find_blind_nodes)
    others, output = [{"NodeID": "b", "NodeManagerAddress": "10.0.0.2"}], str(tmp_path / "run")
    shared_folders.check_shared_folders(RetrieveOptions(output=output, passages="/proc/self"), others)
    # The passages, which cannot be written, are asked for themselves; index and contexts are in the output folder.
    assert [asked[0].parent, asked[1:]] == [tmp_path / "run", [Path("/proc/self")]]
    # Each node may have a copy of what is finished.
    tables.finish_table(f"{tmp_path}/passages", {})
    shared_folders.check_shared_folders(RetrieveOptions(output=output, passages=f"{tmp_path}/passages"), others)
    assert asked[-1] == tmp_path / "_passages/manifest.json"
    private = str(tmp_path / "private/new/contexts")
    with pytest.raises(
        InputError, match=f"^--contexts {private}: a folder of this machine, .* 10.0.0.2 do not see as it is here; "
    ):
        shared_folders.check_shared_folders(RetrieveOptions(output=output, contexts=private), others)
    with pytest.raises(InputError, match=f"^--train-contexts {private}: "):
        shared_folders.check_shared_folders(FinetuneOptions(output=output, train_contexts=private), others)
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []
    shared_folders.check_shared_folders(RetrieveOptions(output=output, contexts=private), [])


@pytest.mark.parametrize(("older", "blind"), [("new", []), ("old", ["10.0.0.2"])])
def test_a_node_with_an_older_copy_of_a_manifest_does_not_see_it(tmp_path, monkeypatch, older, blind):
    def remote(**needs):
        def of(look):
            def seen(path):
                now = Path(path).read_text()
                Path(path).write_text(older)
                try:
                    return look(path)
                finally:
                    Path(path).write_text(now)

            return SimpleNamespace(options=lambda **place: SimpleNamespace(remote=seen))

        return of

    monkeypatch.setattr(shared_folders.ray, "remote", remote)
    monkeypatch.setattr(shared_folders.ray, "get", lambda seen: seen)
    (tmp_path / "manifest.json").write_text("new")
    nodes = [{"NodeID": "b" * 56, "NodeManagerAddress": "10.0.0.2"}]
    assert shared_folders.find_blind_nodes(tmp_path / "manifest.json", nodes) == blind


def test_a_node_that_may_not_read_a_manifest_does_not_see_it(tmp_path, monkeypatch):
    def remote(**needs):
        def of(look):
            def seen(path):
                with monkeypatch.context() as there:
                    there.setattr(Path, "read_bytes", forbidden)
                    return look(path)

            return SimpleNamespace(options=lambda **place: SimpleNamespace(remote=seen))

        return of

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shared_folders.ray, "remote", remote)
    monkeypatch.setattr(shared_folders.ray, "get", lambda seen: seen)
    (tmp_path / "manifest.json").write_text("{}")
    nodes = [{"NodeID": "b" * 56, "NodeManagerAddress": "10.0.0.2"}]
    assert shared_folders.find_blind_nodes(tmp_path / "manifest.json", nodes) == ["10.0.0.2"]


@pytest.mark.parametrize("kind", ["blend", "cascade", "fit"])
def test_answers_that_are_replaced_while_they_are_read_leave_none_made_from_them(indexed, tmp_path, monkeypatch, kind):
    """Also those of another run that weights are fitted to."""
    step, output = importlib.import_module("sciqa.predict.predict"), indexed["output"]
    write_jsonl(tmp_path / "exam.jsonl", [row | {"id": f"{row['id']}{n}"} for n in range(2) for row in ROWS])
    common = {"exam": str(tmp_path / "exam.jsonl")} | indexed
    for reader in ("longest", "majority"):
        predict(PredictOptions(reader=reader, **common))
    shutil.copytree(output, tmp_path / "other")
    read, where = {"blend": ("longest", "majority")}, output
    if kind == "cascade":
        read = {"cascade": "longest", "reader": "majority"}
    elif kind == "fit":
        read, where = read | {"blend_fit": str(tmp_path / "other")}, str(tmp_path / "other")
    answer_all, options = step._answer_all, PredictOptions(name="mixed", **read, **common)

    def replaced(*given):
        yield from answer_all(*given)
        monkeypatch.undo()
        again = {"reader": "majority", "name": "longest", "overwrite": True}
        predict(PredictOptions(**common | {"output": where} | again))

    monkeypatch.setattr(step, "_answer_all", replaced)
    with pytest.raises(
        InputError, match=rf"{where}/answers: longest.* replaced by other answers while mixed read them"
    ):
        predict(options)
    assert not Path(options.folder).exists()
    assert not Path(output, "submissions", "mixed.csv").exists()


def test_a_reader_of_an_exam_without_answers_has_its_model_and_contexts_on_record(indexed, tmp_path):
    write_jsonl(tmp_path / "exam.jsonl", [row | {"answer": None} for row in ROWS])
    given = {"exam": str(tmp_path / "exam.jsonl"), "contexts": str(tmp_path / "mine")} | indexed
    retrieve(RetrieveOptions(**given))
    predict(PredictOptions(reader="retrieval", **given))
    output, exam = indexed["output"], open_exam(ExamOptions(output=indexed["output"]))
    reader = readers_of_finished_answers(output, exam)["retrieval"]
    assert reader["metrics"] == []
    named = {name: reader[name] for name in ("model", "adapter", "contexts")}
    assert named == {"model": indexed["embedder"], "adapter": None, "contexts": str(tmp_path / "mine")}
    assert "Helium is a noble gas" in Path(report(ReportOptions(output=output)).path).read_text()


def test_a_run_that_was_refused_keeps_nobody_from_another(tmp_path):
    folder = str(tmp_path / "answers")
    tables.begin_table(folder, {"format": 1, "k": 1})
    assert not tables.begin_table(folder, {"format": 1, "k": 2}).names  # nothing was made yet
    tables.write_table(f"{folder}/00000.parquet", pyarrow.table({"id": ["1"]}))
    with pytest.raises(InputError, match=r"made from other inputs \(k: 2 there, 3 now"):
        tables.begin_table(folder, {"format": 1, "k": 3})


def test_an_exam_that_cannot_be_read_is_not_replaced(indexed, exam, monkeypatch):
    options = ExamOptions(exam=exam, **{"output": indexed["output"]})
    open_exam(options)
    path = Path(indexed["output"], "exam.parquet")
    open_parquet, before = tables.open_parquet, path.read_bytes()

    def failing(asked):
        if asked == str(path):
            raise InputError(f"{asked}: cannot be read (403)")
        return open_parquet(asked)

    monkeypatch.setattr(tables, "open_parquet", failing)
    with pytest.raises(InputError, match=r"exam\.parquet: cannot be read \(403\)"):
        open_exam(replace(options, exam="direct-test"))
    assert path.read_bytes() == before


def test_a_damaged_exam_is_replaced_by_overwrite_alone(exam, tmp_path):
    options = ExamOptions(exam=exam, output=str(tmp_path / "run"))
    digest, path = open_exam(options).sha256, tmp_path / "run/exam.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"not a whole Parquet file .*, or pass --overwrite to replace it"):
        open_exam(options)
    open_exam(replace(options, overwrite=True))
    assert open_exam(ExamOptions(output=options.output)).sha256 == digest


def test_a_template_that_is_edited_before_it_is_read_again_is_refused(indexed, exam, tmp_path, monkeypatch):
    step, template = importlib.import_module("sciqa.predict.predict"), tmp_path / "template.jinja"
    template.write_text("{{ question }}\nAnswer:")
    given = {"model": tiny_folder(tmp_path / "llama", "llama"), "precision": "float32", "template": str(template)}
    options = PredictOptions(reader="closed-book", exam=exam, name="edited", **given, **indexed)
    work = step._work

    def edited(*given):
        template.write_text("Question: {{ question }}\nAnswer:")
        return work(*given)

    monkeypatch.setattr(step, "_work", edited)
    with pytest.raises(InputError, match="answers/edited: template changed since the command was given; run it again"):
        predict(options)
    assert list(Path(options.folder).glob("*")) == []
    monkeypatch.undo()
    assert "kept" not in predict(options).made


def test_a_run_that_goes_on_counts_to_what_is_missing(indexed, exam, monkeypatch):
    asked = []
    rows_with_progress = progress.rows_with_progress

    def counted(rows, stage, total, unit, number, *by):
        found = list(rows_with_progress(rows, stage, total, unit, number, *by))
        asked.append((stage, total, sum(map(number, found))))
        return found

    monkeypatch.setattr(progress, "rows_with_progress", counted)
    for step, options in (
        (retrieve, RetrieveOptions(exam=exam, shard_questions=2, **indexed)),
        (predict, PredictOptions(exam=exam, reader="retrieval", shard_questions=2, **indexed)),
    ):
        step(options)
        folder = options.contexts if step is retrieve else options.folder
        Path(folder, "00001.parquet").unlink()
        step(options)
    assert asked == [("retrieve", 3, 3), ("retrieve", 1, 1), ("predict", 3, 3), ("predict", 1, 1)]
