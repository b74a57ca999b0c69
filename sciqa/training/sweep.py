"""The `sweep` step: trainings that differ in their options, side by side on Ray Tune, as one table."""

import itertools
import math
import os
import time
from typing import cast

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
from sciqa.core.options import Summary, defaults_of
from sciqa.retrieval.options import FindOptions, IndexOptions
from sciqa.training.finetune import finetune, finetune_inputs, keep_stopped_finetune
from sciqa.training.loggers import logged_measure
from sciqa.training.options import FinetuneOptions
from sciqa.training.ray_train import num_ray_train_workers
from sciqa.training.sweep_options import SweepOptions, Trial

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


def sweep(options: SweepOptions, trials: list[Trial]) -> Summary:
    """Train every trial, and write the table `OUTPUT/sweeps/NAME/`: a row for each trial, the best first.

    A trial is an ordinary run of `finetune` with its result in `OUTPUT/trained/`. A sweep that was ended goes on: what
    is finished is kept, what had begun resumes from its last checkpoint. A trial that fails is a row with its error,
    and the next run of the same sweep tries it again.

    Args:
        options: options of the step.
        trials: trials, as `sweep_trials` returns them, after the checks of `finetune`.

    Raises:
        InputError: bad input of a trial, all trials failed, or the table of that name was begun with other options.
    """
    started = time.monotonic()
    cluster.connect_cluster(options)
    folder = storage.join_paths(options.output, "sweeps", options.name)
    inputs: dict = {"format": SWEEP_FORMAT, "asha": options.asha, "grace": options.grace}
    inputs |= {"trials": {trial.name: finetune_inputs(trial.options) for trial in trials}}
    defaults = defaults_of(SweepOptions, IndexOptions, FindOptions)
    with lock(folder):
        begun = tables.begin_table(folder, inputs, defaults, overwrite=options.overwrite)
        kept = begun.whole and not any(tables.read_table(folder, ["error"])["error"].to_pylist())
        if not kept:
            errors = run_sweep_trials(options, trials, tables.table_records_path(folder))
            table = sweep_table(options, trials, errors)
            tables.write_table(tables.table_part_path(folder, 0), table)
            tables.finish_table(folder, {"format": SWEEP_FORMAT, "inputs": inputs, "measure": sweep_measure(options)})
            storage.delete_path(tables.table_records_path(folder, EVALUATIONS))
    rows = tables.read_table(folder).to_pylist()
    failed = sum(bool(row["error"]) for row in rows)
    made = f"{len(rows)} trials, {failed} failed; best {rows[0]['trial']}" + ", kept" * kept
    printed = {f"Trials of {options.name}": [_printed(row, sweep_measure(options)) for row in rows]}
    return Summary("sweep", folder, made, time.monotonic() - started, printed)


def sweep_measure(options: FinetuneOptions) -> str:
    """Return the name of the validation figure by which trials are compared."""
    return "map_at_3" if options.objective == "rank" else f"validation_{logged_measure(options)}"


