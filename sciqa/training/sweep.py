"""The `sweep` step: runs that differ in their options, side by side on Ray Tune, as one table."""

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pyarrow as pa
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from sciqa.core import cluster, progress, storage, tables, worker_loss
from sciqa.core.console import console
from sciqa.core.errors import InputError, find_input_error
from sciqa.core.lock import lock
from sciqa.core.model_files import model_file_bytes
from sciqa.core.options import RunOptions, defaults_of
from sciqa.core.summary import Summary
from sciqa.retrieval.options import FindOptions, IndexOptions
from sciqa.training.finetune import finetune, finetune_inputs, keep_stopped_finetune
from sciqa.training.left_groups import left_groups_removed
from sciqa.training.loggers import logged_measure
from sciqa.training.options import FinetuneOptions
from sciqa.training.ray_train import CHECKPOINTS, num_ray_train_workers
from sciqa.training.sweep_options import SweepOptions, SweepTrial, TrialsOptions

#: Version of the table; raise it when the same trials give other rows.
SWEEP_FORMAT = 1
#: File among the table's records with the evaluations that trials have reported, for a sweep that goes on.
EVALUATIONS = "evaluations.json"
#: How Ray Tune behaves: no log files and printed tables of its own, and Ctrl-C ends the program as in other steps.
TUNE_ENVIRONMENT = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
TUNE_ENVIRONMENT |= {"RAY_AIR_NEW_OUTPUT": "0"}
#: Ends of the columns of the validation figure: at the best step, its interval, and before training.
ENDS = ("", "_low", "_high", "_untrained")
#: Other columns of figures: their names in a trial's manifest, and their types.
FIGURES = {
    **{name: (name, pa.int64()) for name in ("trained_parameters", "peak_memory")},
    "seconds": ("working_seconds", pa.float64()),
    "steps_done": ("steps", pa.int64()),
    "best_step": ("best_step", pa.int64()),
    "stopped": ("stopped", pa.bool_()),
}


class SweptStep(NamedTuple):
    """The step whose options a sweep varies.

    Attributes:
        run: runs the step with the options of a trial.
        room: returns how many trials with such options the cluster has room for at once.
        figures: returns figures of a finished trial by column.
        columns: types of the columns of figures.
        measure: the first of them, by which trials are compared.
        max_failures: how often a trial whose process is lost begins again, with what it has left.
        scheduler: what stops trials early.
    """

    run: Callable[[Any], object]
    room: Callable[[Any], int]
    figures: Callable[[SweepTrial[Any]], dict]
    columns: dict[str, pa.DataType]
    measure: str
    max_failures: int = 3
    scheduler: ASHAScheduler | None = None


def sweep(options: SweepOptions, trials: list[SweepTrial[FinetuneOptions]]) -> Summary:
    """Train every trial, and write the table `OUTPUT/sweeps/NAME/`: a row for each trial, the best first.

    A trial, as `sweep_trials` returns it, has passed the checks of `finetune`. It is an ordinary run of that, with its
    result in `OUTPUT/trained/`; see `sweep_table`.

    Raises:
        InputError: bad input of a trial, or as `sweep_table`.
    """
    cluster.connect_cluster(options)
    inputs: dict = {trial.name: finetune_inputs(trial.options) for trial in trials}
    inputs = {"asha": options.asha, "grace": options.grace, "trials": inputs}
    return sweep_table(options, options.name, trials, inputs, sweep_training_step(options))


def sweep_table(
    options: TrialsOptions, name: str, trials: list[SweepTrial[Any]], inputs: dict, step: SweptStep
) -> Summary:
    """Run every trial, and write the table `OUTPUT/sweeps/NAME/`: a row for each trial, the best first.

    A sweep that was ended goes on: what is finished is kept, what had begun goes on where it was. A trial that fails is
    a row with its error, and the next run of the same sweep tries it again. `inputs` is what the table follows from,
    with `trials`, what each of them does, by name.

    Raises:
        InputError: all trials failed, or the table of that name was begun with other options.
    """
    started = time.monotonic()
    folder = storage.join_paths(options.output, "sweeps", name)
    inputs = {"format": SWEEP_FORMAT} | inputs
    defaults = defaults_of(type(options), IndexOptions, FindOptions)
    with lock(folder):
        begun = tables.begin_table(folder, inputs, defaults, overwrite=options.overwrite)
        kept = begun.whole and not any(tables.read_table(folder, ["error"])["error"].to_pylist())
        if not kept:
            whole = options.overwrite and step.scheduler is None
            done = {trial.name for trial in trials if _is_done(trial, inputs["trials"][trial.name], defaults, whole)}
            errors = run_sweep_trials(options, trials, done, tables.table_records_path(folder), step)
            tables.write_table(tables.table_part_path(folder, 0), sweep_rows(trials, errors, step))
            tables.finish_table(folder, {"format": SWEEP_FORMAT, "inputs": inputs, "measure": step.measure})
            if not errors:  # with which failed trials are compared when they are tried again
                storage.delete_path(tables.table_records_path(folder, EVALUATIONS))
    rows = tables.read_table(folder).to_pylist()
    failed = sum(bool(row["error"]) for row in rows)
    made = f"{len(rows)} trials, {failed} failed; best {rows[0]['trial']}" + ", kept" * kept
    printed = {f"Trials of {name}": [_printed(row, step.measure) for row in rows]}
    return Summary("sweep", folder, made, time.monotonic() - started, printed)


