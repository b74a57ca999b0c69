"""The training loop of every Ray Train worker, the same for all models, methods and ZeRO stages."""

import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import deepspeed
import numpy as np
import psutil
import ray.train
import torch
import torch.distributed as dist
import transformers
from ray.util.queue import Queue

from sciqa.core.adapter_files import describe_adapter_files
from sciqa.core.console import quiet_console
from sciqa.core.device import Device, check_device
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, model_file_family
from sciqa.exam.metrics import average_precision_at_3, metric_bootstrap_interval, metric_rank_range, right_at_first
from sciqa.exam.open_exam import Exam
from sciqa.exam.probabilities import NOISE, settle_probability_ties
from sciqa.models import adapter
from sciqa.models.load import SCORERS, load_base, load_batch_layout, load_dtype
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer, Scorer
from sciqa.models.weights import has_sharded_weights
from sciqa.training import sharding
from sciqa.training.example_files import share_example_file
from sciqa.training.examples import ExampleOrder, Examples
from sciqa.training.loggers import MetricLoggers
from sciqa.training.loss import DivergedError, mean_loss
from sciqa.training.model_check import check_minimum_memory
from sciqa.training.optimizer import learning_rate_schedule, optimizer_gradient_norm, optimizer_is_paged
from sciqa.training.options import HISTORY, LONGEST_CHECKED, MOST_SKIPPED, NO_SCALER, FinetuneOptions

#: Padded tokens per evaluation batch of a worker.
EVALUATION_TOKENS = 2048


def train_loop(config: dict) -> dict:
    """Train on one worker and report checkpoints; Ray Train calls it on every worker.

    Args:
        config: `options`, the `train` and `validation` exams, `steps`, `threads` and `device` of this worker,
            `progress`, a queue that takes the rows of the history, `template`, what that of the prompt sets in
            `PromptFormat`, and `recorded`, the inputs of this run with the `revision` of the model.

    Returns:
        Nothing, or `input_error` if the input is bad, and whether the run `diverged`.
    """
    try:
        _Run(**config).train()
    except InputError as error:  # every worker raises the same, and a retry would not help now
        return {"input_error": str(error), "diverged": isinstance(error, DivergedError)}
    return {}


