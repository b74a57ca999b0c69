"""Workers that die: the tables are those of an undisturbed run, and standard error says what happened."""

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.core.generated.common_pb2 import WorkerExitType
from ray.core.generated.gcs_pb2 import GcsNodeInfo, WorkerTableData

from sciqa import cli
from sciqa import predict as predicting
from sciqa.core import cluster, model_workers, progress, tables, worker_loss
from sciqa.core.console import VERBOSE
from sciqa.core.errors import InputError, LostWorkersError, find_input_error
from sciqa.core.model_workers import LARGEST, model_worker_arguments
from sciqa.core.options import RunOptions
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, queries, retrieve


def run(folder: Path, parts: int, how: str, always: bool = False, weights: int = 0) -> list[int]:
    """Run a stage whose worker ends its process, once for each part or always; large weights make it an actor."""

    class Dying:
        def __call__(self, row: dict) -> dict:
            marker = Path(folder, str(row["part"]))
            if always or not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL) if how == "signal" else os._exit(7)
            return {"part": row["part"]}

    pool = model_workers.model_worker_pool(RunOptions(output=str(folder)), 1, 1, weights)
    rows = cluster.cluster_dataset(list(range(parts))).map(**model_worker_arguments(Dying, {}, pool))
    return sorted(row["part"] for row in progress.rows_with_progress(rows, "try", parts, "parts", lambda _: 1))


def workers(name: str) -> list[psutil.Process]:
    """Return the workers of this Ray whose title has a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            found += [process] if title.startswith("ray::") and name in title else []
    return found


def kill_when_there(name: str) -> threading.Thread:
    """SIGKILL the next worker of this Ray whose title has a name, as soon as there is one."""
    before = workers(name)

    def kill() -> None:
        end = time.monotonic() + 200
        while time.monotonic() < end:
            if others := [process for process in workers(name) if process not in before]:
                others[0].kill()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_killed_worker_is_told_of_and_the_answers_are_the_same(tmp_path, cluster, exam_file, small_index, capfd):
    common = {"exam": exam_file, "shard_questions": 3}
    contexts = retrieve(RetrieveOptions(output=str(tmp_path), index=f"{small_index}/index", **common)).path
    common |= {"contexts": contexts, "reader": "retrieval", "num_workers": 1}
    expected = tables.read_table(predict(PredictOptions(output=str(tmp_path / "one"), **common)).path)
    capfd.readouterr()
    killer = kill_when_there("PredictShard")
    made = predict(PredictOptions(output=str(tmp_path / "two"), **common))
    killer.join()
    assert tables.read_table(made.path).equals(expected)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "a worker on" in line]
    assert re.fullmatch(r"predict: a worker on [\d.]+ \(process \d+\) was killed by a signal.*; .* is done again", line)


@pytest.mark.parametrize("weights", [0, LARGEST])
def test_every_death_is_told_once(tmp_path, cluster, capsys, weights):
    assert run(tmp_path, 2, how="exit", weights=weights) == [0, 1]
    told = [line for line in capsys.readouterr().err.splitlines() if "a worker on" in line]
    assert len(set(told)) == len(told) == 2


@pytest.mark.parametrize("weights", [0, LARGEST])
def test_a_stage_that_only_loses_workers_is_ended(tmp_path, cluster, capsys, monkeypatch, weights):
    monkeypatch.setattr(worker_loss, "MOST", 1)
    with pytest.raises(LostWorkersError) as error:
        run(tmp_path, 1, how="signal", always=True, weights=weights)
    assert re.match(r"try: a worker was lost again and again; the last one on .* by a signal.*; try ", str(error.value))
    assert capsys.readouterr().err.count("a worker on") >= 2
    assert run(tmp_path, 1, how="signal") == [0]  # Ray goes on


def test_search_actors_end_with_their_stage(tmp_path, cluster, exam_file, small_index, capsys, monkeypatch):
    """Else stages that are run in one process would take the cluster's CPUs one after another, until one waits."""
    monkeypatch.setattr(queries, "SMALL_INDEX", 0)
    monkeypatch.setattr(queries, "LocalSearch", None)  # not used then
    before = workers("SearchActor")
    gc.disable()  # which could only hide it
    try:
        retrieve(RetrieveOptions(output=str(tmp_path), index=f"{small_index}/index", exam=exam_file))
        end = time.monotonic() + 60
        while (left := [each for each in workers("SearchActor") if each not in before]) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        gc.enable()
    assert not left
    assert "a worker on" not in capsys.readouterr().err


def record(kind: int, detail: str) -> WorkerTableData:
    worker = WorkerTableData(exit_type=kind, exit_detail=detail, pid=1)
    worker.worker_address.ip_address = "10.0.0.1"
    return worker


