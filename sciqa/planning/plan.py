"""The `plan` step: estimate what a run takes from its exam, corpus, model and training method."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sciqa.core import cluster, progress
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.model_files import model_file_tokenizer
from sciqa.core.summary import Summary
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.open_exam import read_exam
from sciqa.planning.hardware import (
    ACCELERATORS,
    ROOM,
    HardwareNeed,
    NodeType,
    hardware_fits,
    missing_hardware,
    read_node_types,
)
from sciqa.planning.options import TOKENS_PER_BATCH, PlanOptions
from sciqa.planning.volume import (
    CORE_FLOPS,
    PASSAGES_PER_CORE_SECOND,
    Volume,
    corpus_volume,
    index_volume_row,
    volume_embedder,
)

if TYPE_CHECKING:
    from sciqa.models.scorer import EncodedForScorer
    from sciqa.planning.memory import Memory, MemorySketch


@dataclass(frozen=True)
class PlanQuestions:
    """The size of an exam: its number of questions, one of average length in tokens, and one of the greatest."""

    count: int
    mean: "EncodedForScorer"
    longest: "EncodedForScorer"


def plan(options: PlanOptions) -> Summary:
    """Estimate what a run takes, without starting anything or loading weights.

    The summary's details hold tables (lists of rows) by title: the model, the memory of a training worker, the corpus
    and its index, the hours by accelerator and, with a cluster file, the stages that fit each node type.

    Raises:
        InputError: the input of a step is invalid, or a stage fits nowhere; the message then says what would fit.
    """
    started = time.monotonic()
    require_extra("train", "sciqa plan")
    nodes = read_node_types(options.cluster) if options.cluster else []
    with progress.progress_lines("plan", f"counting what {options.model} and the corpus take"):
        volume = corpus_volume(options)
        model = _sketch(options)
        exams = {name: _read_questions(options, model, volume, name) for name in ("train", "validation", "exam")}
        rows = list(_memory_rows(options, model, exams["train"].longest))
        memory = next(memory for about, memory in rows if about["chosen"])
        needs = _needs(options, model, memory, exams["exam"].longest)
        kinds = list(options.gpus or dict.fromkeys(node.kind for node in nodes if node.kind) or ACCELERATORS)
        room = _node_rows(options, nodes, needs)
        _check_room(options, kinds, room, needs, exams)
        flops = _stage_flops(options, model, volume, exams)
    longest = f"{options.micro_batch} questions of {exams['train'].longest.length} tokens at once"
    details = {
        f"Model {options.model}": [
            {"parameters": model.parameters}
            | {f"{name} GB": model.weight_bytes(name) / 1e9 for name in ("float32", "bfloat16", "nf4")}
            | {f"trained ({options.method})": model.trained}
        ],
        f"Memory of a training worker, of {options.num_workers}, in GB, its allocator's in the total: {longest}": [
            about | {name: size / 1e9 for name, size in vars(memory).items()} | {"total": memory.total / 1e9}
            for about, memory in rows
        ],
        "Corpus and index": [index_volume_row(options, volume)],
        "Hours": list(_hour_rows(options, kinds, flops, volume, needs)),
    }
    if nodes:
        details[f"Node types of {options.cluster}"] = room
    made = f"{model.parameters:,} parameters, {model.trained:,} trained; training takes {memory.total / 1e9:.2f} GB"
    return Summary("plan", "", f"{made} on a worker", time.monotonic() - started, details)


def _sketch(options: PlanOptions) -> "MemorySketch":
    from sciqa.planning.memory import build_memory_sketch
    from sciqa.training.model_check import check_checkpointing

    model = build_memory_sketch(options.model, options.method, options.peft_fields())
    check_checkpointing(options, model.model)
    return model


def _read_questions(options: PlanOptions, model: "MemorySketch", volume: Volume, name: str) -> PlanQuestions:
    """Return the size of an exam in the embedder's tokens, with its own contexts and average or longest passages."""
    from sciqa.models.prompt_template import template_prompt_text

    questions = read_exam(getattr(options, name), options.columns, options.answers_from).to_pylist()
    tokenizer = model_file_tokenizer(options.embedder)
    prompts = [template_prompt_text(question, question.get("context") or "") for question in questions]
    sizes = [len(each.ids) for each in tokenizer.encode_batch(prompts)]
    texts = [list(answer_options_of(question).values()) for question in questions]
    lengths = [[len(each.ids) for each in tokenizer.encode_batch(each, add_special_tokens=False)] for each in texts]
    number = round(np.mean([len(each) for each in lengths]))
    mean = round(np.mean([length for each in lengths for length in each]))
    longest = max(range(len(questions)), key=lambda at: sizes[at] + sum(lengths[at]))
    average, most = options.context_passages * volume.tokens, options.context_passages * options.passage_tokens
    return PlanQuestions(
        len(questions),
        _shape(options, model, round(np.mean(sizes) + average), [mean] * number),
        _shape(options, model, sizes[longest] + most, lengths[longest]),
    )


