"""Three nodes, one of which is lost while it works: the tables are those of an undisturbed run."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from sciqa import storage
from sciqa.cluster import RunOptions, connect
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve

#: Files that tell that a step is in its middle.
SIGNS = {"index": "index/*/embedded.json", "retrieve": "contexts/*.parquet"}


def lose_a_node(step: str, output: str, corpus: str, exam: str) -> None:
    """Run a step on three nodes of one CPU and take one away, with a worker of the step on it, in its middle."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    others = [nodes.add_node(num_cpus=1) for _ in range(2)]
    nodes.wait_for_nodes()
    connect(RunOptions(address=nodes.address))

    def lose() -> None:
        while len(list(Path(output).glob(SIGNS[step]))) < 2:
            time.sleep(0.05)
        nodes.remove_node(others[0], allow_graceful=False)
        print("lost", len(list(Path(output).glob(SIGNS[step]))), flush=True)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    if step == "index":
        build_passages(CorpusOptions(output=output, corpus=(corpus,), shard_passages=12))
        build_index(IndexOptions(output=output, num_workers=3))
    else:
        retrieve(RetrieveOptions(output=output, index=corpus, exam=exam, shard_questions=2, num_workers=3))
    thread.join(timeout=60)
    print("nodes left", sum(node["Alive"] for node in ray.nodes()), flush=True)
    ray.shutdown()
    nodes.shutdown()
    os._exit(0)  # Ray's own exit code tells of the node that was lost


def run_losing_a_node(step, output, corpus, exam):
    command = [sys.executable, __file__, step, str(output), str(corpus), str(exam)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert "nodes left 2" in result.stdout
    return int(result.stdout.split("lost ")[1].split()[0])


def test_a_node_lost_while_embedding(tmp_path, cluster, corpus_file):
    finished = run_losing_a_node("index", tmp_path / "lost", corpus_file, "")
    build_passages(CorpusOptions(output=str(tmp_path / "whole"), corpus=(corpus_file,), shard_passages=12))
    build_index(IndexOptions(output=str(tmp_path / "whole")))
    lost, whole = (storage.read_json(str(tmp_path / name / "index/manifest.json")) for name in ("lost", "whole"))
    assert finished < len(whole["shards"])
    assert lost == whole


def test_a_node_lost_while_searching(tmp_path, cluster, small_index, exam_file):
    index = f"{small_index}/index"
    finished = run_losing_a_node("retrieve", tmp_path / "lost", index, "validation")
    options = RetrieveOptions(output=str(tmp_path / "whole"), index=index, exam="validation", shard_questions=2)
    retrieve(options)
    lost, whole = (storage.read_table(str(tmp_path / name / "contexts")) for name in ("lost", "whole"))
    assert finished < len(read_exam("validation")) / 2
    assert lost == whole


if __name__ == "__main__":
    lose_a_node(*sys.argv[1:])
