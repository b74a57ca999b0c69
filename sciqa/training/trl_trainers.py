"""TRL's trainers for the objectives besides `rank`, with the models that they train and compare with."""

import functools
import heapq
import os
import platform
import types
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, cast

import accelerate
import datasets
import peft
import torch
import transformers
import trl
from accelerate.data_loader import SeedableRandomSampler
from torch import nn

from sciqa.core.adapter_files import read_adapter_record
from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.core.hashes import check_same_hash
from sciqa.core.model_files import ADAPTER_CONFIG, find_model, local_model_copy
from sciqa.models import adapter
from sciqa.models.attention_limits import position_limit
from sciqa.models.load import load_base, load_safetensors_folder, load_without_weights, nf4_load_config
from sciqa.models.prompt_template import FOLDER
from sciqa.models.text_encoder import text_encoder_template
from sciqa.training.exam_prompts import Text
from sciqa.training.loggers import logged_measure
from sciqa.training.optimizer import optimizer_is_paged
from sciqa.training.options import LONGEST_CHECKED, SPLITS, FinetuneOptions, Objective
from sciqa.training.rewards import REWARDS, reward_hash
from sciqa.training.sharding import deepspeed_config, keep_4bit_sharding, save_sharded_model, shard_while_loading

Tokenizer = transformers.PreTrainedTokenizerBase
Loaded = tuple[transformers.PreTrainedModel, Tokenizer]


def trl_trainer_arguments(
    options: FinetuneOptions, folder: str, world_size: int, dtype: torch.dtype, device: Device
) -> dict:
    """Return the arguments that TRL's trainers share, as transformers' `TrainingArguments` has them.

    The folder is this worker's own, for unfinished checkpoints; computation is in `dtype`.
    """
    given = {
        "output_dir": folder,
        "per_device_train_batch_size": options.micro_batch,
        # GRPO evaluates whole groups of answers to one question.
        "per_device_eval_batch_size": options.generations if options.objective == "grpo" else options.micro_batch,
        "gradient_accumulation_steps": options.batch_size // (options.micro_batch * world_size),
        "dataloader_drop_last": True,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if options.schedule == "constant" else options.schedule,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.clip,
        "optim": "paged_adamw_32bit" if optimizer_is_paged(options, device) else "adamw_torch",
        "seed": options.seed,
        "gradient_checkpointing": options.gradient_checkpointing,
        "ddp_find_unused_parameters": False,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "metric_for_best_model": f"eval_{logged_measure(options)}",
        "greater_is_better": options.objective == "grpo",
        "restore_callback_states_from_checkpoint": True,  # what `--patience` counts
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": dtype == torch.bfloat16 and not options.zero,
        "fp16": dtype == torch.float16,
        "use_cpu": device == "cpu" and not options.zero,  # with it, accelerate would leave DeepSpeed out
    }
    if not options.zero:
        return given
    # Accelerate chooses no backend by itself on a CPU; so it is told, by its own public state.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    accelerate.PartialState(backend="nccl" if device == "cuda" else "gloo")
    config = deepspeed_config(options, world_size, dtype)
    return given | {"deepspeed": config, "accelerator_config": {"use_configured_state": True}}


def make_trl_trainer(
    options: FinetuneOptions, given: dict, examples: list[datasets.Dataset], dtype: torch.dtype, device: Device
) -> transformers.Trainer:
    """Return TRL's trainer for the objective, with training and validation examples; the trained weights are float32.

    `given` is the result of `trl_trainer_arguments`; computation is in `dtype`.
    """
    full = options.method == "full"
    base = torch.float32 if full else dtype
    with shard_while_loading(given.get("deepspeed")):
        model, tokenizer = _load(options, base, device)
    keep_4bit_sharding(model)
    _set_chat_format(options, tokenizer)
    kind = {"task_type": "SEQ_CLS"} if options.objective == "reward" else {}
    config = (
        None if full else adapter.adapter_peft_config(model, "causal", options.method, kind | options.peft_fields())
    )
    common = dict(zip(("train_dataset", "eval_dataset"), examples, strict=True))
    common |= {"model": model.train(), "processing_class": tokenizer, "peft_config": config}
    soft_prompt = getattr(config, "num_virtual_tokens", 0)
    positions = position_limit(model, model.config.get_text_config()) - soft_prompt
    limit = min(options.max_length or positions, positions)
    trainer = MAKERS[options.objective](options, given, limit, common, base, device)
    _evaluate_all(trainer)
    if options.objective != "grpo":  # which samples answers to the same questions several times
        _draw_whole_batches(trainer, options.batch_size)
    if full and options.zero == 3:
        cast("Any", trainer).save_model = functools.partial(_save_by_parts, trainer)
    # TRL keeps some adapters in 16 bits, in which small changes are lost.
    adapter.adapter_weights_as_float32(cast("nn.Module", trainer.model))
    if device == "cpu" and options.objective != "reward":
        for each in filter(None, (trainer.model, getattr(trainer, "ref_model", None))):
            causal = each.get_base_model() if isinstance(each, peft.PeftModel) else each
            trl_trainer_labelled_head(cast("transformers.PreTrainedModel", causal))
    return trainer


