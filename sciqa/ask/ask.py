"""The `ask` step: rank the options of one question, or answer it in words, in one process without Ray."""

import time

from sciqa.ask.answerer import (
    Answerer,
    answerer_name,
    check_answerer,
    check_answerer_model,
    passages_answerer_read,
)
from sciqa.ask.options import AskOptions
from sciqa.core.console import console
from sciqa.core.device import device_cpus, this_device
from sciqa.core.errors import InputError
from sciqa.core.progress import progress_lines
from sciqa.core.summary import Summary
from sciqa.retrieval.index import index_identity, is_same_index


def ask(options: AskOptions) -> Summary:
    """Find passages for a question, then rank its options or write an answer to standard output.

    The summary's details hold `passages`, the passages found, best first; `read`, the numbers (from 1) of those that
    the model read, without those that were cut off; and either `ranking`, pairs of option and probability, likeliest
    first, or `cited`, the numbers of the passages that the written answer cites.

    Raises:
        InputError: the index is missing or made with another embedder, or the reader is missing or cannot write text.
    """
    started = time.monotonic()
    if options.shots and not options.options:
        raise InputError("--shots: examples of ranking; give --options too, or leave it out for an answer in words")
    if unread := options.without_effect():
        kind = "options that are ranked" if options.options else "an answer in words"
        console.print(f"ask: {', '.join(unread)}: without effect on {kind}", markup=False, soft_wrap=True)
    manifest = check_answerer(options, options.as_row())
    if not options.options:
        check_answerer_model(options.model)
    with progress_lines("ask", f"searching {manifest['rows']:,} passages, loading {options.model}"):
        device, threads = this_device(options.accelerator), device_cpus()
        answerer = Answerer(options, manifest, device, threads)
        found = answerer.find(options)
        if not is_same_index(options.index, index_identity(manifest)):
            raise InputError(f"{options.index}: built anew while it was searched; ask again")
        for note in answerer.notes:
            console.print(f"ask: {note}", markup=False)
        ranked = answerer.rank(options, found) if options.options else None
    details: dict = {"passages": found["passages"]}
    if ranked:
        cut, kept, details["ranking"] = ranked.cut, ranked.kept, ranked.ranking
        made = f"{len(ranked.ranking)} options ranked by {answerer_name(options)}" + "; some are tied" * ranked.tied
    else:
        prompt = answerer.encode(options, found)
        written = answerer.write(options, found, prompt)
        cut, kept, details["cited"] = prompt.cut, prompt.kept, written.cited
        made = f"{written.tokens} tokens written by {answerer_name(options)}"
        made += ", cut at --max-new-tokens" * (written.finish_reason == "length")
    details["read"] = passages_answerer_read(found, kept)
    made += "; context cut to the model's limit" * cut
    return Summary("ask", options.index, made, time.monotonic() - started, details)
