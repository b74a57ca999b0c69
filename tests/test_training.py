"""Training: losses of one process and many, what is saved, what a kill leaves, what is refused."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import psutil
import pyarrow as pa
import pytest
import ray.train.torch
import torch
import transformers
from conftest import QUESTIONS, write_jsonl
from ray.train import TrainingFailedError
from tiny import CAUSAL, FAMILIES, tiny_folder

from sciqa import run_training
from sciqa.core import storage, tables, worker_loss
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.models import adapter
from sciqa.models.load import load_base, load_scorer
from sciqa.models.merge import merge
from sciqa.models.options import MergeOptions
from sciqa.models.scorer import score_options
from sciqa.predict import PredictOptions, predict
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.run_training import RunFinetuneOptions
from sciqa.training import FinetuneOptions, finetune, ray_train
from sciqa.training.example_files import example_file_batches, map_example_file, write_example_file
from sciqa.training.examples import ExampleOrder, Examples
from sciqa.training.finetune import check_before_finetune
from sciqa.training.loop import _Run
from sciqa.training.loss import mean_loss
from sciqa.training.model_check import check_finetune_model
from sciqa.training.ray_train import check_ray_train_batch, check_ray_train_folder, num_ray_train_workers
from sciqa.training.sharding import keep_4bit_sharding

STEPS = 20


@pytest.fixture(scope="module")
def exam_contexts(tmp_path_factory, exam_file, small_index):
    """The contexts table of the small exam."""
    output = str(tmp_path_factory.mktemp("exam"))
    return retrieve(RetrieveOptions(output=output, index=f"{small_index}/index", exam=exam_file)).path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models, each made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family):
        if family not in made:
            made[family] = tiny_folder(root / family, family)
        return made[family]

    return folder


def history(folder):
    return tables.read_table(f"{folder}/metrics.parquet").to_pylist()


def losses(folder):
    return np.array([row["loss"] for row in history(folder) if row["loss"] is not None])


def tiny_run(data, output, **changes):
    """Options of a short float32 run."""
    common = {"precision": "float32", "batch_size": 8, "micro_batch": 2, "eval_every": 100, "max_length": 128}
    return FinetuneOptions(**data | common | {"output": str(output), "steps": STEPS, "learning_rate": 5e-3} | changes)


def read_examples(exam, contexts):
    return Examples(pa.concat_tables(example_file_batches(exam, contexts)))


def plain_losses(options, family):
    """The reference: transformers, peft and PyTorch's AdamW in this process; no Ray, no DeepSpeed."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    model, tokenizer = load_base(options.model, family, torch.float32, nf4=options.method == "qlora")
    keep_4bit_sharding(model)
    model = adapter.add_trainable_adapter(model, family, options.method, options.peft_fields())
    from sciqa.models.load import SCORERS
    from sciqa.training.finetune import open_finetune_split
    from sciqa.training.loop import training_loop_style

    scorer = SCORERS[family](model, tokenizer, training_loop_style(options, tokenizer)).train()
    examples = read_examples(open_finetune_split(options, "train"), options.train_contexts)

    def encode(epoch, number):
        question, context, gold = examples.varied(number, epoch, options)
        encoded = scorer.encode(question, context)
        return (encoded.only(gold), 0) if options.loss == "completion" else (encoded, gold)

    order = ExampleOrder(len(examples), options.steps, options.batch_size, options.seed, encode)
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
    warmup = round(options.warmup * options.steps)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, options.steps)
    found = []
    for step in range(options.steps):
        batch = order.batch(step)
        loss = mean_loss(scorer([question for question, _ in batch]), [gold for _, gold in batch], options.loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options.clip)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        found.append(loss.item())
    return np.array(found)


#: ZeRO stage and number of workers.
SHARDS = ((0, 1), (2, 2), (3, 2))


@pytest.mark.parametrize(
    ("family", "kind", "method", "shards"),
    [
        ("llama", "causal", "qlora", SHARDS[1:]),
        ("llama", "causal", "lora", SHARDS),
        ("bert", "multiple-choice", "full", SHARDS),
    ],
)
@pytest.mark.slow
def test_one_process_and_shards_give_the_same_losses(tmp_path, cluster, data, models, family, kind, method, shards):
    base = {"model": models(family), "method": method, "learning_rate": 2e-3}
    if kind == "causal":
        base |= {"peft": "{r: 4, lora_dropout: 0.0}", "loss": "completion", "learning_rate": 1e-2}
    reference = plain_losses(tiny_run(data, tmp_path, **base), kind)
    untrained = plain_losses(tiny_run(data, tmp_path, **base | {"learning_rate": 1e-12}), kind)
    assert np.abs(reference / untrained - 1).max() > 1e-2, "nothing was learnt, so nothing was compared"
    for zero, workers in shards:
        # An evaluation in the middle, which must leave the next loss as it would have been.
        options = tiny_run(data, tmp_path, **base, zero=zero, num_workers=workers, name=f"z{zero}", eval_every=7)
        made = finetune(options)
        np.testing.assert_allclose(losses(made.path), reference, rtol=1e-4, err_msg=f"ZeRO-{zero}, {workers} workers")
        if zero == 3 and method == "qlora":
            assert made.details["rank_bytes"] < 0.75 * made.details["model_bytes"]


