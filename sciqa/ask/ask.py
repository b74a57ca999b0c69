"""The `ask` step: rank the options of one question, or answer it in words, in one process without Ray."""

import os
import time

from sciqa.ask.options import AskOptions
from sciqa.core.console import console
from sciqa.core.device import this_device
from sciqa.core.errors import InputError
from sciqa.core.model_files import model_family
from sciqa.core.options import Summary
from sciqa.core.progress import progress_lines
from sciqa.exam.questions import options_of
from sciqa.predict.answers import answer_row, has_ties
from sciqa.predict.predict import check_reader
from sciqa.retrieval.contexts import FindContexts, check_finding
from sciqa.retrieval.index import read_index_manifest
from sciqa.retrieval.search import LocalIndex


def ask(options: AskOptions) -> Summary:
    """Find passages for a question, then rank its options or write an answer to standard output.

    The summary's details hold `passages`, the passages found, best first; `read`, the numbers (from 1) of those that
    the model read; and either `ranking`, pairs of option and probability, likeliest first, or `cited`, the numbers of
    the passages that the written answer cites.

    Raises:
        InputError: the index is missing or made with another embedder, or the reader is missing or cannot write text.
    """
    started = time.monotonic()
    manifest = read_index_manifest(options.index)
    check_finding(options)
    check_reader(options, options.as_row())
    if options.shots and not options.options:
        raise InputError("--shots: examples of ranking; give --options too, or leave it out for an answer in words")
    if not options.options and model_family(options.model) == "multiple-choice":
        raise InputError(
            f"--model {options.model}: an encoder, which writes no words; "
            "give --options to rank, or another --model (causal, or encoder-decoder such as T5)"
        )
    question, threads = options.as_row(), len(os.sched_getaffinity(0))
    with progress_lines("ask", f"searching {manifest['rows']:,} passages, loading {options.model}"):
        from sciqa.predict.readers import ModelReader

        device = this_device(options.accelerator)
        index = LocalIndex(options.index, manifest, options.search_parameters, options.candidates)
        form = options.context_form(ranks=bool(options.options))
        finder = FindContexts(None, options, index, options.embed_on(device, threads), form)
        (found,) = finder.find([question])
        for note in finder.embedder.notes:
            console.print(f"ask: {note}", markup=False)
        reader = ModelReader(**options.reader_arguments(device, threads))
        for note in reader.notes:
            console.print(f"ask: {note}", markup=False)
        if options.options:
            (scored,) = reader.score([question], [(found,)])
    read = {passage["passage_id"] for passage in found["read"]}
    numbers = [number for number, passage in enumerate(found["passages"], 1) if passage["passage_id"] in read]
    details = {"passages": found["passages"], "read": numbers}
    if options.options:
        row = answer_row(question, scored, options.model)
        probabilities = dict(zip(options_of(question), row["probabilities"], strict=True))
        details["ranking"] = [(question[letter], probabilities[letter]) for letter in row["ranking"]]
        made = f"{len(row['ranking'])} options ranked by {options.model}" + "; some are tied" * has_ties(row)
    else:
        from sciqa.ask.generate import write_answer

        details["cited"], tokens = write_answer(options, question, found, reader.scorer, finder)
        made = f"{tokens} tokens written by {options.model}"
        made += ", cut at --max-new-tokens" * (tokens == options.max_new_tokens)
    return Summary("ask", options.index, made, time.monotonic() - started, details)
