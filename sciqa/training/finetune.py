"""The `finetune` step: checks the input, runs Ray Train, and keeps the best model."""

import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import pyarrow as pa
from ray.train import Result, UserCallback

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.model_files import find_model, model_file_family
from sciqa.core.summary import Summary
from sciqa.exam.open_exam import Exam, open_exam_table
from sciqa.models.prompt_format import PromptFormat, check_prompt_format
from sciqa.models.prompt_template import check_template
from sciqa.retrieval.contexts import open_contexts
from sciqa.retrieval.options import FindOptions
from sciqa.training.examples import check_training_examples
from sciqa.training.objectives import check_objective, finetune_objective, keep_best_objective, objective_inputs
from sciqa.training.options import HISTORY, SPLITS, TRAINED_FORMAT, FinetuneOptions
from sciqa.training.ray_train import (
    CHECKPOINTS,
    ELSEWHERE,
    best_ray_train_checkpoint,
    check_ray_train_batch,
    check_ray_train_folder,
    check_ray_train_inputs,
    finish_ray_train,
    num_ray_train_workers,
    ray_train_once,
    reported_ray_train_figures,
    run_ray_train_workers,
)

METRICS = pa.schema(
    [
        ("step", pa.int64()),
        *((name, pa.float64()) for name in ("loss", "learning_rate")),
        *((name, pa.int64()) for name in ("tokens", "padded_tokens", "workers")),
        *((name, pa.float64()) for name in ("validation_loss", "map_at_3", "map_at_3_low", "map_at_3_high")),
        *((name, pa.float64()) for name in ("accuracy", "seconds")),
    ]
)


def finetune(options: FinetuneOptions, callbacks: Sequence[UserCallback] = ()) -> Summary:
    """Train an adapter or a whole model, and keep the best step by validation MAP@3 in `OUTPUT/trained/NAME/`.

    The folder holds the adapter (in peft's format) or model (in that of transformers), `sciqa.json`, `metrics.parquet`
    and TensorBoard files. With the same options, an unfinished run resumes from its last checkpoint. The callbacks are
    told of every checkpoint by Ray Train.

    Raises:
        InputError: a bad exam, contexts of another exam, a base model that these options cannot train, or a folder of
            that name begun with other options.
    """
    if options.objective != "rank":
        return finetune_objective(options, callbacks)
    started = time.monotonic()
    check_before_finetune(options)
    exams = {split: open_finetune_split(options, split, write=False) for split in SPLITS}
    for split, exam in exams.items():
        open_contexts(getattr(options, f"{split}_contexts"), exam, options.context)
    steps = options.steps or max(1, round(options.epochs * exams["train"].questions / options.batch_size))
    inputs = _inputs(options, exams)
    fit = partial(_fit, options, exams, inputs, steps, callbacks)
    return ray_train_once(options, inputs, fit, _made, started)


def check_before_finetune(options: FinetuneOptions) -> None:
    """Check everything that needs neither contexts nor a cluster, before any work.

    Raises:
        InputError: questions without an answer or in both exams, a model that these options cannot train, batches that
            workers cannot share evenly, or a folder of that name begun with other options.
    """
    require_extra("train", "sciqa finetune")
    if options.mlflow:
        require_extra("mlflow", "--mlflow")
    if options.objective != "rank":
        check_objective(options)
        return
    read = [(options.read(name).table, name) for name in (options.train, options.validation)]
    check_training_examples(*read)
    from sciqa.training.model_check import check_finetune_model

    check_finetune_model(options)
    _check_uses(options, read[0][0])
    _check_passages(options)
    if template := options.template_style():
        if model_file_family(options.model) == "multiple-choice":
            raise InputError(f"--template: {options.model} is an encoder, which reads no prompt; leave it out")
        check_template(
            PromptFormat(**{"completion": options.completion} | template), read[0][0].slice(0, 1).to_pylist()[0]
        )
    for workers in options.worker_range or ():
        check_ray_train_batch(options, workers)
    check_ray_train_folder(
        options, {name: value for name, value in vars(options).items() if name != "num_workers"}, early=True
    )


def _check_uses(options: FinetuneOptions, train: pa.Table) -> None:
    """Raise `InputError` if an option asks for what the model or the training questions do not have."""
    if options.loss == "completion" and model_file_family(options.model) == "multiple-choice":
        raise InputError(
            f"--loss completion: {options.model} is an encoder, whose scores are no likelihoods; leave it out"
        )
    check_prompt_format(options.prompt, options.model, model_file_family(options.model))
    titled = "title" in train.column_names and train["title"].null_count < len(train)
    if options.hide_gold and not titled:
        raise InputError(
            f"--hide-gold: {options.train} has no column `title`, which names the gold passage; leave it out"
        )


def _check_passages(options: FinetuneOptions) -> None:
    """Raise `InputError` unless the contexts of training questions can be made of up to `--max-passages` passages.

    They are found by these options too, if the run finds contexts itself, or else as the table says that is there.
    """
    folder, most = options.train_contexts, options.max_passages
    if not most or not (isinstance(options, FindOptions) or tables.is_finished_table(folder)):
        return
    found = (
        vars(options) if isinstance(options, FindOptions) else tables.read_table_manifest(folder, "retrieve")["inputs"]
    )
    for name in ("context_sentences", "context_tokens"):
        if found.get(name):
            raise InputError(
                f"--max-passages: {most} given, and contexts of sentences (--{name.replace('_', '-')} {found[name]}), "
                "which whole passages would replace in training; leave out one of them"
            )
    if found.get("context") == "given":
        raise InputError(f"--max-passages: {most} given, and --context given, which finds no passages; leave it out")
    if most > (kept := found.get("top_k", most)):
        raise InputError(
            f"--max-passages: {most} given, at most --top-k ({kept}) expected, as only these are kept for a question; "
            "lower it, or find the contexts with a larger --top-k"
        )