def test_evaluation_leaves_4_bit_weights_as_they_are(models):
    """On a CPU with AVX512-BF16 bitsandbytes would re-pack them in place."""
    model, _ = load_base(models("llama"), "causal", torch.float32, nf4=True)
    keep_4bit_sharding(model)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "quant_state")}
    before = {name: layer.weight.data.view(torch.uint8).clone() for name, layer in layers.items()}
    assert len(before) == 14
    with torch.no_grad():
        model.eval()(torch.arange(20)[None])
    for name, layer in layers.items():
        assert torch.equal(layer.weight.data.view(torch.uint8), before[name])
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_lists_as_options_are_what_tuples_are():
    given = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(FinetuneOptions()).items()
    }
    assert FinetuneOptions(**given) == FinetuneOptions()
    assert FinetuneOptions(**given | {"objective": "reward", "train": "a.jsonl", "validation": "b.jsonl"}).columns == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_of_every_architecture_is_accepted(models, family):
    """Heads that are saved whole have other names in peft's model."""
    check_finetune_model(FinetuneOptions(model=models(family)))


ARCHITECTURES = [
    *(
        pytest.param(family, "lora", id=f"{family}-lora", marks=pytest.mark.slow)
        for family in ("llama", "deberta-v2", "mistral", "phi3", "bert", "t5")
    ),
    *(pytest.param(family, "full", id=f"{family}-full", marks=pytest.mark.slow) for family in FAMILIES),
    *(pytest.param(family, "qlora", id=f"{family}-qlora", marks=pytest.mark.slow) for family in CAUSAL),
]


@pytest.mark.parametrize(("family", "method"), ARCHITECTURES)
def test_every_architecture_trains_saves_loads_elsewhere_and_predicts(
    tmp_path, cluster, data, models, family, method, exam_file, exam_contexts
):
    made = finetune(tiny_run(data, tmp_path, model=models(family), method=method, steps=2, name=method))
    assert len(losses(made.path)) == 2
    trained = {"model": made.path} if method == "full" else {"model": models(family), "adapter": made.path}
    ours = load_scorer(trained["model"], adapter=trained.get("adapter"), precision="float32")
    auto = getattr(transformers, ours.auto_class)
    plain = auto.from_pretrained(trained["model"], use_safetensors=True)
    if method != "full":
        plain = peft.PeftModel.from_pretrained(plain, made.path)
    question = read_exam("direct-validation").to_pylist()[0]
    encoded = ours.encode(question, "Some context.")
    theirs = type(ours)(plain.eval(), ours.tokenizer, ours.style)
    np.testing.assert_allclose(score_options(ours, [encoded])[0], score_options(theirs, [encoded])[0], atol=1e-5)
    asked = {"output": str(tmp_path), "exam": exam_file, "contexts": exam_contexts}
    answered = predict(PredictOptions(**asked, **trained, nf4=method == "qlora"))
    assert answered.details["questions"] == QUESTIONS
    assert Path(answered.path).name == f"open-book-{method}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cluster, data, models):
    """Options of a run one of whose workers was killed, what it made, and what it printed."""
    fields = "{r: 4, use_rslora: true, target_modules: [q_proj, v_proj], layers_to_transform: [1]}"
    fields = fields.replace("}", ", rank_pattern: {v_proj: 2}}")
    chosen = {"model": models("llama"), "peft": fields, "eval_every": 3, "hide_gold": 0.5, "max_passages": 3}
    options = tiny_run(data, tmp_path_factory.mktemp("trained"), **chosen, steps=12, learning_rate=1e-2)
    with contextlib.redirect_stderr(io.StringIO()) as err:
        killer = threading.Thread(target=kill_a_worker, args=(options.folder,))
        killer.start()
        made = finetune(options)
        killer.join()
    return options, made, err.getvalue()


def test_a_killed_worker_ends_with_the_losses_of_one_process(trained):
    options, made, err = trained
    np.testing.assert_allclose(losses(made.path), plain_losses(options, "causal"), rtol=1e-4)
    evaluated = [row["validation_loss"] for row in history(made.path) if row["map_at_3"] is not None]
    assert abs(evaluated[-1] / evaluated[0] - 1) > 1e-3, "nothing was learnt, so nothing was compared"
    assert "finetune: a worker on " in err


