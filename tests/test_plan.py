"""Plans beside what is measured: weights, adapters, shards, memory, operations, and published figures."""

import ctypes
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import ray
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from tiny import mostly_slow, tiny_folder
from torch.utils.flop_counter import FlopCounterMode

from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_family
from sciqa.models import adapter
from sciqa.models.causal import CausalScorer
from sciqa.models.load import SCORERS, load_base
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer
from sciqa.planning import memory as estimate
from sciqa.planning.flops import question_flops
from sciqa.planning.hardware import HardwareNeed, missing_hardware, read_node_types
from sciqa.planning.memory import (
    build_memory_sketch,
    loading_memory,
    peak_activation_memory,
    rank_memory,
    training_memory,
)
from sciqa.planning.options import PlanOptions
from sciqa.planning.plan import PlanQuestions, _memory_rows, _read_questions, _shape, plan
from sciqa.planning.volume import corpus_volume, faiss_volume_bytes, index_volume_row, volume_embedder
from sciqa.training import FinetuneOptions, finetune

#: Of glibc's malloc.h.
M_MMAP_THRESHOLD = -3
SMOLLM2 = "SmolLM2-135M-Instruct"
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 4096}
LLAMA_7B = LLAMA | {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32000}
LLAMA_70B = LLAMA | {
    **{"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "vocab_size": 32000},
    **{"num_attention_heads": 64, "num_key_value_heads": 8},
}
CLUSTER = """
max_workers: 4
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {InstanceType: m7a.xlarge}}
  cpu: {max_workers: 3, resources: {CPU: 16, memory: 48000000000}}
  gpu: {max_workers: 2, resources: {CPU: 16, GPU: 1, "accelerator_type:A10G": 1, memory: 48000000000}}
  four: {max_workers: 1, resources: {CPU: 48, GPU: 4, memory: 288000000000}, node_config: {InstanceType: g6e.12xlarge}}
"""


def encoded(prompt, *options):
    """A question of so many tokens."""
    return EncodedForScorer([0] * prompt, [[0] * length for length in options], [1.0] * len(options))


def resident(name):
    """Bytes of this process by their name in Linux's status file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def measured(config):
    """A worker's training function that also writes the most bytes that Linux gave it, and its longest batch."""
    from sciqa.training import loop

    # By default glibc keeps what is freed and cuts it up; so it gives large blocks back at once.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    before = resident("VmRSS")
    run = loop._Run(**config)
    Path("/proc/self/clear_refs").write_text("5")  # so that the most is not that of loading weights
    batches, count = [], run.scorer.padded_tokens
    run.scorer.padded_tokens = lambda batch: batches.append(batch) or count(batch)
    run.train()
    largest = max(batches, key=lambda batch: len(batch) * max(question.length for question in batch))
    lengths = [[len(question.prompt), *map(len, question.options)] for question in largest]
    found = {"grown": resident("VmHWM") - before, "lengths": lengths}
    Path(config["options"].output, "measured.json").write_text(json.dumps(found))
    return {}


def tensor_bytes(model):
    """Bytes of a model's parameters, and of NF4's constants, which are no parameters."""
    total, books = 0, set()
    for parameter in model.parameters():
        total += parameter.nbytes
        if state := getattr(parameter, "quant_state", None):
            total += state.absmax.nbytes + state.offset.nbytes + state.state2.absmax.nbytes
            books |= {(book.data_ptr(), book.nbytes) for book in (state.code, state.state2.code)}
    return total + sum(size for _, size in books)


def config_folder(path, config):
    """A folder with the configuration of a model and nothing else."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("kind", mostly_slow(["float32", "bfloat16", "nf4"], "bfloat16"))
def test_weights_have_the_bytes_that_are_planned(kind):
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    model, _ = load_base(SMOLLM2, "causal", dtype, nf4=kind == "nf4")
    assert build_memory_sketch(SMOLLM2, "lora", {}).weight_bytes(kind) == pytest.approx(tensor_bytes(model), rel=0.02)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"r": 16, "target_modules": ["q_proj", "v_proj"]}, marks=pytest.mark.slow),
        {"layers_to_transform": [0, 3], "r": 4, "target_modules": ["q_proj"]},
    ],
)
def test_trained_parameters_are_those_that_peft_reports(fields):
    base, _ = load_base(SMOLLM2, "causal", torch.bfloat16)
    model = adapter.add_trainable_adapter(base, "causal", "lora", fields)
    assert build_memory_sketch(SMOLLM2, "lora", fields).trained == model.get_nb_trainable_parameters()[0]


def test_the_reuse_distance_is_that_of_deepspeed():
    assert DeepSpeedZeroConfig().max_reuse_distance == estimate.REUSE_DISTANCE


class WholeLoss(CausalScorer):
    """The loss of all tokens as transformers computed it in 2023: from copies of all logits in float32."""

    def forward(self, batch):
        ids = torch.tensor([question.prompt + question.options[0] for question in batch])
        logits = self.model(input_ids=ids, use_cache=False).logits.float()[:, :-1].contiguous()
        return [torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())[None]]


#: Figures that others measured, in 10^9 bytes, each with its source and what was trained there.
PUBLISHED = {
    # Lit-GPT, tutorials/resource-tables.md, 10/2023: Llama 2 on an A100, longest row 1,304 tokens.
    "7B LoRA, Lit-GPT": (
        21.30, LLAMA_7B, "lora", {"target_modules": ["q_proj", "v_proj"]}, [1304], {},
    ),
    # The same table, bnb.nf4-dq.
    "7B QLoRA, Lit-GPT": (
        13.84, LLAMA_7B, "qlora", {"target_modules": ["q_proj", "v_proj"]}, [1304], {},
    ),
    # Answer.AI, fsdp_qlora, benchmarks_03_2024.md: 20.94 GiB reserved on each of two GPUs that share nothing; all
    # linear layers but one.
    "7B QLoRA, Answer.AI": (
        20.94 * 1.0737, LLAMA_7B, "qlora",
        {"r": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj", "gate_proj"]},
        [2048] * 8, {"gradient_checkpointing": True},
    ),
    # peft, docs/source/accelerate/deepspeed.md: Llama-2-70b, ZeRO-3 on two GPUs of 40 GB, all linear layers.
    "70B QLoRA, peft": (
        36.6, LLAMA_70B, "qlora", {"lora_dropout": 0.1}, [2048] * 2,
        {"gradient_checkpointing": True, "zero": 3, "num_workers": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(PUBLISHED, "7B QLoRA, Answer.AI"))
def test_plans_agree_with_published_figures(tmp_path, monkeypatch, name):
    gigabytes, config, method, fields, lengths, changes = PUBLISHED[name]
    model = build_memory_sketch(config_folder(tmp_path / "model", config), method, fields)
    assert model.parameters == {"7B": 6_738_415_616, "70B": 68_976_648_192}[name.split()[0]]
    options = FinetuneOptions(method=method, **{"num_workers": 1} | changes)
    batch = [encoded(1, length - 1) for length in lengths]
    checkpointing = options.gradient_checkpointing
    if not name.endswith("Lit-GPT"):  # which never has all logits in float32
        monkeypatch.setitem(SCORERS, "causal", WholeLoss)
    activations = peak_activation_memory(model, batch, checkpointing=checkpointing, nf4=method == "qlora")
    assert training_memory(model, options, options.num_workers, activations).total / 1e9 == pytest.approx(
        gigabytes, rel=0.2
    )


def test_llama_2_70b_in_nf4_has_the_published_size(tmp_path):
    """Lit-GPT's table again: 37.21 GB in inference, with bnb.nf4-dq."""
    model = build_memory_sketch(config_folder(tmp_path / "model", LLAMA_70B), "qlora", {})
    assert model.weight_bytes("nf4") / 1e9 == pytest.approx(37.21, rel=0.05)


@pytest.mark.parametrize("method", mostly_slow(["lora", "full"], "lora"))
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_operations_are_those_that_pytorch_counts(tmp_path, family, method):
    folder = tiny_folder(tmp_path / family, family)
    base, tokenizer = load_base(folder, model_file_family(folder), torch.float32)
    base.set_attn_implementation("eager")  # PyTorch does not count its fused attention on a CPU
    scorer = SCORERS[model_file_family(folder)](
        adapter.add_trainable_adapter(base, model_file_family(folder), method, {}), tokenizer, PromptFormat()
    )
    question, planned = encoded(200, 10, 10, 10), build_memory_sketch(folder, method, {})
    assert scorer.layout in ("packed", "padded")  # proved here, so that the proof's own operations are not counted
    with FlopCounterMode(display=False) as forward:
        scores = scorer.train()([question])
    with FlopCounterMode(display=False) as backward:
        scores[0].logsumexp(0).backward()
    counted = forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()
    ours = [question_flops(planned, question, training=training) for training in (False, True)]
    np.testing.assert_allclose(ours, counted, rtol=0.1)
    if method == "full":  # two backward products for each one forward (Kaplan et al. 2020), none for the input
        assert 2.8 * ours[0] < ours[1] <= 3 * ours[0]


@pytest.mark.parametrize("family", ["t5", "deberta-v2"])
def test_encoders_and_encoder_decoders_are_planned(tmp_path, family):
    planned = build_memory_sketch(tiny_folder(tmp_path / family, family), "lora", {})
    short, long = ([encoded(length, 10, 10) if family == "t5" else encoded(0, length, length)] for length in (100, 200))
    answering = [peak_activation_memory(planned, batch, training=False) for batch in (short, long)]
    training = [peak_activation_memory(planned, batch) for batch in (short, long)]
    assert answering[0] < answering[1] < training[1]
    assert answering[0] < training[0] < training[1]
    assert question_flops(planned, short[0], training=True) < question_flops(planned, long[0], training=True)


@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "HNSW16",
        "SQ8",
        "IVF16,Flat",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("PQ48", "OPQ48,IVF16,PQ48")),
    ],
)
def test_faiss_files_have_the_size_that_is_planned(factory):
    vectors = np.random.default_rng(1).standard_normal((3000, 96)).astype(np.float32)
    index = faiss.index_factory(96, factory)
    index.train(vectors)
    index.add(vectors)
    fixed, each = faiss_volume_bytes(factory, 96)
    assert fixed + each * len(vectors) == pytest.approx(len(faiss.serialize_index(index)), rel=0.02)


