"""The `finetune` step: checks the input, runs Ray Train, and keeps the best model."""

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import cast

import pyarrow as pa
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.queue import Queue

from sciqa.core import cluster, progress, storage, tables
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.extras import require
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, model_family, weight_bytes
from sciqa.core.options import Summary
from sciqa.exam.questions import Exam, open_questions
from sciqa.models.prompt_format import Format
from sciqa.models.prompt_template import check_template
from sciqa.retrieval.contexts import open_contexts
from sciqa.retrieval.options import FindOptions, IndexOptions
from sciqa.training.examples import check_questions
from sciqa.training.options import FinetuneOptions

SPLITS = ("train", "validation")
#: Options that affect where and how a run executes, but not its result.
ELSEWHERE = (
    *("output", "address", "num_cpus", "accelerator", "name", "max_failures", "mlflow", "overwrite"),
    # The content of these is compared instead of the name.
    *("model", "template", "train", "validation", "train_contexts", "validation_contexts"),
    *("columns", "answers_from", "context"),
)
#: Version of the training computation; raise it when that changes. Before it existed, runs stored the questions and
#: contexts named in `FORMERLY` in another form, and its last input not at all.
TRAINED_FORMAT = 2
FORMERLY = ("format", *(f"{split} {what}" for split in SPLITS for what in ("questions", "contexts")))
FORMERLY += ("others of the model",)
METRICS = pa.schema(
    [
        ("step", pa.int64()),
        *((name, pa.float64()) for name in ("loss", "learning_rate")),
        *((name, pa.int64()) for name in ("tokens", "padded_tokens")),
        *((name, pa.float64()) for name in ("validation_loss", "map_at_3", "accuracy", "seconds")),
    ]
)


def finetune(options: FinetuneOptions) -> Summary:
    """Train an adapter or a whole model, and keep the best step by validation MAP@3 in `OUTPUT/trained/NAME/`.

    The folder holds the adapter (in peft's format) or model (in that of transformers), `sciqa.json`, `metrics.parquet`
    and TensorBoard files. With the same options, an unfinished run resumes from its last checkpoint.

    Raises:
        InputError: a bad exam, contexts of another exam, a base model that these options cannot train, or a folder of
            that name begun with other options.
    """
    started = time.monotonic()
    check_finetune_options(options)
    exams = {split: open_finetune_split(options, split, write=False) for split in SPLITS}
    for split, exam in exams.items():
        open_contexts(getattr(options, f"{split}_contexts"), exam, options.context)
    steps = options.steps or max(1, round(options.epochs * exams["train"].questions / options.batch_size))
    cluster.connect(options)
    if options.optimizer == "paged-adamw" and cluster.device(options) == "cpu":
        raise InputError("--optimizer paged-adamw: pages between GPU and host, and no GPU is used; pass adamw or auto")
    workers = _workers(options)
    folder = options.folder
    inputs = _inputs(options, exams, workers)
    begun = _check_folder(options, inputs)
    if tables.is_finished_table(folder):
        manifest = tables.read_manifest(folder, "finetune")
        return Summary("finetune", folder, _made(manifest) + ", kept", time.monotonic() - started, manifest)
    with lock(folder):
        storage.check_writable(folder)
        for split in SPLITS:
            open_finetune_split(options, split)
        if not begun:
            tables.begin_table(folder, inputs)
        manifest = _fit(options, exams, steps, workers) | {"inputs": inputs, "seconds": time.monotonic() - started}
        tables.finish_table(folder, manifest)
        storage.delete(storage.join(folder, "checkpoints"))
    return Summary("finetune", folder, _made(manifest), time.monotonic() - started, manifest)


