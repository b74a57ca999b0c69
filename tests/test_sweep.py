"""Sweeps: which trials there are, what is refused before any, and a sweep that is killed, goes on and stops trials."""

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from conftest import QUESTIONS
from ray.util import placement_group, placement_group_table, remove_placement_group
from test_cli import refused
from test_report import SURE, make_run, page_of
from test_training import losses, tiny_run, wait_for_checkpoint
from tiny import tiny_folder

from sciqa import run_training
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.predict import PredictOptions, predict
from sciqa.training import finetune
from sciqa.training import sweep as sweeping
from sciqa.training.left_groups import left_groups_removed
from sciqa.training.options import options_mapping
from sciqa.training.sweep import (
    _is_done,
    run_sweep_trial,
    sweep,
    sweep_asha_scheduler,
    sweep_evaluations_left,
    sweep_rows,
    sweep_training_step,
    train_sweep_trial,
)
from sciqa.training.sweep_options import SweepOptions, sweep_trials

METHODS = ('{name: lora, peft: "{r: 4}"}', "{name: ia3, peft: {peft_type: IA3}}", "{name: full, method: full}")


def values(trials, name):
    return [getattr(trial.options, name) for trial in trials]


def test_trials_are_all_combinations_of_lists_with_each_set_of_options():
    options = SweepOptions(name="s", trials=METHODS, search="{learning-rate: [1e-4, 5.0e-4], seed: [0, 1]}")
    trials = sweep_trials(options)
    assert [trial.name for trial in trials] == [
        f"s-{m}-{n}" for n, m in enumerate(["lora"] * 4 + ["ia3"] * 4 + ["full"] * 4, 1)
    ]
    assert Counter(zip(values(trials, "learning_rate"), values(trials, "seed"), strict=True)) == {
        (rate, seed): 3 for rate in (1e-4, 5e-4) for seed in (0, 1)
    }
    assert trials[4].options.peft_fields() == {"peft_type": "IA3"}
    assert (trials[8].options.method, trials[8].varied["peft"]) == ("full", "{}")
    assert [trial.name for trial in sweep_trials(SweepOptions(name="s", trials=METHODS))] == [
        "s-lora",
        "s-ia3",
        "s-full",
    ]


