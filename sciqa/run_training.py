"""Steps in a row, of which finished ones are kept: an adapter, or many side by side, from corpus to training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.summary import Summary
from sciqa.predict.sweep_predict import (
    SweepPredictOptions,
    check_sweep_predict,
    sweep_predict,
    sweep_predict_contexts,
    sweep_predict_trials,
)
from sciqa.retrieval.contexts import find_contexts
from sciqa.run import RunIndexOptions, prepare_run_index
from sciqa.training import FinetuneOptions, finetune
from sciqa.training.finetune import check_before_finetune, open_finetune_split
from sciqa.training.options import SPLITS
from sciqa.training.sweep import sweep
from sciqa.training.sweep_options import SweepOptions, sweep_trials


@dataclass(kw_only=True)
class RunFinetuneOptions(FinetuneOptions, RunIndexOptions):
    """Options of all steps from corpus to adapter; by default, SmolLM2 on the packaged exam and the demo corpus."""


def run_finetune(options: RunFinetuneOptions) -> list[Summary]:
    """Find the contexts of training and validation questions, if they are missing, and train on them.

    Raises:
        InputError: bad input of any step.
    """
    check_before_finetune(options)
    return [*_find_split_contexts(options, [options]), finetune(options)]


def _find_split_contexts(options: RunFinetuneOptions, runs: Sequence[FinetuneOptions]) -> list[Summary]:
    """Find the contexts of both splits of runs, each folder once; objectives besides `rank` bring their own texts."""
    if options.objective != "rank":
        _check_nothing_found(options)
        return []
    summaries = prepare_run_index(options, options.model)
    folders = {getattr(run, f"{split}_contexts"): (run, split) for run in runs for split in SPLITS}
    for folder, (run, split) in folders.items():
        exam = open_finetune_split(run, split, write=False)
        summaries.append(find_contexts(options, exam, folder, _has_evidence(folder)))
    return summaries


def _check_nothing_found(options: RunFinetuneOptions) -> None:
    """Raise `InputError` if an option says how contexts are found, for an objective that finds none."""
    plain, own = RunFinetuneOptions(output=options.output), {field.name for field in fields(FinetuneOptions)}
    for name in (field.name for field in fields(RunIndexOptions) if field.name not in own):
        if getattr(options, name) != getattr(plain, name):
            raise InputError(
                f"--{name.replace('_', '-')}: is for the contexts of --objective rank, and none are found for "
                f"{options.objective}; leave it out"
            )


def _has_evidence(folder: str) -> bool:
    """Whether contexts are there, or begun, that have evidence: as `retrieve` makes them; it is left there."""
    path = tables.table_records_path(folder, tables.INPUTS)
    return storage.path_exists(path) and bool(storage.read_json(path)["inputs"].get("evidence"))


@dataclass(kw_only=True)
class RunSweepOptions(SweepOptions, RunFinetuneOptions):
    """Options of all steps from corpus to the table of a sweep."""


def run_sweep(options: RunSweepOptions) -> list[Summary]:
    """Check every trial of a sweep, find the contexts of their questions, if they are missing, and train them.

    Raises:
        InputError: bad input of any step or trial.
    """
    trials = sweep_trials(options, RunFinetuneOptions)
    for trial in trials:
        try:
            check_before_finetune(trial.options)
        except InputError as error:
            raise InputError(f"{trial.name}: {error}") from error
    contexts = _find_split_contexts(options, [trial.options for trial in trials])
    return [*contexts, sweep(options, trials)]


@dataclass(kw_only=True)
class RunSweepPredictOptions(SweepPredictOptions, RunIndexOptions):
    """Options of all steps from corpus to the table of a sweep over `predict`."""


def run_sweep_predict(options: RunSweepPredictOptions) -> list[Summary]:
    """Check every trial of a sweep over `predict`, find the contexts that they read, and rank the exam in each.

    Raises:
        InputError: bad input of any step or trial.
    """
    require_extra("train", "sciqa sweep-predict")  # Ray Tune
    trials = sweep_predict_trials(options)
    exam = check_sweep_predict(trials, options.overwrite and options.corpus is not None)
    folders = sweep_predict_contexts(trials)
    summaries = prepare_run_index(options) if folders else []
    summaries += [find_contexts(each, exam, folder, _has_evidence(folder)) for folder, each in folders.items()]
    return [*summaries, sweep_predict(options, trials)]
