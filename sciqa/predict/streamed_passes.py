"""Passes through a streamed model: grouping of question shards, and progress messages."""

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


def split_passes(options: "PredictOptions", shard_questions: int, parts: list[int]) -> list[list[int]]:
    """Return the numbers of shards in groups; each group passes through the model once.

    There are as few groups as `--stream-questions` allows, but at least one for every worker where shards suffice.
    """
    if not parts:
        return []
    fewest = -(-len(parts) * shard_questions // options.stream_questions)
    workers = cluster.num_cluster_workers(options, len(parts), whole_nodes=True)
    return [group.tolist() for group in np.array_split(parts, min(len(parts), max(fewest, workers)))]


@contextmanager
def show_streamed_passes() -> Iterator[Callable[[str], None]]:
    """Yield a function by which workers report progress, and print their messages."""
    told = cluster.cluster_queue()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                console.print(f"predict: {told.get(timeout=1)}")
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