def test_distributions_are_drawn_from_the_seed():
    search = "{learning_rate: {loguniform: [1e-5, 1e-3]}, weight_decay: {uniform: [0, 0.1]}, "
    search += "micro_batch: {choice: [2, 4]}, warmup: [0.0, 0.1], max_length: {randint: [100, 200]}}"
    trials = sweep_trials(SweepOptions(search=search, num_samples=20))
    assert len(trials) == 40
    assert Counter(values(trials, "warmup")) == {0.0: 20, 0.1: 20}
    rates = values(trials, "learning_rate")
    assert len(set(rates)) == 40
    assert 1e-5 <= min(rates) < 1e-4 < max(rates) <= 1e-3
    assert 12 <= sum(rate < 1e-4 for rate in rates) <= 28, "a factor of ten is as likely wherever it is"
    assert set(values(trials, "micro_batch")) == {2, 4}
    assert all(100 <= length <= 200 for length in values(trials, "max_length"))
    assert sweep_trials(SweepOptions(search=search, num_samples=20)) == trials
    assert sweep_trials(SweepOptions(search=search, num_samples=20, seed=1)) != trials


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({}, ["--search", "expected"]),
        ({"search": "[1, 2]"}, ["--search", "mapping"]),
        ({"search": "{learning_rate: [}"}, ["--search", "not YAML"]),
        ({"search": "{learning_rate: 1e-4}"}, ["learning_rate", "a list of values"]),
        ({"search": "{learning_rate: {normal: [0, 1]}}"}, ["learning_rate", "loguniform"]),
        ({"search": "{learning_rate: {loguniform: [0, 1]}}"}, ["learning_rate", "loguniform"]),
        ({"search": "{loss: {choice: ranking}}"}, ["loss", "choice: [a value"]),
        ({"search": "{rate: [1, 2]}"}, ["s-1", "'rate'", "no option", "learning_rate"]),
        ({"search": "{validation: [a, b]}"}, ["s-1", "'validation'", "shared by all trials"]),
        ({"search": "{method: [lora, lorra]}"}, ["s-2", "method", "'lorra'"]),
        ({"search": "{epochs: [1, many]}"}, ["s-2", "epochs", "'many'"]),
        ({"search": "{epochs: [1, -1]}"}, ["s-2", "--epochs: -1.0 given"]),
        ({"search": "{loss: [ranking, completion]}", "normalise": "none"}, ["s-2", "--normalise"]),
        ({"search": "{seed: [1, 2, 1]}"}, ["s-3", "the same as trial 1"]),
        ({"trials": ("{name: a, seed: 1}",), "search": "{seed: [1, 2]}"}, ["--trials", "seed", "--search"]),
        ({"trials": ("{name: a/b, seed: 1}",)}, ["s-a/b", "--name"]),
        ({"trials": ("{train: a.csv}", "{train: b.csv}")}, ["s-2: train", "another --output"]),
        ({"search": "{beta: [0.1, 0.5]}", "objective": "dpo"}, ["beta", "--objective dpo", "compared"]),
        ({"search": "{max_length: [64, 128]}", "objective": "instruct"}, ["max_length", "--objective instruct"]),
        ({"search": "{completion: [text, letter]}", "objective": "reward"}, ["completion", "--objective reward"]),
        ({"search": "{learning-rate: [1e-4], learning_rate: [1e-5]}"}, ["--search", "'learning_rate' stands twice"]),
        ({"search": "{seed: [0]}", "trials": ("{epochs: 1, epochs: 2}",)}, ["--trials", "'epochs' stands twice"]),
        ({"search": "{peft: ['{r: 8, r: 16}']}"}, ["--peft", "'r' stands twice"]),
        ({"search": "{rewards: [[answer], [format]]}", "objective": "grpo"}, ["rewards", "--objective grpo"]),
        ({"search": "{seed: [1, 2]}", "num_samples": 2}, ["--num-samples", "distributions"]),
        ({"search": "{seed: [1, 2]}", "asha": 1}, ["--asha", "at least 2"]),
        ({"search": "{seed: [1, 2]}", "grace": 101}, ["--grace", "1 to 100"]),
    ],
)
def test_what_cannot_be_tried_is_refused(given, parts):
    with pytest.raises(InputError) as error:
        sweep_trials(SweepOptions(name="s", **given))
    assert all(part in str(error.value) for part in parts), error.value


def test_every_trial_is_checked_before_any_is_trained(tmp_path, here, monkeypatch):
    checked = []

    def check(options):
        checked.append(options)
        if options.learning_rate == 1e-05:
            raise InputError("--peft: colour")

    monkeypatch.setattr(run_training, "check_before_finetune", check)
    config = tmp_path / "sweep.yaml"
    lines = [f"output: {tmp_path}/run", "name: s", "trials:", "- {seed: 0}"]
    config.write_text("\n".join([*lines, "- {name: red, peft: {r: 4, colour: red}, learning_rate: 1.0e-05}"]))
    assert refused(here("sweep", "--config", config), "s-red: --peft: colour")
    assert [(each.name, each.seed, each.peft_fields()) for each in checked] == [
        ("s-1", 0, {}), ("s-red", 0, {"r": 4, "colour": "red"}),
    ]  # fmt: skip
    assert refused(here("sweep", "--config", config, "--search", "{method: [lorra]}"), "method", "'lorra'")
    assert not (tmp_path / "run").exists()


