"""Every kind of storage does for a run: local paths, URIs of local files, and an S3 server."""

import io
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_jsonl
from pyarrow import fs
from tiny import tiny_folder

from sciqa.core import lock as locks
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import local_model_copy
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam.exam_files import read_exam_files
from sciqa.models.merge import merge
from sciqa.models.options import MergeOptions
from sciqa.predict import PredictOptions, predict
from sciqa.report import ReportOptions, report
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.vectors import StoredVectors
from sciqa.training import FinetuneOptions, finetune

TABLE = pa.table({"id": ["1", "2"], "text": ["one", "two"]})
ARTICLES = [
    {"title": text.split()[0], "text": text}
    for text in ("Helium is a noble gas. It is light.", "Iron is a metal. It rusts.", "A whale is a mammal. It swims.")
]
SHORT = {"precision": "float32", "batch_size": 8, "micro_batch": 2, "max_length": 128, "steps": 2}
ROWS = [
    {"id": str(number), "prompt": f"Which is it, {number}?", "A": "iron", "B": "helium", "answer": "AB"[number % 2]}
    for number in range(8)
]


def requests(log, start=0):
    """What the S3 server was asked since a place in its log: (method, path)."""
    return re.findall(r'"([A-Z]+) (\S+) HTTP', log.read_text()[start:])


def test_files_and_tables(place):
    folder = storage.join_paths(place, "run")
    assert not storage.path_exists(folder)
    path = storage.join_paths(folder, "a b+#%.parquet")
    tables.write_table(path, TABLE)
    assert tables.read_table(folder) == tables.read_table(path) == TABLE
    assert tables.read_table_rows(path, 1, 2) == [{"id": "2", "text": "two"}]
    assert storage.list_files(folder, "parquet") == [path]
    assert storage.list_folders(place) == ["run"]
    assert list(storage.list_names(folder)) == ["a b+#%.parquet"]
    storage.write_json(storage.join_paths(folder, "about.json"), {"n": 1})
    storage.write_json(storage.join_paths(folder, "about.json"), {"n": 2})
    assert storage.read_json(storage.join_paths(folder, "about.json")) == {"n": 2}
    storage.copy_files(folder, storage.join_paths(place, "copy", "deep"))
    assert tables.read_table(storage.join_paths(place, "copy", "deep")) == TABLE
    storage.copy_files(path, storage.join_paths(place, "one", "x.parquet"))
    assert tables.read_table(storage.join_paths(place, "one")) == TABLE
    storage.delete_path(folder)
    assert not storage.path_exists(path)
    assert storage.path_exists(storage.join_paths(place, "copy"))
    with pytest.raises(InputError, match=f"{re.escape(path)}: no such file"):
        storage.read_bytes(path)


@pytest.mark.parametrize(
    ("address", "inner"),
    [
        ("gs://bucket", "bucket"),
        ("gs://bucket/run#1/a b%20é.txt", "bucket/run#1/a b%20é.txt"),
        ("gs://bucket/run/", "bucket/run"),
        ("abfs://files@account.dfs.core.windows.net/run#1", "files/run#1"),
        ("abfs://account.dfs.core.windows.net/files/run#1", "files/run#1"),
        ("file://localhost/data/run", "/data/run"),
    ],
)
def test_names_are_taken_as_they_are_written(address, inner):
    assert storage.resolve_storage(address)[1] == inner


def test_paths_are_the_same_however_they_are_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for path in ("run", "./run/", "link/run", f"file://{tmp_path}/run/", f"file://localhost{tmp_path}/run"):
        assert storage.is_same_path(path, f"{tmp_path}/run"), path
        assert storage.resolve_storage(storage.absolute_path(path))[1].endswith("/run")
    assert storage.is_same_path("s3://bucket/run/", "s3://bucket/run")
    assert not storage.is_same_path("s3://bucket/run", "s3://bucket/run2")
    for path in ("file://run", "file:/data/run", "file:run"):
        with pytest.raises(InputError, match=f"{path}: file:// and a whole path expected"):
            storage.absolute_path(path)
    for path in ("~", "~/run", "~anna/run"):
        with pytest.raises(InputError, match=f"{path}: ~ stands for no folder here"):
            storage.absolute_path(path)
    (tmp_path / "~").mkdir()
    assert storage.absolute_path("~") == f"{tmp_path}/~"