def test_ways_to_die_are_told_apart():
    memory = (
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, ID: ab) was"
    )
    memory += " 9.16GB used / 23.54GB limit (0.389015)\nOOM kill reason: Memory usage exceeded threshold"
    said = {
        worker_loss._how(record(WorkerExitType.NODE_OUT_OF_MEMORY, memory)),
        worker_loss._how(
            record(WorkerExitType.SYSTEM_ERROR, "Worker exits unexpectedly. Worker exits with an exit code 4.")
        ),
        worker_loss._how(
            record(WorkerExitType.SYSTEM_ERROR, "Worker unexpectedly exits with a connection error code 2. End")
        ),
    }
    assert said == {
        "was killed, since its node ran out of memory (9.16GB used / 23.54GB limit)",
        "ended with exit code 4",
        "was killed by a signal, which a system out of memory sends too, or crashed",
    }


def test_a_lost_node_is_told_of_and_one_let_go_is_not(cluster, monkeypatch, capsys):
    watch = worker_loss._watch
    nodes = [GcsNodeInfo(node_id=name, node_manager_address="10.0.0.9") for name in (b"a", b"b")]
    for node, reason in zip(nodes, (2, 1), strict=True):
        node.death_info.reason, node.death_info.reason_message = reason, "no heartbeats"
    monkeypatch.setattr(watch, "_dead_nodes", lambda: nodes)
    watch.check()
    watch.check()
    assert capsys.readouterr().err.splitlines() == [
        "sciqa: the node 10.0.0.9 is lost (no heartbeats); its work is done again"
    ]


def test_a_head_that_does_not_answer_is_told_of_once(cluster, monkeypatch, capsys):
    watch = worker_loss._watch
    closed = worker_loss.init_grpc_channel("127.0.0.1:9")
    monkeypatch.setattr(watch, "worker_info", worker_loss.WorkerInfoGcsServiceStub(closed))
    for _ in range(5):
        watch.check()
    assert capsys.readouterr().err.count("does not answer; if it does not within a minute, the run ends") == 1


def test_bad_input_that_a_task_finds_is_one_line(cluster, monkeypatch, capsys):
    def find(path: str) -> None:
        raise InputError(f"{path}: no such file")

    task = ray.remote(num_cpus=0)(find)
    monkeypatch.setattr(predicting, "predict", lambda _: ray.get(task.remote("answers/00003.parquet")))
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict"])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(cli.FIRST_WORDS)]
    assert line == "sciqa predict: error: answers/00003.parquet: no such file"


def test_bad_input_that_was_only_being_handled_is_not_the_reason(cluster):
    def find(fails: bool) -> None:
        try:
            raise InputError("a.parquet: no such file")
        except InputError:
            if fails:
                raise ValueError("a defect")  # noqa: B904
            raise

    task = ray.remote(num_cpus=0)(find)
    found = []
    for fails in (True, False):
        with pytest.raises(ray.exceptions.RayTaskError) as error:
            ray.get(task.remote(fails))
        found.append(find_input_error(error.value))
    assert [found[0], str(found[1])] == [None, "a.parquet: no such file"]


def test_a_run_that_a_lost_worker_ends_is_one_line(cluster, monkeypatch, capsys):
    die = ray.remote(max_retries=0, num_cpus=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(predicting, "predict", lambda _: ray.get(die.remote()))
    monkeypatch.delenv(VERBOSE, raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict"])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert re.match(r"sciqa predict: error: .*: a worker was lost again and again; the last one on .*; try ", line)


SPEAKS = """
import logging, os, sys, time
from sciqa.core.cluster import connect_cluster
from sciqa.core.options import RunOptions
import ray
connect_cluster(RunOptions(num_cpus=1, output=sys.argv[1]))
def speak():
    from sciqa.core.console import quiet_console
    quiet_console("transformers")
    logging.basicConfig()
    logging.getLogger("transformers").warning("a warning of a worker")
ray.get(ray.remote(num_cpus=0)(speak).remote())
def die(marker):
    if not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), 9)
ray.get(ray.remote(num_cpus=0)(die).remote(sys.argv[1] + "/marker"))
time.sleep(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("verbose", ["1", "0"])
def test_verbose_lets_workers_speak(tmp_path, verbose):
    command = [sys.executable, "-c", SPEAKS, str(tmp_path)]
    environment = os.environ | {VERBOSE: verbose}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    assert ("a warning of a worker" in made.stdout + made.stderr) == (verbose == "1")
    assert made.stderr.count("sciqa: a worker on ") == 1
    assert "A worker died" not in made.stdout
    if verbose == "0":
        assert len(made.stderr.splitlines()) == 1


@pytest.mark.parametrize("step", cli.STEPS)
def test_every_step_takes_verbose(step, tmp_path, monkeypatch):
    monkeypatch.setenv(VERBOSE, "0")
    _, kind = cli.STEPS[step].load()
    (tmp_path / "options.yaml").write_text("verbose: true\n")
    question = ["Why?"] * (step == "ask")
    for given in (["--verbose"], ["--config", str(tmp_path / "options.yaml")]):
        os.environ[VERBOSE] = "0"
        cli.parse_cli_options(kind, step, cli.STEPS[step].about, question + given)
        assert os.environ[VERBOSE] == "1"