class _Run:
    """One worker's part of a training run."""

    def __init__(
        self,
        options: FinetuneOptions,
        train: Exam,
        validation: Exam,
        steps: int,
        threads: int,
        device: Device,
        progress: Queue,
        recorded: dict,
        template: dict | None = None,
    ) -> None:
        quiet_console("DeepSpeed")
        torch.set_num_threads(threads)
        check_device(device)
        self.options, self.steps, self.progress, self.template = options, steps, progress, template
        self.device, self.dtype = device, load_dtype(options.precision, device)
        if self.dtype == torch.float16 and options.zero:
            raise InputError(f"{NO_SCALER} (float16 is what this GPU computes in by itself)")
        sharding.sharding_checked(lambda: find_model(options.model, recorded.get("revision")))
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.examples = Examples(share_example_file(train, options.train_contexts, recorded.get("train contexts")))
        self.config = sharding.deepspeed_config(options, self.world_size, self.dtype)
        self.order = ExampleOrder(len(self.examples), steps, options.batch_size, options.seed, self._encode)
        self.scorer = self._build() if options.zero == 3 else sharding.sharding_checked(self._build)
        self._check_lengths()
        self._check_memory()
        made_from = recorded.get("validation contexts")
        held_out = Examples(share_example_file(validation, options.validation_contexts, made_from))
        plain = map(held_out.plain, range(len(held_out)))
        self.validation = [(self.scorer.encode(question, context), gold) for question, context, gold in plain]
        self.optimizer = self._optimizer()
        self.norms: list[torch.Tensor] = []
        self.optimizer.register_step_pre_hook(lambda *_: self.norms.append(optimizer_gradient_norm(self.optimizer)))
        self.optimizer.register_step_post_hook(lambda *_: adapter.update_adapter_ranks(self.scorer.model, self.step))
        self.skipped = self.step = 0
        shared = has_sharded_weights(self.scorer)
        self.engine, *_ = deepspeed.initialize(
            model=self.scorer,
            optimizer=self.optimizer,
            lr_scheduler=learning_rate_schedule(options, self.optimizer, steps),
            config=self.config,
            dist_init_required=False,
        )
        if shared:
            sharding.find_sharded_layout(self.scorer, options.model)
        if self.scorer.note:
            self._show({"step": 0, "note": self.scorer.note})
        self.history: list[dict] = []

    def train(self) -> None:
        """Train from the last checkpoint, or the start, to the last step."""
        first = self._restore()
        every = self.options.eval_every or max(1, self.steps // 10)
        uncast = adapter.adapter_without_input_casts(self.scorer, self.dtype != torch.float32)
        with contextlib.closing(MetricLoggers(self.options, self.rank)) as writers, uncast:
            if not self.history:
                self._evaluate(0, writers)
            for step in range(first + 1, self.steps + 1):
                if self.options.patience and _evaluations_since_best(self.history) >= self.options.patience:
                    break
                row = self._step(step)
                self.history.append(row)
                writers.write(row)
                self._show(row)
                if step % every == 0 or step == self.steps:
                    self._evaluate(step, writers)

    def _build(self) -> Scorer:
        options = self.options
        family = model_file_family(options.model)
        torch.manual_seed(options.seed)  # new weights are the same on every worker
        with sharding.shard_while_loading(self.config):
            model, tokenizer = load_base(options.model, family, self.dtype, options.method == "qlora", self.device)
        sharding.keep_4bit_sharding(model)
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model = adapter.add_trainable_adapter(model, family, options.method, options.peft_fields())
        style = training_loop_style(options, tokenizer, self.template)
        scorer = SCORERS[family](model, tokenizer, style)
        if not has_sharded_weights(scorer):
            load_batch_layout(scorer, options.model)
        return scorer

    def _encode(self, epoch: int, number: int) -> tuple[EncodedForScorer, int]:
        """Return the training example of a question in an epoch: tokens, and the index of the right option."""
        question, context, gold = self.examples.varied(number, epoch, self.options)
        encoded = self.scorer.encode(question, context)
        if self.options.loss == "completion":  # this loss uses no other options
            return encoded.only(gold), 0
        return encoded, gold

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        trained = [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]
        rate, decay = options.learning_rate, options.weight_decay
        if optimizer_is_paged(options, self.device):
            from bitsandbytes.optim.adamw import PagedAdamW32bit

            return PagedAdamW32bit(trained, lr=rate, weight_decay=decay)
        return torch.optim.AdamW(trained, lr=rate, weight_decay=decay)

    def _step(self, step: int) -> dict:
        """Take one optimizer step and return its row of the history."""
        started = time.monotonic()
        # The seed of dropout depends on the step, so a run that resumes from a checkpoint draws the same numbers.
        self.step = step
        torch.manual_seed((self.options.seed * 1_000_003 + step) * self.world_size + self.rank)
        self.engine.train()
        rate = self.optimizer.param_groups[0]["lr"]
        losses, tokens, padded = [], 0, 0
        self.norms.clear()
        for micro in self.order.micro_batches(step - 1, self.rank, self.world_size, self.options.micro_batch):
            batch = [question for question, _ in micro]
            loss = mean_loss(self.engine(batch), [gold for _, gold in micro], self.options.loss)
            self.engine.backward(loss)
            self.engine.step()
            losses.append(loss.item())
            tokens += self.scorer.tokens(batch)
            padded += self.scorer.padded_tokens(batch)
        mine = [float(np.mean(losses)), tokens, padded, self._norm_taken()]
        sums = torch.tensor(mine, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(sums)  # NaN or infinity on one worker reaches all
        loss, tokens, padded, norm = sums.tolist()
        self._check_numbers(step, {"loss": loss, "norm of the gradient": norm})
        return {
            "step": step,
            "loss": loss / self.world_size,
            "learning_rate": rate,
            "tokens": int(tokens),
            "padded_tokens": int(padded),
            "workers": self.world_size,
            "seconds": time.monotonic() - started,
        }

    def _norm_taken(self) -> float:
        """Return the gradient norm of this worker's last step, or NaN if DeepSpeed skipped the step.

        With float16 a skipped step counts as 0, up to `MOST_SKIPPED` in a row: DeepSpeed looks for the gradient scale.
        """
        self.skipped = 0 if self.norms else self.skipped + 1
        if self.skipped:
            return 0.0 if self.dtype == torch.float16 and self.skipped <= MOST_SKIPPED else float("nan")
        return float(torch.stack(self.norms).norm())

    def _check_numbers(self, step: int, figures: dict[str, float]) -> None:
        """Raise `InputError`, on all workers alike, if a figure of a step is not finite."""
        for name, value in figures.items():
            if not np.isfinite(value):
                remedies = [f"a lower --learning-rate than {self.options.learning_rate:g}"] * (step > 0)
                remedies += ["--precision float32"] * (self.dtype != torch.float32)
                raise DivergedError(
                    f"step {step}: the {name} is not a finite number{', untrained' * (not step)}; nothing of this run "
                    f"is kept; try {' and '.join(remedies) or 'another --model'}"
                )

    def _evaluate(self, step: int, writers: "MetricLoggers") -> None:
        """Score the validation questions, keep the figures and report a checkpoint."""
        started = time.monotonic()
        scores = self._score_validation()
        self._check_numbers(step, {"score of a validation question": float(np.concatenate(scores).sum())})
        golds = [gold for _, gold in self.validation]
        pairs = zip(scores, golds, strict=True)
        ranks, tied = np.array(
            [metric_rank_range(settle_probability_ties(each, NOISE), gold) for each, gold in pairs]
        ).T
        precision = average_precision_at_3(ranks, tied)
        row = {
            "step": step,
            "validation_loss": mean_loss([torch.from_numpy(s) for s in scores], golds, self.options.loss).item(),
            "map_at_3": float(precision.mean()),
            **dict(zip(("map_at_3_low", "map_at_3_high"), metric_bootstrap_interval(precision), strict=True)),
            "accuracy": float(right_at_first(ranks, tied).mean()),
            "seconds": time.monotonic() - started,
        }
        self.history.append(row)
        writers.write(row)
        self._show(row)
        self._checkpoint(row)

    @torch.no_grad()
    def _score_validation(self) -> list[np.ndarray]:
        """Return the scores of all validation questions; every worker computes the same number of batches."""
        self.engine.eval()
        questions: Sequence[EncodedForScorer] = [encoded for encoded, _ in self.validation]
        batches = self.scorer.batches(questions, EVALUATION_TOKENS)
        # ZeRO-3 gathers parameters in every forward pass, so all workers take part in the same number of them.
        batches += batches[-1:] * (-len(batches) % self.world_size)
        mine: dict[int, np.ndarray] = {}
        for batch in batches[self.rank :: self.world_size]:
            scored = self.engine([questions[number] for number in batch])
            mine |= {number: score.double().cpu().numpy() for number, score in zip(batch, scored, strict=True)}
        found = {number: score for part in sharding.sharding_exchange(mine) for number, score in part.items()}
        return [found[number] for number in range(len(questions))]

    def _checkpoint(self, row: dict) -> None:
        """Report a checkpoint to Ray Train: the state to resume from, and the current model."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="state", exclude_frozen_parameters=True)
            if self.rank == 0:
                Path(folder, HISTORY).write_text(json.dumps(self.history), encoding="utf-8")
                adapter.save_adapter_ranks(self.scorer.model, Path(folder))
            self._save_model(Path(folder, "model"))
            # At equal MAP@3 the lower loss is better. Ray Train keeps the best and the last checkpoint.
            metrics = row | sharding.sharded_model_figures(self.engine.module, type(self.optimizer).__name__)
            metrics |= {"quality": _quality(row), "percent": 100 * row["step"] / self.steps}
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _save_model(self, folder: Path) -> None:
        model, state = self.scorer.model, None
        if self.options.method == "full" and has_sharded_weights(model):
            sharding.save_sharded_model(model, folder)
        else:
            state = sharding.gather_sharded(model, self.rank)
        if self.rank == 0:
            description = describe_adapter_files(self.options.model) | {"style": asdict(self.scorer.style)}
            adapter.save_adapter_or_model(model, folder, state, description)
            if self.options.method == "full":
                self.scorer.tokenizer.save_pretrained(folder)

    def _restore(self) -> int:
        """Load the last checkpoint and return its step, or 0 if there is none."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            self.engine.load_checkpoint(folder, tag="state", load_module_strict=False)
            adapter.load_adapter_ranks(self.scorer.model, Path(folder))
            self.history = json.loads(Path(folder, HISTORY).read_text(encoding="utf-8"))
        return self.history[-1]["step"]

    def _show(self, row: dict) -> None:
        if self.rank == 0:
            self.progress.put(row)

    def _check_lengths(self) -> None:
        """Raise `InputError`, before training and on all workers, if a question does not fit the model."""
        for number in np.argsort(-self.examples.sizes(with_context=False))[:LONGEST_CHECKED]:
            question, *_ = self.examples.plain(int(number))
            self.scorer.encode(question, "")

    def _check_memory(self) -> None:
        """Raise `InputError`, on all workers alike, if free memory is below the least that a batch needs."""
        question, context, _ = self.examples.plain(int(self.examples.sizes().argmax()))
        encoded = self.scorer.encode(question, context)
        need = check_minimum_memory(self.scorer, encoded, self.options.micro_batch)
        if self.device == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = psutil.virtual_memory().available // ray.train.get_context().get_local_world_size()
        short = torch.tensor(float(need - free), device=self.device)
        dist.all_reduce(short, dist.ReduceOp.MAX)
        if short > 0:
            raise InputError(
                f"--micro-batch {self.options.micro_batch}: a batch of the longest questions ({encoded.length} tokens) "
                f"needs at least {need / 1e9:.1f} GB on a worker, {short / 1e9:.1f} GB more than there are; "
                "lower --micro-batch or --max-length, or pass --gradient-checkpointing"
            )


def training_loop_style(
    options: FinetuneOptions, tokenizer: transformers.PreTrainedTokenizerBase, template: dict | None = None
) -> PromptFormat:
    """Return the question format that the options select, with the fields that a template sets."""
    chat = options.prompt == "chat" or (options.prompt == "auto" and getattr(tokenizer, "chat_template", None))
    return PromptFormat(
        prompt="chat" if chat and model_file_family(options.model) == "causal" else "plain",
        normalise=options.normalise,
        max_length=options.max_length,
        **{"completion": options.completion} | (template or {}),
    )


def _quality(row: dict) -> float:
    return row["map_at_3"] - 1e-6 * min(row["validation_loss"], 1e3)


def _evaluations_since_best(history: list[dict]) -> int:
    qualities = [_quality(row) for row in history if "map_at_3" in row]
    return len(qualities) - 1 - qualities.index(max(qualities))
