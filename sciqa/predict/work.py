"""The remaining work of the `predict` step: shards to answer, the reader that answers them, what it answers from."""

import json
from dataclasses import dataclass, replace

from sciqa.core import cluster, hashes, storage, tables
from sciqa.core.adapter_files import adapter_hash
from sciqa.core.errors import InputError
from sciqa.core.local_stage import run_local_or_task
from sciqa.core.model_files import find_model
from sciqa.exam.finished_answers import finished_answers_path
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable
from sciqa.predict.blend import fit_blend
from sciqa.predict.options import PredictOptions
from sciqa.predict.scored_answers import open_scored_answers, scored_answer_inputs
from sciqa.predict.uncertainty import uncertainty_of_share
from sciqa.retrieval.contexts import open_contexts

#: Inputs of answers by which those of one reader to two exams differ: exam and contexts, answers that they are made
#: from, and the address of a server.
ELSEWHERE = ("exam", "contexts", "answers", "fit", "cascade", "server")


@dataclass(frozen=True)
class ReaderWork:
    """Configuration of the workers of a reader.

    Attributes:
        parts: numbers of the shards to answer; for a streamed model, a list of shard numbers per pass.
        workers: number of workers.
        kind: key of the reader in `sciqa.predict.readers.READERS`.
        arguments: constructor arguments of the reader.
        by: name of the model or reader that scores the options, for messages.
        sources: tables that the reader takes besides the exam.
        weights: bytes of the weights that each worker loads.
        about: note for the final summary.
        seconds_before: seconds that earlier answers took, where a blend or cascade builds on them.
    """

    parts: list
    workers: int
    kind: str
    arguments: dict
    by: str
    sources: tuple[QuestionTable, ...] = ()
    weights: int = 0
    about: str = ""
    seconds_before: float = 0.0


def blend_work(options: PredictOptions, exam: Exam, parts: list[int]) -> ReaderWork:
    """Return the work of pooling the answers of other readers, in some shards, with fitted or equal weights."""
    folders = {name: finished_answers_path(options.output, name) for name in options.blend}
    weights, said = {name: 1 / len(folders) for name in folders}, ""
    if options.blend_fit:
        fitted = {name: finished_answers_path(options.blend_fit, name) for name in folders}
        weights, metrics = run_local_or_task(fit_blend, fitted)
        said = f"; {metrics}"
        if open_scored_answers(fitted[options.blend[0]])[1]["exam"] == exam.sha256:
            said += "; fitted on this exam itself, whose metrics are therefore too good"
    about = " (" + ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()) + f"{said})"
    seconds = sum(tables.read_table_manifest(folder, "predict")["seconds"] for folder in folders.values())
    workers = cluster.num_cluster_workers(options, len(parts))
    arguments = {"weights": dict(zip(folders.values(), weights.values(), strict=True))}
    sources = tuple(open_scored_answers(folder, exam)[0] for folder in folders.values())
    return ReaderWork(parts, workers, "blend", arguments, "the blend", sources, 0, about, seconds)


def cascade_work(options: PredictOptions, exam: Exam, work: ReaderWork) -> ReaderWork:
    """Return the work unchanged, or with `--cascade` wrapped so that it reads only the uncertain questions."""
    if not options.cascade:
        return work
    before = finished_answers_path(options.output, options.cascade)
    least, asked = run_local_or_task(uncertainty_of_share, before, options.cascade_share, options.cascade_by)
    return replace(
        work,
        kind="cascade",
        arguments={
            "table": before,
            "measure": options.cascade_by,
            "least": least,
            "reader": work.kind,
            "arguments": work.arguments,
        },
        sources=(*work.sources, open_scored_answers(before, exam)[0]),
        about=f" ({asked:,} of them read, the others as {options.cascade} answered)",
        seconds_before=tables.read_table_manifest(before, "predict")["seconds"],
    )


def work_sources(options: PredictOptions, exam: Exam, found: bool = True) -> dict:
    """Return the identities of the tables that the answers are made from; contexts only if they are `found`."""
    if options.blend:
        fit = options.blend_fit and scored_answer_inputs(options.blend_fit, options.blend)
        return {"answers": scored_answer_inputs(options.output, options.blend, exam), "fit": fit}
    sources = {}
    if options.cascade:
        sources["cascade"] = scored_answer_inputs(options.output, (options.cascade,), exam)
    if options.has_context and found:
        sources["contexts"] = open_contexts(options.contexts, exam, options.context)[1]
    return sources


def check_work_fit(options: PredictOptions) -> None:
    """Raise `InputError` if the answers that a blend is fitted to are not by the readers that it pools."""
    for name in options.blend if options.blend_fit else ():
        folders = [finished_answers_path(output or "", name) for output in (options.blend_fit, options.output)]
        there, here = (open_scored_answers(folder)[1] for folder in folders)
        differing = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
        if found := [key for key in differing if key not in ELSEWHERE]:
            values = f"{found[0]} {there.get(found[0])!r:.40} there, {here.get(found[0])!r:.40} here"
            raise InputError(
                f"{folders[0]}: answers of another reader than those in {folders[1]}: {values}; for --blend-fit run "
                "`sciqa predict` there with the options of the reader here"
            )


def work_files(options: PredictOptions) -> dict:
    """Return the identities of the files that the reader is loaded from; none of a blend, a baseline or a server."""
    if options.reader == "retrieval" and not options.blend:
        return {"embedder": find_model(options.embedder).revision}
    if not options.reads_model or options.in_api:
        return {}
    found: dict = {"model": find_model(options.model).revision}
    found["adapter"] = adapter_hash(options.adapter) if options.adapter else None
    if template := options.style().get("template"):
        found["template"] = hashes.fingerprint(template)
    return found | options.shots_identity()


def check_work_files(options: PredictOptions, inputs: dict) -> None:
    """Raise `InputError` if files that the workers are told of, or given, are others now than among the inputs."""
    begun, now = json.loads(json.dumps(inputs)), json.loads(json.dumps(work_files(options)))
    if changed := [name for name, value in now.items() if begun.get(name) != value]:
        raise InputError(f"{options.folder}: {', '.join(changed)} changed since the command was given; run it again")


def replaced_work_source(options: PredictOptions, exam: Exam, inputs: dict) -> str | None:
    """Return in words which table among the recorded inputs is another one now; None if all are as they were.

    Raises:
        InputError: one of them is gone, or cannot be reached.
    """
    now = work_sources(options, exam)
    changed = [name for name in ("answers", "fit", "cascade", "contexts") if now.get(name) != inputs.get(name)]
    if not changed:
        return None
    if changed[0] == "contexts":
        return f"{options.contexts}: replaced by other contexts"
    output = options.blend_fit if changed[0] == "fit" else options.output
    return f"{storage.join_paths(output or '', 'answers')}: {', '.join(inputs[changed[0]])} replaced by other answers"
