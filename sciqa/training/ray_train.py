"""Run a training loop on Ray Train's workers: their number, their progress, and the folder of the result."""

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import ray
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.util.queue import Queue

from sciqa.core import cluster, progress, storage, tables
from sciqa.core.console import console
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import model_file_bytes
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.retrieval.options import FindOptions, IndexOptions
from sciqa.training.optimizer import check_optimizer
from sciqa.training.options import MODEL_FIGURES, SPLITS, FinetuneOptions

#: Folder of Ray Train's checkpoints within that of the result.
CHECKPOINTS = "checkpoints"
#: Options that affect where and how a run executes, but not its result.
ELSEWHERE = (
    *("output", "address", "num_cpus", "accelerator", "name", "max_failures", "mlflow", "overwrite"),
    # The content of these is compared instead of the name.
    *("model", "template", "train", "validation", "train_contexts", "validation_contexts"),
    *("columns", "answers_from", "context"),
)
#: Inputs that runs stored in another form, or not at all, before inputs had a `format`.
FORMERLY = ("format", *(f"{split} {what}" for split in SPLITS for what in ("questions", "contexts")))
FORMERLY += ("others of the model",)


def num_ray_train_workers(options: FinetuneOptions) -> int:
    """Return the largest number of workers; by default one per GPU, or per node without GPUs. It divides the batch."""
    if options.worker_range:
        return options.worker_range[-1]
    workers = cluster.num_cluster_workers(options, options.batch_size, whole_nodes=True)
    check_ray_train_batch(options, workers)
    return workers


def check_ray_train_batch(options: FinetuneOptions, workers: int) -> None:
    """Raise `InputError` unless that many workers can share a batch evenly."""
    if options.batch_size % (options.micro_batch * workers):
        raise InputError(
            f"--batch-size: {options.batch_size} given, a multiple of --micro-batch ({options.micro_batch}) "
            f"times the number of workers ({workers}; --num-workers) expected"
        )


def check_ray_train_folder(options: FinetuneOptions, inputs: dict, early: bool = False) -> bool:
    """Whether the folder holds a run begun with the same inputs; two runs must not mix.

    Args:
        options: options with the folder, and whether to empty it if it was begun with others.
        inputs: inputs of this run.
        early: `inputs` holds only those known before any work; print and delete nothing yet.

    Raises:
        InputError: it was begun with other options.
    """
    folder = options.folder
    path = tables.table_records_path(folder, tables.INPUTS)
    if not storage.path_exists(path):
        return False
    begun = storage.read_json(path)["inputs"]
    passed = set(ELSEWHERE)
    if options.resizable:
        passed.add("num_workers")
    if early:
        passed |= begun.keys() - inputs.keys()
    elif "format" not in begun:
        passed |= set(FORMERLY)
        said = "begun by an earlier version of sciqa; whether on the same questions and contexts cannot be told"
        console.print(f"{folder}: {said}", markup=False, soft_wrap=True)
    begun, inputs = ({name: v for name, v in each.items() if name not in passed} for each in (begun, inputs))
    defaults = defaults_of(FinetuneOptions, IndexOptions, FindOptions)
    if changed := tables.differing_table_inputs(begun, inputs, defaults):
        if options.overwrite or not storage.list_names(folder):  # it has written nothing yet
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


def check_ray_train_inputs(begun: dict, now: dict) -> None:
    """Raise `InputError` if inputs that were read again, for the workers, are others than those on record."""
    begun = json.loads(json.dumps({name: begun[name] for name in now}))
    if changed := sorted(tables.differing_table_inputs(begun, now, {})):
        raise InputError(f"{', '.join(changed)}: changed while the command waited for its workers; run it again")


