"""The command line as a person uses it: bad input, one CPU, a running cluster, a killed run."""

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import ray
from conftest import QUESTIONS
from tiny import tiny_folder

from sciqa import cli
from sciqa.ask import AskOptions
from sciqa.audit.options import AuditOptions
from sciqa.cli import parse_cli_options, read_cli_config
from sciqa.cli_results import print_cli_results
from sciqa.core import cluster as sciqa_cluster
from sciqa.core import storage, tables
from sciqa.core.console import VERBOSE, print_once
from sciqa.core.errors import InputError
from sciqa.core.options import RunOptions
from sciqa.core.summary import Summary
from sciqa.exam.options import ExamOptions
from sciqa.generate.options import EvaluateTextOptions
from sciqa.models.options import MergeOptions
from sciqa.planning.options import PlanOptions
from sciqa.retrieval import IndexOptions
from sciqa.retrieval.options import EmbedderOptions
from sciqa.run import RunExamOptions
from sciqa.run_training import RunFinetuneOptions
from sciqa.training import FinetuneOptions

JOBS = Path(__file__).parent.parent / "jobs"
HEADER = "id,prompt,A,B,answer\n"
ROW = "1,Which gas do plants take in?,Carbon dioxide,Helium,A\n"


def sciqa(*arguments, **options):
    command = [sys.executable, "-m", "sciqa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, **options)


def refused(result, *parts):
    """Whether a run ended as bad input should: code 2, one line after the first words, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.strip().splitlines() if not line.endswith(cli.FIRST_WORDS)]
    assert len(lines) == 1, result.stderr
    assert all(part in lines[0] for part in parts), result.stderr
    return True


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"id,prompt,A,answer\n1,p,a,A\n", ["no column 'B'"]),
        ((HEADER + ROW + ROW).encode(), ["row 2", "column 'id'"]),
        ((HEADER + "1,p,a,b,C\n").encode(), ["row 1", "column 'answer'", "'C'"]),
        ((HEADER + "1,,a,b,A\n").encode(), ["row 1", "column 'prompt'"]),
        (b"id,prompt,A,B\n1,\xff?,a,b\n", ["line 2, byte 3", "UTF-8"]),
    ],
    ids=["missing column", "duplicate id", "answer outside", "empty prompt", "not UTF-8"],
)
def test_bad_exams_exit_2_before_any_work(tmp_path, here, content, parts):
    exam = tmp_path / "exam.csv"
    exam.write_bytes(content)
    assert refused(here("exam", "--exam", exam, "--output", tmp_path / "run"), str(exam), *parts)
    assert not (tmp_path / "run").exists()


def test_a_parquet_exam_cut_short(tmp_path, here, small_index):
    exam = tmp_path / "exam.parquet"
    exam.write_bytes(Path(small_index, "passages", "00000-00000.parquet").read_bytes()[:-20])
    assert refused(here("exam", "--exam", exam, "--output", tmp_path / "run"), str(exam), "Parquet")


def test_an_index_of_another_model(tmp_path, here, small_index):
    manifest = storage.read_json(f"{small_index}/index/manifest.json")
    storage.write_json(str(tmp_path / "index" / "manifest.json"), manifest | {"revision": "other", "model": "other"})
    assert refused(here("exam", "--output", tmp_path), "manifest.json", "embedding model other")
    assert not (tmp_path / "passages").exists()


def test_an_output_that_cannot_be_written(tmp_path, here):
    (tmp_path / "file").write_text("")
    assert refused(here("exam", "--output", tmp_path / "file" / "run"), str(tmp_path / "file"), "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["exam", "--model", "no/such-model"], ["no/such-model"]),
        (["exam", "--corpus", "absent.jsonl"], ["absent.jsonl", "no such file"]),
        (["index"], ["passages", "sciqa corpus"]),
        (["retrieve"], ["index", "sciqa index"]),
        (["predict"], ["contexts", "sciqa retrieve"]),
        (["report"], ["no answers", "sciqa predict"]),
        (["exam", "--num-cpus", "0"], ["--num-cpus", "at least 1"]),
        (["exam", "--top-k", "2", "--context-passages", "3"], ["--context-passages"]),
        (["exam", "--config", "absent.yaml"], ["absent.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_bad_input(tmp_path, here, monkeypatch, arguments, parts):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(here(*arguments, "--output", tmp_path / "run"), *parts)


def test_a_cluster_that_is_not_there(tmp_path):
    given = ("corpus", "--address", "127.0.0.1:1", "--output", tmp_path / "run")
    assert refused(sciqa(*given), "--address 127.0.0.1:1", "no Ray cluster")


@pytest.mark.parametrize("error", [ConnectionError("none found"), ValueError("not an address\nof a cluster")])
def test_a_cluster_that_ray_does_not_find_is_one_line(tmp_path, monkeypatch, error):
    def init(**_):
        raise error

    monkeypatch.setattr(sciqa_cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sciqa_cluster.ray, "init", init)
    with pytest.raises(InputError, match=r"^--address auto: no Ray cluster answers there \(no[^\n]*\)$"):
        sciqa_cluster.connect_cluster(RunOptions(address="auto", output=str(tmp_path)))
    monkeypatch.setattr(sciqa_cluster, "_check_reachable", lambda address: None)
    if isinstance(error, ValueError):  # of Ray's for another reason, as a runtime environment that conflicts
        with pytest.raises(ValueError, match="not an address"):
            sciqa_cluster.connect_cluster(RunOptions(address="127.0.0.1:6379", output=str(tmp_path)))


def test_folders_that_nodes_do_not_see_are_refused_by_every_step(tmp_path, cluster, monkeypatch):
    asked = []

    def check_shared_folders(options, others):
        asked.append(options.output)
        if len(asked) < 3:
            raise InputError("not seen")

    monkeypatch.setattr(sciqa_cluster, "check_shared_folders", check_shared_folders)
    options = RunOptions(output=str(tmp_path))
    for _ in range(2):
        with pytest.raises(InputError, match="not seen"):
            sciqa_cluster.connect_cluster(options)
    for _ in range(2):
        sciqa_cluster.connect_cluster(options)
    assert len(asked) == 3
    sciqa_cluster.connect_cluster(RunOptions(output=str(tmp_path / "other")))
    assert len(asked) == 4


def test_a_cluster_that_was_killed_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(sciqa_cluster, "read_ray_address", lambda: "127.0.0.1:1")
    assert sciqa_cluster.last_started_cluster() == "local"
    with socket.socket() as running:
        running.bind(("127.0.0.1", 0))
        running.listen()
        address = f"127.0.0.1:{running.getsockname()[1]}"
        monkeypatch.setattr(sciqa_cluster, "read_ray_address", lambda: address)
        assert sciqa_cluster.last_started_cluster() == address


def test_unknown_options_and_steps_exit_2(here):
    for arguments in ([], ["guess"], ["exam", "--guess", "1"], ["exam", "--top-k", "many"]):
        assert here(*arguments).returncode == 2
    assert here("--help").returncode == 0


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.py")), ids=lambda path: path.stem)
def test_a_job_runs_its_step_with_the_options_of_the_command(path, monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "main", ran.append)
    monkeypatch.setattr(sys, "argv", [str(path), "--output", "x"])
    runpy.run_path(str(path), run_name="__main__")
    assert ran == [[path.stem, "--output", "x"]]
    assert path.stem in cli.STEPS


def test_a_yaml_file_gives_options_that_flags_override(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("top-k: 7\nreader: retrieval\nshard_questions: 9\ncompare: true\nnf4: false\nblend: [a, b]\n")
    given = ["--config", str(path), "--top-k", "8", "--output", str(tmp_path / "run")]
    options = parse_cli_options(RunExamOptions, "exam", "answer", given)
    assert (options.top_k, options.reader, options.shard_questions, options.compare) == (8, "retrieval", 9, True)
    assert (options.blend, options.nf4) == (("a", "b"), False)
    assert options.index == f"{tmp_path}/run/index", "folders follow from the output that a flag gives"
    path.write_text("peft: {r: 8, target_modules: [q_proj]}\nlearning_rate: 1.0e-3\n")
    options = parse_cli_options(RunFinetuneOptions, "finetune", "train", ["--config", str(path)])
    assert (options.peft_fields(), options.learning_rate) == ({"r": 8, "target_modules": ["q_proj"]}, 1e-3)
    path.write_text("topk: 7\n")
    with pytest.raises(InputError, match="no option 'topk'"):
        parse_cli_options(IndexOptions, "index", "embed", ["--config", str(path)])


def test_texts_of_a_yaml_file_are_taken_as_they_are_written(tmp_path):
    path = tmp_path / "options.yaml"
    lines = [
        "name: 1.10",
        "show: 010",
        "columns: [Yes, no, 10:30, 2020-01-01, '', {a: Yes, b: 2020-01-01}]",
        "rerank: 'null'",
    ]
    lines += ["query_prefix: 'Off: '", "corpus: On", "adapter: null", "nf4: no", "compare: on", "verbose: true"]
    path.write_text("\n".join(lines))
    columns = ["Yes", "no", "10:30", "2020-01-01", "", '{"a": true, "b": "2020-01-01"}']
    texts = ["--query-prefix", "Off: ", "--corpus", "On", "--no-nf4", "--compare", "--verbose"]
    flags = ["--name", "1.10", "--show", "010", "--columns", *columns, "--rerank", "null", *texts]
    assert read_cli_config(str(path), RunExamOptions) == flags
    for nothing in ("", "# nothing\n", "---\n", "{}"):
        path.write_text(nothing)
        assert read_cli_config(str(path), RunExamOptions) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: 1.0e-3\nlearning-rate: 2.0e-3\n", "line 2: 'learning-rate' stands in line 1 too"),
        ("{seed: 3, seed: 4}", "line 1: 'seed' stands in line 1 too"),
        ("- seed\n", "`option: value` lines expected"),
        ("<<: {seed: 3}\n", "no option '<<'"),
        ("seed: [3\n", "not YAML"),
        ("peft: {r: !unknown 3}\n", "not YAML"),
        ("peft: {2020-01-01: 3}\n", "not YAML of options .* not date"),
    ],
)
def test_a_yaml_file_that_cannot_be_taken_is_refused(tmp_path, content, message):
    path = tmp_path / "options.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_cli_config(str(path), RunFinetuneOptions)


@pytest.mark.parametrize(
    ("kind", "flag", "value"),
    [
        (RunFinetuneOptions, "--epochs", "nan"),
        (RunFinetuneOptions, "--learning-rate", "inf"),
        (RunExamOptions, "--timeout", "nan"),
        (RunExamOptions, "--cascade-share", "nan"),
        (PlanOptions, "--price", "nan"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(kind, flag, value):
    with pytest.raises(InputError, match=f"^{flag}: {value} given, a finite number expected"):
        parse_cli_options(kind, "step", "about", [flag, value])


@pytest.mark.parametrize(
    ("kind", "given", "flag"),
    [
        (RunExamOptions, ["--blend"], "--blend"),
        (RunExamOptions, ["--corpus", "--top-k", "3"], "--corpus"),
        (RunExamOptions, ["--config", "{}"], "--columns"),
        (AuditOptions, ["--ngram", "9", "--against", "--verbose"], "--against"),
        (PlanOptions, ["--price", "--gpus", "A10G"], "--price"),
        (RunFinetuneOptions, ["--objective", "grpo", "--rewards"], "--rewards"),
    ],
)
def test_a_list_option_without_a_value_is_not_taken_for_its_default(tmp_path, monkeypatch, kind, given, flag):
    monkeypatch.setenv(VERBOSE, "0")
    path = tmp_path / "options.yaml"
    path.write_text("columns: []\n")
    with pytest.raises(InputError, match=rf"^(\S+options\.yaml: )?{flag}: no value given, at least one expected"):
        parse_cli_options(kind, "step", "about", [each.format(path) for each in given])


@pytest.mark.parametrize(
    "given",
    [
        ["--adapter", ""],
        ["--exam", " "],
        ["--remove="],
        ["--blend_fit", ""],
        ["--corpus", "a", ""],
        ["--config", "{}"],
    ],
)
def test_an_empty_value_is_not_taken_for_an_option_that_is_not_given(tmp_path, given):
    path = tmp_path / "options.yaml"
    path.write_text("adapter: ''\n")
    where = f"{path}: " if "--config" in given else ""
    with pytest.raises(InputError, match=rf"^{where}--[a-z-]+: an empty value given; leave it out for its default"):
        parse_cli_options(RunExamOptions, "exam", "answer", [each.format(path) for each in given])


def test_a_prefix_may_be_empty(tmp_path):
    given = ["--query-prefix", "", "--passage-prefix=", "--output", str(tmp_path)]
    options = parse_cli_options(RunExamOptions, "exam", "answer", given)
    assert (options.query_prefix, options.passage_prefix) == ("", "")


def test_rankings_may_be_none_and_a_corpus_may_not(tmp_path):
    given = ["--blend", "columns", "--dense", "--output", str(tmp_path)]
    options = parse_cli_options(RunExamOptions, "exam", "answer", given)
    assert (options.blend, options.dense, options.corpus) == (("columns",), (), None)
    for kind in (RunExamOptions, AuditOptions, PlanOptions):
        with pytest.raises(InputError, match="--corpus: no source given"):
            kind(corpus=())


def read_run(output):
    """All that a run's tables hold, the figures of time left out."""
    names = ("passages", "contexts", "answers/open-book-llama", "metrics/open-book-llama.parquet")
    found = {name: tables.read_table(storage.join_paths(str(output), name)).to_pylist() for name in names}
    for row in found["metrics/open-book-llama.parquet"]:
        del row["seconds"], row["contexts"]
    folder = Path(output) / "index"
    found["vectors"] = {path.parent.name: np.load(path).tolist() for path in sorted(folder.glob("*/vectors.npy"))}
    return found


@pytest.fixture(scope="module")
def exam_command(tmp_path_factory, exam_file, corpus_file):
    model = tiny_folder(tmp_path_factory.mktemp("model") / "llama", "llama")
    given = ["--model", model, "--exam", exam_file, "--corpus", corpus_file]
    return ["exam", *given, "--shard-passages", 6, "--shard-questions", 4]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, exam_command):
    """The tables of a run on a single CPU, where nothing may wait for a second one."""
    output = tmp_path_factory.mktemp("undisturbed")
    result = sciqa(*exam_command, "--num-cpus", 1, "--output", output)
    assert result.returncode == 0, result.stderr
    assert "MAP@3" in result.stdout
    assert "Traceback" not in result.stderr
    assert (output / "report.html").exists()
    return read_run(output)


