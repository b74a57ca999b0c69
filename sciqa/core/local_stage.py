"""Small stages run in the process of the command, without Ray, whose start would take longer than their work.

While a process is not connected to Ray, the functions here work in that process, and those of `sciqa.core.cluster` that
return workers, threads and devices return one worker on the CPUs of this machine.
"""

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import ray

from sciqa.core.cluster import TASK_CPUS, last_started_cluster
from sciqa.core.imports import quick_imports
from sciqa.core.options import ClusterOptions

#: Most questions of a small stage, and most bytes of its weights.
QUESTIONS, WEIGHTS = 64, 1_000_000_000
#: Where Linux has GPUs or their drivers (NVIDIA's, those of Windows, AMD's).
GPU_DRIVERS = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
#: Module that the stage after this one needs, if any.
_next: ContextVar[str | None] = ContextVar("module of the next stage", default=None)


def is_local_stage(options: ClusterOptions, questions: int, weights: int) -> bool:
    """Whether a stage runs in this process: it is small, and there is neither a cluster nor a GPU that it should use.

    It is false if the options ask for a cluster, for a number of CPUs or workers, or for a kind of GPU. `weights` are
    the bytes of the weights of the stage's models.
    """
    if ray.is_initialized() or questions > QUESTIONS or weights > WEIGHTS:
        return False
    if options.address or options.num_cpus or os.environ.get("RAY_ADDRESS") or options.num_workers != "auto":
        return False
    if options.accelerator != "cpu" and (options.accelerator != "auto" or any(map(os.path.exists, GPU_DRIVERS))):
        return False
    return not is_cluster_started()


@functools.cache
def is_cluster_started() -> bool:
    """Whether a cluster that `ray start` started answers; asked once, as waiting for no answer takes ten seconds."""
    return last_started_cluster() != "local"


@contextlib.contextmanager
def before_local_stage(module: str | None) -> Iterator[None]:
    """Name a module that the next stage needs, if any: a local stage in this context imports it while it works."""
    token = _next.set(module)
    try:
        yield
    finally:
        _next.reset(token)


def local_stage_rows(worker: Callable[..., Callable[[dict], dict]], arguments: dict, parts: list) -> Iterator[dict]:
    """Yield the row for each part that a worker returns, which is made here of its class and arguments."""
    made = worker(**arguments)
    if module := _next.get():  # not before: two threads that import the same packages could wait for each other
        threading.Thread(target=_import, args=(module,)).start()
    for part in parts:
        yield made({"part": part})


def _import(module: str) -> None:
    with quick_imports(), contextlib.suppress(Exception):  # the next stage imports it too, and raises
        importlib.import_module(module)


def run_local_or_task(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 (what it returns)
    """Return what a function returns, called here or, on a cluster, in a task."""
    if not ray.is_initialized():
        return function(*arguments)
    return ray.get(ray.remote(num_cpus=TASK_CPUS)(function).remote(*arguments))
