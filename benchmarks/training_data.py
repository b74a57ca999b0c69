"""Memory and seconds that the training data takes of a worker: mapped from a file, beside tables that are held whole.

Questions are those of the packaged exam, with random words in front, each with a context of three passages of 1 kB, and
are written once for each size as `sciqa finetune` finds them on storage. Each side then reads 100 windows of 256
questions in the order of a run, in a process of its own. Memory is what the process has to itself after the last
window, less that before the first: anonymous memory, which the system cannot take back as it can the pages of a file.
Usage: python benchmarks/training_data.py [QUESTIONS ...], by default 10,000, 100,000 and 1,000,000 (9 GB of disk)
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sciqa.core import tables
from sciqa.exam import read_exam
from sciqa.exam.open_exam import EXAM_HASH, Exam
from sciqa.retrieval.contexts import CONTEXTS_FORMAT, SCHEMA
from sciqa.training.example_files import example_file_batches, map_example_file, write_example_file
from sciqa.training.examples import ExampleOrder, Examples

SHARD, WINDOWS, WINDOW, PASSAGES, CHARACTERS = 5_000, 100, 256, 3, 1_000


def write(folder: str, questions: int) -> None:
    """Write the exam and the contexts of some number of questions, shard by shard."""
    asked, rng = read_exam("train").to_pylist(), np.random.default_rng(0)
    schema = read_exam("train").schema
    path = Path(folder, "exam.parquet")
    with pq.ParquetWriter(path, schema.with_metadata({EXAM_HASH: b"made"}), compression="zstd") as file:
        for first in range(0, questions, SHARD):
            numbers = range(first, min(first + SHARD, questions))
            rows = [asked[n % len(asked)] | {"id": str(n)} for n in numbers]
            words = rng.integers(0, 1 << 60, len(rows))
            rows = [row | {"prompt": f"{word:x} {row['prompt']}"} for row, word in zip(rows, words, strict=True)]
            file.write_table(pa.Table.from_pylist(rows, schema))
            texts = rng.integers(97, 123, (len(rows), PASSAGES, CHARACTERS), dtype=np.uint8)
            found = [[bytes(text).decode() for text in each] for each in texts]
            contexts = [
                {"id": row["id"], "context": "\n".join(each), "evidence": None}
                | {
                    "passages": [
                        {"passage_id": f"{n}", "title": "t", "section": "", "text": n, "score": 0.5} for n in each
                    ]
                }
                for row, each in zip(rows, found, strict=True)
            ]
            part = tables.table_part_path(f"{folder}/contexts", first // SHARD)
            tables.write_table(part, pa.Table.from_pylist(contexts, schema=SCHEMA))
    tables.finish_table(f"{folder}/contexts", {"format": CONTEXTS_FORMAT, "inputs": {"exam": "made"}, "rows": SHARD})


def own_memory() -> int:
    """Return the bytes of anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def read(folder: str, questions: int, side: str) -> None:
    """Read as a worker does, and print the figures."""
    names = tuple(pq.read_schema(f"{folder}/exam.parquet").names)
    exam = Exam(f"{folder}/exam.parquet", "made", questions, SHARD, "made", names, questions)
    before, started = own_memory(), time.monotonic()
    if side == "mapped":
        with tempfile.TemporaryDirectory() as aside:
            examples = Examples(map_example_file(write_example_file(exam, f"{folder}/contexts", aside)))
    else:
        examples = Examples(pa.concat_tables(example_file_batches(exam, f"{folder}/contexts")))
    opened = time.monotonic() - started

    class Encoded:
        length = 0

    def encode(epoch: int, number: int) -> tuple:
        examples.plain(number)
        return Encoded(), 0

    steps = WINDOWS * 16
    order, started = ExampleOrder(questions, steps, WINDOW // 16, 0, encode), time.monotonic()
    for step in range(0, steps, 16):
        order.batch(step)
    figures = {"opening s": opened, "256 questions ms": (time.monotonic() - started) / WINDOWS * 1e3}
    print(json.dumps(figures | {"memory MB": (own_memory() - before) / 1e6}))


def main(sizes: list[int]) -> None:
    """Print a line for each size and side."""
    for questions in sizes:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, __file__, "write", folder, str(questions)], check=True)
            for side in ("mapped", "whole"):
                command = [sys.executable, __file__, "read", folder, str(questions), side]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                made = json.loads(ran.stdout.splitlines()[-1])  # DeepSpeed prints before
                print(f"{questions:,} {side}: " + ", ".join(f"{name} {value:,.1f}" for name, value in made.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["read"]:
        read(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main([int(size) for size in sys.argv[1:]] or [10_000, 100_000, 1_000_000])
