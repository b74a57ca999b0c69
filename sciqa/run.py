"""Steps in a row, of which finished ones are kept: an exam from corpus to report."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from sciqa.core import storage, tables
from sciqa.core.cluster import check_cluster_accelerator
from sciqa.core.errors import InputError
from sciqa.core.local_stage import WEIGHTS, before_local_stage
from sciqa.core.model_files import find_model, model_file_bytes
from sciqa.core.options import defaults_of
from sciqa.core.packaged import is_packaged_installed
from sciqa.core.summary import Summary
from sciqa.corpus.articles import read_articles
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages, check_passage_sources, finished_passages
from sciqa.exam import open_exam
from sciqa.exam.baselines import BASELINES, OVERLAPS, Baseline
from sciqa.exam.check import check_exam
from sciqa.exam.finished_answers import finished_answers
from sciqa.exam.open_exam import Exam
from sciqa.predict import PredictOptions, predict
from sciqa.predict.options import ReaderName
from sciqa.predict.predict import READERS_MODULE, check_predict_model, is_local_predict
from sciqa.predict.scored_answers import scored_answer_inputs
from sciqa.report import ReportOptions, report
from sciqa.report.report import check_report_reader
from sciqa.retrieval import FindOptions, IndexOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.contexts import check_find_contexts
from sciqa.retrieval.index import check_index, finished_index, options_of_index

COMPARED: tuple[ReaderName, ...] = ("open-book", "closed-book", "retrieval")
#: Options of a reader that is asked beside that of the command: it has its own name, and takes no others' answers.
BESIDE: dict[str, Any] = {"name": "", "blend": (), "blend_fit": None, "cascade": None} | {
    name: defaults_of(PredictOptions)[name] for name in ("cascade_share", "cascade_by")
}


@dataclass(kw_only=True)
class RunIndexOptions(IndexOptions, FindOptions, CorpusOptions):
    """Options of the steps from corpus to contexts."""


@dataclass(kw_only=True)
class RunExamOptions(ReportOptions, PredictOptions, RetrieveOptions, RunIndexOptions):
    """Options of all steps from corpus to report; the defaults answer the packaged test exam from the demo corpus."""

    compare: bool = False
    """Answer with every reader (open-book, closed-book, retrieval) and print them as one table."""
    baselines: bool = True
    """Also answer by the shallow baselines (overlap, overlap-gold, longest, majority), which need no model."""
    check: bool = False
    """Only show how the exam is understood: first questions, letters of right options, repeats, scores by chance."""


def run_exam(options: RunExamOptions) -> list[Summary]:
    """Answer an exam from a corpus; all input is checked before any work starts.

    Raises:
        InputError: bad input of any step.
    """
    if options.check:
        return [check_exam(options, partial(_gold_texts, options))]
    options.check_effects()
    exam = open_exam(options, write=False)
    asked = _asked(options, exam)
    names = [*(each.name for each in asked), *finished_answers(options.output, exam)]
    check_report_reader(options.show, names)
    check_run_mixed(options, names)
    if reading := sorted((each for each in asked if each.reads_model), key=lambda each: not each.has_context):
        alone = " without --compare" if options.compare else ""
        check_predict_model(reading[0], exam.sample, f"--reader closed-book{alone}")
    summaries = []
    if options.reader != "closed-book" or any(each.has_context for each in asked):
        models = [each.model for each in asked if each.has_model and not each.in_api and not each.in_vllm]
        summaries += prepare_run_index(options, *models[:1])
        loads = any(each.has_model and is_local_predict(each, exam) for each in asked)
        with before_local_stage(READERS_MODULE if loads else None):
            summaries.append(retrieve(options))
    summaries += map(predict, asked)
    return [*summaries, report(replace(options, show=options.show or options.name))]


def _asked(options: RunExamOptions, exam: Exam) -> list[RunExamOptions]:
    """Return the options of all readers of a run in the order in which they answer.

    Raises:
        InputError: another reader has the name of the run's own.
    """
    compared = COMPARED[: 2 if options.context == "given" else 3] if options.compare else ()
    mixed = bool(options.blend or options.cascade)
    others = [name for name in compared if mixed or name != options.reader]
    shallow = [name for name in _baselines(options, exam) if name not in (options.reader, *others)]
    beside = [replace(options, reader=name, **BESIDE) for name in others]
    beside += [_without_model(options, name) for name in shallow]
    if options.name in (each.name for each in beside):
        raise InputError(f"--name: {options.name!r} is another reader of this run too; pass another --name")
    # A blend or cascade may read the others' answers, which must not be replaced after it.
    return [*beside, options] if mixed else [options, *beside]


def check_run_mixed(options: RunExamOptions, names: list[str]) -> None:
    """Raise `InputError` unless the readers that a blend or cascade takes are among `names`, and weights can be fitted.

    They are the readers of this run and those of finished answers.
    """
    read = {"blend": options.blend, "cascade": (options.cascade,) if options.cascade else ()}
    for flag, name in ((flag, name) for flag, taken in read.items() for name in taken):
        if name not in names:
            among = ", ".join(dict.fromkeys(each for each in names if each != options.name))
            raise InputError(f"--{flag}: no reader {name!r} in {options.output} or among those of this run: {among}")
    if options.blend_fit:
        scored_answer_inputs(options.blend_fit, options.blend)


def _without_model(options: RunExamOptions, baseline: Baseline) -> RunExamOptions:
    """Return the options of a baseline: without those that belong to a model."""
    return replace(options, reader=baseline, adapter=None, stream=False, **BESIDE)


def _gold_texts(options: RunExamOptions, titles: set[str]) -> dict[str, str]:
    """Return the texts of articles by title: from the run's passages, else from the demo corpus if it is installed."""
    if tables.is_finished_table(options.passages):
        shards = storage.list_files(options.passages, "parquet")
        articles: Iterator[dict] = (
            row for path in shards for row in tables.read_table(path, ["title", "text"]).to_pylist()
        )
    elif options.corpus in (None, ("demo",)) and is_packaged_installed("demo"):
        articles = read_articles("demo")
    else:
        return {}
    texts = dict.fromkeys(titles, "")
    for article in articles:
        if article["title"] in texts:
            texts[article["title"]] += f"{article['text']}\n"
    return texts