def sweep_training_step(options: SweepOptions) -> SweptStep:
    """Return `finetune` as the step of a sweep."""
    measure = "map_at_3" if options.objective == "rank" else f"validation_{logged_measure(options)}"
    columns = {f"{measure}{end}": pa.float64() for end in ENDS} | {name: kind for name, (_, kind) in FIGURES.items()}
    of_manifest = {name: FIGURES.get(name, (name,))[0] for name in columns}

    def figures(trial: SweepTrial[FinetuneOptions]) -> dict:
        manifest = {"stopped": False} | tables.read_table_manifest(trial.options.folder, "sweep")
        return {column: manifest.get(name) for column, name in of_manifest.items()}

    return SweptStep(
        train_sweep_trial, _room_for, figures, columns, measure, options.max_failures, sweep_asha_scheduler(options)
    )


def _is_done(trial: SweepTrial[Any], inputs: dict, defaults: dict, whole: bool) -> bool:
    """Whether a trial has its result; what has other inputs is for its step to refuse or replace.

    With `whole`, the result of a trial that a sweep has stopped early is deleted, so that it is trained to the end.
    """
    folder = trial.options.folder
    if not tables.is_finished_table(folder):
        return False
    manifest = tables.read_table_manifest(folder, "sweep")
    if tables.differing_table_inputs(manifest.get("inputs", {}), inputs, defaults):
        return False
    if manifest.get("stopped") and whole:
        with lock(folder):
            tables.delete_table(folder)
        return False
    return True


def run_sweep_trials(
    options: TrialsOptions, trials: list[SweepTrial[Any]], done: set[str], records: str, step: SweptStep
) -> dict[str, str]:
    """Run what is not finished, as many trials at once as the cluster has room for; return errors by trial.

    Stopping by ASHA depends on the evaluations of all trials, so those that are done report theirs again. `records` is
    the folder of the records of the sweep's table.

    Raises:
        InputError: all trials failed; another attempt begins with what each has left.
    """
    chosen = {trial.name: trial.options for trial in trials if step.scheduler or trial.name not in done}
    if not chosen:
        return {}
    path = storage.join_paths(records, EVALUATIONS)
    before = storage.read_json(path) if storage.path_exists(path) else {}
    before = sweep_evaluations_left(before, chosen, done)
    storage.delete_path(storage.join_paths(records, "tune"))
    os.environ |= TUNE_ENVIRONMENT
    with progress.progress_lines("sweep", f"{len(trials)} trials, {len(done)} of them done"), left_groups_removed():
        function = tune.with_parameters(run_sweep_trial, chosen=chosen, before=before, run=step.run)
        results = tune.Tuner(
            # A trial's process, and the tasks that it starts itself; its workers ask for their own.
            tune.with_resources(function, tune.PlacementGroupFactory([{"CPU": cluster.TASK_CPUS}] * 2)),
            param_space={"trial": tune.grid_search(list(chosen))},
            tune_config=tune.TuneConfig(
                metric="quality",
                mode="max",
                scheduler=step.scheduler,
                max_concurrent_trials=options.concurrent or max(1, min(map(step.room, chosen.values()))),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=records,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=step.max_failures),
                callbacks=[_Recorder(path, before)],
            ),
        ).fit()
    storage.delete_path(storage.join_paths(records, "tune"))
    errors = {}
    for result in map(results.__getitem__, range(len(results))):
        name = cast("dict", result.config)["trial"]
        if error := str(result.error or (result.metrics or {}).get("error", "")):
            errors[name] = error.strip().splitlines()[-1]
        elif not tables.is_finished_table(chosen[name].folder):
            keep_stopped_finetune(chosen[name])
    if len(errors) == len(trials):
        raise InputError(f"all {len(trials)} trials failed; {next(iter(errors))}: {next(iter(errors.values()))}")
    return errors


def sweep_evaluations_left(
    before: dict[str, list[dict]], chosen: dict[str, Any], done: set[str]
) -> dict[str, list[dict]]:
    """Return the evaluations of an earlier attempt that hold, by trial.

    A trial that has left neither result nor checkpoint, as one that diverged, begins anew; were it stopped by its
    former evaluations, there would be no step of it to keep.
    """
    begun = {
        name for name, options in chosen.items() if storage.list_names(storage.join_paths(options.folder, CHECKPOINTS))
    }
    return {name: rows for name, rows in before.items() if name in done | begun}


