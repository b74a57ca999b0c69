"""Small stages without Ray: the same tables as on a cluster, which is used all the same where it is asked for."""

import subprocess
import sys

import numpy as np
import pytest
import ray
from tiny import tiny_folder

from sciqa.core import local_stage, tables
from sciqa.core.local_stage import is_local_stage
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, retrieve


def test_a_small_exam_is_answered_alike_with_and_without_ray(tmp_path, cluster, exam_file, small_index):
    model = tiny_folder(tmp_path / "model", "llama")
    run = "import sys, ray; from sciqa.cli import main; main(sys.argv[1:]); print(ray.is_initialized())"
    given = ["--index", f"{small_index}/index", "--output", str(tmp_path / "here"), "--exam", exam_file]
    command = [sys.executable, "-c", run, "exam", *given, "--model", model, "--precision", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "loading models" in done.stderr
    assert "Traceback" not in done.stderr
    there = {"output": str(tmp_path / "there"), "exam": exam_file}
    retrieve(RetrieveOptions(index=f"{small_index}/index", **there))
    for reader in ("open-book", "longest"):
        made = predict(PredictOptions(model=model, precision="float32", reader=reader, **there)).path
        one, other = (tables.read_table(path) for path in (made.replace("there", "here"), made))
        assert one.drop(["scores", "probabilities"]).equals(other.drop(["scores", "probabilities"]))
        for name in ("scores", "probabilities"):
            np.testing.assert_allclose(*(np.concatenate(each[name].to_pylist()) for each in (one, other)), atol=1e-5)
    contexts = [tables.read_table(f"{tmp_path}/{run}/contexts") for run in ("here", "there")]
    assert contexts[0].equals(contexts[1])


@pytest.mark.parametrize(
    ("changed", "questions", "weights"),
    [
        ({}, local_stage.QUESTIONS + 1, 0),
        ({}, 1, local_stage.WEIGHTS + 1),
        ({"num_cpus": 1}, 1, 0),
        ({"address": "ray://10.0.0.1:10001"}, 1, 0),
        ({"num_workers": 1}, 1, 0),
        ({"accelerator": "gpu"}, 1, 0),
        ("RAY_ADDRESS", 1, 0),
        ("GPU", 1, 0),
        ("connected", 1, 0),
        ("running", 1, 0),
    ],
)
def test_what_is_large_or_asks_for_a_cluster_gets_one(tmp_path, monkeypatch, changed, questions, weights):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(local_stage, "GPU_DRIVERS", ())
    monkeypatch.setattr(local_stage, "is_cluster_started", lambda: False)
    options = PredictOptions(output=str(tmp_path), **(changed if isinstance(changed, dict) else {}))
    assert is_local_stage(PredictOptions(output=str(tmp_path)), local_stage.QUESTIONS, local_stage.WEIGHTS)
    if changed == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    if changed == "GPU":
        monkeypatch.setattr(local_stage, "GPU_DRIVERS", (str(tmp_path),))
    if changed == "running":
        monkeypatch.setattr(local_stage, "is_cluster_started", lambda: True)
    if changed == "connected":
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert not is_local_stage(options, questions, weights)
