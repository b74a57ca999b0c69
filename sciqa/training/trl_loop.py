"""The loop of every Ray Train worker for objectives besides `rank`: one of TRL's trainers, as it is.

TRL computes losses, batches and the order of examples; Ray Train starts the workers and keeps the checkpoints.
"""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import datasets
import pyarrow as pa
import ray.train
import torch
from ray.train.huggingface.transformers import RayTrainReportCallback
from ray.util.queue import Queue
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sciqa.core import tables
from sciqa.core.console import quiet_console
from sciqa.core.device import Device, check_device
from sciqa.core.errors import InputError
from sciqa.models import adapter
from sciqa.models.load import load_dtype
from sciqa.training.example_files import copy_to_example_file
from sciqa.training.loggers import MetricLoggers, logged_history_row, logged_measure
from sciqa.training.loss import DivergedError
from sciqa.training.options import MOST_SKIPPED, NO_SCALER, FinetuneOptions
from sciqa.training.sharding import sharded_model_figures, sharding_checked
from sciqa.training.trl_trainers import (
    find_trl_trainer_models,
    make_trl_trainer,
    packable_trl_trainer_examples,
    trl_trainer_arguments,
)

#: Part of a Ray Train checkpoint with what the trainer resumes from, by the name that Ray Train itself gives it.
CHECKPOINT = RayTrainReportCallback.CHECKPOINT_NAME

#: Figures that end the run if they are not finite, each with what to do; a cause stands before what follows from it.
MUST_BE_FINITE = {
    **dict.fromkeys(("validation_reward", "reward"), "look at what the models of --rewards give, or leave them out"),
    **dict.fromkeys(("loss", "grad_norm", "validation_loss"), "try a lower --learning-rate or --precision float32"),
}


def train_trl_loop(config: dict) -> dict:
    """Train on one worker and report checkpoints; Ray Train calls it on every worker.

    Args:
        config: `options`, the Parquet files of the `train` and `validation` examples, `threads` and `device` of this
            worker, `progress`, a queue that takes the rows of the history, and `recorded`: the model's `revision` and
            the hashes of `rewards`.

    Returns:
        Nothing, or `input_error` if the input is bad, and whether the run `diverged`.
    """
    try:
        return _train(**config)
    except InputError as error:  # every worker raises the same, and a retry would not help now
        return {"input_error": str(error), "diverged": isinstance(error, DivergedError)}