@pytest.fixture
def cluster_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return str(path)


def test_operations_of_a_mixture_count_the_experts_of_each_token(tmp_path):
    mixtral = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 300, "hidden_size": 64}
    mixtral |= {"intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    counts = []
    for chosen in (1, 3):
        folder = config_folder(tmp_path / f"{chosen}", mixtral | {"num_experts_per_tok": chosen})
        planned = build_memory_sketch(folder, "lora", {"target_modules": ["q_proj"]})
        counts.append(question_flops(planned, encoded(200, 10, 10), training=False))
    products = 2 * 3 * 64 * 128  # of a token with the three weights of an expert
    assert counts[1] - counts[0] == 2 * 2 * 220 * products


def test_contexts_of_an_exam_are_planned_with_the_passages(tmp_path):
    row = {"prompt": "Which is a gas?", "A": "iron", "B": "helium", "answer": "B"}
    lengths = {}
    for name, context in (("long", "Iron is a metal that rusts. " * 60), ("none", None)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row | {"context": context}))
        options = PlanOptions(model=config_folder(tmp_path / name, LLAMA), exam=str(path), articles=1000)
        sketch = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace()), family="causal")
        read = _read_questions(options, sketch, corpus_volume(options), "exam")
        lengths[name] = len(read.longest.prompt), len(read.mean.prompt)
    assert [long - none > 300 for long, none in zip(lengths["long"], lengths["none"], strict=True)] == [True, True]