def test_a_failed_trial_is_a_row_and_the_page_plots_the_others(tmp_path):
    output = make_run(tmp_path, {"open-book": (SURE, {})})
    options = SweepOptions(output=output, name="s", trials=METHODS, search="{seed: [7], max_length: [null]}")
    trials = sweep_trials(options)
    for trial, quality, trained in zip(trials, (0.5, 0.625), (4_000, 200), strict=False):
        storage.write_bytes(storage.join_paths(trial.options.folder, "adapter.json"), b"{}")
        figures = {"map_at_3": quality, "map_at_3_low": quality - 0.1, "map_at_3_high": quality + 0.1, "steps": 20}
        figures |= {"map_at_3_untrained": 0.4, "trained_parameters": trained, "peak_memory": 3 * 10**9}
        tables.finish_table(
            trial.options.folder,
            figures | {"working_seconds": 30.0 if quality > 0.6 else 60.0, "stopped": quality < 0.6},
        )
    table = sweep_rows(trials, {"s-full": "it took <all> memory"}, sweep_training_step(options))
    rows = table.to_pylist()
    assert table.schema.field("seed").type == "int64"
    assert [(row["trial"], row["peft"], row["seed"], row["stopped"]) for row in rows] == [
        ("s-ia3", "{peft_type: IA3}", 7, False), ("s-lora", "{r: 4}", 7, True), ("s-full", "{}", 7, None),
    ]  # fmt: skip
    assert (rows[2]["error"], rows[2]["map_at_3"], rows[2]["max_length"]) == ("it took <all> memory", None, None)
    tables.write_table(f"{output}/sweeps/s/00000.parquet", table)
    tables.finish_table(f"{output}/sweeps/s", {"measure": "map_at_3"})
    for trial in trials[:2]:  # the page draws the curve of every reader
        about = {"step": 20, "loss": 1.0, "validation_loss": 1.0, "map_at_3": 0.5}
        tables.write_table(f"{trial.options.folder}/metrics.parquet", sweeping.pa.Table.from_pylist([about]))
        record = tables.table_records_path(trial.options.folder, tables.MANIFEST)
        storage.write_json(record, storage.read_json(record) | {"best_step": 20, "files": 2})
    page = page_of(output)
    part = page[page.index("Sweep s</h2>") : page.index("<h2>Questions")]
    assert "it took &lt;all&gt; memory" in part
    assert re.findall(r"<td>(s-\w+)</td>", part) == ["s-ia3", "s-lora", "s-full"]
    plots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', part)
    # Parameters on an axis from 1e2 to 1e4, memory and seconds from 0; MAP@3 of 0 at 160, of 1 at 10.
    across = [np.log10(2) / 2, np.log10(4_000 / 100) / 2, 1, 1, 0.5, 1]
    np.testing.assert_allclose([float(x) for x, _ in plots], [40 + 200 * x for x in across], atol=0.06)
    np.testing.assert_allclose([float(y) for _, y in plots], [160 - 150 * y for y in (0.625, 0.5)] * 3, atol=0.06)


def test_a_trial_that_was_stopped_early_is_trained_again_where_none_is_stopped(tmp_path):
    folder, inputs = str(tmp_path / "trial"), {"seed": 1}
    trial = SimpleNamespace(options=SimpleNamespace(folder=folder))
    storage.write_bytes(f"{folder}/adapter.json", b"{}")
    tables.finish_table(folder, {"inputs": inputs, "stopped": True})
    assert _is_done(trial, inputs, {}, whole=False)
    assert not _is_done(trial, {"seed": 2}, {}, whole=True)
    assert Path(folder).exists()
    assert not _is_done(trial, inputs, {}, whole=True)
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("rewards", "ends", "heights"),
    [
        ((-0.5, -2.0), ("-2", "0"), ["47.5", "160.0"]),
        ((1.0, -3.0), ("-3", "1"), ["10.0", "160.0"]),
        ((1.5, 3.0), ("0", "3"), ["85.0", "10.0"]),
        ((0.0, 0.0), ("0", "1"), ["160.0", "160.0"]),
    ],
)
def test_figures_on_either_side_of_0_are_drawn_within_the_frame(tmp_path, rewards, ends, heights):
    output = make_run(tmp_path, {"open-book": (SURE, {})})
    about = {"validation_reward_low": None, "validation_reward_untrained": -3.0, "trained_parameters": 100}
    about |= {"peak_memory": 10**9, "seconds": 9.0, "steps_done": 5, "stopped": False, "error": None}
    rows = [{"trial": f"r-{seed}", "seed": seed, "validation_reward": at} | about for seed, at in enumerate(rewards)]
    tables.write_table(f"{output}/sweeps/r/00000.parquet", sweeping.pa.Table.from_pylist(rows))
    tables.finish_table(f"{output}/sweeps/r", {"measure": "validation_reward"})
    page = page_of(output)
    plots = page[page.index("Sweep r</h2>") : page.index("<h2>Questions")]
    assert re.findall(r'cy="([^"]+)"', plots) == heights * 3
    labels = re.findall(r'<text x="34" y="(?:18|164)" text-anchor="end">([^<]+)</text>', plots)
    assert labels == [*reversed(ends)] * 3


