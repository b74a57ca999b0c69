"""A real S3 server (moto's) on this machine, with the bucket `bucket`."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ports import free_port


def choose_address() -> str:
    """Return where the server will be, and put it into the environment of this process and of those it starts."""
    address = f"127.0.0.1:{free_port()}"
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_EC2_METADATA_DISABLED": "true"}
    return address


@contextlib.contextmanager
def s3_server(address: str, log: Path) -> Iterator[int]:
    """Run the server, which writes a line to a log for every request, and yield the id of its process."""
    host, port = address.split(":")
    with log.open("w") as lines:
        command = [sys.executable, "-m", "moto.server", "--host", host, "--port", port]
        server = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://{address}/bucket", method="PUT"))
                break
            except urllib.error.URLError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
        yield server.pid
    finally:
        server.kill()
        server.wait()