def run_sweep_trials(options: SweepOptions, trials: list[Trial], records: str) -> dict[str, str]:
    """Train what is not finished, as many trials at once as the cluster has room for; return errors by trial.

    Stopping by ASHA depends on the evaluations of all trials, so finished ones report theirs again.

    Args:
        options: options of the step.
        trials: all trials.
        records: folder of the records of the sweep's table.

    Raises:
        InputError: all trials failed; another attempt begins with what each has left.
    """
    done = {trial.name for trial in trials if tables.is_finished_table(trial.options.folder)}
    chosen = {trial.name: trial.options for trial in trials if options.asha or trial.name not in done}
    if not chosen:
        return {}
    path = storage.join_paths(records, EVALUATIONS)
    before = storage.read_json(path) if storage.path_exists(path) else {}
    storage.delete_path(storage.join_paths(records, "tune"))
    os.environ |= TUNE_ENVIRONMENT
    with progress.progress_lines("sweep", f"{len(trials)} trials, {len(done)} of them done"):
        function = tune.with_parameters(train_sweep_trial, chosen=chosen, before=before)
        results = tune.Tuner(
            tune.with_resources(function, {"cpu": cluster.TASK_CPUS}),  # its workers ask for their own
            param_space={"trial": tune.grid_search(list(chosen))},
            tune_config=tune.TuneConfig(
                metric="quality",
                mode="max",
                scheduler=sweep_asha_scheduler(options),
                max_concurrent_trials=options.concurrent or _room_for(list(chosen.values())),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=records,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
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


def train_sweep_trial(config: dict, chosen: dict[str, FinetuneOptions], before: dict[str, list[dict]]) -> dict:
    """Train one trial in its own process; Ray Tune calls it, and Ray Train reports every evaluation to Ray Tune.

    Args:
        config: `trial`, the name of the trial.
        chosen: options of all trials by name.
        before: evaluations by trial that an earlier attempt reported, which are reported again.

    Returns:
        A last report with `error`, empty if the trial has trained to its end.
    """
    options = chosen[config["trial"]]
    for row in before.get(options.name, ()):
        tune.report(row)
    error = ""
    try:
        finetune(options, [TuneReportCallback()])
    except Exception as caught:  # of whatever library; it is for the table
        known = find_input_error(caught) or worker_loss.worker_loss_error(caught) or caught
        error = " ".join(str(known).split()) or type(known).__name__
    return {"percent": 0.0, "quality": math.nan, "error": error}  # which stops nothing


def sweep_table(options: SweepOptions, trials: list[Trial], errors: dict[str, str]) -> pa.Table:
    """Return the rows of trials, the best first, failed ones last.

    Columns: `trial`, a name in `OUTPUT/trained/`; the options that vary; the validation figure at the best step with
    its 95 % bootstrap interval (MAP@3 only), and before training; trained parameters; peak memory of a worker in bytes;
    seconds of steps and evaluations; steps; whether ASHA stopped it; its error, or null.
    """
    measure = sweep_measure(options)
    figures = {f"{measure}{end}": (f"{measure}{end}", pa.float64()) for end in ENDS} | FIGURES
    rows: list[dict] = []
    for trial in trials:
        done = {"stopped": False} if trial.name not in errors else {}
        manifest = done and done | tables.read_table_manifest(trial.options.folder, "sweep")
        row = {"trial": trial.name, **trial.varied, "error": errors.get(trial.name)}
        rows.append(row | {column: manifest.get(name) for column, (name, _) in figures.items()})
    sign = -1 if measure == "validation_loss" else 1
    rows.sort(key=lambda row: -math.inf if row[measure] is None else sign * row[measure], reverse=True)
    varied = {name: _type_of([row[name] for row in rows]) for name in trials[0].varied}
    for row in rows:
        texts = [name for name, kind in varied.items() if kind == pa.string() and row[name] is not None]
        row |= {name: str(row[name]) for name in texts}
    types = varied | {column: kind for column, (_, kind) in figures.items()}
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
    value, low, high = (row[f"{measure}{end}"] for end in ENDS[:3])
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    shown = dict(itertools.takewhile(lambda pair: pair[0] != measure, row.items()))
    shown[measure.replace("_at_", "@")] = None if value is None else f"{value:.3f}{interval}"
    shown |= {"parameters": row["trained_parameters"], "GB": row["peak_memory"] and row["peak_memory"] / 1e9}
    shown |= {name: row[name] for name in ("seconds", "steps_done")}
    shown |= {"ended": row["error"] or ("stopped" if row["stopped"] else "done")}
    return {name: "–" if value is None else value for name, value in shown.items()}


def sweep_asha_scheduler(options: SweepOptions) -> ASHAScheduler | None:
    """Return ASHA (Li et al. 2020, algorithm 2), which compares trials by the share of their steps that they have done.

    They are compared at `grace` percent, at `asha` times as much, and so on; None if nothing is to be stopped.
    """
    if options.asha is None:
        return None
    return ASHAScheduler("percent", None, None, 100, options.grace, options.asha, stop_last_trials=False)


def _room_for(chosen: list[FinetuneOptions]) -> int:
    """Return how many trials the cluster has room for at once, each with all its workers."""
    room = []
    for options in chosen:
        workers = num_ray_train_workers(options)
        needs = cluster.cluster_worker_needs(options, workers, model_file_bytes(options.model))
        room.append(cluster.cluster_workers_that_fit(needs) // workers)
    return max(1, min(room))


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
