"""Whole lines of steps: an exam from corpus to report, an adapter from corpus to training; done steps are kept."""

from dataclasses import dataclass, fields, replace

from sciqa import storage
from sciqa.cluster import Summary, check_accelerator
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.corpus.passages import check_corpus
from sciqa.exam import ReportOptions, open_exam, read_exam, report
from sciqa.inference import PredictOptions, predict
from sciqa.inference.predict import check_reader
from sciqa.retrieval import FindOptions, RetrieveOptions, build_index, retrieve
from sciqa.retrieval.index import check_index
from sciqa.training import FinetuneOptions, finetune
from sciqa.training.examples import check_answers
from sciqa.training.finetune import check_model

COMPARED = ("open-book", "closed-book", "retrieval")


@dataclass(kw_only=True)
class RunExamOptions(CorpusOptions, RetrieveOptions, PredictOptions, ReportOptions):
    """Everything from corpus to report; with no options, the packaged test exam against the demo corpus."""

    compare: bool = False
    """Answer with every reader (open-book, closed-book, retrieval) and print them as one table."""


def run_exam(options: RunExamOptions) -> list[Summary]:
    """Answer an exam from a corpus; all input is checked before any work starts.

    Raises:
        InputError: bad input of any step.
    """
    open_exam(options)
    readers = [options.reader, *(name for name in COMPARED if options.compare and name != options.reader)]
    if readers != ["retrieval"]:
        check_reader(options)
    summaries = []
    if readers != ["closed-book"]:
        check_corpus(options)
        check_index(options)
        check_accelerator(options)
        summaries += [build_passages(options), build_index(options), retrieve(options)]
    summaries += [
        predict(replace(options, reader=reader, name=options.name if reader == options.reader else None))
        for reader in readers
    ]
    return [*summaries, report(options)]


@dataclass(kw_only=True)
class RunFinetuneOptions(CorpusOptions, FindOptions, FinetuneOptions):
    """Everything from corpus to adapter; with no options, SmolLM2 on the packaged exam and the demo corpus."""


def run_finetune(options: RunFinetuneOptions) -> list[Summary]:
    """Find the contexts of training and validation questions, where they are not there yet, and train on them.

    Raises:
        InputError: bad input of any step.
    """
    for name in ("train", "validation"):
        check_answers(read_exam(getattr(options, name)), getattr(options, name))
    check_model(options)
    check_corpus(options)
    check_index(options)
    check_accelerator(options)
    shared = {field.name: getattr(options, field.name) for field in fields(FindOptions)}
    retrievals = [
        RetrieveOptions(
            **shared | {"output": storage.join(options.output, name), "exam": getattr(options, name)},
            contexts=getattr(options, f"{name}_contexts"),
        )
        for name in ("train", "validation")
    ]
    summaries = [build_passages(options), build_index(options)]
    return [*summaries, *map(retrieve, retrievals), finetune(options)]