def test_the_best_step_is_kept_and_what_is_trained_differs_from_the_base(
    tmp_path, models, trained, exam_file, exam_contexts
):
    options, made, _ = trained
    evaluations = [row for row in history(made.path) if row["map_at_3"] is not None]
    assert [row["step"] for row in evaluations] == [0, 3, 6, 9, 12]
    best = max(evaluations, key=lambda row: (row["map_at_3"], -row["validation_loss"]))
    assert made.details["best_step"] == best["step"]
    config = json.loads(Path(made.path, "adapter_config.json").read_text())
    assert (config["use_rslora"], config["layers_to_transform"], config["rank_pattern"]) == (True, [1], {"v_proj": 2})
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(models("llama"), use_safetensors=True)
    plain = peft.PeftModel.from_pretrained(plain, made.path)
    shapes = {name: tuple(weight.shape) for name, weight in plain.named_parameters() if "lora_A" in name}
    assert all(".layers.1." in name for name in shapes)
    assert sorted(shape[0] for shape in shapes.values()) == [2, 4]
    assert any(path.name.startswith("events") for path in Path(made.path, "tensorboard").iterdir())
    again = finetune(options)
    assert again.made.endswith("kept")
    merged = merge(MergeOptions(model=models("llama"), adapter=made.path, output=str(tmp_path / "merged")))
    whole = transformers.AutoModelForCausalLM.from_pretrained(merged.path, use_safetensors=True)
    ids = torch.arange(30)[None]
    np.testing.assert_allclose(whole(ids).logits.detach(), plain(ids).logits.detach(), atol=1e-5)
    asked = {"output": str(tmp_path), "exam": exam_file, "contexts": exam_contexts}
    ours = predict(PredictOptions(**asked, model=models("llama"), adapter=made.path, precision="float32"))
    theirs = predict(PredictOptions(**asked, model=merged.path, precision="float32", name="merged"))
    for one, two in zip(*(tables.read_table(each.path).to_pylist() for each in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-5)


@pytest.mark.slow
def test_soft_prompts_and_early_stopping(tmp_path, cluster, data, models):
    made = finetune(
        tiny_run(
            data, tmp_path, model=models("llama"), method="prompt-tuning", peft="{num_virtual_tokens: 4}",
            eval_every=1, patience=2, learning_rate=1e-8, steps=12,
        )
    )  # fmt: skip
    assert made.details["steps"] < 12
    weights = Path(made.path, "adapter_model.safetensors")
    assert weights.stat().st_size < 10_000
    with pytest.raises(InputError, match="nothing to merge"):
        merge(MergeOptions(model=models("llama"), adapter=made.path, output=str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_optimizer_offload_and_gradient_checkpointing_change_no_loss(tmp_path, cluster, data, models):
    common = {"model": models("llama"), "steps": 3, "loss": "completion", "completion": "letter"}
    plain = finetune(tiny_run(data, tmp_path, **common, name="plain"))
    other = tiny_run(data, tmp_path, **common, name="other", zero=2, offload=True, gradient_checkpointing=True)
    np.testing.assert_allclose(losses(finetune(other).path), losses(plain.path), rtol=1e-4)


@pytest.mark.slow
def test_a_killed_worker_of_two_ends_with_the_losses_of_one_process(tmp_path, cluster, data, models, capsys):
    fields = {"model": models("llama"), "method": "qlora", "peft": "{r: 4, lora_dropout: 0.0}", "learning_rate": 1e-2}
    fields |= {"zero": 3, "num_workers": 2, "eval_every": 3, "steps": 12}
    options = tiny_run(data, tmp_path, **fields, loss="completion")
    expected = plain_losses(options, "causal")
    untrained = plain_losses(replace(options, learning_rate=1e-12), "causal")
    assert np.abs(expected / untrained - 1).max() > 1e-2, "nothing was learnt, so nothing was compared"
    killer = threading.Thread(target=kill_a_worker, args=(options.folder,))
    killer.start()
    made = finetune(options)
    killer.join()
    np.testing.assert_allclose(losses(made.path), expected, rtol=1e-4)
    assert made.details["rank_bytes"] < 0.75 * made.details["model_bytes"]
    assert "finetune: a worker on " in capsys.readouterr().err  # the other one may crash without it, and be told too


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory, cluster, data, models):
    """Options of a run on some workers in a ZeRO stage, and its losses when nothing happens to it."""
    workers, zero = request.param
    common = {"model": models("llama"), "num_workers": workers, "zero": zero, "eval_every": 5, "steps": 25}
    common |= {"peft": "{r: 4, lora_dropout: 0.1}"}
    made = finetune(tiny_run(data, tmp_path_factory.mktemp("undisturbed"), **common))
    return common, losses(made.path)


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", [(1, 0), (2, 2)], indirect=True)
def test_a_killed_worker_ends_as_an_undisturbed_run(tmp_path, data, undisturbed, capsys):
    common, expected = undisturbed
    options = tiny_run(data, tmp_path, **common)
    killer = threading.Thread(target=kill_a_worker, args=(options.folder,))
    killer.start()
    made = finetune(options)
    killer.join()
    assert len(losses(made.path)) == len(expected) == 25
    np.testing.assert_allclose(losses(made.path)[-1], expected[-1], atol=1e-3)
    err = capsys.readouterr().err
    assert err.count("finetune: a worker on ") == 1, err


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", [(2, 2)], indirect=True)
def test_a_run_that_loses_too_many_workers_says_so_in_one_line(tmp_path, data, undisturbed):
    options = tiny_run(data, tmp_path, **undisturbed[0], max_failures=0)
    killer = threading.Thread(target=kill_a_worker, args=(options.folder,))
    killer.start()
    with pytest.raises(TrainingFailedError) as error:
        finetune(options)
    killer.join()
    said = str(worker_loss.worker_loss_error(error.value))
    assert said.startswith("finetune: a worker was lost again and again; the last one on ")
    assert "--micro-batch" in said


@pytest.mark.slow
@pytest.mark.parametrize("undisturbed", [(2, 2)], indirect=True)
def test_a_killed_driver_goes_on_and_ends_as_an_undisturbed_run(tmp_path, data, undisturbed):
    common, expected = undisturbed
    options = tiny_run(data, tmp_path, **common)
    kill_driver(options)
    made = finetune(options)
    assert len(losses(made.path)) == 25
    np.testing.assert_allclose(losses(made.path)[-1], expected[-1], atol=1e-3)


@pytest.mark.parametrize("given", ["0", "0-2", "3-1", "1-", "-2", "two", "1.5", 0])
def test_a_number_of_workers_is_a_number_or_a_range(given):
    with pytest.raises(InputError, match="a number from 1, a range or auto expected"):
        FinetuneOptions(num_workers=given)


def test_a_range_of_workers_shares_each_batch_and_checkpoint():
    options = FinetuneOptions(num_workers="1-3", zero=0, batch_size=12, micro_batch=2)
    assert (list(options.worker_range), num_ray_train_workers(options)) == ([1, 2, 3], 3)
    with pytest.raises(InputError, match=r"a multiple of --micro-batch \(2\) times the number of workers \(3"):
        check_ray_train_batch(replace(options, batch_size=16), options.worker_range[-1])
    for other in ({"zero": 2}, {"zero": 3}, {"objective": "dpo"}):
        with pytest.raises(InputError, match="--num-workers 1-3: only --objective rank with --zero 0 goes on"):
            replace(options, **other)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_only_a_run_without_sharded_checkpoints_goes_on_with_other_workers(tmp_path, zero):
    options = FinetuneOptions(output=str(tmp_path), zero=zero)
    tables.begin_table(options.folder, {"zero": zero, "num_workers": 2})
    storage.write_bytes(f"{options.folder}/checkpoints/1/model", b"")
    refused = pytest.raises(InputError, match="num_workers: 2 there, 1 now") if zero else contextlib.nullcontext()
    with refused:
        assert check_ray_train_folder(options, {"zero": zero, "num_workers": 1})
    assert check_ray_train_folder(options, {"zero": zero, "num_workers": 2})


@pytest.mark.slow
@pytest.mark.parametrize(("begun_with", "workers"), [(2, 1), (1, 2)])
def test_a_killed_driver_goes_on_with_another_number_of_workers(tmp_path, cluster, data, models, begun_with, workers):
    common = {"model": models("llama"), "eval_every": 5, "steps": 25, "peft": "{r: 4, lora_dropout: 0.0}"}
    expected = losses(finetune(tiny_run(data, tmp_path / "one", **common, num_workers=1)).path)
    options = tiny_run(data, tmp_path / "other", **common, num_workers=begun_with)
    kill_driver(options)
    begun = json.loads(next(Path(options.folder, "checkpoints").glob("*/history.json")).read_text())
    made = finetune(replace(options, num_workers=workers))
    assert history(made.path)[0]["seconds"] == begun[0]["seconds"], "it began anew"
    assert len(losses(made.path)) == 25
    np.testing.assert_allclose(losses(made.path), expected, rtol=1e-4)


def wait_for_checkpoint(folder, driver=None, count=2):
    """Wait until some checkpoints are whole; by default one later than that of the untrained model."""
    end, seen = time.monotonic() + 200, set()
    snapshot = Path(folder, "checkpoints", "checkpoint_manager_snapshot.json")
    while time.monotonic() < end:
        if snapshot.exists():  # only the best and the last are kept, which may be the same one
            kept = json.loads(snapshot.read_text() or "{}").get("checkpoint_results", [])
            seen |= {each["checkpoint_dir_name"] for each in kept}
        if len(seen) >= count:
            return
        assert driver is None or driver.poll() is None
        time.sleep(0.02)
    raise AssertionError("no checkpoint")


def kill_driver(options):
    """Run `finetune` in a process of its own, and SIGKILL it in the middle, after some checkpoints."""
    code = "import sys, json; from sciqa.training import *; finetune(FinetuneOptions(**json.loads(sys.argv[1])))"
    given = {name: value for name, value in vars(options).items() if name != "address"} | {"num_cpus": 2}
    command = [sys.executable, "-c", code, json.dumps(given)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for_checkpoint(options.folder, driver)
        driver.send_signal(signal.SIGKILL)
    assert not tables.is_finished_table(options.folder)


def kill_a_worker(folder, count=2):
    """SIGKILL one of the two training workers of this machine in the middle of a run, after some checkpoints."""
    wait_for_checkpoint(folder, count=count)
    workers = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # others end meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline() or [process.name()]):
                workers.append(process)
    workers[0].kill()


def test_order_sees_every_question_once_an_epoch_and_wastes_little():
    sizes = np.random.default_rng(0).integers(100, 3000, 200)

    def order():
        return ExampleOrder(
            200, 50, 16, 1, lambda epoch, number: (SimpleNamespace(length=sizes[number]), (epoch, number))
        )

    seen = [[place for _, place in order().batch(step)] for step in range(50)]
    assert sorted(itertools.chain(*seen)) == [(epoch, number) for epoch in range(4) for number in range(200)]
    kept = order()
    assert [[place for _, place in kept.batch(step)] for step in (3, 40, 3)] == [seen[3], seen[40], seen[3]]
    for ranks in (1, 2):
        micro = itertools.chain(*(kept.micro_batches(7, rank, ranks, 4) for rank in range(ranks)))
        assert sorted(place for batch in micro for _, place in batch) == sorted(seen[7])
    lengths = [[q.length for q, _ in micro] for step in range(50) for micro in kept.micro_batches(step, 0, 1, 4)]
    assert 1 - sum(map(sum, lengths)) / sum(len(batch) * max(batch) for batch in lengths) < 0.1


@pytest.mark.parametrize(("batch_size", "epochs"), [(1, 3), (4, 4), (16, 4), (16, 2.5), (48, 2)])
def test_steps_hold_different_questions_whatever_their_number(batch_size, epochs):
    for questions in range(1, 101):
        steps = max(1, round(epochs * questions / batch_size))
        rng = np.random.default_rng(questions)
        sizes = rng.integers(100, 3000, questions)

        def encode(epoch, number, sizes=sizes):
            return SimpleNamespace(length=sizes[number]), (epoch, number)

        order = ExampleOrder(questions, steps, batch_size, questions, encode)
        seen = [[place for _, place in order.batch(step)] for step in range(steps)]
        for step, batch in enumerate(seen):
            assert len(batch) == batch_size
            assert len({number for _, number in batch}) == min(batch_size, questions), (questions, step)
            # What a step holds is of the epochs in whose course it comes.
            places = range(step * batch_size, (step + 1) * batch_size)
            assert Counter(epoch for epoch, _ in batch) == Counter(place // questions for place in places)
        every = Counter(itertools.chain(*seen))
        assert max(every.values()) == 1
        last = steps * batch_size // questions
        assert all((epoch, number) in every for epoch in range(last) for number in range(questions))
        # A run that goes on, or another process, sees the same.
        for step in rng.permutation(steps)[:5].tolist():
            again = ExampleOrder(questions, steps, batch_size, questions, encode)
            assert [place for _, place in again.batch(step)] == seen[step]
            assert [place for _, place in order.batch(step)] == seen[step]


@pytest.mark.slow
@pytest.mark.parametrize(("zero", "workers"), [(0, 1), (2, 2)])
def test_a_diverged_run_is_no_run_and_its_name_is_free_again(tmp_path, cluster, data, models, zero, workers):
    common = {"model": models("llama"), "steps": 6, "eval_every": 2, "warmup": 0.0}
    options = tiny_run(data, tmp_path, **common, zero=zero, num_workers=workers, learning_rate=1e30)
    with pytest.raises(InputError, match=r"step [1-6]: .* not a finite number.* lower --learning-rate than 1e\+30"):
        finetune(options)
    assert not Path(options.folder).exists()
    made = finetune(tiny_run(data, tmp_path, **common))
    assert np.isfinite(losses(made.path)).all()
    assert made.details["steps"] == 6


def test_gradients_that_are_no_numbers_end_a_run_though_its_loss_is_one():
    run = SimpleNamespace(norms=[torch.tensor(float("nan"))], skipped=0, dtype=torch.float32)
    assert not np.isfinite(_Run._norm_taken(run))
    run.norms = []  # DeepSpeed's ZeRO leaves such a step out
    assert not np.isfinite(_Run._norm_taken(run))
    run.dtype, run.skipped = torch.float16, 0  # but a scale may be looked for, for a while
    assert [np.isfinite(_Run._norm_taken(run)) for _ in range(30)] == [True] * 24 + [False] * 6
    run.norms = [torch.tensor(3.0), torch.tensor(4.0)]
    assert _Run._norm_taken(run) == 5


@pytest.mark.slow
def test_float16_learns_as_float32_does(tmp_path, cluster, data, models):
    common = {"model": models("llama"), "loss": "completion", "peft": "{lora_dropout: 0.0}"}
    common |= {"steps": 12, "learning_rate": 1e-2}
    expected = losses(finetune(tiny_run(data, tmp_path, **common)).path)
    found = losses(finetune(tiny_run(data, tmp_path, **common, precision="float16", name="half")).path)
    assert expected[0] - expected[-1] > 0.1
    np.testing.assert_allclose(found, expected, rtol=2e-2)


def test_examples_are_mapped_from_a_file_of_questions_and_their_contexts(data, tmp_path):
    options = tiny_run(data, tmp_path)
    from sciqa.training.finetune import open_finetune_split

    exam = replace(open_finetune_split(options, "train"), shard_questions=3)
    path = write_example_file(exam, options.train_contexts, str(tmp_path))
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)  # counts nothing but what is allocated from here on
    examples = Examples(map_example_file(path))
    pa.set_memory_pool(before)
    assert pool.max_memory() < Path(path).stat().st_size / 10  # no memory but the file's
    Path(path).unlink()
    asked, found = tables.read_table(exam.path).to_pylist(), tables.read_table(options.train_contexts).to_pylist()
    assert len(examples) == len(asked) > exam.shard_questions
    for number in (len(asked) - 1, 0, 4):
        question, context, gold = examples.plain(number)
        assert question == asked[number] | {"passages": found[number]["passages"]}
        assert context == found[number]["context"]
        assert list(answer_options_of(question))[gold] == asked[number]["answer"]
    texts = [question["prompt"] + "".join(answer_options_of(question).values()) for question in asked]
    assert examples.sizes(with_context=False).tolist() == list(map(len, texts))
    assert (examples.sizes() - examples.sizes(with_context=False)).tolist() == [len(row["context"]) for row in found]
    made_from = storage.read_json(tables.table_records_path(options.train_contexts, "inputs.json"))["inputs"]
    assert len(list(example_file_batches(exam, options.train_contexts, made_from))) == exam.shards
    with pytest.raises(InputError, match="contexts: replaced by other contexts since this run was begun"):
        list(example_file_batches(exam, options.train_contexts, made_from | {"top_k": 99}))
    with pytest.raises(InputError, match="cannot be written"):
        write_example_file(exam, options.train_contexts, str(tmp_path / "missing"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "examples.arrow").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"examples\.arrow: cannot be written \(.*No space"):
        write_example_file(exam, options.train_contexts, str(tmp_path / "full"))
    turned = tmp_path / "turned.parquet"
    tables.write_table(str(turned), tables.read_table(exam.path).take(pa.array(range(len(asked))[::-1])))
    with pytest.raises(InputError, match="where that of question"):
        list(example_file_batches(replace(exam, path=str(turned)), options.train_contexts))


@pytest.fixture
def once(tmp_path, monkeypatch):
    """Train by a function in place of Ray Train; return what the summary says."""
    for name in ("check_optimizer", "cluster.connect_cluster"):
        monkeypatch.setattr(f"sciqa.training.ray_train.{name}", lambda options: None)
    monkeypatch.setattr(ray_train, "num_ray_train_workers", lambda options: 1)
    options = FinetuneOptions(output=str(tmp_path))

    def run(fit, number=1):
        return ray_train.ray_train_once(options, {"format": number}, fit, lambda manifest: "trained", 0.0).made

    return run, Path(options.folder)


def test_a_training_whose_result_was_deleted_is_not_finished_by_its_checkpoints(once):
    run, folder = once

    def fit(workers):
        storage.write_bytes(f"{folder}/checkpoints/1/model", b"")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            storage.write_bytes(f"{folder}/{name}", b"")
        return {"figure": 1}

    def stopped(workers):
        storage.write_bytes(f"{folder}/checkpoints/1/model", b"")
        raise KeyboardInterrupt

    assert run(fit) == "trained"
    assert run(fit) == "trained, kept"
    (folder / "adapter_model.safetensors").unlink()  # as to make room
    assert run(fit) == "trained"
    assert run(fit) == "trained, kept"
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    assert run(fit) == "trained"
    assert (folder / "adapter_model.safetensors").exists()


def test_a_run_that_has_written_nothing_gives_way_to_one_with_other_inputs(once):
    run, folder = once

    def changed(workers):
        storage.write_json(tables.table_records_path(str(folder), "train.json"), {})
        raise InputError("changed while the command waited; run it again")

    def stopped(workers):
        storage.write_bytes(f"{folder}/checkpoints/1/model", b"")
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="run it again"):
        run(changed)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, 2)
    with pytest.raises(InputError, match="begun with other options"):
        run(stopped, 3)


def test_inputs_that_change_before_the_workers_have_them_are_refused():
    begun = {"text of the template": "a", "train contexts": {"top_k": (1, 2)}, "weights of the model": "w"}
    ray_train.check_ray_train_inputs(begun, dict(begun))
    with pytest.raises(InputError, match=r"^text of the template: changed while the command waited for its workers"):
        ray_train.check_ray_train_inputs(begun, begun | {"text of the template": "b"})


def test_rotation_moves_the_answer_with_its_text_and_hiding_takes_the_gold_passage_away(data, tmp_path):
    options = tiny_run(data, tmp_path, hide_gold=1.0, min_passages=1, max_passages=4)
    from sciqa.training.finetune import open_finetune_split

    examples = read_examples(open_finetune_split(options, "train"), options.train_contexts)
    letters = set()
    for number in range(len(examples)):
        question, _, gold = examples.plain(number)
        for epoch in range(3):
            varied, context, moved = examples.varied(number, epoch, options)
            assert list(answer_options_of(varied).values())[moved] == list(answer_options_of(question).values())[gold]
            assert sorted(answer_options_of(varied).values()) == sorted(answer_options_of(question).values())
            letters.add(varied["answer"])
            passages = examples.table["passages"][number].as_py()
            gold_texts = [p["text"] for p in passages if p["title"] == question["title"]]
            assert not any(text in context for text in gold_texts)
            assert 1 <= sum(p["text"] in context for p in passages) <= 4
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"peft": "{target_modules: [no_such]}"}, ["--peft", "no_such"]),
        ({"peft": "{rank: 4}"}, ["--peft", "rank"]),
        ({"peft": "[r"}, ["--peft", "YAML"]),
        ({"peft": "{r: 4}", "method": "full"}, ["--peft", "--method full"]),
        ({"weight_decay": -0.1}, ["--weight-decay: -0.1", "at least 0"]),
        ({"clip": -1.0}, ["--clip: -1.0", "at least 0"]),
        ({"batch_size": 7}, ["--batch-size: 7", "multiple"]),
        ({"hide_gold": 0.5}, ["--hide-gold", "--max-passages"]),
        ({"offload": True}, ["--offload", "--zero"]),
        ({"name": "../x"}, ["--name"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_before_any_work(tmp_path, cluster, data, models, changes, parts):
    with pytest.raises(InputError) as error:
        finetune(tiny_run(data, tmp_path, model=models("llama"), **changes))
    assert all(part in str(error.value) for part in parts), error.value
    assert not (tmp_path / "trained").exists()


def test_options_that_would_do_nothing_are_refused(tmp_path, data):
    with pytest.raises(InputError, match=r"--loss completion: all-MiniLM-L6-v2 is an encoder, whose scores are no"):
        check_before_finetune(tiny_run(data, tmp_path, model="all-MiniLM-L6-v2", method="full", loss="completion"))
    with pytest.raises(InputError, match=r"--prompt chat: for causal models only, and all-MiniLM-L6-v2 is multiple-"):
        check_before_finetune(tiny_run(data, tmp_path, model="all-MiniLM-L6-v2", method="full", prompt="chat"))
    untitled = tmp_path / "untitled.jsonl"
    write_jsonl(untitled, [row | {"title": None} for row in read_exam(data["train"]).to_pylist()])
    with pytest.raises(InputError, match=r"--hide-gold: .*untitled.jsonl has no column `title`"):
        check_before_finetune(tiny_run(data | {"train": str(untitled)}, tmp_path, hide_gold=0.5, max_passages=2))


def test_passages_of_training_are_among_those_that_were_found(tmp_path, models):
    rows = [row | {"context": "A text."} for row in read_exam("direct-validation").slice(0, 4).to_pylist()]
    splits = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    for number, path in enumerate(splits.values()):
        write_jsonl(Path(path), rows[2 * number :][:2])
    contexts = f"{tmp_path}/train/contexts"

    def check(kind=FinetuneOptions, **given):
        check_before_finetune(kind(**splits, model=models("llama"), output=str(tmp_path), **given))

    def keep(**found):
        tables.begin_table(contexts, found, overwrite=True)
        tables.write_table(tables.table_part_path(contexts, 0), pa.table({"id": ["1"]}))
        tables.finish_table(contexts, {"inputs": found})

    check(max_passages=9)  # which may be found later
    keep(top_k=5)
    check(max_passages=5)
    with pytest.raises(InputError, match=r"--max-passages: 6 given, at most --top-k \(5\) expected"):
        check(max_passages=6)
    with pytest.raises(InputError, match=r"--max-passages: 5 given, at most --top-k \(3\) expected"):
        check(RunFinetuneOptions, max_passages=5, top_k=3)
    for found, said in (
        ({"context_sentences": 3}, r"contexts of sentences \(--context-sentences 3\)"),
        ({"context_tokens": 90}, r"contexts of sentences \(--context-tokens 90\)"),
        ({"context": "given"}, "--context given, which finds no passages"),
    ):
        keep(**found)
        check()
        check(RunFinetuneOptions, max_passages=2)
        with pytest.raises(InputError, match=f"--max-passages: 2 given, and {said}"):
            check(max_passages=2)
        with pytest.raises(InputError, match=f"--max-passages: 2 given, and {said}"):
            check(RunFinetuneOptions, max_passages=2, **found)


def test_contexts_that_retrieve_has_made_are_read_as_they_are(tmp_path, data, small_index, monkeypatch):
    monkeypatch.setattr(run_training, "finetune", lambda options: None)
    options = RunFinetuneOptions(**data, index=f"{small_index}/index", output=str(tmp_path))
    _, train, validation, _ = run_training.run_finetune(options)
    assert train.made.endswith(", kept")
    assert validation.made.endswith(", kept")


def test_options_of_contexts_are_refused_where_none_are_found(tmp_path, monkeypatch):
    for name in ("finetune", "check_before_finetune"):
        monkeypatch.setattr(run_training, name, lambda options: options)
    grpo = {"objective": "grpo", "output": str(tmp_path)}
    assert len(run_training.run_finetune(RunFinetuneOptions(**grpo))) == 1
    for name, value in (("context_passages", 3), ("index", "other"), ("corpus", ("a.jsonl",))):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: is for the contexts of --objective rank"):
            run_training.run_finetune(RunFinetuneOptions(**grpo, **{name: value}))


@pytest.mark.parametrize(
    ("diverged", "checkpoint", "kept"), [(False, "3", True), (False, None, False), (True, "3", False)]
)
def test_only_a_run_that_cannot_go_on_is_deleted(
    tmp_path, cluster, data, models, monkeypatch, diverged, checkpoint, kept
):
    options = tiny_run(data, tmp_path, model=models("llama"))
    tables.begin_table(options.folder, {})
    ended = SimpleNamespace(return_value={"input_error": "TMPDIR: full", "diverged": diverged}, checkpoint=checkpoint)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=lambda: ended))
    with pytest.raises(InputError, match="TMPDIR: full" + "; the checkpoints are kept" * kept):
        ray_train.run_ray_train_workers(options, {}, STEPS, 1, ())
    assert Path(tables.table_records_path(options.folder, tables.INPUTS)).exists() == kept