def test_a_model_is_fetched_from_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "openvino" / "mine"
    (folder / "openvino").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "openvino/model.xml"):
        (folder / name).write_text("{}")
    assert sorted(path.name for path in local_model_copy(f"file://{folder}").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_file_on_s3_is_one_request(s3):
    storage.path_exists("s3://bucket/first")  # opens the bucket
    before = len(s3.read_text())
    storage.write_bytes("s3://bucket/one/file.bin", b"x" * 3_000_000)
    assert requests(s3, before) == [("PUT", "/bucket/one/file.bin")]


def test_near_vectors_are_read_by_one_request_of_bounded_size(s3, monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    storage.write_bytes("s3://bucket/vectors.npy", buffer.getvalue())
    stored = StoredVectors("s3://bucket/vectors.npy")
    before = len(s3.read_text())
    rows = np.array([3999, 7, 9, 100, 7, 3990])
    np.testing.assert_array_equal(stored.read(rows), vectors[rows].astype(np.float32))
    assert requests(s3, before) == [("GET", "/bucket/vectors.npy")] * 2
    monkeypatch.setattr("sciqa.retrieval.vectors.REQUEST", 1 << 16)
    before = len(s3.read_text())
    np.testing.assert_array_equal(stored.read(np.arange(4000)), vectors.astype(np.float32))
    assert requests(s3, before) == [("GET", "/bucket/vectors.npy")] * 4


def test_filters_read_no_other_row_group(tmp_path):
    path = tmp_path / "table.parquet"
    columns = {"part": np.repeat(np.arange(4), 1000), "row": np.random.default_rng(0).integers(1 << 40, size=4000)}
    tables.write_table(str(path), pa.table(columns), 1000)
    with path.open("r+b") as file:  # the first parts are spoilt
        file.seek(8)
        file.write(b"\xff" * 5000)
    with pytest.raises(InputError):
        tables.read_table(str(tmp_path))
    found = tables.read_table(str(tmp_path), ["row"], [("part", "=", 3)])
    assert found["row"].to_pylist() == columns["row"][3000:].tolist()


def test_a_model_to_which_a_file_was_added_is_still_finished(place):
    folder = storage.join_paths(place, "embedders/x")
    tables.begin_table(folder, {"format": 1})
    storage.write_bytes(storage.join_paths(folder, "model.safetensors"), b"x")
    tables.finish_table(folder, {})
    storage.write_bytes(storage.join_paths(folder, "README.md"), b"x")
    assert tables.begin_table(folder, {"format": 1}).whole
    assert tables.is_finished_table(folder)


def test_a_table_whose_shards_were_deleted_is_not_finished(place):
    folder = storage.join_paths(place, "generated/x")
    paths = [tables.table_part_path(folder, part) for part in range(3)]
    for path in paths if not tables.begin_table(folder, {"format": 1}).whole else ():
        tables.write_table(path, TABLE)
    tables.finish_table(folder, {})
    assert tables.begin_table(folder, {"format": 1}).whole
    storage.delete_path(paths[1])
    assert not tables.is_finished_table(folder)
    storage.delete_path(folder)
    assert not tables.begin_table(folder, {"format": 1}).whole
    for path in paths:  # all of them again, but what follows from them is not there yet
        tables.write_table(path, TABLE)
        assert not tables.is_finished_table(folder)
        with pytest.raises(InputError, match="generated/x: not there, or not finished"):
            tables.read_table_manifest(folder, "generate")
        with pytest.raises(InputError, match="generated/x: not finished"):
            read_exam_files(folder)


def test_a_finished_table_that_has_gained_a_copy_of_a_shard_is_refused(place):
    folder = storage.join_paths(place, "exam/x")
    for part in range(2 if not tables.begin_table(folder, {"format": 1}).whole else 0):
        tables.write_table(tables.table_part_path(folder, part), TABLE)
    tables.finish_table(folder, {})
    tables.write_table(storage.join_paths(folder, "00000 (copy).parquet"), TABLE)
    for _ in range(2):
        with pytest.raises(InputError, match=r"holds 3 files, of which 2 were .* such as 00000 \(copy\)\.parquet"):
            tables.begin_table(folder, {"format": 1})


def test_damaged_pages_of_a_table_are_one_line(tmp_path):
    path = str(tmp_path / "table.parquet")
    tables.write_table(path, pa.table({"text": [str(number) * 50 for number in range(1000)]}))
    with (tmp_path / "table.parquet").open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 500)
    for read in (tables.read_table, lambda path: tables.read_table_slice(path, 0, 9)):
        with pytest.raises(InputError, match=rf"^{path}: cannot be read"):
            read(path)


def test_storage_that_refuses_is_one_line(s3):
    for action in (
        lambda: storage.write_bytes("s3://nobodys/run/a.json", b"{}"),
        lambda: tables.begin_table("s3://nobodys/run", {"format": 1}),
    ):
        with pytest.raises(InputError, match=r"^s3://nobodys/_?run/\S+: cannot be written \(.*\)$"):
            action()
    with pytest.raises(InputError, match=r"s3://bucket/run\?region=x: options in a path's address .*AWS_ENDPOINT_URL"):
        storage.path_exists("s3://bucket/run?region=x")


def test_one_writer(place):
    folder = storage.join_paths(place, "run", "contexts")
    program = "import sys, time; from sciqa.core.lock import lock\n"
    program += "with lock(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "held"
        refused = pytest.raises(InputError, match=rf"contexts: process {holder.pid} on .* is writing there")
        with refused, lock(folder):
            pass
        with lock(storage.join_paths(place, "run", "answers")):
            pass
        holder.kill()
        holder.wait()
    with lock(folder), pytest.raises(InputError, match="is writing there"), lock(folder):
        pass
    with lock(folder):
        pass
    assert storage.list_folders(place) in ([], ["run"])


def test_a_holder_on_another_machine_is_gone_when_it_shows_no_life(s3, monkeypatch):
    folder, other = "s3://bucket/lost/contexts", "s3://bucket/lost/.contexts.lock-other"
    storage.write_json(other, {"host": "another", "pid": 1, "ticks": 0})
    with pytest.raises(InputError, match="process 1 on another is writing there"), lock(folder):
        pass
    monkeypatch.setattr(locks, "LOST", -1.0)  # as if it had been silent for long
    with lock(folder):
        assert not storage.path_exists(other)


@pytest.mark.parametrize("elsewhere", ["space", "boot", "host"])
def test_a_holder_is_told_dead_by_its_number_only_where_that_counts(s3, elsewhere):
    folder, other = f"s3://bucket/{elsewhere}/contexts", f"s3://bucket/{elsewhere}/.contexts.lock-other"
    dead = locks._holder() | {"ticks": 0}
    storage.write_json(other, dead | {elsewhere: "another"})
    with pytest.raises(InputError, match="is writing there"), lock(folder):
        pass
    storage.write_json(other, dead)
    with lock(folder):
        assert not storage.path_exists(other)


def test_a_link_to_a_folder_has_the_lock_of_the_folder_too(tmp_path):
    (tmp_path / "disk" / "index").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "link").symlink_to("index")
    folder, link = str(tmp_path / "disk/index"), str(tmp_path / "run/link")
    with lock(link), pytest.raises(InputError, match="is writing there"), lock(folder):
        pass
    with lock(folder), pytest.raises(InputError, match="is writing there"), lock(link):
        pass
    with lock(link):
        pass