def run_sweep_trial(config: dict, chosen: dict[str, Any], before: dict[str, list[dict]], run: Callable) -> dict:
    """Run one trial in its own process, for Ray Tune.

    Args:
        config: `trial`, the name of the trial.
        chosen: options of all trials by name.
        before: evaluations by trial that an earlier attempt reported, which are reported again.
        run: runs the step with the options of the trial.

    Returns:
        A last report with `error`, empty if the trial has come to its end.
    """
    options = chosen[config["trial"]]
    for row in before.get(options.name, ()):
        tune.report(row)
    error = ""
    try:
        run(options)
    except Exception as caught:  # of whatever library; it is for the table
        known = find_input_error(caught) or worker_loss.worker_loss_error(caught) or caught
        error = " ".join(str(known).split()) or type(known).__name__
    return {"percent": 0.0, "quality": math.nan, "error": error}  # which stops nothing


def train_sweep_trial(options: FinetuneOptions) -> None:
    """Train one trial; Ray Train reports every evaluation to Ray Tune."""
    finetune(options, [TuneReportCallback()])


def sweep_rows(trials: list[SweepTrial[Any]], errors: dict[str, str], step: SweptStep) -> pa.Table:
    """Return the rows of trials, the best first, failed ones last.

    Columns: `trial`, its name; the options that vary; the figures of the step, the first of which is that by which
    trials are compared; its error, or null.
    """
    rows: list[dict] = []
    for trial in trials:
        figures = {} if trial.name in errors else step.figures(trial)
        row = {"trial": trial.name, **trial.varied, "error": errors.get(trial.name)}
        rows.append(row | {column: figures.get(column) for column in step.columns})
    sign = -1 if step.measure == "validation_loss" else 1
    rows.sort(key=lambda row: -math.inf if row[step.measure] is None else sign * row[step.measure], reverse=True)
    varied = {name: _type_of([row[name] for row in rows]) for name in trials[0].varied}
    for row in rows:
        texts = [name for name, kind in varied.items() if kind == pa.string() and row[name] is not None]
        row |= {name: str(row[name]) for name in texts}
    types = varied | step.columns
    return pa.Table.from_pylist(
        rows, schema=pa.schema([("trial", pa.string()), *types.items(), ("error", pa.string())])
    )


def _type_of(values: list) -> pa.DataType:
    """Return the type of a column of an option's values: text, unless all are numbers or all true or false."""
    kinds = {type(value) for value in values if value is not None}
    plain = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return plain.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()


def _printed(row: dict, measure: str) -> dict:
    """Return a row for the terminal: the trial and the options that vary, then the figures."""
    shown = dict(itertools.takewhile(lambda pair: pair[0] != measure, row.items()))
    for name in [measure, *["accuracy"] * ("accuracy" in row)]:
        value, low, high = (row[f"{name}{end}"] for end in ENDS[:3])
        interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
        shown[name.replace("map_at_", "MAP@")] = None if value is None else f"{value:.3f}{interval}"
    if "peak_memory" in row:
        shown |= {"parameters": row["trained_parameters"], "GB": row["peak_memory"] and row["peak_memory"] / 1e9}
    shown |= {name: row[name] for name in ("seconds", "steps_done", "questions") if name in row}
    shown |= {"ended": row["error"] or ("stopped" if row.get("stopped") else "done")}
    return {name: "–" if value is None else value for name, value in shown.items()}


def sweep_asha_scheduler(options: SweepOptions) -> ASHAScheduler | None:
    """Return ASHA (Li et al. 2020, algorithm 2), which compares trials by the share of their steps that they have done.

    They are compared at `grace` percent, at `asha` times as much, and so on; None if nothing is to be stopped.
    """
    if options.asha is None:
        return None
    return ASHAScheduler("percent", None, None, 100, options.grace, options.asha, stop_last_trials=False)


def _room_for(options: FinetuneOptions) -> int:
    """Return how many trials the cluster has room for at once, each with all its workers."""
    return sweep_room(options, num_ray_train_workers(options), model_file_bytes(options.model))


def sweep_room(options: RunOptions, workers: int, weights: int) -> int:
    """Return how many trials of so many workers, each with `weights` bytes of a model, the cluster holds at once."""
    needs = cluster.cluster_worker_needs(options, workers, weights) | cluster.cluster_accelerator_needs(options)
    return cluster.cluster_workers_that_fit(needs) // workers


class _Recorder(tune.Callback):
    """Writes down the evaluations that trials report, and prints them."""

    def __init__(self, path: str, rows: dict[str, list[dict]]) -> None:
        self.path, self.rows = path, rows  # no function that prints: Ray Tune writes this object to a file

    def on_trial_result(self, iteration: int, trials: list, trial: TuneTrial, result: dict, **_: object) -> None:
        """Keep an evaluation, unless it is one of an earlier attempt that was reported again."""
        name = trial.config["trial"]
        if "error" in result:
            console.print(f"sweep: {name}: {result['error'] or 'done'}", markup=False, soft_wrap=True)
            return
        row = {key: result[key] for key in ("percent", "quality")}
        if row not in self.rows.setdefault(name, []):
            self.rows[name].append(row)
            storage.write_json(self.path, self.rows)
            at = f"{row['percent']:.0f} % of its steps, quality {row['quality']:.3f}"
            console.print(f"sweep: {name}: {at}", markup=False)