def check_finetune_options(options: FinetuneOptions) -> None:
    """Check everything that needs neither contexts nor a cluster, before any work.

    Raises:
        InputError: questions without an answer or in both exams, a model that these options cannot train, batches that
            workers cannot share evenly, or a folder of that name begun with other options.
    """
    require("train", "sciqa finetune")
    if options.mlflow:
        require("mlflow", "--mlflow")
    read = [(options.read(name).table, name) for name in (options.train, options.validation)]
    check_questions(*read)
    check_finetune_model(options)
    if template := options.template_style():
        if model_family(options.model) == "multiple-choice":
            raise InputError(f"--template: {options.model} is an encoder, which reads no prompt; leave it out")
        check_template(Format(**{"completion": options.completion} | template), read[0][0].slice(0, 1).to_pylist()[0])
    if options.num_workers != "auto":
        _check_batch(options, options.num_workers)
    _check_folder(options, {name: value for name, value in vars(options).items() if name != "num_workers"}, early=True)


def check_finetune_model(options: FinetuneOptions) -> None:
    """Raise `InputError` if the model is incomplete or peft would refuse it, without reading its weights."""
    import torch

    from sciqa.models import adapter, load

    family = model_family(options.model)
    model = load.load_on_meta_device(options.model, family, torch.float32)
    adapter.make_trainable(model, family, options.method, options.peft_fields())


def open_finetune_split(options: FinetuneOptions, split: str, write: bool = True) -> Exam:
    """Return the exam of a split, and write its table if `write`; see `sciqa.exam.questions.open_questions`."""
    path = storage.join(options.output, split, "exam.parquet")
    return open_questions(options, getattr(options, split), path, write=write)


def _workers(options: FinetuneOptions) -> int:
    """Return the number of workers: one per GPU, or per node without GPUs; it must divide the batch."""
    workers = options.num_workers
    if workers == "auto":
        workers = cluster.num_workers(options, options.batch_size, whole_nodes=True)
    _check_batch(options, workers)
    return workers


def _check_batch(options: FinetuneOptions, workers: int) -> None:
    if options.batch_size % (options.micro_batch * workers):
        raise InputError(
            f"--batch-size: {options.batch_size} given, a multiple of --micro-batch ({options.micro_batch}) "
            f"times the number of workers ({workers}; --num-workers) expected"
        )


def _inputs(options: FinetuneOptions, exams: dict[str, Exam], workers: int) -> dict:
    """Return all inputs on which the result depends."""
    inputs = {name: value for name, value in vars(options).items() if name not in ELSEWHERE}
    for split, exam in exams.items():
        inputs[f"{split} questions"] = exam.sha256
        inputs[f"{split} contexts"] = open_contexts(getattr(options, f"{split}_contexts"), exam)[1]
    files = find_model(options.model)
    inputs |= {"weights of the model": files.weights_hash, "others of the model": files.others}
    inputs |= {"text of the template": options.template_style().get("template")}
    return inputs | {"format": TRAINED_FORMAT, "num_workers": workers}


def _check_folder(options: FinetuneOptions, inputs: dict, early: bool = False) -> bool:
    """Whether the folder holds a run begun with the same inputs; two runs must not mix.

    Args:
        options: options with the folder, and whether to empty it if it was begun with others.
        inputs: inputs of this run.
        early: `inputs` holds only those known before any work; print and delete nothing yet.

    Raises:
        InputError: it was begun with other options.
    """
    folder = options.folder
    path = tables.records_path(folder, tables.INPUTS)
    if not storage.exists(path):
        return False
    begun = storage.read_json(path)["inputs"]
    passed = set(ELSEWHERE)
    if early:
        passed |= begun.keys() - inputs.keys()
    elif "format" not in begun:
        passed |= set(FORMERLY)
        said = "begun by an earlier version of sciqa; whether on the same questions and contexts cannot be told"
        console.print(f"{folder}: {said}", markup=False, soft_wrap=True)
    begun, inputs = ({name: v for name, v in each.items() if name not in passed} for each in (begun, inputs))
    defaults = tables.defaults_of(FinetuneOptions, IndexOptions, FindOptions)
    if changed := tables.differing_inputs(begun, inputs, defaults):
        if options.overwrite:
            if not early:
                tables.delete_table(folder)
            return False
        name, (there, now) = next(iter(changed.items()))
        raise InputError(
            f"{folder}: begun with other options ({name}: {there} there, {now} now"
            f"{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}); "
            "pass another --name, or --overwrite to replace it"
        )
    return True