@pytest.mark.parametrize("hidden", ["signal", "stat"])
def test_a_holder_here_that_cannot_be_looked_at_counts_by_its_silence(s3, monkeypatch, hidden):
    """As of another user, where /proc shows only one's own processes."""
    folder, other = f"s3://bucket/{hidden}/contexts", f"s3://bucket/{hidden}/.contexts.lock-other"
    storage.write_json(other, locks._holder() | {"pid": 1})

    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(locks.os, "kill", forbidden if hidden == "signal" else lambda *_: None)
    monkeypatch.setattr(locks, "_ticks", forbidden)
    monkeypatch.setattr(locks, "_holder", dict)
    with pytest.raises(InputError, match=r"process 1 on .* is writing there"), lock(folder):
        pass
    monkeypatch.setattr(locks, "LOST", -1.0)
    with lock(folder):
        pass


def test_a_lock_that_cannot_be_read_is_not_taken_for_free(s3, monkeypatch):
    folder, other = "s3://bucket/failing/contexts", "s3://bucket/failing/.contexts.lock-other"
    storage.write_json(other, {"host": "another", "pid": 1, "ticks": 0})

    def failing(*_):
        raise OSError("503 SLOW_DOWN")

    monkeypatch.setattr(locks, "_read_holder", failing)
    with pytest.raises(InputError, match=r"contexts: cannot be reached \(503 SLOW_DOWN\)"), lock(folder):
        pass
    monkeypatch.undo()
    storage.delete_path(other)
    assert locks._read_holder(*storage.resolve_storage(other)) is None  # released meanwhile


def test_a_lock_is_held_though_its_first_writing_fails_and_none_where_nothing_can_be_written(s3):
    beaten = []

    def beat():
        beaten.append(1)
        if len(beaten) == 1:
            raise OSError("503 SLOW_DOWN")

    assert locks._begins(beat, "s3://bucket/beaten")
    assert len(beaten) == 2
    beaten.clear()
    assert not locks._begins(beat, "s3://nobodys/beaten")


