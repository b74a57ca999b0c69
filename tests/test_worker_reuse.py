"""Stages share worker processes where their models are small; each stage has workers of its own."""

import os

import pytest

from sciqa.core import cluster, model_workers
from sciqa.core.model_workers import LARGEST, model_worker_arguments
from sciqa.core.options import RunOptions


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
