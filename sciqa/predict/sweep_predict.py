"""The `sweep-predict` step: readers that differ in their options, by how they rank the questions of one exam."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from sciqa.core import cluster, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.hashes import fingerprint
from sciqa.core.model_files import model_file_bytes
from sciqa.core.summary import Summary
from sciqa.exam.open_exam import Exam, open_exam
from sciqa.predict.options import PredictOptions
from sciqa.predict.predict import predict, predict_inputs
from sciqa.predict.results import result_metrics_path
from sciqa.retrieval.contexts import check_find_contexts
from sciqa.retrieval.options import FindOptions, IndexFolderOptions
from sciqa.training.sweep import SweptStep, sweep_room, sweep_table
from sciqa.training.sweep_options import SHARED, SweepTrial, TrialsOptions, sweep_option_trials

#: Options that trials share: those of every sweep, the index, and the exam that they are compared on.
SAME = SHARED | {field.name for field in fields(IndexFolderOptions)} | {"exam", "shard_questions", "contexts"}
#: Options by which contexts are found; each combination of their values has a folder of contexts.
FINDING = {field.name for field in fields(FindOptions)} - SAME - {"num_workers"}
VARYING = {field.name for field in fields(PredictOptions)} - SAME | FINDING
#: Columns of a trial's figures, as its table of metrics has them.
COLUMNS = {
    **{f"{name}{end}": pa.float64() for name in ("map_at_3", "accuracy") for end in ("", "_low", "_high")},
    "seconds": pa.float64(),
    "questions": pa.int64(),
}


@dataclass(kw_only=True)
class SweepPredictTrial(PredictOptions, FindOptions):
    """Options of one trial: how contexts are found, and how questions are ranked with them."""

    def check_effects(self) -> None:
        """Check nothing: what trials share need not have an effect in each of them."""


@dataclass(kw_only=True)
class SweepPredictOptions(TrialsOptions, SweepPredictTrial):
    """Options of the `sweep-predict` step, and those that its trials share."""

    def __post_init__(self) -> None:
        """Take the validation split and its folder of contexts, unless others are given."""
        self.exam = self.exam or "validation"
        self.contexts = self.contexts or storage.join_paths(self.output, "validation", "contexts")
        super().__post_init__()


def sweep_predict_trials(options: SweepPredictOptions) -> list[SweepTrial[SweepPredictTrial]]:
    """Return the trials of a sweep over `predict`: runs in `OUTPUT/validation`, each with answers of its own.

    Raises:
        InputError: as `sweep_option_trials`.
    """
    output = storage.join_paths(options.output, "validation")
    trials = sweep_option_trials(options, SweepPredictTrial, VARYING, "predict", output=output)
    for trial in trials:
        if FINDING & trial.varied.keys():
            trial.options.contexts += f"-{fingerprint(trial.options.finding())}"
    return trials


def sweep_predict_contexts(
    trials: Sequence[SweepTrial[SweepPredictTrial]],
) -> dict[str, SweepPredictTrial]:
    """Return the folders of contexts that trials read, each with the options by which these are found."""
    readers = [trial.options for trial in trials if trial.options.has_context and not trial.options.blend]
    return {options.contexts: options for options in readers}


def check_sweep_predict(trials: Sequence[SweepTrial[SweepPredictTrial]], replaced: bool) -> Exam:
    """Check everything of all trials that needs neither contexts nor a cluster; return the exam.

    An index of another model is no error if it may be `replaced`.

    Raises:
        InputError: no question has an answer, or a trial cannot rank the options of these questions.
    """
    exam = open_exam(trials[0].options, write=False)
    if not exam.answers:
        raise InputError(f"{exam.name}: no question has an answer, and trials are compared by the right ones")
    for trial in trials:
        try:
            if trial.options.context != "given" and sweep_predict_contexts([trial]):
                check_find_contexts(trial.options, replaced)
            predict_inputs(trial.options, exam, found=False)
        except InputError as error:
            raise InputError(f"{trial.name}: {error}") from error
    return exam


def sweep_predict(options: SweepPredictOptions, trials: list[SweepTrial[SweepPredictTrial]]) -> Summary:
    """Rank the exam in every trial, whose contexts are found, and write `OUTPUT/sweeps/NAME/`; see `sweep_table`.

    Raises:
        InputError: bad input of a trial, or as `sweep_table`.
    """
    cluster.connect_cluster(options)
    exam = open_exam(trials[0].options)
    inputs = {trial.name: predict_inputs(trial.options, exam) for trial in trials}
    step = SweptStep(predict, lambda each: _room_for(each, exam), _figures, COLUMNS, "map_at_3")
    return sweep_table(options, options.name, trials, {"trials": inputs}, step)


def _room_for(options: SweepPredictTrial, exam: Exam) -> int:
    """Return how many trials the cluster has room for at once, each with all its workers."""
    workers = cluster.num_cluster_workers(options, exam.shards, whole_nodes=options.streams or options.in_vllm)
    weights = model_file_bytes(options.model) if options.has_model and not options.in_api else 0
    return sweep_room(options, workers, weights)


def _figures(trial: SweepTrial[SweepPredictTrial]) -> dict:
    """Return the figures of a finished trial over the whole exam."""
    whole = tables.read_table(result_metrics_path(trial.options.output, trial.name)).to_pylist()[0]
    return {name: whole[name] for name in COLUMNS}
