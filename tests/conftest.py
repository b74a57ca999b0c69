"""Shared by all tests: one real Ray on two CPUs, and a small corpus with its index."""

import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from api_server import KEY, KEY_NAME
from s3_server import choose_address, s3_server

from sciqa.cli import main
from sciqa.core import cluster as core_cluster
from sciqa.core.cluster import connect_cluster
from sciqa.core.options import RunOptions
from sciqa.corpus.articles import read_articles
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve

QUESTIONS = 8
ARTICLES = 40


@pytest.hookimpl(trylast=True)  # slow tests are left out by then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of few tests first, which are the long ones: at the end, one would keep a single process busy."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (counts[item.path], item.path))


@pytest.fixture(scope="session")
def s3_address() -> str:
    """Where the S3 server of the tests will be, in the environment of this process and of the workers it starts."""
    return choose_address()


@pytest.fixture(scope="session")
def s3(s3_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An S3 server with the bucket `bucket`; the file of its log, a line for every request."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with s3_server(s3_address, log):
        yield log


@pytest.fixture(params=["local", "file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new folder on each kind of storage, as a user names it."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}"


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[None]:
    """A folder of Ray's own for each process of the tests, so that none finds a cluster of another one."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "60000"  # noqa: SIM112
        yield


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage in this process starts one worker where the number is not given, since each takes seconds to start."""
    given = core_cluster.num_cluster_workers
    monkeypatch.setattr(
        core_cluster,
        "num_cluster_workers",
        lambda options, parts, **kind: (
            1 if (options.num_workers, options.accelerator) == ("auto", "auto") else given(options, parts, **kind)
        ),
    )


@pytest.fixture(scope="session")
def cluster(s3_address: str) -> None:
    """Ray on two CPUs, started once; steps called in this process use it."""
    os.environ[KEY_NAME] = KEY
    connect_cluster(RunOptions(num_cpus=2))
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
    build_passages(CorpusOptions(output=output, corpus=(corpus_file,), shard_passages=10))
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


@pytest.fixture(scope="session")
def indexed_once(tmp_path_factory: pytest.TempPathFactory, cluster: None, embedder: Path) -> Path:
    """A folder with a corpus of three articles, an embedder, and a run that has their index; do not write to it."""
    folder = tmp_path_factory.mktemp("indexed")
    texts = ["Helium is a noble gas. It is light.", "Iron is a metal. It rusts.", "A whale is a mammal. It swims."]
    articles = [{"title": text.split()[0], "text": text} for text in texts]
    write_jsonl(folder / "articles.jsonl", articles)
    options = {"output": str(folder / "run"), "embedder": str(shutil.copytree(embedder, folder / "embedder"))}
    build_passages(CorpusOptions(corpus=(str(folder / "articles.jsonl"),), shard_passages=2, **options))
    build_index(IndexOptions(**options))
    return folder


@pytest.fixture
def indexed(tmp_path: Path, indexed_once: Path) -> dict[str, str]:
    """Options of a run of the test's own with a corpus of three articles and its index."""
    shutil.copytree(indexed_once, tmp_path, dirs_exist_ok=True)
    for record in (tmp_path / "run/_passages").glob("*.json"):  # the only records that hold paths
        record.write_text(record.read_text().replace(str(indexed_once), str(tmp_path)))
    return {"output": str(tmp_path / "run"), "embedder": str(tmp_path / "embedder")}


@pytest.fixture
def here(capfd):
    """Run the command line in this process, which spares the imports of a new one."""

    def run(*arguments):
        capfd.readouterr()
        code = 0
        try:
            main(list(map(str, arguments)))
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
