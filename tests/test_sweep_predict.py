"""Sweeps over `predict`: which trials there are, what is refused before any, and what a killed or failed one leaves."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import QUESTIONS, write_jsonl
from test_cli import refused
from test_report import SURE, make_run, page_of
from tiny import tiny_folder

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.predict import PredictOptions, predict
from sciqa.predict.sweep_predict import (
    COLUMNS,
    SweepPredictOptions,
    check_sweep_predict,
    sweep_predict,
    sweep_predict_contexts,
    sweep_predict_trials,
)
from sciqa.retrieval.contexts import find_contexts
from sciqa.run_training import RunSweepPredictOptions, run_sweep_predict

FIGURES = [name for name in COLUMNS if name != "seconds"]


def test_trials_rank_the_validation_split_in_a_run_of_its_own(tmp_path):
    options = SweepPredictOptions(output=str(tmp_path), search="{rotations: [1, 4]}", completion="letter")
    trials = sweep_predict_trials(options)
    assert [(trial.name, trial.varied, trial.options.completion) for trial in trials] == [
        ("open-book-1", {"rotations": 1}, "letter"),
        ("open-book-2", {"rotations": 4}, "letter"),
    ]
    assert {trial.options.exam for trial in trials} == {"validation"}
    assert trials[0].options.folder == f"{tmp_path}/validation/answers/open-book-1"
    assert list(sweep_predict_contexts(trials)) == [f"{tmp_path}/validation/contexts"]


def test_only_trials_with_the_same_options_of_finding_read_the_same_contexts(tmp_path):
    trials = (
        "{name: one, context_passages: 1}",
        "{name: three, context-passages: 3}",
        "{name: closed, reader: closed-book}",
    )
    options = SweepPredictOptions(output=str(tmp_path), name="s", trials=trials, search="{seed: [0, 1]}")
    made = sweep_predict_trials(options)
    assert [trial.name for trial in made] == [
        f"s-{m}-{n}" for n, m in enumerate(["one"] * 2 + ["three"] * 2 + ["closed"] * 2, 1)
    ]
    folders = [trial.options.contexts for trial in made]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert {folder: each.context_passages for folder, each in sweep_predict_contexts(made).items()} == {
        folders[0]: 1,
        folders[2]: 3,
    }
    other = SweepPredictOptions(output=str(tmp_path), name="t", search="{context_passages: [3, 4]}")
    assert sweep_predict_trials(other)[0].options.contexts == folders[2]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ["--search", "expected"]),
        ({"search": "{temperatures: [1, 2]}"}, ["s-1", "'temperatures'", "no option of predict", "context_passages"]),
        ({"search": "{learning_rate: [1, 2]}"}, ["s-1", "'learning_rate'", "no option of predict"]),
        ({"search": "{exam: [test, validation]}"}, ["s-1", "'exam'", "shared by all trials"]),
        ({"search": "{contexts: [a, b]}"}, ["s-1", "'contexts'", "shared by all trials"]),
        ({"search": "{output: [a, b]}"}, ["s-1", "'output'", "shared by all trials"]),
        ({"search": "{embedder: [a, b]}"}, ["s-1", "'embedder'", "shared by all trials"]),
        ({"search": "{rotations: []}"}, ["rotations", "a list of values"]),
        ({"search": "{rotations: 4}"}, ["rotations", "a list of values"]),
        ({"search": "{rotations: [1, many]}"}, ["s-2", "rotations", "'many'"]),
        ({"search": "{rotations: [1, 0]}"}, ["s-2", "--rotations: 0 given"]),
        ({"search": "{context_passages: [1, 9]}"}, ["s-2", "--context-passages: 9", "--top-k"]),
        ({"search": "{reader: [open-book, ouija]}"}, ["s-2", "reader", "'ouija'"]),
        ({"search": "{shots: [1, 2, 1]}"}, ["s-3", "the same as trial 1"]),
        ({"search": "{shots: [1, 2]}", "num_samples": 3}, ["--num-samples", "distributions"]),
    ],
)
def test_what_cannot_be_tried_is_refused(tmp_path, given, parts):
    with pytest.raises(InputError) as error:
        sweep_predict_trials(SweepPredictOptions(output=str(tmp_path), name="s", **given))
    assert all(part in str(error.value) for part in parts), error.value


def test_every_trial_is_checked_before_anything_is_found_or_ranked(tmp_path, here, exam_file):
    run, model = ["--output", tmp_path / "run", "--name", "s"], ["--model", tiny_folder(tmp_path / "llama", "llama")]
    for search, *parts in (
        ("{adapter: [null, none/there]}", "s-2", "none/there"),
        ("{template: [null, none/there.jinja]}", "s-2", "none/there.jinja"),
        ("{template: [null, arc]}", "s-2", "arc.jinja: the template names neither"),
        ("{rotations: [1, 2]}", "s-2", "--rotations 2", "--completion letter"),
        ("{reader: [closed-book, overlap], cascade: [none]}", "s-1", "answers/none", "not finished"),
        ("{rerank: [null, none/there]}", "s-2", "none/there"),
    ):
        assert refused(here("sweep-predict", *run, *model, "--exam", exam_file, "--search", search), *parts)
    unknown = Path(tmp_path, "unknown.jsonl")
    unknown.write_text(re.sub(r'"answer": "\w"', '"answer": null', Path(exam_file).read_text()))
    result = here("sweep-predict", *run, *model, "--exam", unknown, "--search", "{shots: [0, 1]}")
    assert (result.returncode, "no question has an answer" in result.stderr) == (2, True)
    assert not (tmp_path / "run").exists()


def test_trials_have_the_scores_of_predict_and_a_failed_one_is_tried_again(tmp_path, cluster, small_index, exam_file):
    """What is finished needs no process of Ray Tune, unless it has other inputs."""
    trials = ("{name: two, context_passages: 2}", "{name: long, reader: longest}")
    common = {"reader": "overlap", "exam": exam_file, "index": f"{small_index}/index"}
    options = RunSweepPredictOptions(output=str(tmp_path / "run"), name="s", trials=trials, **common)
    exam = check_sweep_predict(made := sweep_predict_trials(options), replaced=False)
    for folder, each in sweep_predict_contexts(made).items():
        find_contexts(each, exam, folder, evidence=False)
    predict(made[0].options)
    blocked = made[1].options.folder
    tables.begin_table(blocked, {"format": 0})
    storage.write_bytes(storage.join_paths(blocked, "00000.parquet"), b"of another run")
    tables.finish_table(blocked, {"inputs": {"format": 0}})
    first = run_sweep_predict(options)[-1]
    assert first.made.startswith("2 trials, 1 failed; best s-two")
    good, failed = tables.read_table(first.path).to_pylist()
    assert "made from other inputs (format: 0 there" in failed["error"]
    assert (failed["map_at_3"], failed["context_passages"], good["context_passages"]) == (None, 1, 2)
    shown = first.details["Trials of s"]
    figures = ["MAP@3", "accuracy", "seconds", "questions", "ended"]
    assert list(shown[0]) == ["trial", "context_passages", "reader", *figures]
    assert [row["ended"] for row in shown] == ["done", failed["error"]]
    alone = {"output": str(tmp_path / "alone"), "exam": exam_file, "contexts": made[0].options.contexts}
    expected = predict(PredictOptions(**alone, reader="overlap")).details
    assert [good[name] for name in FIGURES] == [expected[name] for name in FIGURES]
    predict(replace(made[1].options, overwrite=True))
    second = sweep_predict(options, made)
    assert second.made.startswith("2 trials, 0 failed")
    table = tables.read_table(second.path)
    assert table["map_at_3"].to_pylist() == sorted(table["map_at_3"].to_pylist(), reverse=True)
    assert table["questions"].to_pylist() == [QUESTIONS] * 2
    assert sweep_predict(options, made).made.endswith("kept")
    fewer = replace(options, trials=trials[:1])
    with pytest.raises(InputError, match="trials: s-long"):
        sweep_predict(fewer, sweep_predict_trials(fewer))


def test_the_page_of_a_run_shows_the_trials(tmp_path):
    output = make_run(tmp_path, {"open-book": (SURE, {})})
    low_high = {f"{name}{end}": 0.5 for name in ("map_at_3", "accuracy") for end in ("_low", "_high")}
    figures = {"map_at_3": 0.625, "accuracy": 0.25, "seconds": 12.4, "questions": 165, "error": None} | low_high
    rows = [{"trial": "s-1", "rotations": 4, **figures}, {"trial": "s-2", "rotations": 1, "error": "no <room>"}]
    types = [("trial", pa.string()), ("rotations", pa.int64()), *COLUMNS.items(), ("error", pa.string())]
    tables.write_table(f"{output}/sweeps/s/00000.parquet", pa.Table.from_pylist(rows, schema=pa.schema(types)))
    tables.finish_table(f"{output}/sweeps/s", {"measure": "map_at_3"})
    page = page_of(output)
    part = page[page.index("Sweep s</h2>") : page.index("<h2>Questions")]
    cells = [re.sub(r"<.*?>", "", cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", part, re.DOTALL)]
    assert cells[1:3] == ["s-1", "4"]
    assert ("0.625" in cells[3], "0.250" in cells[4]) == (True, True)
    assert cells[5:8] == ["165", "12", "done"]
    assert cells[8:] == ["2", "s-2", "1", "failed", "no &lt;room&gt;"]
    assert part.count("<circle") == 1


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_table(tmp_path, cluster):
    model = tiny_folder(tmp_path / "llama", "llama")
    given = {"name": "s", "model": model, "reader": "closed-book", "shard_questions": 1}
    given |= {"precision": "float32", "search": "{completion: [text, letter]}", "exam": str(tmp_path / "exam.jsonl")}
    write_jsonl(tmp_path / "exam.jsonl", read_exam("validation").slice(0, 60).to_pylist())
    options = {name: RunSweepPredictOptions(output=str(tmp_path / name), **given) for name in ("whole", "killed")}
    first, second = (f"{tmp_path}/killed/validation/answers/s-{number}" for number in (1, 2))
    code = "import sys, json; from sciqa.run_training import *;"
    code += "run_sweep_predict(RunSweepPredictOptions(**json.loads(sys.argv[1])))"
    own = {"output": str(tmp_path / "killed"), "num_cpus": 2}
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(given | own)], stderr=subprocess.DEVNULL) as driver:
        end = time.monotonic() + 300
        while len(list(Path(second).glob("*.parquet"))) < 5:
            assert time.monotonic() < end
            assert driver.poll() is None
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    assert tables.is_finished_table(first)
    assert not tables.is_finished_table(second)
    manifest = Path(tables.table_records_path(first, tables.MANIFEST)).read_bytes()
    shards = {path: path.stat().st_mtime_ns for path in Path(second).glob("*.parquet")}
    made = {name: run_sweep_predict(options[name])[-1] for name in ("killed", "whole")}
    assert Path(tables.table_records_path(first, tables.MANIFEST)).read_bytes() == manifest
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    rows = {name: tables.read_table(each.path).drop_columns(["seconds"]).to_pylist() for name, each in made.items()}
    assert rows["killed"] == rows["whole"]
    assert [row["error"] for row in rows["whole"]] == [None, None]
    best = rows["whole"][0]
    asked = {name: value for name, value in given.items() if name not in ("search", "name")}
    alone = PredictOptions(**asked, output=str(tmp_path / "alone"), completion=best["completion"])
    details = predict(alone).details
    assert [best[name] for name in FIGURES] == [details[name] for name in FIGURES]
