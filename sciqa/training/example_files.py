"""Training examples as a file on each node's disk, mapped into the memory of its workers, so that none holds them all.

Steps read questions in an order drawn from the seed, one here and one there, which Parquet cannot do without reading
their neighbours. So what is on storage is copied, shard by shard, to a temporary file in Arrow's form. The file loses
its name once all workers of the node have mapped it: the system frees its room when they end, even if they are killed.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import ray.train

from sciqa.core.errors import InputError
from sciqa.core.storage import storage_errors
from sciqa.exam.open_exam import Exam
from sciqa.retrieval.contexts import open_contexts
from sciqa.training.sharding import sharding_exchange


def share_example_file(exam: Exam, contexts: str, made_from: dict | None = None) -> pa.Table:
    """Return the questions of an exam with their contexts, mapped from a file that the workers of a node share.

    All workers of a training call it at the same time; the first of each node writes.

    Raises:
        InputError: see `example_file_batches`, or a disk that cannot be written; on all workers alike.
    """
    context = ray.train.get_context()
    with contextlib.ExitStack() as stack:
        written: str | InputError | None = None
        if context.get_local_rank() == 0:
            try:
                with storage_errors("TMPDIR", "written"):
                    folder = stack.enter_context(tempfile.TemporaryDirectory())
                written = write_example_file(exam, contexts, folder, made_from)
            except InputError as error:
                written = error
        everyone = sharding_exchange((context.get_node_rank(), written))
        for _, found in everyone:
            if isinstance(found, InputError):
                raise found
        path = next(found for node, found in everyone if node == context.get_node_rank() and found)
        table = map_example_file(path)
        sharding_exchange(None)  # all have it, so the file may lose its name
    return table


def write_example_file(exam: Exam, contexts: str, folder: str, made_from: dict | None = None) -> str:
    """Write `example_file_batches` to a file in a folder, and return its path."""
    batches = example_file_batches(exam, contexts, made_from)
    first = next(batches)
    path = str(Path(folder, "examples.arrow"))
    copy_to_example_file(path, first.schema, chain([first], batches))
    return path


def copy_to_example_file(path: str, schema: pa.Schema, batches: Iterable[pa.Table]) -> None:
    """Write tables of one schema to a file as a stream in Arrow's form, which can be mapped.

    Raises:
        InputError: a disk that cannot be written.
    """
    with storage_errors(path, "written"), pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_table(batch)
    pa.default_memory_pool().release_unused()


def map_example_file(path: str) -> pa.Table:
    """Return the table in a file that `write_example_file` wrote, mapped."""
    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


def example_file_batches(exam: Exam, contexts: str, made_from: dict | None = None) -> Iterator[pa.Table]:
    """Yield the rows of each shard of an exam: `question`, a row of the exam table, with `context` and `passages`.

    `made_from` are the inputs of the contexts as recorded, which they must still have when all are read.

    Raises:
        InputError: no contexts, or those of other questions, or another exam, or other contexts, have been written
            over these.
    """
    found = open_contexts(contexts, exam)[0]
    for shard in range(exam.shards):
        questions = exam.shard_table(shard).combine_chunks()
        rows = found.read_slice(questions["id"].to_pylist(), exam.first(shard), ["context", "passages"])
        asked = questions.to_struct_array()
        yield pa.table({"question": asked, "context": rows["context"], "passages": rows["passages"]})
    if made_from and open_contexts(contexts, exam)[1] != made_from:
        raise InputError(f"{contexts}: replaced by other contexts since this run was begun; run it again")