@pytest.mark.parametrize(("positions", "tokens"), [(-1, 300), (None, 300), (100, 90)])
def test_a_question_is_as_long_as_its_model_takes(positions, tokens):
    config = SimpleNamespace(max_position_embeddings=positions)
    sketch = SimpleNamespace(model=SimpleNamespace(config=config), family="causal")
    assert len(_shape(PlanOptions(), sketch, 300, [10, 5]).prompt) == tokens


def test_what_would_fit_an_answer_is_counted_with_the_exam_s_own_questions(monkeypatch):
    asked = []
    exams = {name: PlanQuestions(1, None, encoded(length, 5)) for name, length in (("train", 900), ("exam", 90))}
    planning = importlib.import_module("sciqa.planning.plan")
    monkeypatch.setattr(planning, "_sketch", lambda options: None)
    monkeypatch.setattr(planning, "_activations", lambda options, model, longest, _: asked.append(longest.length))
    monkeypatch.setattr("sciqa.planning.memory.training_memory", lambda *_: None)

    def needs(options, model, memory, longest):
        asked.append(longest.length)
        return [HardwareNeed("predict", 1, 0, 7)]

    monkeypatch.setattr(planning, "_needs", needs)
    assert planning._device_bytes(PlanOptions(), "predict", exams) == 7
    assert asked == [exams["train"].longest.length, exams["exam"].longest.length]