def _fit(options: FinetuneOptions, exams: dict[str, Exam], steps: int, workers: int) -> dict:
    """Run Ray Train to the end, keep the best model and the history, and return figures for the manifest."""
    device = cluster.device(options)
    environment: dict[str, str] = {"DS_ACCELERATOR": device}
    if device == "cpu":  # if a worker saw a GPU, Ray Train would select it and take some of its memory
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    os.environ["DS_ACCELERATOR"] = "cpu"  # this process imports the training loop but does not run it
    from ray.train.torch import TorchConfig, TorchTrainer

    from sciqa.training.loop import HISTORY, train

    progress = cluster.queue_on_driver_node()
    config = exams | {
        "options": options,
        "steps": steps,
        "threads": cluster.threads_per_worker(workers),
        "device": device,
        "progress": progress,
        "template": options.template_style(),
    }
    trainer = TorchTrainer(
        train,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=device == "cuda",
            resources_per_worker=cluster.worker_needs(options, workers, weight_bytes(options.model)),
            accelerator_type=cluster.named_accelerator(options),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=options.folder,
            failure_config=FailureConfig(
                max_failures=options.max_failures, max_preemption_failures=options.max_failures
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="quality"),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    with _Watcher(progress, steps):
        result = trainer.fit()
    if message := result.return_value.get("input_error"):
        tables.delete_table(options.folder)  # a retry would fail in the same way, and no other run can use it
        raise InputError(message)
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["quality"])
    kept = [
        storage.join(options.folder, "checkpoints", each.path.rsplit("/", 1)[-1]) for each in (best, result.checkpoint)
    ]
    storage.copy_files(storage.join(kept[0], "model"), options.folder)
    history = cast("list[dict]", storage.read_json(storage.join(kept[1], HISTORY)))
    table = pa.Table.from_pylist(history, schema=METRICS)
    storage.write_table(storage.join(options.folder, "metrics.parquet"), table)
    return result.return_value | _figures(history, metrics)


def _figures(history: list[dict], best: dict) -> dict:
    evaluations = [row for row in history if "map_at_3" in row]
    steps = [row for row in history if "loss" in row]
    padded = sum(row["padded_tokens"] for row in steps)
    return {
        "best_step": best["step"],
        "map_at_3": best["map_at_3"],
        "map_at_3_untrained": evaluations[0]["map_at_3"],
        "steps": evaluations[-1]["step"],
        "loss": steps[-1]["loss"] if steps else None,
        "padding": 1 - sum(row["tokens"] for row in steps) / padded if padded else 0.0,
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


class _Watcher:
    """Prints progress from the history rows that workers put into a queue."""

    def __init__(self, rows: Queue, steps: int) -> None:
        self.rows, self.steps = rows, steps
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(timeout=10)
        self.rows.shutdown()

    def _watch(self) -> None:
        with progress.progress_lines("finetune", f"{self.steps} steps to do, starting workers") as say:
            self._say_rows(say)

    def _say_rows(self, say: Callable[[str], None]) -> None:
        said = time.monotonic()
        while True:
            try:
                row = self.rows.get(timeout=1)
            except queue.Empty:
                if self.done.is_set():
                    return
                continue
            except ray.exceptions.RayError:
                return
            now = time.monotonic()
            if "note" in row:
                say(row["note"])
            elif now - said > progress.BETWEEN_LINES:
                said = now
                say(_said(row, self.steps))


def _said(row: dict, steps: int) -> str:
    if "map_at_3" in row:
        figures = f"validation MAP@3 {row['map_at_3']:.3f}, loss {row['validation_loss']:.3f}"
    else:
        figures = f"loss {row['loss']:.3f}, {row['tokens'] / row['seconds']:.0f} tokens/s"
    return f"step {row['step']} of {steps}, {figures}"
