"""Every step, whatever goes wrong: no file that was there, and that the step was not told to replace, changes."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import write_jsonl
from tiny import tiny_folder

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.models.merge import merge
from sciqa.models.options import MergeOptions
from sciqa.predict import PredictOptions, predict
from sciqa.report import ReportOptions, report
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, retrieve
from sciqa.run import RunExamOptions, run_exam
from sciqa.training import FinetuneOptions, finetune

QUESTIONS = [
    {"id": str(n), "prompt": f"Which is number {n}?", "A": "helium", "B": "iron", "answer": "AB"[n % 2]}
    for n in range(1, 5)
]
#: Each step: its function, its options, and the folders and files in the run that it makes, the first of them locked.
STEPS = {
    "corpus": (build_passages, CorpusOptions, ["passages"]),
    "index": (build_index, IndexOptions, ["index"]),
    "retrieve": (retrieve, RetrieveOptions, ["contexts"]),
    "predict": (predict, PredictOptions, ["answers/retrieval", "metrics/retrieval.parquet", "submissions"]),
    "report": (report, ReportOptions, ["report.html"]),
    "exam": (
        *(run_exam, RunExamOptions),
        ["answers/retrieval", "metrics/retrieval.parquet", "submissions", "report.html"],
    ),
    "finetune": (finetune, FinetuneOptions, ["trained/tiny"]),
    "merge": (merge, MergeOptions, ["merged"]),
}
#: What each step is given that is another's; `other_` names a folder or file of `Run`.
ANOTHER = {
    "exam": {
        "retrieve": {"exam": "other.jsonl"},
        "predict": {"exam": "other.jsonl"},
        "report": {"exam": "other.jsonl"},
        "exam": {"exam": "other.jsonl"},
        "finetune": {"train": "other.jsonl"},
    },
    "corpus": {
        "corpus": {"corpus": ("others.jsonl",)},
        "index": {"passages": "elsewhere/passages"},
        "retrieve": {"index": "elsewhere/index"},
        "predict": {"contexts": "elsewhere/contexts"},
        "exam": {"corpus": ("others.jsonl",)},
    },
    "model": {
        "corpus": {"embedder": "embedder2"},
        "index": {"embedder": "embedder2"},
        "retrieve": {"embedder": "embedder2"},
        "predict": {"embedder": "embedder2"},
        "exam": {"embedder": "embedder2"},
        "finetune": {"model": "llama2"},
        "merge": {"model": "llama2"},
    },
}
pytestmark = pytest.mark.slow
TABLES = [name for name in STEPS if name not in ("report", "merge")]


class Run:
    """A finished run in `run` under a root, all that it was made from beside it, and another run in `elsewhere`."""

    def __init__(self, root):
        self.root, self.run = Path(root), Path(root, "run")

    def options(self, step, **changes):
        common = {"output": str(self.run)}
        if step not in ("report", "merge"):
            common |= {"embedder": "embedder"} if step != "finetune" else {}
        given = {
            "corpus": {"corpus": ("articles.jsonl",), "shard_passages": 2},
            "retrieve": {"exam": "exam.jsonl", "shard_questions": 2},
            "predict": {"reader": "retrieval"},
            "exam": {"reader": "retrieval", "compare": False},
            "finetune": {"name": "tiny", "train": "exam.jsonl", "validation": "validation.jsonl"}
            | {"train_contexts": "run/contexts", "validation_contexts": "validation/contexts", "model": "llama"}
            | {"steps": 1, "batch_size": 2, "micro_batch": 2, "num_workers": 1, "max_length": 64},
            "merge": {"model": "llama", "adapter": "run/trained/tiny", "output": str(self.run / "merged")},
        }.get(step, {})
        return STEPS[step][1](**{name: self.placed(value) for name, value in (common | given | changes).items()})

    def placed(self, value):
        """A path in the root for what is the name of something there."""
        if isinstance(value, tuple):
            return tuple(map(self.placed, value))
        return str(self.root / value) if isinstance(value, str) and (self.root / value).exists() else value

    def do(self, step, **changes):
        return STEPS[step][0](self.options(step, **changes))

    def files(self):
        """What every file of the root holds; locks that nobody holds do not count."""
        paths = [path for path in self.root.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        return {path.relative_to(self.root): path.read_bytes() for path in paths}

    def drop(self, step):
        """Take away what a step made."""
        for name in STEPS[step][2]:
            tables.delete_table(str(self.run / name))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster, embedder):
    root = tmp_path_factory.mktemp("finished")
    run = Run(root)
    texts = ["Helium is a noble gas. It is light.", "Iron is a metal. It rusts.", "A whale is a mammal. It swims."]
    write_jsonl(root / "articles.jsonl", [{"title": text.split()[0], "text": text} for text in texts])
    write_jsonl(root / "others.jsonl", [{"title": "Lead", "text": "Lead is heavy. It is grey."}])
    write_jsonl(root / "exam.jsonl", QUESTIONS)
    write_jsonl(root / "other.jsonl", QUESTIONS[:2])
    validation = [row | {"prompt": f"{row['prompt']} Say it.", "id": f"v{row['id']}"} for row in QUESTIONS]
    write_jsonl(root / "validation.jsonl", validation)
    shutil.copytree(embedder, root / "embedder")
    shutil.copytree(embedder, root / "embedder2")
    pooling = root / "embedder2/1_Pooling/config.json"
    tokenizer = root / "embedder2/tokenizer.json"
    pooling.write_text(pooling.read_text().replace("mean", "max"))
    tokenizer.write_text(tokenizer.read_text() + "\n")
    for name in ("llama", "llama2"):
        tiny_folder(root / name, "llama", **({} if name == "llama" else {"initializer_range": 0.5}))
    for step in ("corpus", "index", "retrieve"):
        run.do(step)
    elsewhere = {"output": str(root / "elsewhere")}
    run.do("corpus", **elsewhere, corpus=("others.jsonl",))
    run.do("index", **elsewhere)
    run.do("retrieve", **elsewhere, index=str(root / "elsewhere/index"))
    run.do("retrieve", output=str(root / "validation"), exam="validation.jsonl", index=str(root / "run/index"))
    for step in ("predict", "report", "finetune", "merge"):
        run.do(step)
    return root


@pytest.fixture
def made(finished, tmp_path):
    """A copy of the finished run, at the same path, which its tables remember."""
    kept = shutil.copytree(finished, tmp_path / "kept")
    yield Run(finished)
    shutil.rmtree(finished)
    shutil.move(kept, finished)


CASES = [(what, step, changes) for what, steps in ANOTHER.items() for step, changes in steps.items()]


@pytest.mark.parametrize(("what", "step", "changes"), CASES, ids=[f"{what}-{step}" for what, step, _ in CASES])
def test_another_input_changes_nothing_that_is_there(made, what, step, changes):
    before = made.files()
    with pytest.raises(InputError, match=r"--|other inputs|another|there already"):
        made.do(step, **changes)
    assert made.files() == before


@pytest.mark.parametrize("step", [*STEPS])
def test_again_without_a_corpus_or_an_exam_nothing_changes(made, step):
    before = made.files()
    given = {"corpus": {"corpus": None}, "retrieve": {"exam": None}, "merge": {"output": str(made.run / "merged2")}}
    made.do(step, **given.get(step, {}))
    after = made.files()
    page = Path("run/report.html")
    assert {path: held for path, held in after.items() if path != page and path in before} == {
        path: held for path, held in before.items() if path != page
    }


@pytest.mark.parametrize("step", TABLES)
def test_a_second_writer_changes_nothing(made, step):
    made.drop(step)
    before = made.files()
    with (
        lock(str(made.run / STEPS[step][2][0])),
        pytest.raises(InputError, match=r"process \d+ on .* is writing there"),
    ):
        made.do(step)
    assert made.files() == before


class KilledError(BaseException):
    """In place of a kill: the driver writes no more. Real kills are in the tests of each step."""


@pytest.mark.parametrize("step", TABLES)
def test_a_driver_that_ends_in_the_middle_changes_nothing_else(made, step, monkeypatch):
    whole = made.files()
    made.drop(step)
    before, write = made.files(), storage.write_bytes

    def until_the_manifest(path, data):
        if path.endswith(("manifest.json", ".csv")):
            raise KilledError
        return write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", until_the_manifest)
        with pytest.raises(KilledError):
            made.do(step)
    assert before.items() <= made.files().items()
    made.do(step)
    after = made.files()
    assert before.items() <= after.items()
    tables = {path for path in whole if path.suffix in (".parquet", ".npy", ".faiss") and "metrics" not in str(path)}
    assert {path: whole[path] for path in tables} == {path: after[path] for path in tables}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, which a test fills."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def fill(path):
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096) == 4096:
            pass
    with pytest.raises(OSError, match="No space left on device"):
        path.with_name("more").write_bytes(b"more")


@pytest.mark.parametrize("step", ["corpus", "index", "retrieve", "predict"])
def test_a_full_disk_is_one_line_and_changes_nothing_else(finished, small_disk, step):
    without = shutil.ignore_patterns("llama*", "merged", "trained")
    run = Run(shutil.copytree(finished, small_disk / "root", ignore=without))
    run.drop(step)
    before = run.files()
    tables = {"index": str(run.run / "index")} if step == "retrieve" else {}
    fill(small_disk / "filler")
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left on device\)"):
        run.do(step, **tables)
    after = run.files()
    assert before.items() <= after.items()
    assert all(after[path] for path in after.keys() - before.keys())  # nothing half-written
    (small_disk / "filler").unlink()
    (small_disk / "more").unlink()
    run.do(step, **tables)
    assert before.items() <= run.files().items()


@pytest.mark.parametrize("step", ["retrieve", "predict", "report", "exam"])
def test_inputs_that_can_only_be_read_are_enough(made, step, monkeypatch):
    shared = made.run.rename(made.root / "shared")
    write = storage.write_bytes

    def refuse(path, data):
        if Path(path).is_relative_to(shared):
            raise InputError(f"{path}: cannot be written (Read-only file system)")
        return write(path, data)

    monkeypatch.setattr(storage, "write_bytes", refuse)
    given = {
        "retrieve": {"index": str(shared / "index")},
        "predict": {"contexts": str(shared / "contexts"), "exam": "exam.jsonl"},
        "exam": {"index": str(shared / "index"), "exam": "exam.jsonl"},
    }.get(step)
    before = made.files()
    if step == "report":
        with pytest.raises(InputError, match=r"report\.html: cannot be written"):
            made.do(step, output=str(shared))
    else:
        made.do(step, **given)
    assert before.items() <= made.files().items()
