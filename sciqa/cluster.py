"""Ray for every step: connecting, sizing pools so that they cannot starve, and showing progress."""

import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sciqa.errors import InputError

#: CPUs that each kind of work asks Ray for. A pool has one model worker per CPU, which leaves half of every
#: CPU to the search actors and to the tasks that feed and follow the pool: with all of it taken, Ray Data
#: waits for ever without an error. The fractions hold on one CPU as on a thousand.
MODEL_CPUS = 0.5
SEARCH_CPUS = 0.25
TASK_CPUS = 0.25
#: Seconds after which a stage says that it goes on.
LONGEST_SILENCE = 15

console = Console(stderr=True)


@dataclass(kw_only=True)
class RunOptions:
    """Where a run writes and what it runs on."""

    output: str = "sciqa-run"
    """Folder (or URI such as s3://bucket/run) for all that the run makes."""
    address: str | None = None
    """Ray cluster to connect to; by default the one of RAY_ADDRESS or on this machine, else a new local one."""
    num_cpus: int | None = None
    """CPUs of a new local Ray; leave it out to use all, or to use a cluster that is running."""
    num_workers: int | None = None
    """Model workers of each stage; by default one per CPU, or one per GPU where there are GPUs."""

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        self.at_least(1, "num_cpus", "num_workers")
        if self.address and self.num_cpus:
            raise InputError("--num-cpus: sizes a new local Ray; leave it out with --address")
        if "://" not in self.output:  # workers of a local cluster do not share the driver's working folder
            self.output = os.path.abspath(self.output)  # noqa: PTH100 (Path.absolute keeps "..")

    def at_least(self, least: float, *names: str) -> None:
        """Raise `InputError` where one of the options is given and less."""
        for name in names:
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')}: {value} given, at least {least} expected")


def check_name(name: str) -> None:
    """Raise `InputError` unless an option `--name` can name a folder of a table."""
    if not name or "/" in name or name.startswith((".", "_")):
        raise InputError(f"--name: {name!r} given, the name of a folder expected")


@dataclass
class Summary:
    """What a step made.

    Attributes:
        stage: name of the step.
        path: where its table is.
        made: the counts worth saying, in words.
        seconds: wall time.
        details: figures for the caller.
    """

    stage: str
    path: str
    made: str
    seconds: float
    details: dict = field(default_factory=dict)


def connect(options: RunOptions) -> None:
    """Connect this process to Ray, starting it on this machine where none runs; once per process."""
    if not ray.is_initialized():
        # At its default level Ray's core warns of what Ray Data itself does with constructor arguments.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = "local" if options.num_cpus else options.address
        if address and ":" in address:
            _check_reachable(address)
        with _no_core_messages():
            ray.init(
                address=address,
                num_cpus=options.num_cpus,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong there is raised here too


def _check_reachable(address: str) -> None:
    """Fail at once where nothing listens: Ray itself would try again for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


@contextlib.contextmanager
def _no_core_messages() -> Iterator[None]:
    """Keep back what Ray's core prints while it starts, such as the level just set; errors are raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def num_workers(options: RunOptions, parts: int) -> int:
    """Return how many model workers to start for a number of parts: never more than there are parts."""
    available = int(ray.cluster_resources().get("GPU", 0)) or cluster_cpus()
    return max(1, min(options.num_workers or available, parts))


def cluster_cpus() -> int:
    """Return the CPUs of the cluster as it is now, at least 1."""
    return max(1, math.floor(ray.cluster_resources().get("CPU", 1)))


def threads_per_worker(workers: int) -> int:
    """Return the CPU threads of each of a number of workers, so that together they fill the CPUs and no more."""
    return max(1, cluster_cpus() // workers)


def has_gpu() -> bool:
    """Whether model workers get a GPU each."""
    return ray.cluster_resources().get("GPU", 0) >= 1


def model_pool(workers: int) -> dict:
    """Return the arguments of `Dataset.map` that give a stage its fixed pool of model workers."""
    resources = {"num_gpus": 1} if has_gpu() else {"num_cpus": MODEL_CPUS}
    return {"compute": ActorPoolStrategy(size=workers), **resources}


def from_parts(parts: list) -> Dataset:
    """Return a dataset with one block per part, so that each part is scheduled, and lost, by itself."""
    return ray.data.from_items([{"part": part} for part in parts], override_num_blocks=max(1, len(parts)))


def rows_with_progress(dataset: Dataset, stage: str, total: int, unit: str, count: Callable[[dict], int]) -> Iterator:
    """Yield a dataset's rows as they finish, showing how much is done.

    Args:
        dataset: one small row per finished part.
        stage: name shown.
        total: number of units in all parts.
        unit: what is counted, in plural.
        count: the units in a row.
    """
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    if console.is_terminal:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(stage, total=total)
            for row in dataset.iter_rows():
                progress.advance(task, count(row))
                yield row
        return
    said = time.monotonic()
    done = 0
    with spoken(stage, f"0 of {total} {unit}, starting workers") as say:
        for row in dataset.iter_rows():
            done += count(row)
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"{done} of {total} {unit}")
            yield row


@contextlib.contextmanager
def spoken(stage: str, begun: str) -> Iterator[Callable[[str], None]]:
    """Give a function that prints a line of a stage's progress, and say that it goes on where nothing else is said.

    Args:
        stage: name shown.
        begun: the first line; those that follow end with the seconds since.
    """
    console.print(f"{stage}: {begun}")
    started = last = time.monotonic()
    done = threading.Event()

    def say(line: str) -> None:
        nonlocal last
        last = time.monotonic()
        console.print(f"{stage}: {line}, {last - started:.0f} s")

    def watch() -> None:
        while not done.wait(1):
            if time.monotonic() - last > LONGEST_SILENCE:
                say("at work")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        done.set()
        thread.join()
