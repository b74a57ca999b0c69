"""The `finetune` step for objectives besides `rank`: examples, TRL's trainers, the model that is kept."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import pyarrow as pa
from ray.train import Result, UserCallback

from sciqa.core import hashes, storage, tables
from sciqa.core.adapter_files import check_adapter_files, describe_adapter_files, read_adapter_record
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.model_files import ABOUT_TRAINED, ADAPTER_CONFIG, find_model, model_file_family
from sciqa.core.summary import Summary
from sciqa.exam.instructions import read_instructions_examples
from sciqa.models.prompt_format import Prompt, PromptFormat
from sciqa.training.exam_prompts import exam_prompt_style
from sciqa.training.loggers import logged_history_row, logged_measure
from sciqa.training.options import SPLITS, FinetuneOptions, Objective
from sciqa.training.preferences import read_preferences
from sciqa.training.ray_train import (
    ELSEWHERE,
    best_ray_train_checkpoint,
    check_ray_train_batch,
    check_ray_train_folder,
    check_ray_train_inputs,
    ray_train_once,
    reported_ray_train_figures,
    run_ray_train_workers,
)
from sciqa.training.rewards import REWARDS, read_reward_prompts, reward_hash

#: Version of what is computed from the same examples; raise it when that changes.
OBJECTIVE_FORMAT = 3
#: Ends of the files that make up a model or an adapter with its tokenizer; no pickled ones.
KEPT = (".safetensors", ".json", ".jinja", ".model")
TRAINER_STATE = "trainer_state.json"
#: Functions that read the examples of a split.
READERS: dict[Objective, Callable[[str, FinetuneOptions], list[dict]]] = {
    "instruct": lambda path, _: read_instructions_examples(path),
    "dpo": read_preferences,
    "reward": read_preferences,
    "grpo": read_reward_prompts,
}


def finetune_objective(options: FinetuneOptions, callbacks: Sequence[UserCallback]) -> Summary:
    """Train for an objective, and keep the step with the lowest validation loss, or for `grpo` the highest reward.

    The folder `OUTPUT/trained/NAME/` holds the same files as that of `finetune`, and `OUTPUT/trained/_NAME/` what was
    trained on.

    Raises:
        InputError: see `check_objective`.
    """
    started = time.monotonic()
    examples = check_objective(options)
    inputs = objective_inputs(options, examples)
    fit = partial(_fit, options, examples, inputs, callbacks)
    return ray_train_once(options, inputs, fit, _made, started)


def check_objective(options: FinetuneOptions) -> dict[str, list[dict]]:
    """Check everything that needs no cluster, and return the examples by split.

    Raises:
        InputError: bad or repeated examples, a model that is not causal, has no chat template or that these options
            cannot train, or a folder of that name begun with other options.
    """
    require_extra("align", f"--objective {options.objective}")
    examples = read_objective_examples(options)
    _check_prompts(options, examples)
    family = model_file_family(options.model)
    if family != "causal":
        raise InputError(f"--objective {options.objective}: {options.model} is {family}; a causal model expected")
    from sciqa.training.model_check import check_finetune_model

    check_finetune_model(options)
    if options.chat_format == "auto" and _has_chats(examples):
        from sciqa.models.load import load_without_weights

        if not load_without_weights(options.model, {}).tokenizer.chat_template:
            raise InputError(f"{options.model}: its tokenizer has no chat template; pass --chat-format")
    if options.objective == "grpo":
        _check_rewards(options, examples)
    if options.packing and not options.max_length:
        raise InputError("--packing: fills rows of --max-length tokens; pass that too")
    for workers in options.worker_range or ():
        check_ray_train_batch(options, workers)
    check_ray_train_folder(options, objective_inputs(options, examples), early=True)
    return examples


def read_objective_examples(options: FinetuneOptions) -> dict[str, list[dict]]:
    """Return the examples of both splits.

    Raises:
        InputError: a bad row, fewer training examples than fill a batch, or one that is in both splits.
    """
    examples = {}
    for split in SPLITS:
        path = getattr(options, split)
        if path == split and options.objective != "grpo":
            raise InputError(f"--{split}: a file of examples for --objective {options.objective} expected")
        examples[split] = READERS[options.objective](path, options)
    if (found := len(examples["train"])) < options.examples_per_step:
        raise InputError(
            f"--batch-size: {options.batch_size} given, and {options.train} has {found} examples; lower it"
        )
    trained = {json.dumps(example): number for number, example in enumerate(examples["train"], 1)}
    for number, example in enumerate(examples["validation"], 1):
        if row := trained.get(json.dumps(example)):
            raise InputError(
                f"{options.validation}, example {number}: the same as example {row} of {options.train}; what is "
                "trained on would choose the best step, so leave it out of one of them"
            )
    return examples


def _has_chats(examples: dict[str, list[dict]]) -> bool:
    """Whether prompts are messages of a chat, and not plain text."""
    return not isinstance(examples["train"][0]["prompt"], str)


def _check_prompts(options: FinetuneOptions, examples: dict[str, list[dict]]) -> None:
    chats = _has_chats(examples)
    if options.prompt == "plain" and (chats or options.objective == "reward"):
        raise InputError(
            "--prompt plain: is for exam questions of --objective rank and grpo, and for a run's own answers of dpo; "
            "others are read as chats, so leave it out"
        )
    if isinstance(examples["validation"][0]["prompt"], str) == chats:
        raise InputError(
            f"--validation: {options.validation} and {options.train}: one has chats, the other exam questions in the "
            "plain form; pass --prompt chat, or files of one kind"
        )
    if options.chat_format != "auto" and not chats:
        raise InputError(
            "--chat-format: this model was fine-tuned with plain prompts; leave it out, or pass --prompt chat"
        )


def _check_rewards(options: FinetuneOptions, examples: dict[str, list[dict]]) -> None:
    if options.batch_size % options.generations:
        raise InputError(f"--batch-size: {options.batch_size} given, a multiple of --generations expected")
    for name in options.rewards:
        if name in REWARDS:
            continue
        if (about := read_adapter_record(name)).get("objective") != "reward":
            raise InputError(
                f"--rewards: {name} given; {', '.join(REWARDS)}, or the folder of what --objective reward made expected"
            )
        if not _has_chats(examples):
            raise InputError(f"--rewards: {name} scores chats, and prompts are plain; pass --prompt chat")
        if storage.path_exists(storage.join_paths(name, ADAPTER_CONFIG)):
            check_adapter_files(name, about["base"])


def objective_inputs(options: FinetuneOptions, examples: dict[str, list[dict]]) -> dict:
    """Return all inputs on which the result depends."""
    ignored = (*ELSEWHERE, "num_workers")
    inputs = {name: value for name, value in vars(options).items() if name not in ignored}
    inputs |= {f"{split} examples": hashes.rows_hash(rows) for split, rows in examples.items()}
    return inputs | _read_inputs(options) | {"format": OBJECTIVE_FORMAT}


def _read_inputs(options: FinetuneOptions) -> dict:
    """Return those of the inputs that are read from files, which may change before workers read them."""
    files = find_model(options.model)
    return {
        "rewards": list(map(reward_hash, options.rewards)),
        "weights of the model": files.weights_hash,
        "others of the model": files.others,
        "text of the template": _exam_style(options).template,
    }


def _examples_path(options: FinetuneOptions, split: str) -> str:
    return tables.table_records_path(options.folder, f"{split}.parquet")


def _fit(
    options: FinetuneOptions,
    examples: dict[str, list[dict]],
    inputs: dict,
    callbacks: Sequence[UserCallback],
    workers: int,
) -> dict:
    """Run Ray Train to the end, keep the best model and the history, and return figures for the manifest."""
    for split, rows in examples.items():
        tables.write_table(_examples_path(options, split), pa.Table.from_pylist(rows))
    steps = options.trl_steps(len(examples["train"]))
    config: dict = {split: _examples_path(options, split) for split in SPLITS}
    config["recorded"] = {"revision": find_model(options.model).revision, "rewards": inputs["rewards"]}
    check_ray_train_inputs(inputs, _read_inputs(options))
    return keep_best_objective(options, run_ray_train_workers(options, config, steps, workers, callbacks))


def keep_best_objective(options: FinetuneOptions, result: Result) -> dict:
    """Write the best model and the history of a run, and return figures for the manifest."""
    best, last, metrics = best_ray_train_checkpoint(result, options.folder)
    prompts = tables.open_parquet(_examples_path(options, "train")).schema_arrow.field("prompt").type
    _keep_model(options, storage.join_paths(best, "checkpoint"), "plain" if pa.types.is_string(prompts) else "chat")
    state = storage.read_json(storage.join_paths(last, "checkpoint", TRAINER_STATE))
    history = [row for logged in state["log_history"] if (row := logged_history_row(logged))]
    names = list(dict.fromkeys(name for row in history for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in history]) for name in names})
    tables.write_table(storage.join_paths(options.folder, "metrics.parquet"), table)
    measure = f"validation_{logged_measure(options)}"
    validated = [row[measure] for row in history if measure in row]
    return reported_ray_train_figures(result) | {
        "best_step": metrics["step"],
        "steps": state["global_step"],
        "measure": measure,
        measure: metrics[measure],
        f"{measure}_untrained": validated[0],
        "loss": [row["loss"] for row in history if "loss" in row][-1],
    }


def _keep_model(options: FinetuneOptions, checkpoint: str, prompt: Prompt) -> None:
    """Copy a model or adapter, its tokenizer and chat template from a checkpoint of TRL, and describe it."""
    for name in storage.list_names(checkpoint):
        if name.endswith(KEPT) and name != TRAINER_STATE:
            storage.copy_files(storage.join_paths(checkpoint, name), storage.join_paths(options.folder, name))
    about = describe_adapter_files(options.model)
    path = storage.join_paths(options.folder, ADAPTER_CONFIG)
    if storage.path_exists(path):  # TRL names the folder that the base was loaded from, which is this machine's
        storage.write_json(path, storage.read_json(path) | {"base_model_name_or_path": about["base"]})
    about |= {"objective": options.objective}
    if options.objective != "reward":  # which ranks no options
        style = _exam_style(options)
        if style.prompt != prompt and not options.template:  # examples in a file, in another form than before
            style = PromptFormat(completion=style.completion)
        style = replace(style, prompt=prompt)
        about |= {"style": asdict(replace(style, normalise=options.normalise, max_length=options.max_length))}
    storage.write_json(storage.join_paths(options.folder, ABOUT_TRAINED), about)


def _exam_style(options: FinetuneOptions) -> PromptFormat:
    """Return the form in which the trained model is asked exam questions."""
    return exam_prompt_style(options, "letter" if options.objective == "grpo" else options.completion)


def _made(manifest: dict) -> str:
    name = manifest["measure"]
    return (
        f"step {manifest['best_step']} of {manifest['steps']}: {name.replace('_', ' ')} {manifest[name]:.3f} "
        f"({manifest[f'{name}_untrained']:.3f} untrained)"
    )
