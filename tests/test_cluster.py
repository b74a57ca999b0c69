"""A real head with the autoscaler, work submitted to it with a token, and clusters that lack something."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import yaml
from ports import free_port
from ray.job_submission import JobStatus, JobSubmissionClient

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.core.options import RunOptions
from sciqa.run import RunExamOptions, run_exam

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")


@dataclass
class Head:
    """A running head.

    Attributes:
        url: of its dashboard, which takes jobs.
        environment: with the token.
        token: that it asks for.
    """

    url: str
    environment: dict
    token: str

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.token}"})

    def nodes(self) -> int:
        """Return how many nodes are alive beside the head."""
        request = urllib.request.Request(f"{self.url}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"})
        found = json.load(urllib.request.urlopen(request, timeout=30))["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in found)

    def submit(self, step: str, **options: object) -> str:
        """Submit a step, with options as a YAML file takes them, and return the job's id."""
        return self.client().submit_job(
            entrypoint=command(step, **options), runtime_env={"working_dir": str(ROOT / "jobs")}
        )

    def wait(self, job: str, seconds: float = 400) -> tuple[JobStatus, int | None, str]:
        """Return a job's status, exit code and log once it has ended."""
        client, end = self.client(), time.monotonic() + seconds
        while not (status := client.get_job_status(job)).is_terminal():
            assert time.monotonic() < end, client.get_job_logs(job)
            time.sleep(0.5)
        return status, client.get_job_info(job).driver_exit_code, client.get_job_logs(job)


def command(step: str, folder: str = "", **options: object) -> str:
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return " ".join([sys.executable, f"{folder}{step}.py", *flags])


def wait_until(true: object, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.5)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head without CPUs of its own, whose autoscaler starts up to two nodes of one CPU, with a token."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short paths
    port, dashboard, agent = free_port(), free_port(), free_port()
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    config = {
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in ("cluster_synced_files", "worker_setup_commands", "worker_start_ray_commands")},
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
    }
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    (folder / "token").write_text(token := "a" * 64)
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    start = [RAY, "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder}/s"]
    start += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--autoscaling-config={folder}/cluster.yaml"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(start, env=environment, stdout=log, stderr=log, start_new_session=True)
    running = Head(f"http://127.0.0.1:{dashboard}", environment, token)
    try:
        wait_until(lambda: answers(running))
        yield running
    finally:
        end(process, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def answers(running: Head) -> bool:
    with contextlib.suppress(OSError, KeyError, TypeError):
        return running.nodes() == 0
    return False


def end(process: subprocess.Popen, folder: str) -> None:
    """Kill a head and all that it started; `ray stop` would stop other clusters of this machine too."""
    os.killpg(process.pid, signal.SIGKILL)
    for each in psutil.process_iter(["cmdline"]):
        if any(folder in argument for argument in each.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def local_run(tmp_path_factory, cluster, corpus_file, exam_file) -> RunExamOptions:
    """An exam answered on the Ray of the tests."""
    output = str(tmp_path_factory.mktemp("local"))
    options = RunExamOptions(output=output, corpus=(corpus_file,), exam=exam_file, shard_questions=3)
    run_exam(options)
    return options


def given(options: RunExamOptions, output: Path) -> dict:
    return {"corpus": options.corpus[0], "exam": options.exam, "shard_questions": 3, "output": output}


def check_same(output: Path, other: str) -> None:
    one, two = (tables.read_table(f"{folder}/answers/open-book").to_pylist() for folder in (output, other))
    for row, expected in zip(one, two, strict=True):
        assert (row["id"], row["ranking"]) == (expected["id"], expected["ranking"])
        np.testing.assert_allclose(row["probabilities"], expected["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_a_submitted_exam_brings_nodes_and_lets_them_go(head, local_run, tmp_path):
    assert head.nodes() == 0
    arguments = command("exam", "jobs/", **given(local_run, tmp_path / "run")).split()
    submit = [RAY, "job", "submit", f"--address={head.url}", "--working-dir", str(ROOT), "--no-wait"]
    submit += ["--runtime-env", str(ROOT / "jobs/runtime_env.yaml"), "--submission-id=exam", "--", *arguments]
    refused = subprocess.run(
        submit, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "oken" in refused.stdout + refused.stderr
    assert not head.client().list_jobs()
    taken = subprocess.run(submit, env=head.environment, capture_output=True, text=True, timeout=120)
    assert taken.returncode == 0, taken.stderr
    wait_until(lambda: head.nodes() >= 1)
    status, code, log = head.wait("exam")
    assert (status, code) == (JobStatus.SUCCEEDED, 0), log
    assert "waiting for a node with CPU 1" in log
    parts = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {part["stage"] for part in parts} == {"corpus", "index", "retrieve", "predict"}
    answered = [part for part in parts if part["stage"] == "predict"]
    assert [part["done"] for part in answered] == [3, 6, 8] * 5  # the reader and four baselines
    check_same(tmp_path / "run", local_run.output)
    wait_until(lambda: head.nodes() == 0)


@pytest.mark.slow
def test_two_jobs_at_once_both_finish(head, local_run, tmp_path):
    jobs = [head.submit("exam", **given(local_run, tmp_path / name)) for name in ("one", "two")]
    for job, name in zip(jobs, ("one", "two"), strict=True):
        status, _, log = head.wait(job)
        assert status == JobStatus.SUCCEEDED, log
        check_same(tmp_path / name, local_run.output)


@pytest.mark.slow
def test_bad_input_of_a_job_exits_with_2(head, local_run, tmp_path):
    (tmp_path / "options.yaml").write_text("number_of_passages: 3\n")
    unknown = head.submit("exam", config=tmp_path / "options.yaml")
    large = head.submit("exam", **given(local_run, tmp_path / "run"), accelerator="H100", reader="retrieval")
    status, code, log = head.wait(unknown)
    assert (status, code) == (JobStatus.FAILED, 2), log
    assert "no option 'number_of_passages'" in log
    status, code, log = head.wait(large)
    assert (status, code) == (JobStatus.FAILED, 2), log
    assert "too few resources: a worker needs a node with GPU 1" in log
    assert "accelerator_type:H100" in log


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_was(head, local_run, tmp_path):
    job = head.submit("exam", **given(local_run, tmp_path))
    wait_until(lambda: list(tmp_path.glob("index/*/embedded.json")), 300)
    head.client().stop_job(job)
    assert head.wait(job)[0] == JobStatus.STOPPED
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("index/*/embedded.json")}
    status, _, log = head.wait(head.submit("exam", **given(local_run, tmp_path)))
    assert status == JobStatus.SUCCEEDED, log
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    check_same(tmp_path, local_run.output)


def test_unknown_accelerators_are_refused():
    with pytest.raises(InputError, match="--accelerator: 'H1000' given, auto, cpu, gpu or one of Ray's names"):
        RunOptions(accelerator="H1000")
    assert replace(RunOptions(), accelerator="H100").accelerator == "H100"
