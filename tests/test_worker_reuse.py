"""Stages share worker processes where their models are small, and prepare what later ones need."""

import os
import time

import pytest
from test_gguf import decoder, write_gguf

from sciqa.core import cache, cluster, model_workers
from sciqa.core.model_files import find_model
from sciqa.core.model_workers import LARGEST, model_worker_arguments
from sciqa.core.options import RunOptions
from sciqa.models.load import GGUF_FORMAT
from sciqa.run import RunIndexOptions, find_run_passages


def processes(name: str, weights: int = 0) -> set[int]:
    """Run a stage of three parts; return the ids of its processes."""

    class Counting:
        def __init__(self, name: str) -> None:
            self.name, self.parts = name, []

        def __call__(self, row: dict) -> dict:
            self.parts.append(row["part"])
            return {"process": os.getpid(), "name": self.name, "parts": len(self.parts)}

    pool = model_workers.model_worker_pool(RunOptions(num_workers=1), 1, 3, weights)
    rows = cluster.cluster_dataset([0, 1, 2]).map(**model_worker_arguments(Counting, {"name": name}, pool)).take_all()
    assert {row["name"] for row in rows} == {name}
    ids = {row["process"] for row in rows}
    for each in ids:  # one worker a process and stage, whatever the order of its parts
        seen = sorted(row["parts"] for row in rows if row["process"] == each)
        assert seen == list(range(1, len(seen) + 1))
    return ids


@pytest.mark.parametrize(("weights", "shared"), [(0, True), (LARGEST, False)])
def test_the_next_stage_takes_the_processes_of_the_last_one(cluster, weights, shared):
    first, second = processes("first", weights), processes("second", weights)
    assert bool(first & second) == shared


@pytest.mark.slow
def test_a_gguf_model_is_converted_while_the_index_is_built(tmp_path, cluster, corpus_file, embedder):
    model = write_gguf(tmp_path / "model.gguf", decoder(tmp_path / "model"))
    folder = cache.cache_root() / f"gguf-{GGUF_FORMAT}-{find_model(model).revision}"
    options = RunIndexOptions(output=str(tmp_path / "run"), corpus=(corpus_file,), embedder=str(embedder))
    find_run_passages(options, model)
    for _ in range(600):
        if folder.exists():
            break
        time.sleep(0.1)
    assert (folder / "model.safetensors").exists()