def _baselines(options: RunExamOptions, exam: Exam) -> list[Baseline]:
    """Return the shallow baselines that an exam has what it takes for."""
    if not (options.baselines and exam.answers):
        return []
    overlaps = [*OVERLAPS[:1], *OVERLAPS[1:] * ("title" in exam.columns and options.context != "given")]
    return [name for name in BASELINES if name not in OVERLAPS or (options.has_context and name in overlaps)]


def prepare_run_index(options: RunIndexOptions, model: str | None = None) -> list[Summary]:
    """Build passages and index after all checks, unless only the exams' own contexts are used.

    A small model that a later step loads from a GGUF file is converted meanwhile, if it has not been.
    """
    if options.context == "given":
        return []
    check_run_passages(options)
    check_find_contexts(options, options.overwrite and options.corpus is not None)
    check_cluster_accelerator(options)
    storage.check_storage_writable(options.output)
    return find_run_passages(options, model)


def check_run_passages(options: RunIndexOptions) -> None:
    """Raise `InputError` if there is neither an index to use as it is, nor anything to build one from."""
    if options.corpus is None:
        index, passages = finished_index(options), finished_passages(options)
        asked = options.cut() | {"remove": options.remove}
        given = [name for name, value in asked.items() if value != defaults_of(CorpusOptions)[name]]
        if index and not passages and given:
            flag = f"--{given[0].replace('_', '-')}"
            raise InputError(f"{flag}: the index in {options.index} is used as it is; leave it out, or pass --corpus")
        if index or passages:
            return
    check_passage_sources(options)
    check_index(options, options.overwrite)


def find_run_passages(options: RunIndexOptions, model: str | None = None) -> list[Summary]:
    """Build passages and index; if no corpus is named, finished ones are used as they are. See `prepare_run_index`."""
    if options.corpus is None and (manifest := finished_index(options)):
        made = f"{manifest['rows']:,} vectors of {manifest['dimension']} dimensions, {manifest['factory']}, kept"
        return [Summary("index", options.index, made, 0.0, {"built": 0, "kept": len(manifest["shards"])})]
    passages = build_passages(options)
    if model and ray.is_initialized() and find_model(model).gguf_file and model_file_bytes(model) <= WEIGHTS:
        _convert_run_model.remote(model)
    return [passages, build_index(options_of_index(options) if options.corpus is None else options)]


@ray.remote(num_cpus=0, max_retries=0)
def _convert_run_model(model: str) -> None:
    from sciqa.models.load import load_safetensors_folder

    with contextlib.suppress(Exception):  # the step that loads the model tries again, and raises
        load_safetensors_folder(find_model(model))