def test_a_holder_on_s3_shows_that_it_lives(s3, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    before = len(s3.read_text())
    with lock("s3://bucket/alive/contexts"):
        while len([path for _, path in requests(s3, before) if "/alive/.contexts.lock-" in path]) < 4:
            time.sleep(0.01)


def test_a_lock_that_was_taken_over_is_not_taken_back(s3, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    folder = "s3://bucket/taken/contexts"
    held = lock(folder)
    held.__enter__()
    filesystem, inner = storage.resolve_storage("s3://bucket/taken")
    while folder not in locks._taken:  # it may have been written anew between its deletion and the next look
        for entry in filesystem.get_file_info(fs.FileSelector(inner)):
            filesystem.delete_file(entry.path)
        time.sleep(0.01)
    for end in (lambda: tables.finish_table(folder, {}), lambda: held.__exit__(None, None, None)):
        with pytest.raises(InputError, match=f"{folder}: another process has taken over its lock"):
            end()
    with lock(folder):
        tables.finish_table(folder, {})


@pytest.mark.parametrize(
    "place", ["s3", *(pytest.param(each, marks=pytest.mark.slow) for each in ("local", "file"))], indirect=True
)
def test_a_run_on_any_storage(tmp_path, place, cluster, embedder):
    write_jsonl(tmp_path / "articles.jsonl", ARTICLES)
    write_jsonl(tmp_path / "exam.jsonl", ROWS)
    model = tiny_folder(tmp_path / "llama", "llama", initializer_range=0.2)
    for name, source in (("embedder", str(embedder)), ("llama", model), ("inputs", str(tmp_path))):
        if name == "inputs":
            for file in ("articles.jsonl", "exam.jsonl"):
                storage.copy_files(f"{source}/{file}", storage.join_paths(place, name, file))
        else:
            storage.copy_files(source, storage.join_paths(place, name))
    common = {"output": storage.join_paths(place, "run"), "embedder": storage.join_paths(place, "embedder")}
    corpus = (storage.join_paths(place, "inputs", "articles.jsonl"),)
    exam = {"exam": storage.join_paths(place, "inputs", "exam.jsonl"), "shard_questions": 4}
    build_passages(CorpusOptions(corpus=corpus, shard_passages=2, **common))
    build_index(IndexOptions(**common))
    retrieve(RetrieveOptions(**exam, **common))
    reader = PredictOptions(model=storage.join_paths(place, "llama"), shard_questions=4, **common)
    assert reader.name == "open-book-llama"
    made = predict(reader)
    answers = tables.read_table(made.path)
    assert answers["id"].to_pylist() == [row["id"] for row in ROWS]
    report(ReportOptions(output=common["output"]))

    storage.delete_path(tables.table_part_path(made.path, 1))  # as a killed run would have left it
    storage.delete_path(tables.table_records_path(made.path, tables.MANIFEST))
    assert "1 of 2 shards kept" in predict(reader).made
    assert tables.read_table(made.path) == answers
    assert predict(reader).made.count("kept") == 1
    assert retrieve(RetrieveOptions(**exam, **common)).made.endswith("kept")

    local = PredictOptions(model=model, name="local", **common | {"embedder": str(embedder)}, shard_questions=4)
    here = tables.read_table(predict(local).path)
    assert here.column("probabilities") == answers.column("probabilities")
    if place.startswith("s3"):
        shared = storage.list_files(storage.join_paths(place, "run"), "parquet")
        assert not [path for path in shared if "/." in path]


@pytest.mark.slow
def test_training_on_s3(tmp_path, s3, data):
    model = "s3://bucket/training/llama"
    storage.copy_files(tiny_folder(tmp_path / "llama", "llama"), model)
    options = FinetuneOptions(**data, model=model, output="s3://bucket/training/run", num_workers=1, **SHORT)
    finetune(options)
    merge(MergeOptions(model=model, adapter=options.folder, output="s3://bucket/training/merged"))
    local = FinetuneOptions(**data, model=str(tmp_path / "llama"), output=str(tmp_path / "run"), num_workers=1, **SHORT)
    finetune(local)
    exam = {"exam": data["validation"], "contexts": data["validation_contexts"], "precision": "float32"}
    read = []
    for reader in (
        {"model": model, "adapter": options.folder},
        {"model": "s3://bucket/training/merged"},
        {"model": local.model, "adapter": local.folder},
    ):
        predicting = PredictOptions(output=str(tmp_path / "answers"), **exam, **reader)
        assert predicting.name == f"open-book-{(predicting.adapter or predicting.model).rpartition('/')[2]}"
        read.append(tables.read_table(predict(predicting).path)["probabilities"].to_pylist())
        storage.delete_path(predicting.output)
    np.testing.assert_allclose(read[0], read[2], rtol=1e-5)
    np.testing.assert_allclose(read[0], read[1], rtol=1e-3)
