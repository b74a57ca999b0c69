"""Whole lines of steps: an exam from corpus to report, an adapter from corpus to training; done steps are kept."""

from dataclasses import dataclass, fields, replace

from sciqa import storage
from sciqa.cluster import Summary, check_accelerator
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.corpus.passages import check_corpus
from sciqa.exam import ReportOptions, open_exam, report
from sciqa.exam.check import check_exam
from sciqa.exam.questions import QuestionOptions
from sciqa.inference import PredictOptions, predict
from sciqa.inference.predict import check_reader
from sciqa.retrieval import FindOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.contexts import check_finding
from sciqa.training import FinetuneOptions, finetune
from sciqa.training.examples import check_answers
from sciqa.training.finetune import check_model

#: Options that the retrieval of training questions shares with training.
SHARED = (FindOptions, QuestionOptions)
COMPARED = ("open-book", "closed-book", "retrieval")


@dataclass(kw_only=True)
class RunExamOptions(CorpusOptions, RetrieveOptions, PredictOptions, ReportOptions):
    """Everything from corpus to report; with no options, the packaged test exam against the demo corpus."""

    compare: bool = False
    """Answer with every reader (open-book, closed-book, retrieval) and print them as one table."""
    check: bool = False
    """Only show how the exam is understood: its first questions, letters of right options, repeats, chance."""


def run_exam(options: RunExamOptions) -> list[Summary]:
    """Answer an exam from a corpus; all input is checked before any work starts.

    Raises:
        InputError: bad input of any step.
    """
    if options.check:
        return [check_exam(options)]
    open_exam(options)
    compared = COMPARED[: 2 if options.context == "given" else 3] if options.compare else ()
    readers = [options.reader, *(name for name in compared if name != options.reader)]
    if readers != ["retrieval"]:
        check_reader(options)
    summaries = []
    if readers != ["closed-book"]:
        summaries += _find(options, [options])
    summaries += [
        predict(replace(options, reader=reader, name=options.name if reader == options.reader else None))
        for reader in readers
    ]
    return [*summaries, report(options)]


def _find(options: CorpusOptions, retrievals: list[RetrieveOptions]) -> list[Summary]:
    """Find the contexts of some exams, with passages and index made first unless nothing is looked up."""
    if retrievals[0].context == "given":
        return list(map(retrieve, retrievals))
    check_corpus(options)
    check_finding(options)
    check_accelerator(options)
    return [build_passages(options), build_index(options), *map(retrieve, retrievals)]


@dataclass(kw_only=True)
class RunFinetuneOptions(CorpusOptions, FindOptions, FinetuneOptions):
    """Everything from corpus to adapter; with no options, SmolLM2 on the packaged exam and the demo corpus."""


def run_finetune(options: RunFinetuneOptions) -> list[Summary]:
    """Find the contexts of training and validation questions, where they are not there yet, and train on them.

    Raises:
        InputError: bad input of any step.
    """
    for name in ("train", "validation"):
        check_answers(options.read(getattr(options, name)).table, getattr(options, name))
    check_model(options)
    shared = {field.name: getattr(options, field.name) for kind in SHARED for field in fields(kind)}
    retrievals = [
        RetrieveOptions(
            **shared | {"output": storage.join(options.output, name), "exam": getattr(options, name)},
            contexts=getattr(options, f"{name}_contexts"),
        )
        for name in ("train", "validation")
    ]
    return [*_find(options, retrievals), finetune(options)]