def test_overwriting_waits_for_no_other_process_and_deletes_nothing_of_it(tmp_path, cluster, data, models):
    options = tiny_run(data, tmp_path, model=models("llama"))
    tables.begin_table(options.folder, {"clip": 7.0})
    with lock(options.folder), pytest.raises(InputError, match="is writing there"):
        finetune(replace(options, overwrite=True))
    assert Path(tables.table_records_path(options.folder, tables.INPUTS)).exists()


@pytest.mark.slow
def test_a_batch_without_room_is_refused(tmp_path, cluster, data, models):
    vast = {"batch_size": 4_000_000, "micro_batch": 4_000_000, "steps": 1}
    with pytest.raises(InputError, match=r"--micro-batch 4000000: .* GB more than there are"):
        finetune(tiny_run(data, tmp_path, model=models("llama"), **vast))
    assert not list(tmp_path.glob("trained/[!.]*"))  # nothing besides the file of its lock


def test_other_bad_input_is_refused(tmp_path, cluster, data, models, trained, exam_file, exam_contexts):
    unanswered = tmp_path / "unanswered.jsonl"
    write_jsonl(unanswered, [row | {"answer": None} for row in read_exam(data["train"]).to_pylist()])
    with pytest.raises(InputError, match=r"unanswered\.jsonl, row 1, column 'answer'"):
        finetune(tiny_run(data | {"train": str(unanswered)}, tmp_path, model=models("llama")))
    with pytest.raises(InputError, match="contexts belong to another exam"):
        finetune(tiny_run(data | {"validation_contexts": data["train_contexts"]}, tmp_path, model=models("llama")))
    options, made, _ = trained
    path = tables.table_records_path(made.path, tables.INPUTS)
    begun = storage.read_json(path)
    del begun["inputs"]["clip"]  # as a version without that option would have stored it
    storage.write_json(path, begun)
    assert finetune(options).made.endswith("kept")
    moved = shutil.copytree(models("llama"), tmp_path / "moved")
    assert finetune(replace(options, model=str(moved))).made.endswith("kept")
    (moved / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match=r"begun with other options \(others of the model: chat_template.jinja: "):
        finetune(replace(options, model=str(moved)))
    with pytest.raises(InputError, match=r"begun with other options \(clip: 1.0 there, 0.5 now\)"):
        finetune(replace(options, clip=0.5))
    del begun["inputs"]["format"]  # as versions before there were formats
    storage.write_json(path, begun)
    assert finetune(options).made.endswith("kept")
    with pytest.raises(InputError, match=r"begun with other options \(learning_rate: 0.01 there, 1.0 now\)"):
        finetune(replace(options, learning_rate=1.0))
    common = {"output": str(tmp_path), "exam": exam_file, "contexts": exam_contexts}
    with pytest.raises(InputError, match=r"an adapter for the base model .*llama, not for .*phi3"):
        predict(PredictOptions(**common, model=models("phi3"), adapter=made.path))
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        predict(PredictOptions(**common, model=models("llama"), adapter=str(tmp_path)))
    with pytest.raises(InputError, match="head has not been trained"):
        predict(PredictOptions(**common, model="all-MiniLM-L6-v2"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_smollm2_gives_the_same_losses_on_one_process_and_shards(tmp_path, cluster, data, method):
    common = {"method": method, "precision": "auto", "learning_rate": 2e-4, "batch_size": 4, "prompt": "plain"}
    common |= {"loss": "completion"}
    found = {}
    for zero, workers in ((0, 1), (2, 2), (3, 2)):
        options = tiny_run(
            data, tmp_path, model="SmolLM2-135M-Instruct", zero=zero, num_workers=workers, name=f"z{zero}",
            eval_every=10, **common,
        )  # fmt: skip
        made = finetune(options)
        found[zero] = losses(made.path)
        if zero == 3 and method == "qlora":
            assert made.details["rank_bytes"] <= 0.6 * made.details["model_bytes"]
    for zero in (2, 3):
        np.testing.assert_allclose(found[zero], found[0], rtol=2e-2)