def test_asha_stops_what_is_not_among_the_best_third_after_a_fifth_and_three_fifths():
    scheduler = sweep_asha_scheduler(SweepOptions(asha=3))
    scheduler.set_search_properties("quality", "max")

    def decide(name, *reports):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        return [scheduler.on_trial_result(None, trial, {"percent": at, "quality": q}) for at, q in reports]

    assert decide("a", (0, 0.1), (20, 0.3), (60, 0.8), (100, 0.8)) == ["CONTINUE"] * 4
    assert decide("b", (10, 0.0), (20, 0.2)) == ["CONTINUE", "STOP"]
    assert decide("c", (20, 0.4), (40, 0.0), (60, 0.7)) == ["CONTINUE", "CONTINUE", "STOP"]
    assert decide("d", (20, 0.5), (60, 0.9), (100, 0.0)) == ["CONTINUE"] * 3
    assert sweep_asha_scheduler(SweepOptions()) is None


def test_only_the_placement_groups_of_actors_that_have_died_are_removed(cluster):
    @ray.remote(num_cpus=0)
    class Controller:
        def reserve(self):
            group = placement_group([{"CPU": 0.8}])
            assert group.wait(60)
            return group

    left, alive = Controller.remote(), Controller.remote()
    groups = ray.get([left.reserve.remote(), alive.reserve.remote()])
    ray.kill(left)
    own = placement_group([{"CPU": 1.1}])
    assert not own.wait(2), "the group of an actor that was killed holds its room"
    with left_groups_removed():
        assert own.wait(60)
    assert [placement_group_table(each)["state"] for each in groups] == ["REMOVED", "CREATED"]
    remove_placement_group(own)
    remove_placement_group(groups[1])


def test_what_ends_a_trial_is_told_in_one_line(monkeypatch):
    reported = []
    monkeypatch.setattr(sweeping.tune, "report", reported.append)
    monkeypatch.setattr(sweeping, "TuneReportCallback", object)
    monkeypatch.setattr(sweeping, "finetune", lambda *_: (_ for _ in ()).throw(MemoryError("no\nroom")))
    rows = [{"percent": 0.0, "quality": 0.5}, {"percent": 50.0, "quality": 0.6}]
    last = run_sweep_trial({"trial": "s-1"}, {"s-1": SweepOptions(name="s-1")}, {"s-1": rows}, train_sweep_trial)
    assert (last["error"], last["percent"], reported) == ("no room", 0.0, rows)


def test_a_trial_of_which_nothing_is_left_is_not_judged_by_what_it_was(tmp_path):
    options = {name: SweepOptions(output=str(tmp_path), name=name) for name in ("done", "begun", "diverged", "new")}
    for name in ("begun", "done"):
        storage.write_bytes(f"{options[name].folder}/checkpoints/state", b"{}")
    storage.delete_path(f"{options['done'].folder}/checkpoints")
    before = {name: [{"percent": 20.0, "quality": 0.1}] for name in ("done", "begun", "diverged", "of another sweep")}
    left = sweep_evaluations_left(before, options, {"done"})
    assert left == {name: before[name] for name in ("done", "begun")}


