"""Shared by all tests: one real Ray on two CPUs, and a small corpus with its index."""

import json
import shutil
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


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sentence-transformers model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tiny import tiny_folder

    root = tmp_path_factory.mktemp("embedder")
    transformer = Transformer(tiny_folder(root / "bert", "bert"), max_seq_length=256)
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(root / "model"))
    return root / "model"


@pytest.fixture
def indexed(tmp_path: Path, cluster: None, embedder: Path) -> dict[str, str]:
    """Options of a run with a corpus of three articles and its index."""
    texts = ["Helium is a noble gas. It is light.", "Iron is a metal. It rusts.", "A whale is a mammal. It swims."]
    articles = [{"title": text.split()[0], "text": text} for text in texts]
    write_jsonl(tmp_path / "articles.jsonl", articles)
    options = {"output": str(tmp_path / "run"), "embedder": str(shutil.copytree(embedder, tmp_path / "embedder"))}
    build_passages(CorpusOptions(corpus=(str(tmp_path / "articles.jsonl"),), shard_passages=2, **options))
    build_index(IndexOptions(**options))
    return options


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
