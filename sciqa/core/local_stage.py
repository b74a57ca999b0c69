"""Small stages, which this process does by itself where no cluster is: starting Ray would take longer than their work.

A process that is not connected to Ray does so in each function here, and `sciqa.core.cluster` tells its own CPUs.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import ray

from sciqa.core.cluster import TASK_CPUS, last_started_cluster
from sciqa.core.options import ClusterOptions

#: Most questions of a small stage, and most bytes of its weights.
QUESTIONS, WEIGHTS = 64, 1_000_000_000
#: Where Linux has GPUs or their drivers (NVIDIA's, those of Windows, AMD's).
GPU_DRIVERS = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
#: Module that the stage after this one needs, if any.
_next: ContextVar[str | None] = ContextVar("module of the next stage", default=None)


def is_local_stage(options: ClusterOptions, questions: int, weights: int) -> bool:
    """Whether a stage is small, and neither a cluster nor its size nor a GPU is asked for or there.

    Args:
        options: options of the run.
        questions: number of questions of the stage.
        weights: bytes of the weights of its models.
    """
    if ray.is_initialized() or questions > QUESTIONS or weights > WEIGHTS:
        return False
    if options.address or options.num_cpus or os.environ.get("RAY_ADDRESS") or options.num_workers != "auto":
        return False
    if options.accelerator != "cpu" and (options.accelerator != "auto" or any(map(os.path.exists, GPU_DRIVERS))):
        return False
    return last_started_cluster() == "local"


@contextlib.contextmanager
def before_local_stage(module: str | None) -> Iterator[None]:
    """Within this context, a local stage imports meanwhile what the next stage needs, which takes seconds."""
    token = _next.set(module)
    try:
        yield
    finally:
        _next.reset(token)


def local_stage_rows(worker: Callable[..., Callable[[dict], dict]], arguments: dict, parts: list) -> Iterator[dict]:
    """Yield a row for each part of a stage.

    Args:
        worker: class of workers, whose instances map a row.
        arguments: arguments of the class.
        parts: the parts.
    """
    made = worker(**arguments)
    if module := _next.get():  # not before: two threads that import the same packages could wait for each other
        threading.Thread(target=_import, args=(module,)).start()
    for part in parts:
        yield made({"part": part})


def _import(module: str) -> None:
    with contextlib.suppress(Exception):  # the next stage imports it too, and raises
        importlib.import_module(module)


def run_local_or_task(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 (what it returns)
    """Return what a function returns, called here or, on a cluster, in a task."""
    if not ray.is_initialized():
        return function(*arguments)
    return ray.get(ray.remote(num_cpus=TASK_CPUS)(function).remote(*arguments))