def run_ray_train_workers(
    options: FinetuneOptions, config: dict, steps: int, workers: int, callbacks: Sequence[UserCallback]
) -> Result:
    """Run the loop of the objective on Ray Train's workers to its end, and tell the callbacks of every checkpoint.

    `config` has the arguments of the loop, besides `options`, `threads`, `device` and `progress`.

    Raises:
        InputError: a worker found bad input. The folder of the result is emptied if training diverged or had not begun.
    """
    device = cluster.cluster_device(options)
    environment: dict[str, str] = {"DS_ACCELERATOR": device, "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    if device == "cpu":  # if a worker saw a GPU, Ray Train would select it and take some of its memory
        environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ACCELERATE_TORCH_DEVICE": "cpu"}
    os.environ["DS_ACCELERATOR"] = "cpu"  # this process imports the training loop but does not run it
    from ray.train.torch import TorchConfig, TorchTrainer

    if options.objective == "rank":
        from sciqa.training.loop import train_loop as loop
    else:
        from sciqa.training.trl_loop import train_trl_loop as loop
    rows, asked = cluster.cluster_queue(), options.worker_range or range(workers, workers + 1)
    threads = cluster.cluster_threads_per_worker(workers)
    trainer = TorchTrainer(
        loop,
        train_loop_config=config | {"options": options, "threads": threads, "device": device, "progress": rows},
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(
            # Ray Train starts anew from the last checkpoint with as many workers as there is room for.
            num_workers=(asked[0], workers) if options.is_elastic else workers,
            use_gpu=device == "cuda",
            resources_per_worker=cluster.cluster_worker_needs(options, workers, model_file_bytes(options.model)),
            accelerator_type=cluster.named_cluster_accelerator(options),
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=options.folder,
            failure_config=FailureConfig(
                max_failures=options.max_failures, max_preemption_failures=options.max_failures
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="quality"),
            worker_runtime_env={"env_vars": environment},
            callbacks=list(callbacks),
        ),
    )
    with _progress_of_workers(rows, steps):
        result = trainer.fit()
    if message := result.return_value.get("input_error"):
        if result.checkpoint and not result.return_value["diverged"]:
            raise InputError(f"{message}; the checkpoints are kept, and once this is mended the run goes on from them")
        tables.delete_table(options.folder)  # a retry would fail in the same way, and no other run can use it
        raise InputError(message)
    return result


def ray_train_once(
    options: FinetuneOptions, inputs: dict, fit: Callable[[int], dict], made: Callable[[dict], str], started: float
) -> Summary:
    """Train unless the result is there, and return the step's summary.

    Args:
        options: options of the step.
        inputs: all inputs on which the result depends, besides the number of workers.
        fit: trains on so many workers, writes the result, and returns the figures of its manifest.
        made: returns in words what a manifest tells.
        started: when the step began, by `time.monotonic`.

    Raises:
        InputError: the optimizer or the batch does not go with the cluster, or the folder was begun with other options.
    """
    folder = options.folder
    cluster.connect_cluster(options)
    check_optimizer(options)
    workers = num_ray_train_workers(options)
    inputs = inputs | {"num_workers": workers}
    with lock(folder):
        begun = check_ray_train_folder(options, inputs)
        held = storage.list_names(folder)
        if tables.is_finished_table(folder) and any(name.endswith(".safetensors") for name in held):
            manifest = tables.read_table_manifest(folder, "finetune")
            said = made(manifest) + ", kept"
            if manifest.get("stopped"):
                said += "; a sweep stopped it there, pass another --name to train to the end"
            return Summary("finetune", folder, said, time.monotonic() - started, manifest)
        storage.check_storage_writable(folder)
        if not begun:
            tables.begin_table(folder, inputs)
        # Of a result whose files were deleted it would say that the checkpoints of this run are one.
        storage.delete_path(tables.table_records_path(folder, tables.MANIFEST))
        manifest = fit(workers) | {"inputs": inputs, "seconds": time.monotonic() - started}
        finish_ray_train(folder, manifest)
    return Summary("finetune", folder, made(manifest), time.monotonic() - started, manifest)


def finish_ray_train(folder: str, manifest: dict) -> None:
    """Mark a result as complete, and delete its checkpoints."""
    tables.finish_table(folder, manifest)
    storage.delete_path(storage.join_paths(folder, CHECKPOINTS))


def reported_ray_train_figures(result: Result) -> dict:
    """Return `MODEL_FIGURES` as last reported."""
    return {name: result.metrics.get(name) for name in MODEL_FIGURES}


def best_ray_train_checkpoint(result: Result, folder: str) -> tuple[str, str, dict]:
    """Return the paths of the best and of the last checkpoint of a run, and the metrics of the best one."""
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["quality"])
    paths = [
        storage.join_paths(folder, CHECKPOINTS, each.path.rsplit("/", 1)[-1]) for each in (best, result.checkpoint)
    ]
    return paths[0], paths[1], metrics


@contextlib.contextmanager
def _progress_of_workers(rows: Queue, steps: int) -> Iterator[None]:
    """Print progress meanwhile, from the history rows that workers put into a queue."""
    done = threading.Event()
    thread = threading.Thread(target=_say_rows, args=(rows, steps, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)
        rows.shutdown()


def _say_rows(rows: Queue, steps: int, done: threading.Event) -> None:
    said = time.monotonic()
    with progress.progress_lines("finetune", f"{steps} steps to do, starting workers") as say:
        while True:
            try:
                row = rows.get(timeout=1)
            except queue.Empty:
                if done.is_set():
                    return
                continue
            except ray.exceptions.RayError:
                return
            now = time.monotonic()
            if "note" in row:
                say(row["note"])
            elif now - said > progress.BETWEEN_LINES:
                said = now
                say(_said(row, steps))


def _said(row: dict, steps: int) -> str:
    if "map_at_3" in row:
        figures = f"validation MAP@3 {row['map_at_3']:.3f}, loss {row['validation_loss']:.3f}"
    elif "validation_loss" in row:
        figures = f"validation loss {row['validation_loss']:.3f}"
    else:
        figures = f"loss {row['loss']:.3f}"
        figures += f", {row['tokens'] / row['seconds']:.0f} tokens/s" if "tokens" in row else ""
    return f"step {row['step']} of {steps}, {figures}"