def test_an_embedder_that_cannot_be_planned_is_one_line(tmp_path):
    folder = Path(config_folder(tmp_path / "embedder", {"model_type": "bert"}))
    (folder / "model.safetensors").write_bytes(b"")
    options = PlanOptions(embedder=str(folder), articles=1000)
    with pytest.raises(InputError, match=r"embedder: neither its modules nor its config.json say how long its vectors"):
        index_volume_row(options, corpus_volume(options))
    (folder / "config.json").write_text('{"model_type": "no-such-kind"}')
    with pytest.raises(InputError, match="embedder: not the configuration of an embedder"):
        volume_embedder(options)


def test_a_model_that_keeps_its_activations_is_planned_so(tmp_path):
    albert = {"architectures": ["AlbertModel"], "model_type": "albert", "vocab_size": 300, "hidden_size": 64}
    albert |= {"embedding_size": 32, "intermediate_size": 128, "num_attention_heads": 4}
    options = PlanOptions(model=config_folder(tmp_path / "albert", albert), method="full")
    model = build_memory_sketch(options.model, "full", {})
    rows = [about["checkpointing"] for about, _ in _memory_rows(options, model, encoded(0, 30, 30))]
    assert rows == ["no"] * 3
    with pytest.raises(InputError, match="--gradient-checkpointing: albert models cannot compute activations again"):
        plan(replace(options, gradient_checkpointing=True, articles=1000))


def test_node_types_and_what_they_lack(cluster_file):
    nodes = {node.name: node for node in read_node_types(cluster_file)}
    assert {name: (node.gpus, node.kind, node.most) for name, node in nodes.items()} == {
        "head": (0, None, 1),
        "cpu": (0, None, 3),
        "gpu": (1, "A10G", 2),
        "four": (4, "L40S", 1),
    }
    need = HardwareNeed("finetune", 4, 10**10, 20 * 10**9)
    lacking = {name: missing_hardware(node, need, has_gpus=True) for name, node in nodes.items()}
    assert lacking["four"] is None
    for name, said in (("head", "no CPU"), ("cpu", "no GPU"), ("gpu", "2 workers in all, 4 needed")):
        assert said in lacking[name]
    assert "21.6 GB" in missing_hardware(nodes["gpu"], HardwareNeed("finetune", 1, 0, 22 * 10**9), has_gpus=True)
    assert "of memory" in missing_hardware(nodes["gpu"], HardwareNeed("finetune", 1, 10**11, 10**9), has_gpus=True)
    assert missing_hardware(nodes["cpu"], HardwareNeed("index", 1, 10**8), has_gpus=True) is None