def sweep_options(data, output, model, *rates, **changes):
    """A sweep of short trainings with these learning rates."""
    given = vars(tiny_run(data, output, model=model, eval_every=4, steps=20, warmup=0.0, name="s"))
    trials = tuple(f"{{name: at-{rate}, learning_rate: {rate}}}" for rate in rates)
    return SweepOptions(**given | {"trials": trials} | changes)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_results_of_finetune(tmp_path, cluster, data, exam_file):
    model = tiny_folder(tmp_path / "llama", "llama")
    options = sweep_options(data, tmp_path / "killed", model, "1e-12", "5e-3")
    trials = sweep_trials(options)
    (first, second) = (trial.options.folder for trial in trials)
    code = "import sys, json; from sciqa.training.sweep import *; o = SweepOptions(**json.loads(sys.argv[1]));"
    code += "from sciqa.training.sweep_options import sweep_trials; sweep(o, sweep_trials(o))"
    given = {name: value for name, value in vars(options).items() if name != "address"} | {"num_cpus": 2}
    command = [sys.executable, "-c", code, json.dumps(given)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for_checkpoint(second, driver)
        driver.send_signal(signal.SIGKILL)
    assert not tables.is_finished_table(second)
    before = Path(tables.table_records_path(first, tables.MANIFEST)).read_bytes()
    made = sweep(options, trials)
    assert Path(tables.table_records_path(first, tables.MANIFEST)).read_bytes() == before
    rows = {row["trial"]: row for row in tables.read_table(made.path).to_pylist()}
    assert [(row["steps_done"], row["stopped"], row["error"]) for row in rows.values()] == [(20, False, None)] * 2
    assert all(10**8 < row["peak_memory"] < 10**10 for row in rows.values())
    alone = trials[1]._replace(options=replace(trials[1].options, output=str(tmp_path / "alone")))
    np.testing.assert_allclose(losses(finetune(alone.options).path), losses(second), atol=1e-3)
    expected = sweep_training_step(options).figures(alone)
    varying = ("seconds", "peak_memory")
    assert {name: rows[alone.name][name] for name in expected if name not in varying} == {
        name: value for name, value in expected.items() if name not in varying
    }
    assert sweep(options, trials).made.endswith("kept")
    other = sweep_options(data, tmp_path / "killed", model, "1e-12", "5e-3", search="{seed: [3]}")
    with pytest.raises(InputError, match="seed"):
        sweep(other, sweep_trials(other))
    asked = {"output": str(tmp_path), "reader": "closed-book", "exam": exam_file}
    assert predict(PredictOptions(**asked, model=model, adapter=second)).details["questions"] == QUESTIONS


@pytest.mark.slow
def test_asha_stops_trials_whose_best_step_is_kept_and_a_failed_one_is_a_row(tmp_path, cluster, data):
    model = tiny_folder(tmp_path / "llama", "llama")
    # Whichever of the first two is better, it or the third, which is like the first, is stopped.
    rates = ("5e-3", "1e-12", "4.9e-3", "1e+30")
    options = sweep_options(data, tmp_path / "run", model, *rates, asha=2, concurrent=1)
    trials = sweep_trials(options)
    rows = {row["trial"]: row for row in tables.read_table(sweep(options, trials).path).to_pylist()}
    failed = rows.pop("s-at-1e+30")
    assert "not a finite number" in failed["error"]
    assert (failed["stopped"], failed["map_at_3"]) == (None, None)
    seen = {20: [], 40: [], 80: []}  # percent of the steps after which trials are compared
    for name in (trial.name for trial in trials if trial.name in rows):
        history = tables.read_table(f"{tmp_path}/run/trained/{name}/metrics.parquet").to_pylist()
        evaluations = [row for row in history if row["map_at_3"] is not None]
        at = {5 * row["step"]: row["map_at_3"] - 1e-6 * row["validation_loss"] for row in evaluations}
        stopped = False
        for rung, others in seen.items():
            if not stopped:
                stopped = bool(others) and at[rung] < np.percentile(others, 50)
                others.append(at[rung])
        assert (rows[name]["stopped"], rows[name]["error"]) == (stopped, None), (name, at, seen)
        assert rows[name]["best_step"] <= rows[name]["steps_done"] <= 20
        assert Path(tmp_path, "run", "trained", name, "adapter_model.safetensors").exists()
    assert any(row["stopped"] for row in rows.values())


def test_a_mapping_that_names_itself_is_read_once():
    given = options_mapping("--peft", "&all {r: 8, again: *all}", "{r: 16}")
    assert given["again"]["again"]["r"] == 8