def _shape(options: PlanOptions, model: "MemorySketch", prompt: int, lengths: list[int]) -> "EncodedForScorer":
    """Return a dummy question with so many tokens in its prompt and each option, truncated to the model's limit."""
    from sciqa.models.scorer import EncodedForScorer

    said = getattr(model.model.config, "max_position_embeddings", None) or 0
    own = said if said > 0 else 1 << 20  # XLNet's is -1
    limit = min(own, options.max_length or own)
    prompt = max(1, min(prompt, limit - max(lengths)))
    if model.family == "multiple-choice":
        return EncodedForScorer([], [[0] * min(limit, prompt + length) for length in lengths], [])
    return EncodedForScorer([0] * prompt, [[0] * length for length in lengths], [1.0] * len(lengths))


def _memory_rows(
    options: PlanOptions, model: "MemorySketch", longest: "EncodedForScorer"
) -> Iterator[tuple[dict, "Memory"]]:
    """Yield the memory of a training worker for each ZeRO stage, with and without checkpointing."""
    from sciqa.planning.memory import training_memory

    for checkpointing in (False, True) if model.model.supports_gradient_checkpointing else (False,):
        activations = _activations(options, model, longest, checkpointing)
        for zero in (0, 2, 3):
            offload = options.offload and zero > 0 and not (zero == 3 and options.method == "qlora")
            changed = replace(options, zero=zero, offload=offload, gradient_checkpointing=checkpointing)
            about = {"ZeRO": zero, "checkpointing": "yes" if checkpointing else "no"}
            about["chosen"] = "*" * ((zero, checkpointing) == (options.zero, options.gradient_checkpointing))
            yield about, training_memory(model, changed, changed.num_workers, activations)


def _activations(options: PlanOptions, model: "MemorySketch", longest: "EncodedForScorer", checkpointing: bool) -> int:
    from sciqa.planning.memory import peak_activation_memory

    batch = [longest] * options.micro_batch
    return peak_activation_memory(model, batch, checkpointing=checkpointing, nf4=options.method == "qlora")