def test_nodes_are_limited_by_their_type_and_by_the_whole_cluster(tmp_path):
    text = "max_workers: 2\nhead_node_type: head\navailable_node_types:\n"
    text += "  head: {max_workers: HEAD, resources: {CPU: 8}}\n  cpu: {max_workers: 10, resources: {CPU: 8}}\n"
    for head, most in (("0", 1), ("1", 2), ("null", None)):
        (tmp_path / "cluster.yaml").write_text(text.replace("HEAD", head))
        if most is None:
            with pytest.raises(InputError, match="node type 'head': max_workers None found, a whole number of"):
                read_node_types(str(tmp_path / "cluster.yaml"))
        else:
            found = {node.name: node.most for node in read_node_types(str(tmp_path / "cluster.yaml"))}
            assert found == {"head": most, "cpu": 2}


def test_what_is_offloaded_is_in_the_same_memory_where_there_is_no_gpu(cluster_file):
    node = next(node for node in read_node_types(cluster_file) if node.name == "cpu")
    held = HardwareNeed("finetune", 1, 30 * 10**9, 20 * 10**9)
    assert missing_hardware(node, held, has_gpus=False) is None
    assert "56.8 GB needed" in missing_hardware(node, replace(held, offloaded=20 * 10**9), has_gpus=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a", "not YAML"),
        ("available_node_types: {a: text}", "node type 'a': a mapping with `resources`"),
        ("available_node_types: {a: {resources: text}}", "node type 'a': a mapping with `resources`"),
        ("available_node_types: {a: {resources: {CPU: 1}, max_workers: '3'}}", "max_workers '3' found, a whole number"),
        ("{max_workers: '3', available_node_types: {a: {resources: {CPU: 1}}}}", "max_workers '3' found"),
        ("cluster_name: x", "available_node_types"),
        ("available_node_types: {a: {resources: {GPU: 1}}}", "no CPU in its resources"),
        ("available_node_types: {a: {resources: {CPU: 4, GPU: 1}}}", "kind of GPU is not known"),
        ("available_node_types: {a: {resources: {CPU: many}}}", "a number of at least 0 expected"),
        ("available_node_types: {a: {resources: {CPU: true}}}", "CPU True found, a number"),
        ("available_node_types: {a: {resources: {CPU: -1}}}", "CPU -1 found, a number"),
        ("available_node_types: {a: {resources: {CPU: 4, memory: .nan}}}", "memory nan found, a number"),
        ("available_node_types: {a: {resources: {CPU: 4, GPU: .inf}}}", "GPU inf found, a whole number"),
        ("available_node_types: {a: {resources: {CPU: 4, GPU: 0.5}}}", "GPU 0.5 found, a whole number"),
        ("available_node_types: {a: {resources: {CPU: 4, GPU: 1, 5: 1}}}", "kind of GPU is not known"),
        ("{max_workers: -1, available_node_types: {a: {resources: {CPU: 1}}}}", "max_workers -1 found"),
    ],
)
def test_cluster_files_that_do_not_tell_are_refused(tmp_path, text, said):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        read_node_types(str(tmp_path / "cluster.yaml"))