def _evaluate_all(trainer: transformers.Trainer) -> None:
    """Let a trainer evaluate all examples: it would leave out those that fill no batch, as it does in training."""
    loader = trainer.get_eval_dataloader

    def whole(*given: Any) -> Any:  # noqa: ANN401 (as transformers')
        trainer.args.dataloader_drop_last = False
        try:
            return loader(*given)
        finally:
            trainer.args.dataloader_drop_last = True

    cast("Any", trainer).get_eval_dataloader = whole


def _draw_whole_batches(trainer: transformers.Trainer, batch_size: int) -> None:
    """Let each epoch draw as many examples as fill whole batches, others each time.

    Transformers would make a step of the rest, with the whole learning rate. Where there is no rest nothing changes.
    """
    rows = len(cast("Sized", trainer.train_dataset))
    whole = rows // batch_size * batch_size
    loader = trainer.get_train_dataloader

    def drawn() -> Any:  # noqa: ANN401 (as accelerate's)
        made: Any = loader()
        former = made.get_sampler()
        made.set_sampler(SeedableRandomSampler(former.data_source, num_samples=whole, data_seed=former.initial_seed))
        return made

    if whole < rows:
        cast("Any", trainer).get_train_dataloader = drawn


def _save_by_parts(trainer: transformers.Trainer, folder: str, _internal_call: bool = False) -> None:
    """Save a sharded model without gathering all of it on one rank, as transformers would."""
    path = Path(folder)
    if trainer.args.should_save:
        path.mkdir(parents=True, exist_ok=True)
    save_sharded_model(cast("transformers.PreTrainedModel", trainer.model), path)
    if trainer.args.should_save:
        cast("Any", trainer.processing_class).save_pretrained(folder)