@pytest.mark.slow
@pytest.mark.parametrize("record", ["embedded.json", "shard.json"])
def test_a_killed_run_keeps_its_shards_and_ends_with_the_same_tables(tmp_path, exam_command, undisturbed, record):
    command = [sys.executable, "-m", "sciqa", *map(str, exam_command), "--num-cpus", "2", "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while not (finished := list(tmp_path.glob(f"index/*/{record}"))):
            assert run.poll() is None
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"index/*/{record}")}
    assert 0 < len(finished) <= len(undisturbed["vectors"])
    assert not (tmp_path / "index" / "manifest.json").exists()
    result = sciqa(*exam_command, "--num-cpus", 2, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert read_run(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_cluster_that_is_running_gives_the_same_tables(tmp_path, cluster, exam_command, undisturbed):
    address = ray.get_runtime_context().gcs_address
    result = sciqa(*exam_command, "--address", address, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_run(tmp_path) == undisturbed
    again = sciqa(*exam_command, "--address", address, "--output", tmp_path)
    assert "0 shards built" in again.stdout
    steps = [line for line in again.stdout.splitlines() if line.startswith(("corpus ", "retrieve ", "predict "))]
    assert len(steps) == 7
    assert all(", kept" in line for line in steps)


def test_what_is_here_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "embedder", "reranker"):
        (tmp_path / name).mkdir()
    exam = RunExamOptions(
        output="run", corpus=("demo", "papers", "s3://bucket/dump"), passages="passages", model="model",
        embedder="embedder", rerank="reranker", contexts="../contexts", blend=("a",), blend_fit="other",
    )  # fmt: skip
    assert exam.corpus == ("demo", f"{tmp_path}/papers", "s3://bucket/dump")
    assert [exam.output, exam.passages, exam.index] == [f"{tmp_path}/{n}" for n in ("run", "passages", "run/index")]
    assert (exam.contexts, exam.blend_fit) == (f"{tmp_path.parent}/contexts", f"{tmp_path}/other")
    assert [exam.model, exam.embedder, exam.rerank] == [f"{tmp_path}/{n}" for n in ("model", "embedder", "reranker")]
    train = FinetuneOptions(output="s3://bucket/run", model="model", train_contexts="contexts")
    assert (train.model, train.train_contexts) == (f"{tmp_path}/model", f"{tmp_path}/contexts")
    assert train.validation_contexts == "s3://bucket/run/validation/contexts"
    assert FinetuneOptions(model="SmolLM2-135M-Instruct").model == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "demo"])
def test_a_packaged_name_that_is_here_too_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    given = {"corpus": ("demo",)} if name == "demo" else {"model": name}
    with pytest.raises(InputError, match=f"^{name}: packaged, and also a file or folder here; pass ./{name}"):
        RunExamOptions(**given)
    there = RunExamOptions(model="./all-MiniLM-L6-v2") if name != "demo" else RunExamOptions(corpus=("./demo",))
    assert str(tmp_path / name) in (there.model, *(there.corpus or ()))


def test_a_packaged_default_whose_name_is_here_too_is_told_of(tmp_path, monkeypatch, capsys):
    """It may not have been given, and not be used."""
    monkeypatch.chdir(tmp_path)
    defaults = ("SmolLM2-135M-Instruct", "all-MiniLM-L6-v2", "demo")
    for name in defaults:
        (tmp_path / name).mkdir()
    print_once.cache_clear()
    PlanOptions(articles=100)
    EmbedderOptions(method="skip-gram")
    assert ": a packaged name" in (said := capsys.readouterr().err)
    assert "demo: a packaged name" not in said
    plan = PlanOptions()
    assert (plan.model, plan.embedder, *plan.corpus) == defaults
    assert "demo: a packaged name; pass ./demo for what has that name here" in capsys.readouterr().err


def test_a_packaged_exam_whose_name_is_here_too_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    print_once.cache_clear()
    for name in ("test", "direct-test"):
        (tmp_path / name).mkdir()
        ExamOptions().read(name)  # which was not given
    assert "the packaged exam is read" not in capsys.readouterr().err
    ExamOptions(exam="direct-test").read("direct-test")
    assert (
        "direct-test: the packaged exam is read; pass ./direct-test for what has that name" in capsys.readouterr().err
    )


def test_a_job_writes_nothing_into_the_copy_of_its_files(tmp_path, monkeypatch):
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for output in ("sciqa-run", str(folder / "run")):
        with pytest.raises(InputError, match=r"^--output: .* is in Ray's copy of this job's files"):
            RunExamOptions(output=output)
    with pytest.raises(InputError, match=r"^--output: .* is in Ray's copy of this job's files"):
        MergeOptions(adapter="s3://bucket/run/trained/reader")
    for name, kind in (("index", RunExamOptions), ("train_contexts", FinetuneOptions)):
        with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')}: {folder}/a is in Ray's copy"):
            kind(output="s3://bucket/run", **{name: "a"})
    assert RunExamOptions(output=str(tmp_path)).output == str(tmp_path)
    assert RunExamOptions(output="s3://bucket/working_dir_files").index == "s3://bucket/working_dir_files/index"
    assert EvaluateTextOptions(output="s3://bucket/run", text="held-out.jsonl").text == f"{folder}/held-out.jsonl"
    assert AskOptions(question="?", index="index").index == f"{folder}/index"  # which is only read


@pytest.mark.parametrize("kind", [FinetuneOptions, EmbedderOptions])
def test_a_seed_is_one_that_every_generator_takes(kind):
    np.random.RandomState(kind(seed=(1 << 32) - 1).seed)  # as transformers and gensim make it
    with pytest.raises(InputError, match=f"^--seed: {1 << 32} given, a number from 0 to {(1 << 32) - 1} expected"):
        kind(seed=1 << 32)


def test_numbers_of_tables_from_a_hundredth_have_no_exponent(capsys):
    figures = {"a": 999.6, "b": 999.4, "c": 1234.5, "d": 0.012345}
    print_cli_results([Summary("plan", "", "", 0.0, {"Hours": [figures]})], 0.0)
    assert re.search(r"1,000 \W+ 999 \W+ 1,23[45] \W+ 0\.0123", capsys.readouterr().out)


def test_tables_are_printed_with_their_texts_as_they_are(capsys):
    row = {"trial": "s-1", "peft": "{target_modules: [q_proj]}", "template": "[/x]", "shots_from": ":smile:"}
    print_cli_results([Summary("sweep", "", "1 trial", 0.0, {"Trials of [s]": [row]})], 0.0)
    shown = capsys.readouterr().out
    assert all(text in shown for text in (*row, *row.values(), "Trials of [s]")), shown


def test_the_version_and_a_step_that_is_misspelt():
    assert sciqa("--version").stdout.strip() == f"sciqa {version('sciqa')}"
    assert refused(sciqa("exma"), "sciqa: error: no step 'exma'; did you mean 'exam'?")
    assert refused(sciqa("xyz"), "no step 'xyz'; the steps are exam, corpus, embedder,")
    assert refused(sciqa("exam", "--config"), "--config: the path of a YAML file expected after it")


def test_help_imports_neither_ray_nor_pytorch():
    code = "import sys; from sciqa.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'ray', 'torch', 'pyarrow', 'tyro'} & sys.modules.keys()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert all(f"  {step} " in result.stdout for step in cli.STEPS)


def test_bash_completes_steps_and_options(tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(sciqa("--completion", "bash").stdout)
    typed = "COMP_WORDS=(sciqa exam --shard-q); COMP_CWORD=2; COMP_LINE='sciqa exam --shard-q'; COMP_POINT=20"
    command = f'source {script}; {typed}; _tyro_sciqa; echo "${{COMPREPLY[@]}}"'
    offered = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert "--shard-questions" in offered.stdout.split()
    assert refused(sciqa("--completion", "cmd"), "--completion: one of bash, zsh, tcsh expected")


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_a_file_of_options_in_either_form(tmp_path, form):
    path = tmp_path / "options.yaml"
    path.write_text("top_k: 3\n")
    given = [each.format(path) for each in form]
    assert parse_cli_options(RunExamOptions, "exam", "answer", [*given, "--shard-questions", "9"]).top_k == 3
    assert parse_cli_options(RunExamOptions, "exam", "answer", ["--top-k", "4", *given]).top_k == 4


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_by_a_signal_says_how_to_go_on(tmp_path, small_index, number, code):
    run = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in shells' jobs
    run += "from sciqa.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", run, "index", "--output", str(tmp_path / "run")]
    for table in ("passages", "_passages"):
        shutil.copytree(f"{small_index}/{table}", tmp_path / "run" / table)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        said = [run.stderr.readline(), run.stderr.readline()]
        assert "starting workers" in said[1]
        os.kill(run.pid, number)
        *progress, last = run.stderr.read().strip().splitlines()
    assert run.returncode == code, last
    assert last == "sciqa index: stopped; the same command goes on from here"
    assert all(line.startswith("index: ") for line in progress), progress


def test_the_example_in_python(tmp_path, cluster, exam_file, corpus_file, monkeypatch, capsys):
    path = JOBS.parent / "examples" / "answer_exam.py"
    monkeypatch.setattr(sys, "argv", [str(path), exam_file, corpus_file, str(tmp_path / "run")])
    runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 1 + QUESTIONS
    assert shown.split()[:3] == ["id", "prediction", "average_precision"]
