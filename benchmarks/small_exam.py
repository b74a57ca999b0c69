"""Seconds of small runs, beside another version: 40 questions with the index in place, and the first word of an answer.

Each version runs from its checkout, in turn, three rounds after one that is not counted; the packaged models and an
index of the demo corpus are there before (`sciqa corpus --output RUN && sciqa index --output RUN`), and nothing of the
exam. The first word is that of `sciqa ask` on standard output.
Usage: python benchmarks/small_exam.py RUN [CHECKOUT ...]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
QUESTIONS, ROUNDS = 40, 3
ASKED = "Which organelle makes most of the energy of a cell?"


def command(checkout: str, *given: str) -> dict:
    """Return the arguments of a process of `sciqa` as it is in a checkout."""
    run = "import sys; from sciqa.cli import main; main(sys.argv[1:])"
    return {"args": [sys.executable, "-c", run, *given], "cwd": checkout, "env": os.environ | {"PYTHONPATH": checkout}}


def exam_seconds(checkout: str, run: str, exam: str) -> float:
    """Return the seconds of an exam, from the command to its end."""
    with tempfile.TemporaryDirectory() as output:
        given = ("exam", "--index", f"{run}/index", "--exam", exam, "--output", output)
        started = time.monotonic()
        subprocess.run(**command(checkout, *given), check=True, capture_output=True)
        return time.monotonic() - started


def first_word_seconds(checkout: str, run: str) -> float:
    """Return the seconds from the command to the first character of its answer."""
    given = command(checkout, "ask", ASKED, "--index", f"{run}/index")
    started = time.monotonic()
    with subprocess.Popen(**given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as asked:
        assert asked.stdout
        asked.stdout.read(1)
        seconds = time.monotonic() - started
        asked.stdout.read()
    return seconds


def main(run: str, checkouts: list[str]) -> None:
    """Print each round, and the median of every version."""
    with tempfile.TemporaryDirectory() as folder:
        exam = f"{folder}/exam.jsonl"
        lines = (HERE / "sciqa/exam/data/test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        Path(exam).write_text("".join(lines[:QUESTIONS]), encoding="utf-8")
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(ROUNDS + 1):
            for checkout in checkouts:
                made = {"exam": exam_seconds(checkout, run, exam), "first word": first_word_seconds(checkout, run)}
                print(f"round {number}, {checkout}: " + ", ".join(f"{name} {s:.1f} s" for name, s in made.items()))
                for name, each in made.items():
                    seconds.setdefault((checkout, name), []).extend([each] * (number > 0))
        for (checkout, name), each in seconds.items():
            print(f"{checkout}, {name}: {statistics.median(each):.1f} s ({min(each):.1f} to {max(each):.1f})")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), [str(HERE), *(str(Path(each).resolve()) for each in sys.argv[2:])])