def _train(
    options: FinetuneOptions,
    train: str,
    validation: str,
    threads: int,
    device: Device,
    progress: Queue,
    recorded: dict,
) -> dict:
    quiet_console("DeepSpeed", "trl", "transformers", "peft", "accelerate")
    datasets.disable_progress_bars()
    torch.set_num_threads(threads)
    check_device(device)
    dtype = load_dtype(options.precision, device)
    if dtype == torch.float16 and options.zero:
        raise InputError(f"{NO_SCALER} (float16 is what this GPU computes in by itself)")
    sharding_checked(partial(find_trl_trainer_models, options, recorded))
    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        files = {"train": train, "test": validation}
        examples = sharding_checked(lambda: [_mapped(path, str(Path(folder, name))) for name, path in files.items()])
        writers = stack.enter_context(contextlib.closing(MetricLoggers(options, context.get_world_rank())))
        given = trl_trainer_arguments(options, folder, context.get_world_size(), dtype, device)
        taken = packable_trl_trainer_examples(options, examples)
        _check_left(options, examples, taken, least=1)
        trainer = make_trl_trainer(options, given | {"eval_on_start": checkpoint is None}, taken, dtype, device)
        made = [cast("datasets.Dataset", each) for each in (trainer.train_dataset, trainer.eval_dataset)]
        _check_left(options, examples, made, least=options.examples_per_step)
        measure = f"validation_{logged_measure(options)}"
        trainer.add_callback(TrlReport(writers, progress if context.get_world_rank() == 0 else None, measure))
        if options.patience:
            trainer.add_callback(EarlyStoppingCallback(options.patience))
        if context.get_world_rank() == 0:
            for note in _left_out(options, examples, taken if options.packing else made):
                progress.put({"step": 0, "note": note})
        steps = options.trl_steps(len(made[0]))  # packed, perhaps
        every = options.eval_every or max(1, steps // 10)
        trainer.args.max_steps, trainer.args.eval_steps, trainer.args.save_steps = steps, every, every
        trainer.args.warmup_steps = round(options.warmup * steps)
        state = Path(stack.enter_context(checkpoint.as_directory()), CHECKPOINT) if checkpoint else None
        if state:
            adapter.load_adapter_ranks(cast("nn.Module", trainer.model), state)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    return {}


def _check_left(
    options: FinetuneOptions, examples: list[datasets.Dataset], taken: list[datasets.Dataset], least: int
) -> None:
    """Raise `InputError` if TRL is left with fewer than the least number of training examples, or none to validate."""
    if (left := len(taken[0])) < least:
        found, remedy = f"{left} of {len(examples[0])} training examples are left", "raise --max-length"
        if options.packing and left:
            found, remedy = f"{len(examples[0])} training examples are packed into {left} rows", "leave --packing out"
        raise InputError(
            f"--max-length: {found}, fewer than --batch-size ({options.batch_size}); {remedy}, or lower --batch-size"
        )
    if not len(taken[1]):
        raise InputError(
            f"--max-length: none of {len(examples[1])} validation examples is left; raise it, or pass shorter ones"
        )


def _left_out(options: FinetuneOptions, examples: list[datasets.Dataset], taken: list) -> Iterator[str]:
    """Yield a note for each split of which TRL takes fewer examples than there are."""
    why = "longer than" if options.objective == "reward" else "their prompts alone fill"
    for split, given, there in zip(("training", "validation"), examples, taken, strict=True):
        if (left := len(given) - len(there)) > 0:
            yield f"{left} of {len(given)} {split} examples are left out: {why} --max-length, or the model's limit"


def _mapped(path: str, copy: str) -> datasets.Dataset:
    """Return the rows of a Parquet file, mapped from a copy in Arrow's form; TRL writes what it makes beside it."""
    file = tables.open_parquet(path)
    batches = (pa.Table.from_batches([batch]) for batch in file.iter_batches())
    copy_to_example_file(copy, file.schema_arrow, batches)
    return datasets.Dataset.from_file(copy)


class TrlReport(TrainerCallback):
    """Reports the figures and the checkpoints of a trainer: to Ray Train, the progress lines and TensorBoard."""

    def __init__(self, writers: MetricLoggers, progress: Queue | None, measure: str) -> None:
        self.writers, self.progress, self.measure = writers, progress, measure
        self.skipped = 0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Show the figures; raise `InputError`, on all workers alike, if one is not finite.

        In float16 the gradient norm of a step that is skipped to find the scale counts as 0, up to `MOST_SKIPPED` in a
        row.
        """
        logged = state.log_history[-1]
        if "grad_norm" in logged and args.fp16 and math.isfinite(logged.get("loss", math.nan)):
            self.skipped = 0 if math.isfinite(logged["grad_norm"]) else self.skipped + 1
            if 0 < self.skipped <= MOST_SKIPPED:
                logged["grad_norm"] = 0.0
        row = logged_history_row(state.log_history[-1])
        for name, remedy in MUST_BE_FINITE.items():
            if not math.isfinite(row.get(name, 0.0)):
                raise DivergedError(
                    f"step {row['step']}: {name} is not a finite number; nothing of this run is kept; {remedy}"
                )
        if row:
            self.writers.write(row)
            if self.progress is not None:  # a queue is false while it is empty
                self.progress.put(row)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> None:
        """Let an adapter change its ranks, while the gradients are there."""
        adapter.update_adapter_ranks(cast("nn.Module", given["model"]), state.global_step + 1)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object) -> None:
        """Report what this worker has saved; Ray Train puts the parts of all workers into one folder."""
        row = next(row for row in map(logged_history_row, reversed(state.log_history)) if "validation_loss" in row)
        with tempfile.TemporaryDirectory() as folder:
            shutil.move(Path(str(args.output_dir), f"checkpoint-{state.global_step}"), Path(folder, CHECKPOINT))
            if state.is_world_process_zero:
                adapter.save_adapter_ranks(cast("nn.Module", given["model"]), Path(folder, CHECKPOINT))
            saved = ray.train.Checkpoint.from_directory(folder)
            quality = -row[self.measure] if self.measure == "validation_loss" else row[self.measure]
            optimizer = str(getattr(args.optim, "value", args.optim))
            about = sharded_model_figures(cast("nn.Module", given["model"]), optimizer)
            about |= {"quality": quality, "percent": 100 * state.global_step / state.max_steps}
            ray.train.report(row | about, checkpoint=saved)