def _needs(
    options: PlanOptions, model: "MemorySketch", memory: "Memory", longest: "EncodedForScorer"
) -> list[HardwareNeed]:
    """Return the resource requirements of each planned stage."""
    from sciqa.planning.memory import loading_memory, peak_activation_memory, reserved_memory

    nf4, workers = options.method == "qlora", options.num_workers
    batch = [longest] * max(1, TOKENS_PER_BATCH // longest.length)
    answering = model.weight_bytes("nf4" if nf4 else "bfloat16")
    answering += peak_activation_memory(model, batch, training=False, nf4=nf4)
    # Paged AdamW moves its state to the host when the GPU is full.
    training = replace(memory, optimizer=0).total if nf4 else memory.total
    loading = int(cluster.LOADING * model.weight_bytes("bfloat16"))
    embedder = int(cluster.LOADING * sum(2 * each.numel() for each in volume_embedder(options).parameters()))
    needs = [
        HardwareNeed("corpus", 1, 0),
        HardwareNeed("index", 1, embedder),
        HardwareNeed("finetune", workers, loading_memory(model, options, workers) + memory.host, training, memory.host),
        HardwareNeed("predict", 1, loading, reserved_memory(answering)),
    ]
    return [need for need in needs if need.stage in options.stages]


def _node_rows(options: PlanOptions, nodes: list[NodeType], needs: list[HardwareNeed]) -> list[dict]:
    """Return one row per node type that says for each stage what the type lacks.

    Raises:
        InputError: no node type has a CPU for work.
    """
    if nodes and not any(node.cpus >= 1 for node in nodes):
        raise InputError(f"{options.cluster}: no node type has a CPU for work; add one with CPUs")
    has_gpus = any(node.gpus for node in nodes)
    return [
        {"node type": node.name, "most": node.most, "CPUs": node.cpus, "GPUs": f"{node.gpus} {node.kind or ''}".strip()}
        | {need.stage: missing_hardware(node, need, has_gpus) or "fits" for need in needs}
        for node in nodes
    ]


def _check_room(
    options: PlanOptions,
    kinds: list[str],
    room: list[dict],
    needs: list[HardwareNeed],
    exams: dict[str, PlanQuestions],
) -> None:
    """Raise `InputError` where a stage fits no node type or, without a cluster file, no accelerator."""
    for need in needs:
        if room:
            lacking = {row["node type"]: row[need.stage] for row in room}
            if "fits" in lacking.values():
                continue
            about = f"{options.cluster}: no node type has room for `{need.stage}`: "
            about += "; ".join(f"{name} {what}" for name, what in lacking.items())
        else:
            if not need.device or any(hardware_fits(kind, need.device) for kind in kinds):
                continue
            most = ROOM * max(ACCELERATORS[kind].gigabytes for kind in kinds)
            about = f"`{need.stage}` needs {need.device / 1e9:.1f} GB on a GPU, and none of {', '.join(kinds)} "
            about += f"has more than {most:.1f} GB for it"
        raise InputError(f"{about}; what would fit: {'; '.join(_remedies(options, kinds, need, exams))}")


def _remedies(
    options: PlanOptions, kinds: list[str], need: HardwareNeed, exams: dict[str, PlanQuestions]
) -> Iterator[str]:
    """Yield other options, and GPUs, with which the stage would fit."""
    if not need.device:
        yield "a node type with more CPUs and memory"
        return
    if any(hardware_fits(kind, need.device) for kind in kinds):
        host = need.memory / 1e9
        yield f"nodes with GPUs for {need.workers} workers, and {host:.1f} GB of the host's memory for each"
        return
    for change in [{"method": "qlora"}] if need.stage == "predict" else _changes(options):
        try:
            changed = replace(options, **change)
            size = _device_bytes(changed, need.stage, exams)
        except InputError:  # options that do not go together
            continue
        if any(hardware_fits(kind, size) for kind in kinds):
            given = {name.replace("_", "-"): value for name, value in change.items()}
            yield " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items())
    larger = [kind for kind in ACCELERATORS if hardware_fits(kind, need.device)]
    yield f"a GPU of {math.ceil(need.device / ROOM / 1e9)} GB" + (f" ({', '.join(larger)})" if larger else "")


def _changes(options: PlanOptions) -> Iterator[dict]:
    """Yield changes of options that reduce the memory of training, first singly, then combined."""
    smaller = {"micro_batch": 1, "gradient_checkpointing": True}
    yield {"gradient_checkpointing": True}
    yield {"micro_batch": 1}
    yield smaller
    for method in ("lora", "qlora"):
        if options.method in {"lora": ["full"], "qlora": ["full", "lora"]}[method]:
            yield {"method": method}
            yield {"method": method} | smaller
    for workers in (2, 4, 8, 16):
        if options.batch_size % workers == 0:
            yield smaller | {"zero": 3, "num_workers": workers}


def _device_bytes(options: PlanOptions, stage: str, exams: dict[str, PlanQuestions]) -> int:
    """Return the bytes of GPU memory that a stage needs with the given options."""
    from sciqa.planning.memory import training_memory

    model = _sketch(options)
    activations = _activations(options, model, exams["train"].longest, options.gradient_checkpointing)
    memory = training_memory(model, options, options.num_workers, activations)
    needs = _needs(options, model, memory, exams["exam"].longest)
    return next(need.device for need in needs if need.stage == stage)


def _stage_flops(
    options: PlanOptions, model: "MemorySketch", volume: Volume, exams: dict[str, PlanQuestions]
) -> dict[str, int]:
    """Return the FLOPs of every planned stage that runs a model."""
    from sciqa.planning.flops import question_flops, text_flops

    steps = max(1, round(options.epochs * exams["train"].count / options.batch_size))
    evaluations = 1 + math.ceil(steps / (options.eval_every or max(1, steps // 10)))
    trained = question_flops(model, exams["train"].mean, training=True, checkpointing=options.gradient_checkpointing)
    evaluated = question_flops(model, exams["validation"].mean, training=False)
    flops = {
        "index": volume.passages * text_flops(volume_embedder(options), round(volume.tokens)),
        "finetune": steps * options.batch_size * trained + evaluations * exams["validation"].count * evaluated,
        "predict": exams["exam"].count * question_flops(model, exams["exam"].mean, training=False),
    }
    return {stage: count for stage, count in flops.items() if stage in options.stages}


def _hour_rows(
    options: PlanOptions, kinds: list[str], flops: dict[str, int], volume: Volume, needs: list[HardwareNeed]
) -> Iterator[dict]:
    """Yield a row of FLOPs by stage, then rows of hours, and cost if known, on each accelerator and a CPU core."""
    reading = {"corpus": "–"} if "corpus" in options.stages else {}
    yield {"on": "operations, 10^12"} | reading | {stage: count / 1e12 for stage, count in flops.items()}
    prices = dict(zip(kinds, options.price * (1 if len(options.price) > 1 else len(kinds)), strict=False))
    for kind in kinds:
        speed = ACCELERATORS[kind].teraflops * 1e12 * options.utilisation * options.num_workers
        hours = {stage: count / speed / 3600 for stage, count in flops.items()}
        row = {"on": f"{options.num_workers} {kind}"} | reading | hours
        if lacking := [need.stage for need in needs if need.device and not hardware_fits(kind, need.device)]:
            row["no room for"] = ", ".join(lacking)
        if kind in prices:
            row["cost"] = sum(hours.values()) * options.num_workers * prices[kind]
        yield row
    on_core = dict.fromkeys(reading, volume.passages / PASSAGES_PER_CORE_SECOND / 3600)
    yield {"on": "a CPU core"} | on_core | {stage: count / CORE_FLOPS[stage] / 3600 for stage, count in flops.items()}
