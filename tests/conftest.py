"""Shared by all tests: one real Ray on two CPUs, and a small corpus with its index."""

import json
from pathlib import Path

import pytest
import ray

from sciqa.cluster import RunOptions, connect
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve

QUESTIONS = 12
ARTICLES = 240


@pytest.fixture(scope="session")
def cluster() -> None:
    """Ray on two CPUs, started once; steps called in this process use it."""
    connect(RunOptions(num_cpus=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def exam_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A JSONL exam: the first questions of the packaged validation split."""
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    rows = read_exam("validation").slice(0, QUESTIONS).to_pylist()
    write_jsonl(path, rows)
    return str(path)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A JSONL corpus: the gold articles of that exam among others of the demo corpus."""
    path = tmp_path_factory.mktemp("corpus") / "articles.jsonl"
    gold = set(read_exam("validation").slice(0, QUESTIONS)["title"].to_pylist())
    articles = list(read_articles("demo"))
    chosen = [article for number, article in enumerate(articles) if number < ARTICLES or article["title"] in gold]
    write_jsonl(path, chosen)
    return str(path)


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory, cluster: None, corpus_file: str) -> str:
    """A run folder with passages and index of the small corpus in five shards; do not write to it."""
    output = str(tmp_path_factory.mktemp("run"))
    build_passages(CorpusOptions(output=output, corpus=(corpus_file,), shard_passages=56))
    build_index(IndexOptions(output=output))
    return output


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, small_index: str) -> dict[str, str]:
    """Options that name training and validation questions with their contexts."""
    folder = tmp_path_factory.mktemp("data")
    rows = read_exam("validation").slice(0, 40).to_pylist()
    options = {}
    for split, part in (("train", rows[:32]), ("validation", rows[32:])):
        write_jsonl(folder / f"{split}.jsonl", part)
        output = str(folder / split)
        retrieve(RetrieveOptions(output=output, index=f"{small_index}/index", exam=str(folder / f"{split}.jsonl")))
        options |= {split: str(folder / f"{split}.jsonl"), f"{split}_contexts": f"{output}/contexts"}
    return options


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
