"""The whole line: corpus, index, retrieve, predict and report, each kept where nothing changed."""

from dataclasses import dataclass, replace

from sciqa.cluster import Summary
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.corpus.articles import find_sources
from sciqa.exam import ReportOptions, open_exam, report
from sciqa.exam.report import READERS
from sciqa.hub import check_causal
from sciqa.inference import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, build_index, retrieve
from sciqa.retrieval.index import check_index


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
    readers = [options.reader, *(name for name in READERS if options.compare and name != options.reader)]
    if readers != ["retrieval"]:
        check_causal(options.model)
    summaries = []
    if readers != ["closed-book"]:
        find_sources(options.corpus)
        check_index(options)
        summaries += [build_passages(options), build_index(options), retrieve(options)]
    summaries += [predict(replace(options, reader=reader)) for reader in readers]
    return [*summaries, report(options)]