def open_finetune_split(options: FinetuneOptions, split: str, write: bool = True) -> Exam:
    """Return the exam of a split, and write its table if `write`; see `sciqa.exam.open_exam.open_exam_table`."""
    path = storage.join_paths(options.output, split, "exam.parquet")
    return open_exam_table(options, getattr(options, split), path, write=write)


def finetune_inputs(options: FinetuneOptions) -> dict:
    """Return all inputs on which the result of a training depends, on the cluster that this process is connected to.

    Raises:
        InputError: as `finetune`, before training.
    """
    workers = num_ray_train_workers(options)
    if options.objective != "rank":
        inputs = objective_inputs(options, check_objective(options))
    else:
        inputs = _inputs(options, {split: open_finetune_split(options, split, write=False) for split in SPLITS})
    return inputs | {"num_workers": workers}


def _inputs(options: FinetuneOptions, exams: dict[str, Exam]) -> dict:
    """Return all inputs on which the result depends, besides the number of workers."""
    inputs = {name: value for name, value in vars(options).items() if name not in ELSEWHERE}
    inputs |= {f"{split} questions": exam.sha256 for split, exam in exams.items()}
    return inputs | _read_inputs(options, exams) | {"format": TRAINED_FORMAT}


def _read_inputs(options: FinetuneOptions, exams: dict[str, Exam]) -> dict:
    """Return those of the inputs that are read from files, which may change before workers read them."""
    files = find_model(options.model)
    inputs: dict = {"weights of the model": files.weights_hash, "others of the model": files.others}
    inputs |= {"text of the template": options.template_style().get("template")}
    for split, exam in exams.items():
        inputs[f"{split} contexts"] = open_contexts(getattr(options, f"{split}_contexts"), exam)[1]
    return inputs


def _fit(
    options: FinetuneOptions,
    exams: dict[str, Exam],
    inputs: dict,
    steps: int,
    callbacks: Sequence[UserCallback],
    workers: int,
) -> dict:
    """Run Ray Train to the end, keep the best model and the history, and return figures for the manifest."""
    for split in SPLITS:
        open_finetune_split(options, split)
    config: dict = exams | {"steps": steps, "template": options.template_style()}
    config["recorded"] = inputs | {"revision": find_model(options.model).revision}
    check_ray_train_inputs(inputs, _read_inputs(options, exams))
    return _keep_best(options, run_ray_train_workers(options, config, steps, workers, callbacks))


def keep_stopped_finetune(options: FinetuneOptions) -> None:
    """Keep the best step of a run that was stopped before its last one, as `finetune` does.

    It has reported a checkpoint, and none of its processes is left.
    """
    keep = _keep_best if options.objective == "rank" else keep_best_objective
    figures = keep(options, Result.from_path(storage.join_paths(options.folder, CHECKPOINTS)))
    inputs = storage.read_json(tables.table_records_path(options.folder, tables.INPUTS))["inputs"]
    finish_ray_train(options.folder, figures | {"inputs": inputs, "stopped": True})


def _keep_best(options: FinetuneOptions, result: Result) -> dict:
    """Write the best model and the history of a run, and return figures for the manifest."""
    best, last, metrics = best_ray_train_checkpoint(result, options.folder)
    storage.copy_files(storage.join_paths(best, "model"), options.folder)
    history = cast("list[dict]", storage.read_json(storage.join_paths(last, HISTORY)))
    table = pa.Table.from_pylist(history, schema=METRICS)
    tables.write_table(storage.join_paths(options.folder, "metrics.parquet"), table)
    return reported_ray_train_figures(result) | _figures(history, metrics)


def _figures(history: list[dict], best: dict) -> dict:
    evaluations = [row for row in history if "map_at_3" in row]
    steps = [row for row in history if "loss" in row]
    padded = sum(row["padded_tokens"] for row in steps)
    return {
        "best_step": best["step"],
        "map_at_3": best["map_at_3"],
        "map_at_3_low": best.get("map_at_3_low"),  # none in checkpoints of earlier versions
        "map_at_3_high": best.get("map_at_3_high"),
        "map_at_3_untrained": evaluations[0]["map_at_3"],
        "steps": evaluations[-1]["step"],
        "loss": steps[-1]["loss"] if steps else None,
        "padding": 1 - sum(row["tokens"] for row in steps) / padded if padded else 0.0,
        "working_seconds": sum(row["seconds"] for row in history),
        "tokens_per_second": sum(row["tokens"] for row in steps) / max(1e-9, sum(row["seconds"] for row in steps)),
    }


def _made(manifest: dict) -> str:
    held, whole = (manifest[name] / 1e6 for name in ("rank_bytes", "model_bytes"))
    return (
        f"step {manifest['best_step']} of {manifest['steps']}: validation MAP@3 {manifest['map_at_3']:.3f} "
        f"({manifest['map_at_3_untrained']:.3f} untrained); {manifest['tokens_per_second']:.0f} tokens/s, "
        f"{manifest['padding']:.1%} padding; {held:.0f} of {whole:.0f} MB of parameters "
        f"on each rank ({held / whole:.0%}), {manifest['optimizer']}"
    )
