"""Progress of a stage: a bar on a terminal, lines in a log, JSON for a submitted job, and Ray's metrics."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sciqa.core import worker_loss
from sciqa.core.console import console
from sciqa.core.errors import find_input_error

if TYPE_CHECKING:
    from ray.data import Dataset

#: Seconds between two lines of progress, where there is no terminal for a bar.
BETWEEN_LINES = 30


def rows_with_progress(
    dataset: "Dataset | Iterator[dict]", stage: str, total: int, unit: str, count: Callable[[dict], int], by: str = ""
) -> Iterator[dict]:
    """Yield the rows of a dataset, or those of this process, as they finish, and show progress.

    A terminal shows a bar; a log gets a line every `BETWEEN_LINES` seconds, and the log of a submitted job also a line
    of JSON per row. Ray's metrics `sciqa_done` and `sciqa_total`, tagged with stage and unit, have the same figures.

    Args:
        dataset: one small row per finished part; its `notes` (messages for the user) are printed, each text once.
        stage: name shown.
        total: number of units in all parts.
        unit: name of the unit, in plural.
        count: returns the number of units in a row.
        by: name of what works on the units, if there are several in turn; shown with the unit.

    Raises:
        InputError: a worker found bad input.
        LostWorkersError: a worker was lost `worker_loss.MOST` times.
    """
    gauge = _gauges(stage, unit)
    gauge("total", total)
    done, noted = 0, set()
    with (_bar if console.is_terminal else _lines)(stage, total, unit, f"{unit} by {by}" if by else unit) as show:
        for row in _rows(dataset):
            for note in dict.fromkeys(row.pop("notes", None) or ()):
                if note not in noted:
                    console.print(f"{stage}: {note}", markup=False)
                noted.add(note)
            done += count(row)
            gauge("done", done)
            show(done, row)
            yield row


def _gauges(stage: str, unit: str) -> Callable[[str, int], None]:
    """Return a function that sets one of Ray's metrics by its name; it does nothing where Ray is not connected."""
    if not ray.is_initialized():
        return lambda name, value: None
    from ray.util.metrics import Gauge

    gauges = {
        name: Gauge(f"sciqa_{name}", f"Units {name} of a stage.", ("stage", "unit")) for name in ("done", "total")
    }
    return lambda name, value: gauges[name].set(value, {"stage": stage, "unit": unit})


def _rows(dataset: "Dataset | Iterator[dict]") -> Iterator[dict]:
    """Yield the rows; an `InputError` of a worker is raised here too, and a lost worker's error in one line."""
    try:
        yield from dataset if isinstance(dataset, Iterator) else dataset.iter_rows()
    except Exception as error:
        bad_input = find_input_error(error)
        if bad_input and bad_input is not error:
            raise bad_input from error
        if by_loss := worker_loss.worker_loss_error(error):
            raise by_loss from error
        raise


@contextlib.contextmanager
def _bar(stage: str, total: int, unit: str, shown: str) -> Iterator[Callable[[int, dict], None]]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(shown, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with worker_loss.report_worker_losses(stage), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(stage, total=total)
        yield lambda done, row: progress.update(task, completed=done)


@contextlib.contextmanager
def _lines(stage: str, total: int, unit: str, shown: str) -> Iterator[Callable[[int, dict], None]]:
    started = said = time.monotonic()
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    begun = "starting workers" if ray.is_initialized() else "loading models"
    with progress_lines(stage, f"0 of {total} {shown}, {begun}") as say:

        def show(done: int, row: dict) -> None:
            nonlocal said
            now = time.monotonic()
            if submitted:
                about = {"stage": stage, "unit": unit, "done": done, "total": total, "seconds": round(now - started, 1)}
                console.out(json.dumps(about | {"part": row}, default=str), highlight=False)
            if now - said > BETWEEN_LINES:
                said = now
                say(f"{done} of {total} {shown}, {_at_work()}")

        yield show


def _at_work() -> str:
    """Return the cluster's current nodes, CPUs and GPUs, in words."""
    if not ray.is_initialized():
        return "at work"
    resources = ray.cluster_resources()
    kinds = [f"{resources[name]:.0f} {name}s" for name in ("CPU", "GPU") if resources.get(name)]
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{nodes} nodes with {' and '.join(kinds)}" if nodes > 1 else " and ".join(kinds)


@contextlib.contextmanager
def progress_lines(stage: str, begun: str) -> Iterator[Callable[[str], None]]:
    """Provide a function that prints a line of a stage's progress; print `at work` after a long silence.

    `begun` is the first line; later ones end with the seconds since then.
    """
    console.print(f"{stage}: {begun}", markup=False)
    started = last = time.monotonic()
    done = threading.Event()

    def say(line: str) -> None:
        nonlocal last
        last = time.monotonic()
        console.print(f"{stage}: {line}, {last - started:.0f} s", markup=False)

    def watch() -> None:
        while not done.wait(1):
            if time.monotonic() - last > BETWEEN_LINES:
                say("at work")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with worker_loss.report_worker_losses(stage):
            yield say
    finally:
        done.set()
        thread.join()
