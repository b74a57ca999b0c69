"""Three nodes, one of which is lost while it works: the tables are those of an undisturbed run."""

import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.train
from ray._private.state import actors
from ray.cluster_utils import Cluster
from test_training import history, losses, tiny_run
from tiny import tiny_folder

from sciqa.core import storage, tables
from sciqa.core.cluster import connect_cluster
from sciqa.core.options import RunOptions
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, queries, retrieve
from sciqa.run import RunExamOptions, run_exam
from sciqa.training import FinetuneOptions, finetune, ray_train

#: Of each step: its function and options, files that tell by their number that it is in its middle, and the Ray actors
#: that do its work; none where tasks do it, on every node.
STEPS = {
    "index": (build_index, IndexOptions, "index/*/embedded.json", None),
    "retrieve": (retrieve, RetrieveOptions, "contexts/*.parquet", "SearchActor"),
    "exam": (run_exam, RunExamOptions, "answers/*/*.parquet", None),
    "finetune": (finetune, FinetuneOptions, "trained/*/checkpoints/checkpoint_2*", "RayTrainWorker"),
}


def lose_a_node(step: str, given: str) -> None:
    """Run a step on three nodes of one CPU and take one away, with a worker of the step on it, in its middle."""
    function, kind, sign, worker = STEPS[step]
    queries.SMALL_INDEX = 0  # so that there are search actors
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(given).items()}
    options = kind(**given)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    others = {node.node_id: node for node in (nodes.add_node(num_cpus=1) for _ in range(2))}
    nodes.wait_for_nodes()
    connect_cluster(RunOptions(address=nodes.address))

    def lose() -> None:
        while len(list(Path(options.output).glob(sign))) < 2:
            time.sleep(0.05)
        at_work = {
            actor["Address"]["NodeID"]
            for actor in actors().values()
            if worker and actor["State"] == "ALIVE" and worker in actor["ActorClassName"]
        } or others.keys()
        nodes.remove_node(others[sorted(at_work & others.keys())[0]], allow_graceful=False)
        print(f"\nfiles when lost: {len(list(Path(options.output).glob(sign)))}\n", end="", flush=True)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    function(options)
    thread.join(timeout=60)
    print("nodes left", sum(node["Alive"] for node in ray.nodes()), flush=True)
    ray.shutdown()
    nodes.shutdown()
    os._exit(0)  # Ray's own exit code tells of the node that was lost


