"""Plans beside what is measured: weights, adapters, shards, memory, operations, and published figures."""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from tiny import tiny_folder

from sciqa.errors import InputError
from sciqa.estimate import peak_activations, rank_bytes, sketch, training_memory
from sciqa.models.adapter import make_trainable
from sciqa.models.load import load_base
from sciqa.models.scorer import Encoded
from sciqa.plan import PlanOptions, plan
from sciqa.training import FinetuneOptions, finetune

#: Of glibc's malloc.h.
M_MMAP_THRESHOLD = -3
SMOLLM2 = "SmolLM2-135M-Instruct"


def encoded(prompt, *options):
    """A question of so many tokens."""
    return Encoded([0] * prompt, [[0] * length for length in options], [1.0] * len(options))


def resident(name):
    """Bytes of this process by their name in Linux's status file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def measured(config):
    """A worker's training function that also tells the most bytes that it allocated, and those that Linux gave it."""
    from torch.profiler import ProfilerActivity, profile

    from sciqa.training import loop

    # By default glibc keeps what is freed and cuts it up; so it gives large blocks back at once.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    before = resident("VmRSS")
    batches = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run = loop._Run(**config)
        Path("/proc/self/clear_refs").write_text("5")  # so that the most is not that of loading weights
        count = run.scorer.padded_tokens
        run.scorer.padded_tokens = lambda batch: batches.append(batch) or count(batch)
        made = run.train()
    changes = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = np.cumsum([each.nbytes() for each in sorted(changes, key=lambda each: each.start_ns())])
    largest = max(batches, key=lambda batch: len(batch) * max(question.length for question in batch))
    lengths = [[len(question.prompt), *map(len, question.options)] for question in largest]
    return made | {"allocated": int(changes.max()), "grown": resident("VmHWM") - before, "lengths": lengths}


@pytest.mark.parametrize(("kind", "nf4"), [("float32", False), ("bfloat16", False), ("nf4", True)])
def test_weights_take_the_bytes_that_are_planned(kind, nf4):
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    model, _ = load_base(SMOLLM2, "causal", dtype, nf4=nf4)
    measured = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            inner = state.state2
            measured += sum(each.nbytes for each in (state.absmax, state.code, inner.absmax, inner.code))
    assert sketch(SMOLLM2, "lora", {}).weight_bytes(kind) == pytest.approx(measured, rel=0.02)


def test_adapters_have_the_parameters_that_are_planned():
    model, _ = load_base(SMOLLM2, "causal", torch.bfloat16)
    wrapped = make_trainable(model, "causal", "lora", {"r": 16})
    assert sketch(SMOLLM2, "qlora", {"r": 16}).trained == wrapped.get_nb_trainable_parameters()[0]


def test_llama_2_is_planned_from_its_configuration_alone(tmp_path):
    shape = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000}
    sizes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps(shape | sizes))
    model = sketch(str(tmp_path), "qlora", {})
    assert model.parameters == 6_738_415_616
    # 4 bits and 0.127 for constants (Dettmers et al. 2023, section 3), embeddings and head in 16.
    linear = 6_738_415_616 - 2 * 32000 * 4096
    assert model.weight_bytes("nf4") == pytest.approx(linear * 4.127 / 8 + 2 * 2 * 32000 * 4096, rel=0.01)


def test_what_fits_nowhere_is_refused_with_what_would_fit(tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        "head_node_type: head\navailable_node_types:\n  head: {resources: {CPU: 0}}\n"
        "  cpu: {resources: {CPU: 16}, max_workers: 4}\n"
        '  gpu: {resources: {CPU: 4, GPU: 1, "accelerator_type:T4": 1}, max_workers: 1}\n'
    )
    model = tiny_folder(tmp_path / "llama", "llama")
    common = {"cluster": str(tmp_path / "cluster.yaml"), "articles": 1000, "model": model}
    summary = plan(PlanOptions(**common))
    nodes = {row["node type"]: row for row in summary.details[f"Node types of {common['cluster']}"]}
    assert (nodes["head"]["corpus"], nodes["cpu"]["corpus"]) == ("has no CPU for work", "fits")
    assert (nodes["cpu"]["predict"], nodes["gpu"]["predict"]) == ("has no GPU", "fits")
    with pytest.raises(InputError, match=r"no node type has room for `finetune`.*2 needed.*what would fit: "):
        plan(PlanOptions(**common, num_workers=2))
    with pytest.raises(InputError, match="--accelerator: 'A1000' given"):
        PlanOptions(accelerator=("A1000",))
    (tmp_path / "cluster.yaml").write_text("available_node_types: {gpu: {resources: {CPU: 4, GPU: 1}}}\n")
    with pytest.raises(InputError, match="node type 'gpu': its kind of GPU is not known"):
        plan(PlanOptions(**common))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_rank_holds_the_bytes_that_are_planned(tmp_path, cluster, data, method):
    options = {"model": SMOLLM2, "method": method, "zero": 3, "num_workers": 2, "steps": 1, "batch_size": 4}
    made = finetune(FinetuneOptions(**data, **options, micro_batch=2, output=str(tmp_path))).details
    assert rank_bytes(sketch(SMOLLM2, method, {}).stored, 2) == pytest.approx(made["rank_bytes"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_takes_the_memory_that_is_planned(tmp_path, cluster, data, monkeypatch, method):
    import sciqa.training.loop

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(sciqa.training.loop, "train", measured)
    options = FinetuneOptions(
        **data, output=str(tmp_path), model=SMOLLM2, method=method, num_workers=1, steps=3, batch_size=4, eval_every=100
    )
    made = finetune(options).details
    model = sketch(SMOLLM2, method, {})
    batch = [encoded(*lengths) for lengths in made["lengths"]]
    planned = training_memory(model, options, peak_activations(model, batch, nf4=method == "qlora"))
    print(f"{method}: {planned.total} planned, {made['allocated']} allocated, {made['grown']} grown; {made['lengths']}")
    print(planned)
    assert planned.total == pytest.approx(made["allocated"], rel=0.25)
    assert planned.total == pytest.approx(made["grown"], rel=0.25)