def run_plan(*arguments):
    """Run `sciqa plan` in a process of its own, which then fails where Ray was started."""
    code = "import sys; from sciqa.cli import main; main(sys.argv[1:]); import ray; assert not ray.is_initialized()"
    command = [sys.executable, "-c", code, "plan", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_a_model_without_weights_is_planned_for_a_cluster(tmp_path, cluster_file):
    folder = config_folder(tmp_path / "model", LLAMA_7B)
    result = run_plan("--model", folder, "--method", "qlora", "--articles", 6900000, "--cluster", cluster_file)
    assert result.returncode == 0, result.stderr
    for said in ("6,738,415,616", "19,988,480", "40,000,000", "A10G", "L40S", "has no GPU"):
        assert said in result.stdout


@pytest.mark.slow
def test_what_fits_nowhere_is_refused_with_what_would(tmp_path, cluster_file, here):
    folder = config_folder(tmp_path / "model", LLAMA_7B | {"num_hidden_layers": 16})
    result = here("plan", "--model", folder, "--method", "full", "--articles", 1000, "--cluster", cluster_file)
    assert result.returncode == 2, result.stderr
    for said in ("no node type has room for `finetune`", "gpu has 21.6 GB", "--method qlora", "a GPU of"):
        assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "K80"], "--gpus: 'K80'"),
        (["--batch-size", 7], "--batch-size: 7"),
        (["--utilisation", 2], "--utilisation"),
        (["--model", "no/such-model"], "no/such-model"),
        (["--price", 1, 2], "--price"),
        (["--price", "nan"], "--price: nan given, a finite number expected"),
        (["--price", "-1"], "--price: -1.0 given"),
        (["--articles", 9, "--passage-tokens", 128], "--passage-tokens: 128 given, and --articles"),
        (["--articles", 9, "--passage-overlap", 0], "--passage-overlap: 0 given, and --articles"),
    ],
)
def test_bad_options_of_a_plan(arguments, said, here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = here("plan", *arguments)
    assert (result.returncode, said in result.stderr) == (2, True), result.stderr


def test_a_rank_of_zero_3_is_planned_to_load_its_share_beside_the_largest_weight():
    model = build_memory_sketch(SMOLLM2, "lora", {})
    whole, largest = (loading_memory(model, FinetuneOptions(zero=2), 4), 2 * 49152 * 576)
    assert whole > model.weight_bytes("bfloat16")
    for workers in (2, 4):
        planned = loading_memory(model, FinetuneOptions(zero=3), workers)
        assert planned == rank_memory(model.stored, workers) + 3 * largest
    assert planned < whole == loading_memory(model, FinetuneOptions(zero=3), 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_ranks_of_zero_3_hold_the_bytes_that_are_planned(tmp_path, cluster, data, method):
    options = FinetuneOptions(
        **data, output=str(tmp_path), model=SMOLLM2, method=method, zero=3, num_workers=2, steps=1, batch_size=4,
        micro_batch=2, eval_every=100, max_length=128,
    )  # fmt: skip
    made = finetune(options).details
    stored = build_memory_sketch(SMOLLM2, method, {}).stored
    print(f"{method}: {rank_memory(stored, 2)} of {rank_memory(stored, 1)} planned, {made['rank_bytes']} of "
          f"{made['model_bytes']} measured")  # fmt: skip
    assert rank_memory(stored, 2) == pytest.approx(made["rank_bytes"], rel=0.1)
    assert rank_memory(stored, 1) == pytest.approx(made["model_bytes"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_training_takes_the_memory_that_is_planned(tmp_path, cluster, data, monkeypatch, method):
    import sciqa.training.loop

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(sciqa.training.loop, "train_loop", measured)
    options = FinetuneOptions(
        **data,
        output=str(tmp_path),
        model=SMOLLM2,
        method=method,
        num_workers=1,
        steps=3,
        batch_size=4,
        eval_every=100,
        max_failures=0,
    )
    finetune(options)
    made = json.loads((tmp_path / "measured.json").read_text())
    model = build_memory_sketch(SMOLLM2, method, {})
    batch = [encoded(*lengths) for lengths in made["lengths"]]
    planned = training_memory(model, options, 1, peak_activation_memory(model, batch, nf4=method == "qlora"))
    print(f"{method}: {planned.total} planned, {made['grown']} grown; {made['lengths']}")
    print(planned)
    assert planned.total == pytest.approx(made["grown"], rel=0.15)
