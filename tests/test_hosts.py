"""Two hosts, each a network namespace with its own address and its own view of one folder; where root may make them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cluster import RAY, ROOT, check_same, command, given, local_run  # noqa: F401 (a fixture)

HEAD, WORKER = "10.213.77.1", "10.213.77.2"


def allowed() -> bool:
    """Whether this process may make network and mount namespaces."""
    tools = all(map(shutil.which, ("ip", "unshare", "mount")))
    return tools and subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode == 0


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not allowed(), reason="may not make network namespaces")]


@pytest.fixture
def hosts(tmp_path) -> Iterator[tuple[list[str], Path]]:
    """A head without CPUs on one host and a node on the other: the prefix of a command on the head, and a folder
    that only the head sees."""
    a, b = (f"sciqa{os.getpid()}{end}" for end in "ab")
    private = tmp_path / "private"
    private.mkdir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (folder / "token").write_text("b" * 64)
    token = ["env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN_PATH={folder}/token", "RAY_USAGE_STATS_ENABLED=0"]
    for line in (
        *(f"netns add {name}" for name in (a, b)),
        f"link add {a} netns {a} type veth peer name {b} netns {b}",
        *(f"-n {name} addr add {at}/24 dev {name}" for name, at in ((a, HEAD), (b, WORKER))),
        *(f"-n {name} link set {device} up" for name in (a, b) for device in (name, "lo")),
    ):
        subprocess.run(["ip", *line.split()], check=True)
    on_head, on_worker = (["ip", "netns", "exec", name, *token] for name in (a, b))
    head = [*on_head, RAY, "start", "--head", "--block", "--num-cpus=0", "--port=6401", f"--node-ip-address={HEAD}"]
    head += ["--dashboard-host=127.0.0.1", f"--temp-dir={folder}/s"]
    node = f"mount -t tmpfs tmpfs {private} && exec {RAY} start --block --num-cpus=2 --address={HEAD}:6401 "
    node += f"--node-ip-address={WORKER}"
    with (folder / "log").open("w") as log:
        start = {"stdout": log, "stderr": log, "start_new_session": True}
        started = [subprocess.Popen(head, **start)]
        try:
            listed = [*on_head, RAY, "status", f"--address={HEAD}:6401"]
            wait_for(listed)
            started.append(subprocess.Popen([*on_worker, "unshare", "--mount", "sh", "-c", node], **start))
            wait_for(listed, "/2.0 CPU")
            yield on_head, private
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGKILL)
            for name in (a, b):
                inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
                for pid in map(int, inside):
                    os.kill(pid, signal.SIGKILL)
                subprocess.run(["ip", "netns", "del", name])
            shutil.rmtree(folder, ignore_errors=True)


def wait_for(listed: list[str], text: str = "") -> None:
    end = time.monotonic() + 90
    while True:
        result = subprocess.run(listed, capture_output=True, text=True)
        if result.returncode == 0 and text in result.stdout:
            return
        assert time.monotonic() < end, result.stderr
        time.sleep(1)


def test_an_exam_on_two_hosts(hosts, local_run, tmp_path):  # noqa: F811
    on_head, private = hosts
    submit = [*on_head, RAY, "job", "submit", "--address=http://127.0.0.1:8265", f"--working-dir={ROOT / 'jobs'}", "--"]
    run = {"capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run([*submit, *command("exam", **given(local_run, tmp_path / "run")).split()], **run)
    print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0
    check_same(tmp_path / "run", local_run.output)
    blind = subprocess.run([*submit, *command("exam", **given(local_run, private / "run")).split()], **run)
    assert blind.returncode != 0
    assert f"a folder of this machine, which the nodes {WORKER} do not see" in blind.stdout + blind.stderr
    assert not list(private.rglob("*.parquet")), "no work was begun"