def trl_trainer_labelled_head(model: transformers.PreTrainedModel) -> None:
    """Let the head that TRL fused into a model compute the labelled positions alone.

    TRL does so by itself on a GPU. On a CPU it computes the whole vocabulary for every token of the prompts too.

    Args:
        model: causal model to which `trl.trainer.add_fused_lm_head` was applied.
    """
    fused = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads its signature
    def forward(
        self: transformers.PreTrainedModel,
        *args: Any,  # noqa: ANN401
        labels: torch.Tensor | None = None,
        **given: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (as TRL's)
        if labels is None or not given.get("fused_lm_head"):
            return fused(*args, **given if labels is None else given | {"labels": labels})
        labelled = labels[:, 1:] != -100

        def keep_labelled(_: nn.Module, __: object, output: Any) -> None:  # noqa: ANN401 (of any model)
            output.last_hidden_state = output.last_hidden_state[:, :-1][labelled].unsqueeze(0)

        hook = self.base_model.register_forward_hook(keep_labelled)
        try:
            found = fused(*args, **given, shift_labels=labels[:, 1:][labelled].unsqueeze(0))
        finally:
            hook.remove()
        for name, values in found.items():
            if values.dim() == 2:  # by position; losses are one number
                found[name] = values.new_zeros(labelled.shape).masked_scatter(labelled, values)
        return found

    model.forward = types.MethodType(forward, model)


def _instruct(options: FinetuneOptions, given: dict, limit: int, common: dict, *_: object) -> trl.SFTTrainer:
    return trl.SFTTrainer(args=trl.SFTConfig(**given, max_length=limit, packing=options.packing), **common)


def _dpo(
    options: FinetuneOptions, given: dict, limit: int, common: dict, dtype: torch.dtype, device: Device
) -> trl.DPOTrainer:
    # With an adapter, the reference is the model with the adapter off, and no second copy is loaded.
    with shard_while_loading(given.get("deepspeed")):
        reference = None if common["peft_config"] else load_base(options.model, "causal", dtype, device=device)[0]
    arguments = trl.DPOConfig(**given, max_length=limit, beta=options.beta)
    return trl.DPOTrainer(args=arguments, ref_model=reference, **common)


def _reward(_: FinetuneOptions, given: dict, limit: int, common: dict, *__: object) -> trl.RewardTrainer:
    return trl.RewardTrainer(args=trl.RewardConfig(**given, max_length=limit), **common)


def _grpo(
    options: FinetuneOptions, given: dict, limit: int, common: dict, dtype: torch.dtype, device: Device
) -> trl.GRPOTrainer:
    _check_prompt_lengths(options, common, limit - options.completion_tokens)
    made: list[Any] = [
        (REWARDS[name], None) if name in REWARDS else trl_trainer_reward_model(name, dtype, device)
        for name in options.rewards
    ]
    rewards, readers = [reward for reward, _ in made], [reader for _, reader in made]
    lengths: dict = {"num_generations": options.generations, "max_completion_length": options.completion_tokens}
    arguments = trl.GRPOConfig(**given, **lengths, beta=options.beta)
    return trl.GRPOTrainer(args=arguments, reward_funcs=rewards, reward_processing_classes=readers, **common)


def _check_prompt_lengths(options: FinetuneOptions, common: dict, most: int) -> None:
    """Raise `InputError` if one of the longest prompts leaves no room for an answer, since TRL cuts none for GRPO."""
    read = common["processing_class"]
    for split, name in zip(SPLITS, ("train_dataset", "eval_dataset"), strict=True):
        prompts = common[name]["prompt"]
        for prompt in heapq.nlargest(LONGEST_CHECKED, prompts, key=lambda each: len(str(each))):
            if (length := _prompt_length(read, prompt)) > most:
                raise InputError(
                    f"--{split}: {getattr(options, split)} has a prompt of {length} tokens, and at most {most} leave "
                    "room for --completion-tokens; pass answers that were given with shorter contexts"
                )


def _prompt_length(tokenizer: Tokenizer, prompt: Text) -> int:
    """Return the number of tokens of a prompt, as TRL makes them."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))


def _set_chat_format(options: FinetuneOptions, tokenizer: Tokenizer) -> None:
    if options.chat_format != "auto":
        path = FOLDER / "chat_formats" / f"{options.chat_format}.jinja"
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    if isinstance(tokenizer.chat_template, str):  # TRL would render it with the date of the day
        tokenizer.chat_template = text_encoder_template(tokenizer.chat_template)


def packable_trl_trainer_examples(options: FinetuneOptions, examples: list[datasets.Dataset]) -> list[datasets.Dataset]:
    """Return the examples of both splits without those whose prompt alone fills `--max-length`, if they are packed.

    TRL leaves them out by itself where it does not pack; in packed rows they would have nothing to learn.
    """
    if not options.packing:
        return examples
    limit = cast("int", options.max_length)  # which packing needs
    tokenizer = load_without_weights(options.model, {}).tokenizer
    _set_chat_format(options, tokenizer)
    return [each.filter(lambda row: _prompt_length(tokenizer, row["prompt"]) < limit) for each in examples]


MAKERS: dict[Objective, Callable[..., transformers.Trainer]] = {
    "instruct": _instruct,
    "dpo": _dpo,
    "reward": _reward,
    "grpo": _grpo,
}


def _load(options: FinetuneOptions, dtype: torch.dtype, device: Device) -> Loaded:
    """Return the model to train and its tokenizer; for `reward`, with a new head that gives one score."""
    if options.objective != "reward":
        return load_base(options.model, "causal", dtype, options.method == "qlora", device)
    torch.manual_seed(options.seed)  # the head is the same on every worker
    return _load_scoring(load_safetensors_folder(find_model(options.model)), dtype, device, options.method == "qlora")


def _load_scoring(folder: str, dtype: torch.dtype, device: Device, nf4: bool = False) -> Loaded:
    how: dict[str, Any] = {"quantization_config": nf4_load_config(dtype), "device_map": {"": device}} if nf4 else {}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=dtype, use_safetensors=True, trust_remote_code=False, **how
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    return (model if nf4 else model.to(device)), tokenizer


def find_trl_trainer_models(options: FinetuneOptions, recorded: dict) -> None:
    """Find the files of the model to train, and of reward models and their bases, on this machine.

    Raises:
        InputError: one of them is not there, or is another one than on record: `revision` of the model, and the hashes
            of `rewards`.
    """
    find_model(options.model, recorded.get("revision"))
    hashed = dict(zip(options.rewards, recorded.get("rewards", ()), strict=False))
    for name in options.rewards:
        if name not in REWARDS:
            if base := trl_trainer_reward_base(name):
                find_model(base)
            if name in hashed:
                check_same_hash(name, reward_hash(str(local_model_copy(name))), hashed[name])


def trl_trainer_reward_base(name: str) -> str | None:
    """Return the base model of a reward model that is an adapter; None for a whole model.

    Raises:
        InputError: its folder is not on this machine.
    """
    folder = local_model_copy(name)
    if not folder.is_dir():
        raise InputError(f"--rewards: {name} is not there on {platform.node()}; put it where all nodes can read it")
    return read_adapter_record(str(folder))["base"] if Path(folder, ADAPTER_CONFIG).exists() else None


def trl_trainer_reward_model(name: str, dtype: torch.dtype, device: Device) -> Loaded:
    """Return a model that `--objective reward` made, which gives each text one score, and its tokenizer.

    `name` is the folder of an adapter or of a whole model.

    Scores that are not numbers are infinite: TRL takes NaN for a reward that was not given, and leaves it out.
    """
    folder = str(local_model_copy(name))
    base = trl_trainer_reward_base(name)
    model, _ = _load_scoring(load_safetensors_folder(find_model(base)) if base else folder, dtype, device)
    if base:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()

    def show_nan(_: nn.Module, __: object, output: Any) -> None:  # noqa: ANN401 (of any model)
        output.logits.masked_fill_(output.logits.isnan(), torch.inf)

    model.register_forward_hook(show_nan)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
