"""Shared by all tests: one real Ray on two CPUs, and a small corpus with its index."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from api_server import KEY, KEY_NAME

from sciqa.core.cluster import connect
from sciqa.core.options import RunOptions
from sciqa.corpus.articles import read_articles
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve

QUESTIONS = 12
ARTICLES = 240


@pytest.fixture(scope="session")
def s3_address() -> str:
    """Where the S3 server of the tests will be, in the environment of this process and of the workers it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_EC2_METADATA_DISABLED": "true"}
    return address


@pytest.fixture(scope="session")
def s3(s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An S3 server with the bucket `bucket`; the file of its log, a line for every request."""
    log = tmp_path_factory.mktemp("s3") / "log"
    host, port = s3_address.split(":")
    with log.open("w") as lines:
        command = [sys.executable, "-m", "moto.server", "--host", host, "--port", port]
        server = subprocess.Popen(command, stdout=lines, stderr=lines)
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"http://{s3_address}/bucket", method="PUT"))
            break
        except urllib.error.URLError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
    yield log
    server.kill()
    server.wait()


@pytest.fixture(params=["local", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new folder on each kind of storage, as a user names it."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}"


@pytest.fixture(scope="session")
def cluster(s3_address: str) -> None:
    """Ray on two CPUs, started once; steps called in this process use it."""
    os.environ[KEY_NAME] = KEY
    connect(RunOptions(num_cpus=2))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def exam_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A JSONL exam: the first questions of the packaged validation split."""
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    rows = read_exam("direct-validation").slice(0, QUESTIONS).to_pylist()
    write_jsonl(path, rows)
    return str(path)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A JSONL corpus: the gold articles of that exam among others of the demo corpus."""
    path = tmp_path_factory.mktemp("corpus") / "articles.jsonl"
    gold = set(read_exam("direct-validation").slice(0, QUESTIONS)["title"].to_pylist())
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
    rows = read_exam("direct-validation").slice(0, 40).to_pylist()
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