def gain_a_node(given: str) -> None:
    """Train on one node of one CPU, which a second one joins in its middle."""
    scaling = functools.partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=2)  # by default a minute
    ray_train.ScalingConfig = scaling  # type: ignore[assignment, misc]
    options = FinetuneOptions(**json.loads(given))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    connect_cluster(RunOptions(address=nodes.address))

    node = [str(Path(sys.executable).parent / "ray"), "start", f"--address={nodes.address}", "--num-cpus=1", "--block"]

    def gain() -> None:
        while len(list(Path(options.output).glob(STEPS["finetune"][2]))) < 2:
            time.sleep(0.05)
        subprocess.run(node, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # until the cluster ends

    thread = threading.Thread(target=gain, daemon=True)
    thread.start()
    finetune(options)
    ray.shutdown()
    nodes.shutdown()
    thread.join(timeout=60)


def run_losing_a_node(step, **options):
    """Run a step and return how many of its files were there when the node was lost."""
    command = [sys.executable, __file__, step, json.dumps(options, default=str)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert "nodes left 2" in result.stdout
    return int(re.search(r"files when lost: (\d+)", result.stdout)[1])  # among what Ray itself prints of the loss


@pytest.mark.slow
def test_a_node_lost_while_embedding(tmp_path, cluster, corpus_file):
    for name in ("lost", "whole"):
        build_passages(CorpusOptions(output=str(tmp_path / name), corpus=(corpus_file,), shard_passages=12))
    finished = run_losing_a_node("index", output=tmp_path / "lost", num_workers=3)
    build_index(IndexOptions(output=str(tmp_path / "whole")))
    lost, whole = (storage.read_json(str(tmp_path / name / "index/manifest.json")) for name in ("lost", "whole"))
    assert finished < len(whole["shards"])
    assert lost | {"passages": None} == whole | {"passages": None}


@pytest.mark.slow
def test_a_node_lost_while_searching(tmp_path, cluster, small_index):
    given = {"index": f"{small_index}/index", "exam": "direct-validation", "shard_questions": 2}
    finished = run_losing_a_node("retrieve", **given, output=tmp_path / "lost", num_workers=3)
    retrieve(RetrieveOptions(**given, output=str(tmp_path / "whole")))
    lost, whole = (tables.read_table(str(tmp_path / name / "contexts")) for name in ("lost", "whole"))
    assert finished < len(read_exam("direct-validation")) / 2
    assert lost == whole


@pytest.mark.slow
def test_a_node_lost_while_an_exam_is_answered(tmp_path, cluster, corpus_file):
    given = {"corpus": (corpus_file,), "exam": "direct-validation", "shard_questions": 6, "shard_passages": 56}
    finished = run_losing_a_node("exam", **given, output=tmp_path / "lost", num_workers=3)
    run_exam(RunExamOptions(**given, output=str(tmp_path / "whole")))
    assert finished < 21
    for name in ("passages", "contexts", "answers/open-book"):
        lost, whole = (tables.read_table(str(tmp_path / run / name)) for run in ("lost", "whole"))
        assert lost == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "zero", "dropout", "had"),
    [(2, 2, 0.1, [2]), pytest.param("1-3", 0, 0.0, [3, 2], id="elastic")],  # other workers draw other dropout
)
def test_a_node_lost_while_training(tmp_path, cluster, data, workers, zero, dropout, had):
    common = {"zero": zero, "eval_every": 5, "steps": 25, "batch_size": 12}
    common |= {"model": tiny_folder(tmp_path / "model", "llama"), "peft": f"{{r: 4, lora_dropout: {dropout}}}"}
    given = tiny_run(data, tmp_path / "lost", num_workers=workers, **common)
    run_losing_a_node("finetune", **{name: value for name, value in vars(given).items() if value is not None})
    made = finetune(tiny_run(data, tmp_path / "whole", num_workers=1 if zero == 0 else workers, **common))
    lost, whole = losses(given.folder), losses(made.path)
    assert len(lost) == len(whole) == 25
    np.testing.assert_allclose(lost, whole, atol=1e-3)
    numbers = [row["workers"] for row in history(given.folder) if row["workers"]]
    assert list(dict.fromkeys(numbers)) == had


@pytest.mark.slow
def test_a_node_that_joins_while_training(tmp_path, cluster, data):
    common = {"zero": 0, "eval_every": 5, "steps": 150, "batch_size": 4, "peft": "{r: 4, lora_dropout: 0.0}"}
    common |= {"model": tiny_folder(tmp_path / "model", "llama")}
    given = tiny_run(data, tmp_path / "joined", num_workers="1-2", **common)
    options = json.dumps({name: value for name, value in vars(given).items() if value is not None}, default=str)
    subprocess.run([sys.executable, __file__, "join", options], check=True, timeout=500)
    made = finetune(tiny_run(data, tmp_path / "whole", num_workers=1, **common))
    joined, whole = losses(given.folder), losses(made.path)
    assert len(joined) == len(whole) == 150
    np.testing.assert_allclose(joined, whole, atol=1e-3)
    numbers = [row["workers"] for row in history(given.folder) if row["workers"]]
    assert list(dict.fromkeys(numbers)) == [1, 2]


if __name__ == "__main__":
    gain_a_node(*sys.argv[2:]) if sys.argv[1] == "join" else lose_a_node(*sys.argv[1:])
