"""Passes through a streamed model: which shards of questions go together, and how far they are."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from ray.exceptions import RayError

from sciqa.core import cluster
from sciqa.core.console import console

if TYPE_CHECKING:
    from sciqa.predict.options import PredictOptions


def split_passes(options: "PredictOptions", rows: int, parts: list[int]) -> list[list[int]]:
    """Return shards, of so many rows each, in groups that go through the model in one pass.

    The groups are few, but one for every worker.
    """
    if not parts:
        return []
    fewest = -(-len(parts) * rows // options.stream_questions)
    workers = cluster.num_workers(options, len(parts), whole_nodes=True)
    return [group.tolist() for group in np.array_split(parts, min(len(parts), max(fewest, workers)))]


@contextmanager
def passes_said(stage: str) -> Iterator[Callable[[str], None]]:
    """Give a function for workers to tell how far they are, and print what they tell."""
    told = cluster.queue_here()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                console.print(f"{stage}: {told.get(timeout=1)}")
            except queue.Empty:
                continue
            except RayError:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield told.put
    finally:
        done.set()
        thread.join(timeout=10)
        told.shutdown()
