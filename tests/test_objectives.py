"""Objectives besides ranking: losses of TRL alone and by hand, data that is refused, kills, what readers make of it."""

import json
import math
import re
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import accelerate
import datasets
import numpy as np
import peft
import pyarrow as pa
import pytest
import torch
import transformers
import trl
from accelerate.data_loader import BatchSamplerShard
from conftest import write_jsonl
from ray.util.queue import Queue
from safetensors.torch import load_file, save_file
from test_training import history, kill_a_worker, kill_driver, losses
from tiny import mostly_slow, tiny_folder, tiny_tokenizer
from torch.utils.data import BatchSampler
from torch.utils.flop_counter import FlopCounterMode

from sciqa.core import storage, tables
from sciqa.core.adapter_files import describe_adapter_files, read_adapter_record
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.instructions import read_instructions_examples
from sciqa.models import adapter
from sciqa.models.load import load_base, load_on_meta_device, load_scorer, load_without_weights, scorer_of_loaded
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import FOLDER
from sciqa.predict import PredictOptions, predict
from sciqa.report import ReportOptions, report
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.training import FinetuneOptions, finetune, trl_trainers
from sciqa.training.exam_prompts import exam_prompt_style
from sciqa.training.loggers import MetricLoggers
from sciqa.training.loss import mean_loss
from sciqa.training.model_check import check_finetune_model
from sciqa.training.objectives import check_objective, objective_inputs
from sciqa.training.options import MOST_SKIPPED
from sciqa.training.preferences import preference_rejected, read_preferences
from sciqa.training.rewards import letter_alone, read_reward_prompts, right_answer
from sciqa.training.sharding import gather_sharded
from sciqa.training.trl_loop import TrlReport, train_trl_loop
from sciqa.training.trl_trainers import (
    _set_chat_format,
    make_trl_trainer,
    trl_trainer_arguments,
    trl_trainer_reward_model,
)

STEPS, BATCH, MICRO = 6, 8, 2
#: How Meta's and Microsoft's model cards write a system message, a question, an answer and another question.
CHAT_FORMATS = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Yes. </s><s>[INST] Why? [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\nYes.<|end|>\n"
    "<|user|>\nWhy?<|end|>\n<|assistant|>\n",
}
CHAT = [("system", "Be brief."), ("user", "Hi?"), ("assistant", "Yes."), ("user", "Why?")]


def messages(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def instruction(number):
    return {
        "instruction": f"Name gas number {number}.",
        "input": "" if number % 2 else f"Count from {number % 7}.",
        "output": f"It is gas {number}. " * (1 + number % 3),
    }


def preference(number):
    return {"prompt": f"What is {number}?", "chosen": f"A gas {number}.", "rejected": f"Iron, {3 * number} times."}


ROW = {"instruct": instruction, "dpo": preference, "reward": preference}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By objective, the options that name files of 32 training and 8 validation examples."""
    folder, found = tmp_path_factory.mktemp("examples"), {}
    for objective, row in ROW.items():
        splits = {split: str(folder / f"{objective}-{split}.jsonl") for split in ("train", "validation")}
        write_jsonl(Path(splits["train"]), [row(number) for number in range(32)])
        write_jsonl(Path(splits["validation"]), [row(number) for number in range(32, 40)])
        found[objective] = {"objective": objective} | splits
    return found


@pytest.fixture
def options(tmp_path, model, files):
    """Make the options of a short float32 run."""

    def make(objective="instruct", **changes):
        common = {"model": model, "precision": "float32", "batch_size": BATCH, "micro_batch": MICRO, "eval_every": 3}
        common |= {"output": str(tmp_path), "steps": STEPS, "learning_rate": 5e-3}
        common |= {"max_length": 128} if objective != "grpo" else {}
        return FinetuneOptions(**files.get(objective, {"objective": objective}) | common | changes)

    return make


def trl_alone(options, folder):
    """The reference: TRL's trainer, as its documentation calls it, on one process, trained; no Ray, no DeepSpeed."""
    model, tokenizer = load_base(options.model, "causal", torch.float32, nf4=options.method == "qlora")
    full = options.method == "full"
    given = {"output_dir": str(folder), "max_steps": options.steps, "learning_rate": options.learning_rate}
    given |= {"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": BATCH // MICRO}
    given |= {
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(options.warmup * options.steps),
        "max_grad_norm": 1.0,
    }
    given |= {"weight_decay": options.weight_decay, "seed": options.seed, "logging_steps": 1, "save_strategy": "no"}
    given |= {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": 128}
    kinds = {"instruct": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer)}
    kinds |= {"reward": (trl.RewardConfig, trl.RewardTrainer)}
    if options.objective == "reward":
        model = scoring_model(options)
    config, trainer = kinds[options.objective]
    kind = {"task_type": "SEQ_CLS"} if options.objective == "reward" else {}
    made = trainer(
        model=model.train(),
        args=config(**given),
        train_dataset=datasets.Dataset.from_list(check_objective(options)["train"]),
        processing_class=tokenizer,
        peft_config=None
        if full
        else adapter.adapter_peft_config(model, "causal", "lora", kind | options.peft_fields()),
    )
    made.train()
    return made


def trl_losses(trainer):
    return np.array([row["loss"] for row in trainer.state.log_history if "loss" in row])


def scoring_model(options):
    """The model with a new head of one score, drawn from the seed."""
    torch.manual_seed(options.seed)
    kind = transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(options.model, num_labels=1, pad_token_id=0, dtype=torch.float32)


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_chat_formats_are_those_of_the_models(name):
    text = (FOLDER / "chat_formats" / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tiny_tokenizer("llama")
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    given = {"chat_template": text, "tokenize": False}
    assert tokenizer.apply_chat_template(messages(*CHAT), add_generation_prompt=True, **given) == CHAT_FORMATS[name]
    # What is learned follows what the model will be asked with.
    answered = tokenizer.apply_chat_template(messages(*CHAT, ("assistant", "So.")), **given)
    assert answered.startswith(CHAT_FORMATS[name])
    assert answered[len(CHAT_FORMATS[name]) :].strip().startswith("So.")
    assert answered.rstrip().endswith(("</s>", "<|eot_id|>"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["instruct", "dpo"])
def test_one_worker_has_the_losses_of_trl_alone(tmp_path, cluster, options, exam, objective):
    asked = options(objective)
    made = finetune(asked)
    np.testing.assert_allclose(losses(made.path), trl_losses(trl_alone(asked, tmp_path / "alone")), atol=1e-4)
    rows = history(made.path)
    validated = {row["step"]: row["validation_loss"] for row in rows if row["validation_loss"] is not None}
    assert list(validated) == [0, 3, 6]
    assert made.details["best_step"] == min((loss, step) for step, loss in validated.items() if step)[1] > 0
    assert made.details["validation_loss_untrained"] == validated[0] > made.details["validation_loss"]
    assert list(Path(made.path, "tensorboard").glob("events.*"))
    assert not [path for path in Path(made.path).rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".py")]
    assert not Path(made.path, "checkpoints").exists()
    assert json.loads(Path(made.path, "adapter_config.json").read_text())["base_model_name_or_path"] == asked.model
    kept = tables.read_table(tables.table_records_path(made.path, "train.parquet")).to_pylist()
    assert kept == check_objective(asked)["train"]
    assert finetune(asked).made.endswith("kept")
    predict(PredictOptions(output=asked.output, exam=exam["train"], reader="longest"))
    page = Path(report(ReportOptions(output=asked.output)).path).read_text(encoding="utf-8")
    figures = f"{validated[0]:.3f} untrained, {made.details['validation_loss']:.3f} at step {made.details['best_step']}"
    assert f"of {objective}: validation loss {figures}" in page
    with pytest.raises(InputError, match=r"begun with other options \(beta|begun with other options \(packing"):
        finetune(options(objective, **({"beta": 0.2} if objective == "dpo" else {"packing": True})))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "method", "zero"),
    [
        *((objective, "lora", zero) for objective in ("instruct", "dpo") for zero in (0, 2, 3)),
        *(("reward", "lora", zero) for zero in (0, 3)),
        ("instruct", "full", 3),
        *(("dpo", "full", zero) for zero in (2, 3)),
        ("instruct", "qlora", 2),
    ],
)
def test_two_workers_and_shards_have_the_losses_of_trl_alone(tmp_path, cluster, options, objective, method, zero):
    asked = options(objective, method=method, zero=zero, num_workers=2)
    made, alone = finetune(asked), trl_alone(asked, tmp_path / "alone")
    # Half a batch rounds otherwise than a whole one, which the matrix products of 4-bit layers make larger.
    atol = 1e-3 if method == "qlora" else 1e-4
    np.testing.assert_allclose(losses(made.path), trl_losses(alone), atol=atol)
    if objective == "reward":
        with pytest.raises(InputError, match="does not fit the model"):
            load_scorer(asked.model, adapter=made.path)
        return
    names = {"name": made.path} if method == "full" else {"name": asked.model, "adapter": made.path}
    scorer = load_scorer(**names, precision="float32")
    assert scorer.style.prompt == "chat"
    if method == "full":  # what is saved has learned what TRL alone has
        assert made.details["best_step"] == STEPS
        learned = alone.evaluate(alone.train_dataset)["eval_loss"]
        alone.model.load_state_dict(scorer.model.state_dict())
        assert alone.evaluate(alone.train_dataset)["eval_loss"] == pytest.approx(learned, abs=1e-3)
        assert losses(made.path)[0] - learned > 0.01


def log_probability(model, tokenizer, prompt, answer):
    """Sum of the log-probabilities of an answer's tokens, by hand."""
    before = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    row = torch.tensor([tokenizer.apply_chat_template(prompt + answer, return_dict=False)])
    with torch.no_grad():
        predicted = model(row).logits[0, :-1].log_softmax(-1)
    return predicted.gather(1, row[0, 1:, None])[len(before) - 1 :].sum().item()


def test_dpo_begins_at_ln_2_and_then_is_the_formula(tmp_path, options):
    asked = options("dpo", beta=0.3, batch_size=2, peft="{lora_dropout: 0.0}")
    pairs = check_objective(asked)["train"]
    given = trl_trainer_arguments(asked, str(tmp_path), 1, torch.float32, "cpu")
    given |= {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    trainer = make_trl_trainer(asked, given, [datasets.Dataset.from_list(pairs)] * 2, torch.float32, "cpu")
    assert trainer.ref_model is None
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/chosen"] == first["rewards/rejected"] == pytest.approx(0, abs=1e-6)
    trained = trainer.evaluate(trainer.train_dataset.select(range(4)))
    model, tokenizer, margins = trainer.model.eval(), trainer.processing_class, []
    for pair in pairs[:4]:
        now = [log_probability(model, tokenizer, pair["prompt"], pair[name]) for name in ("chosen", "rejected")]
        with model.disable_adapter():
            then = [log_probability(model, tokenizer, pair["prompt"], pair[name]) for name in ("chosen", "rejected")]
        margins.append((now[0] - now[1]) - (then[0] - then[1]))
    expected = -torch.nn.functional.logsigmoid(0.3 * torch.tensor(margins)).mean().item()
    assert abs(expected - math.log(2)) > 1e-3
    assert trained["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """Options that name eight training and four validation questions."""
    folder, rows = tmp_path_factory.mktemp("exam"), read_exam("direct-validation").slice(0, 12).to_pylist()
    for split, part in (("train", rows[:8]), ("validation", rows[8:])):
        write_jsonl(folder / f"{split}.jsonl", part)
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}


def in_process(options, folder, steps, **changes):
    """The objective's trainer in this process, with training examples for both splits."""
    rows = [datasets.Dataset.from_list(check_objective(options)["train"])] * 2
    given = trl_trainer_arguments(options, str(folder), 1, torch.float32, "cpu")
    given |= {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"} | changes
    return make_trl_trainer(options, given, rows, torch.float32, "cpu")


def test_a_reward_model_scores_the_better_answer_higher(tmp_path, options):
    asked = options("reward", batch_size=2)
    trainer = in_process(asked, tmp_path, 8)
    tokenizer = trainer.processing_class

    def margins():
        found = []
        for row in map(preference, range(2)):
            chats = [messages(("user", row["prompt"]), ("assistant", row[name])) for name in ("chosen", "rejected")]
            rows = [torch.tensor([tokenizer.apply_chat_template(chat, return_dict=False)]) for chat in chats]
            with torch.no_grad():
                better, worse = (trainer.model.eval()(each).logits.item() for each in rows)
            found.append(better - worse)
        return torch.tensor(found)

    before = margins()
    evaluated = trainer.evaluate(trainer.train_dataset.select(range(2)))["eval_loss"]
    assert evaluated == pytest.approx(-torch.nn.functional.logsigmoid(before).mean().item(), abs=1e-4)
    trainer.train()
    assert margins().mean() > before.mean() + 0.01
    trainer.save_model(str(tmp_path / "model"))
    storage.write_json(
        str(tmp_path / "model/sciqa.json"), describe_adapter_files(asked.model) | {"objective": "reward"}
    )
    loaded, _ = trl_trainer_reward_model(str(tmp_path / "model"), torch.float32, "cpu")
    row = torch.tensor([tokenizer.apply_chat_template(messages(*CHAT), return_dict=False)])
    with torch.no_grad():
        assert loaded(row).logits.item() == pytest.approx(trainer.model.eval()(row).logits.item(), abs=1e-5)


def test_rewards_of_sampled_answers():
    right = ["B", "(B) Helium", "Answer: B.", " B ", "helium", "So the answer is B", "B. Hel"]
    texts = [*right, "A", "Because", "", "A gas", "B. Iron"]
    count = len(texts)
    given = {"letters": ["ABC"] * count, "options": [["Iron", "Helium", "Argon"]] * count, "answer": ["B"] * count}
    for completions in (texts, [messages(("assistant", text)) for text in texts]):
        assert right_answer(completions, **given) == [1] * len(right) + [0] * 5
        assert letter_alone(completions, **given) == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]


def test_every_step_is_told_of(cluster, options):
    progress = Queue()
    report = TrlReport(MetricLoggers(options(), rank=1), progress, "loss")
    for step in (1, 2):
        state = SimpleNamespace(log_history=[{"loss": 0.5, "step": step}])
        report.on_log(None, state, None)
    assert [progress.get(timeout=30)["step"] for _ in range(2)] == [1, 2]
    progress.shutdown()


def test_steps_that_float16_skips_to_find_its_scale_end_no_run():
    report = TrlReport(SimpleNamespace(write=lambda row: None), None, "validation_loss")

    def step(norm, fp16=True, loss=0.5):
        state = SimpleNamespace(log_history=[{"loss": loss, "grad_norm": norm, "step": 1}])
        report.on_log(SimpleNamespace(fp16=fp16), state, None)
        return state.log_history[0]["grad_norm"]

    assert [step(norm) for norm in (math.inf, math.nan, 2.0)] == [0, 0, 2]
    assert [step(math.nan) for _ in range(MOST_SKIPPED)] == [0] * MOST_SKIPPED
    for norm, given in ((math.nan, {}), (math.inf, {"fp16": False}), (math.inf, {"loss": math.nan})):
        with pytest.raises(InputError, match="is not a finite number"):
            step(norm, **given)


def test_grpo_reads_an_exam_and_begins_at_the_reference(tmp_path, options, exam):
    common = exam | {"generations": 2, "batch_size": 2}
    asked = options("grpo", **common, completion_tokens=4)
    examples = check_objective(asked)["train"]
    question = read_exam(exam["train"]).slice(0, 1).to_pylist()[0]
    assert examples[0]["answer"] == question["answer"]
    assert all(question[letter] in examples[0]["prompt"][-1]["content"] for letter in examples[0]["letters"])
    trainer = in_process(asked, tmp_path, 2)
    assert trainer.ref_model is None
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert {"rewards/right_answer/mean", "rewards/letter_alone/mean", "reward"} <= second.keys()
    with pytest.raises(InputError, match="--batch-size: 2 given, a multiple of --generations"):
        check_objective(options("grpo", **common | {"generations": 4}))
    with pytest.raises(InputError, match=r"--rewards: .*no-such given; answer, format, or the folder"):
        check_objective(options("grpo", **common, rewards=("no-such",)))


@pytest.mark.parametrize("method", mostly_slow(["lora", "full"], "lora"))
@pytest.mark.parametrize("objective", mostly_slow(["instruct", "dpo", "grpo"], "dpo"))
def test_the_head_computes_labelled_positions_alone(tmp_path, monkeypatch, options, exam, objective, method):
    """With the losses and gradients of TRL, whose head computes every position on a CPU."""
    sampled = exam | {"generations": 2, "completion_tokens": 4} if objective == "grpo" else {}
    asked = options(objective, **{"method": method, "batch_size": 4} | sampled)
    found, operations = [], []
    for name in ("sciqa", "trl"):
        if name == "trl":
            monkeypatch.setattr(trl_trainers, "trl_trainer_labelled_head", lambda model: None)
        trainer = in_process(asked, tmp_path / name, 2)
        with FlopCounterMode(display=False) as counter:
            trainer.train()
        operations.append(counter.get_total_flops())
        steps = [row for row in trainer.state.log_history if "loss" in row]
        names = [each for each in ("loss", "grad_norm", "entropy", "kl", "rewards/margins") if each in steps[0]]
        found.append([[row[each] for each in names] for row in steps])
    assert len(found[0]) == 2
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert operations[0] < operations[1]


@pytest.fixture(scope="module")
def broken_judge(tmp_path_factory, model, files):
    """A reward model whose scores are not numbers."""
    folder = tmp_path_factory.mktemp("judge")
    asked = FinetuneOptions(**files["reward"], model=model, precision="float32", batch_size=2, micro_batch=2)
    in_process(asked, folder / "trainer", 1).save_model(str(folder / "model"))
    about = describe_adapter_files(model) | {"objective": "reward"}
    storage.write_json(str(folder / "model/sciqa.json"), about)
    path = folder / "model/adapter_model.safetensors"
    weights = load_file(path)
    assert weights["base_model.model.score.weight"].any()
    save_file(weights | {"base_model.model.score.weight": weights["base_model.model.score.weight"] * math.nan}, path)
    return str(folder / "model")


@pytest.mark.parametrize("rewards", [pytest.param((), marks=pytest.mark.slow), ("answer",)])
def test_a_reward_that_is_not_a_number_ends_the_run(tmp_path, options, exam, broken_judge, rewards):
    """TRL alone would leave it out of the sum, and train on the rest."""
    asked = options("grpo", **exam, rewards=(*rewards, broken_judge), generations=2, batch_size=2, completion_tokens=2)
    trainer = in_process(asked, tmp_path, 1)
    trainer.add_callback(TrlReport(SimpleNamespace(write=lambda row: None), None, "validation_reward"))
    with pytest.raises(InputError, match=r"step 1: reward is not a finite number; nothing .* models of --rewards"):
        trainer.train()


def test_reward_models_that_do_not_fit_are_refused(tmp_path, options, exam, broken_judge):
    grpo = exam | {"generations": 2, "batch_size": 2}
    with pytest.raises(InputError, match="--rewards: all-MiniLM-L6-v2 given; answer, format, or the folder"):
        check_objective(options("grpo", **grpo, rewards=("all-MiniLM-L6-v2",)))
    with pytest.raises(InputError, match="scores chats, and prompts are plain; pass --prompt chat"):
        check_objective(options("grpo", **grpo, rewards=(broken_judge,), prompt="plain"))
    other = shutil.copytree(broken_judge, tmp_path / "other")
    about = describe_adapter_files(tiny_folder(tmp_path / "mistral", "mistral", hidden_size=128))
    record = read_adapter_record(broken_judge)
    storage.write_json(str(other / "sciqa.json"), record | {"base": about["base"]})
    with pytest.raises(InputError, match=r"an adapter for the base model .*mistral, not for"):
        check_objective(options("grpo", **grpo, rewards=(str(other),)))


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_grpo_is_rewarded_by_a_reward_model(tmp_path, cluster, options, exam, zero):
    judge = finetune(options("reward", name="judge", steps=3))
    common = exam | {"generations": 2, "micro_batch": 1, "batch_size": 4, "num_workers": 2, "zero": zero}
    rewards = ("answer", judge.path)
    made = finetune(options("grpo", **common, rewards=rewards, completion_tokens=4, steps=2, eval_every=1))
    earned = [row["validation_reward"] for row in history(made.path) if row["validation_reward"] is not None]
    assert len(earned) == 3
    assert made.details["validation_reward"] == max(earned[1:])
    assert read_adapter_record(made.path)["style"]["completion"] == "letter"
    assert load_scorer(options().model, adapter=made.path).style.prompt == "chat"


def test_another_reward_model_is_another_input(tmp_path, options, exam):
    inputs = []
    for name in ("one", "other"):
        judge = tiny_folder(tmp_path / name, "llama")
        path = Path(judge, "model.safetensors")
        save_file({key: weight + (name == "other") for key, weight in load_file(path).items()}, path, {"format": "pt"})
        storage.write_json(f"{judge}/sciqa.json", {"objective": "reward"})
        inputs.append(objective_inputs(options("grpo", **exam, rewards=(judge,)), {}))
    assert inputs[0]["rewards"] != inputs[1]["rewards"]


def test_grpo_leaves_room_for_an_answer(tmp_path, options, exam):
    short = tiny_folder(tmp_path / "short", "llama", max_position_embeddings=64)
    asked = options("grpo", **exam, model=short, generations=2, batch_size=2, completion_tokens=4)
    with pytest.raises(InputError, match=r"--train: .*has a prompt of \d+ tokens, and at most 60 leave room for"):
        in_process(asked, tmp_path, 1)


def test_a_template_is_kept_where_the_form_is_the_same(tmp_path, options, exam, model):
    trained = shutil.copytree(model, tmp_path / "trained")
    form = {"prompt": "plain", "completion": "letter", "template": "{{ question }} Letter:", "template_name": "own"}
    storage.write_json(str(trained / "sciqa.json"), {"style": form})
    asked = options("grpo", **exam, model=str(trained))
    assert asdict(exam_prompt_style(asked, "letter")).items() >= form.items()
    assert read_reward_prompts(exam["train"], asked)[0]["prompt"].endswith(" Letter:")
    assert exam_prompt_style(asked, "text").template is None
    assert exam_prompt_style(replace(asked, prompt="chat"), "letter").template is None
    given = replace(asked, template="mmlu")
    assert "Letter:" not in exam_prompt_style(given, "letter").template
    texts = [objective_inputs(each, {})["text of the template"] for each in (asked, given, options("grpo", **exam))]
    assert len(set(texts)) == 3


def test_every_validation_example_counts(tmp_path, options, files):
    asked = options("dpo", micro_batch=4, batch_size=4)
    trainer = in_process(asked, tmp_path, 1)
    seven = trainer.get_eval_dataloader(trainer.train_dataset.select(range(7)))
    assert trainer.evaluation_loop(seven, "seven examples").num_samples == 7
    assert len(list(trainer.get_train_dataloader())) == len(trainer.train_dataset) // 4


@pytest.mark.parametrize("objective", ["instruct", "dpo", "reward"])
def test_an_epoch_draws_whole_batches_anew(tmp_path, options, objective):
    """Eighteen examples in batches of 16: what is left over makes no step of its own."""
    asked = options(objective, micro_batch=2, batch_size=16, steps=None, epochs=2.0)
    rows = [datasets.Dataset.from_list(check_objective(asked)["train"][:18])] * 2
    given = trl_trainer_arguments(asked, str(tmp_path), 1, torch.float32, "cpu")
    given |= {"eval_strategy": "no", "save_strategy": "no"}
    trainer = make_trl_trainer(asked, given, rows, torch.float32, "cpu")
    assert (asked.trl_steps(18), asked.trl_steps(32)) == (2, 4)
    sizes, collate = [], trainer.data_collator
    trainer.data_collator = lambda batch: sizes.append([tuple(row["input_ids"]) for row in batch]) or collate(batch)
    if objective != "instruct":
        sizes, key = [], {"dpo": "prompt_ids", "reward": "chosen_ids"}[objective]
        trainer.data_collator = lambda batch: sizes.append([tuple(row[key]) for row in batch]) or collate(batch)
    trainer.args.max_steps = 3
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 3
    assert steps[-1]["epoch"] == 3
    epochs = [[row for batch in sizes[first : first + 8] for row in batch] for first in (0, 8, 16)]
    assert [len(set(each)) for each in epochs] == [16] * 3
    assert len({frozenset(each) for each in epochs}) > 1


def test_workers_share_whole_batches_and_skip_what_is_trained(tmp_path, options):
    asked = options(micro_batch=2, batch_size=8)
    rows = [datasets.Dataset.from_list(check_objective(asked)["train"][:19])] * 2
    given = trl_trainer_arguments(asked, str(tmp_path), 1, torch.float32, "cpu")
    trainer = make_trl_trainer(asked, given, rows, torch.float32, "cpu")

    def drawn(loader, epoch):
        loader.set_epoch(epoch)
        return [row.tolist() for batch in loader for row in batch["input_ids"]]

    loader = trainer.get_train_dataloader()
    alone = [drawn(loader, epoch) for epoch in (0, 1)]
    assert [len(each) for each in alone] == [16, 16]
    assert alone[0] != alone[1]
    assert drawn(accelerate.skip_first_batches(loader, 3), 1) == alone[1][6:]
    sampler, found = loader.get_sampler(), []
    for rank in range(2):
        sampler.set_epoch(1)
        shares = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=True), 2, rank)
        found.append([number for batch in shares for number in batch])
    sampler.set_epoch(1)
    assert [len(each) for each in found] == [8, 8]
    assert sorted(found[0] + found[1]) == sorted(sampler)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Run the loop of TRL's trainers as the only worker; return its notes, or raise its error."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    monkeypatch.setattr("sciqa.training.sharding.sharding_exchange", lambda mine: [mine])
    monkeypatch.setattr("sciqa.training.trl_loop.MetricLoggers", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(transformers.Trainer, "train", lambda *_, **__: None)

    def run(options, examples):
        paths, shown = {}, []
        for split, rows in zip(("train", "validation"), examples, strict=True):
            paths[split] = str(tmp_path / f"{split}.parquet")
            tables.write_table(paths[split], pa.Table.from_pylist(rows))
        told = SimpleNamespace(put=lambda row: shown.append(row["note"]))
        about = {"options": options, "threads": 1, "device": "cpu", "progress": told, "recorded": {}}
        ended = train_trl_loop(paths | about)
        if "input_error" in ended:
            raise InputError(ended["input_error"])
        return shown

    return run


@pytest.mark.parametrize("objective", ["instruct", "dpo", "reward"])
def test_too_few_examples_within_max_length_end_the_run(options, alone, objective):
    asked = options(objective, max_length=64, micro_batch=2, batch_size=4)
    train, held = (check_objective(asked)[split] for split in ("train", "validation"))
    long = [
        json.loads(json.dumps(row).replace("What is", "What, " * 80).replace("Name gas", "Gas " * 80)) for row in train
    ]
    why = "longer than" if objective == "reward" else "their prompts alone fill"
    note = f"3 of 12 training examples are left out: {why} --max-length, or the model's limit"
    assert alone(asked, [train[:9] + long[9:12], held]) == [note]
    for left in (3, 0):
        said = rf"--max-length: {left} of 12 training examples are left, fewer than --batch-size \(4\); raise --max-l"
        with pytest.raises(InputError, match=said):
            alone(asked, [train[:left] + long[left:12], held])
    with pytest.raises(InputError, match="--max-length: none of 5 validation examples is left; raise it"):
        alone(asked, [train, long[:5]])


def test_packing_leaves_out_prompts_that_alone_fill_a_row(options, alone, monkeypatch):
    asked, made = options(max_length=64, packing=True, micro_batch=1, batch_size=1), []
    train, held = (check_objective(asked)[split] for split in ("train", "validation"))
    long = [json.loads(json.dumps(row).replace("Name gas", "Gas " * 80)) for row in train[:3]]
    take = make_trl_trainer
    monkeypatch.setattr(
        "sciqa.training.trl_loop.make_trl_trainer", lambda *given: made.append(take(*given)) or made[-1]
    )
    said = "{} of {} {} examples are left out: their prompts alone fill --max-length, or the model's limit"
    assert alone(asked, [train + long, held + long[:1]]) == [
        said.format(3, 35, "training"),
        said.format(1, 9, "validation"),
    ]
    for rows in (made[0].train_dataset, made[0].eval_dataset):
        assert all(any(label != -100 for label in row["labels"]) for row in rows)
    assert not any("Gas" in made[0].processing_class.decode(row) for row in made[0].train_dataset["input_ids"])
    with pytest.raises(InputError, match="--max-length: 0 of 3 training examples are left"):
        alone(asked, [long, held])
    asked.batch_size = 64
    with pytest.raises(InputError, match=r"32 training examples are packed into \d+ rows, .*; leave --packing out, or"):
        alone(asked, [train, held])


def test_packed_examples_do_not_see_each_other(tmp_path, options):
    """Rows of several examples have the loss that these have one by one."""
    asked = options(packing=True, batch_size=2)
    both = [datasets.Dataset.from_list(check_objective(asked)["train"][:8])] * 2
    found = []
    for number, each in enumerate((asked, options(batch_size=2))):
        given = trl_trainer_arguments(each, str(tmp_path / str(number)), 1, torch.float32, "cpu") | {"seed": 0}
        trainer = make_trl_trainer(each, given, both, torch.float32, "cpu")
        rows = len(trainer.train_dataset)
        batch = trainer.data_collator([trainer.train_dataset[at] for at in range(rows)])
        with torch.no_grad():
            found.append((rows, trainer.compute_loss(trainer.model.eval(), batch).item()))
    (packed, one), (plain, other) = found
    assert packed <= plain / 2
    assert one == pytest.approx(other, abs=1e-5)


def test_chats_are_trained_on_with_the_date_that_they_are_asked_with(options, model):
    tokenizer = load_without_weights(model, {}).tokenizer
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    _set_chat_format(options(), tokenizer)
    assert tokenizer.apply_chat_template(messages(("user", "So?")), tokenize=False) == "26 Jul 2024: So?"


def test_the_reader_takes_the_adapter_with_its_chat_format(tmp_path, options, model):
    asked = options(chat_format="phi3", batch_size=2)
    examples = [datasets.Dataset.from_list(rows) for rows in check_objective(asked).values()]
    given = trl_trainer_arguments(asked, str(tmp_path / "trainer"), 1, torch.float32, "cpu")
    trainer = make_trl_trainer(asked, given, examples, torch.float32, "cpu")
    answer = instruction(1)["output"].strip()
    decoded = trainer.processing_class.decode(trainer.train_dataset[1]["input_ids"])
    assert decoded == f"<|user|>\nName gas number 1.<|end|>\n<|assistant|>\n{answer}<|end|>\n<|im_end|>"
    labels = trainer.train_dataset[1]["labels"]
    learned = trainer.processing_class.decode([label for label in labels if label != -100])
    assert learned == f"{answer}<|end|>\n<|im_end|>"
    trainer.save_model(str(tmp_path / "adapter"))
    scorer = load_scorer(model, precision="float32", adapter=str(tmp_path / "adapter"))
    assert scorer.tokenizer.chat_template == (FOLDER / "chat_formats" / "phi3.jinja").read_text(encoding="utf-8")


def test_conversations_give_an_example_for_each_answer(tmp_path):
    path = tmp_path / "chats.jsonl"
    chat = messages(*CHAT, ("assistant", "So."))
    write_jsonl(path, [{"messages": chat}])
    assert read_instructions_examples(str(path)) == [
        {"prompt": chat[:2], "completion": chat[2:3]},
        {"prompt": chat[:4], "completion": chat[4:]},
    ]
    write_jsonl(path, [{"instruction": "Add.", "input": "1 and 2", "output": "3"}])
    prompt = [{"role": "user", "content": "Add.\n\n1 and 2"}]
    assert read_instructions_examples(str(path)) == [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": "3"}]}
    ]


GOOD = {"instruction": "Add.", "input": "", "output": "3"}
#: The prompt is in the answers too, as in files that hold whole conversations.
TWICE = {"prompt": "Hi?"} | {
    name: messages(("user", "Hi?"), ("assistant", answer)) for name, answer in (("chosen", "Yes."), ("rejected", "No."))
}


@pytest.mark.parametrize(
    ("objective", "row", "parts"),
    [
        ("instruct", GOOD | {"output": ""}, ["row 2, column 'output'", "empty"]),
        ("instruct", GOOD | {"output": "  \n"}, ["row 2, column 'output'", "empty"]),
        ("instruct", GOOD | {"output": None}, ["row 2, column 'output'", "nothing given"]),
        ("instruct", GOOD | {"output": 3}, ["row 2, column 'output'", "'3' given, text expected"]),
        ("instruct", GOOD | {"output": ["3"]}, ["row 2, column 'output'", "text expected"]),
        ("instruct", {"question": "Add?"}, ["row 2, column 'instruction'", "nothing given"]),
        ("instruct", {"messages": []}, ["row 2, column 'messages'", "a list of messages"]),
        ("instruct", {"messages": messages(("user", "Hi?"))}, ["row 2, column 'messages'", "assistant's answer"]),
        ("instruct", {"messages": messages(("assistant", "Hi."))}, ["row 2, column 'messages'", "message of the user"]),
        ("instruct", {"messages": messages(("user", "Hi?"), ("bot", "Yes."))}, ["message 2: role 'bot'", "assistant"]),
        ("instruct", {"messages": messages(("user", "Hi?"), ("assistant", ""))}, ["message 2: empty"]),
        ("dpo", {"prompt": "Hi?", "chosen": "Yes."}, ["row 2, column 'rejected'", "nothing given"]),
        ("dpo", {"prompt": "Hi?", "chosen": "Yes.", "rejected": "Yes."}, ["row 2, column 'rejected'", "same as"]),
        ("dpo", {"prompt": "", "chosen": "Yes.", "rejected": "No."}, ["row 2, column 'prompt'", "empty"]),
        ("dpo", TWICE, ["row 2, column 'chosen'", "begins with a message of the user", "'prompt'"]),
        ("instruct", GOOD | {"output": "3 \ud83d"}, ["row 2, column 'output'", "surrogate"]),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_column(tmp_path, options, objective, row, parts):
    path = tmp_path / "bad.jsonl"
    write_jsonl(path, [ROW[objective](0), row])
    with pytest.raises(InputError) as error:
        check_objective(options(objective, train=str(path)))
    assert all(part in str(error.value) for part in ["bad.jsonl", *parts]), error.value


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train": "train"}, ["--train", "a file of examples"]),
        ({"model": "all-MiniLM-L6-v2"}, ["all-MiniLM-L6-v2 is multiple-choice", "causal"]),
        ({"batch_size": 64}, ["--batch-size: 64", "32 examples"]),
        ({"prompt": "plain"}, ["--prompt plain", "read as chats"]),
        ({"packing": True, "max_length": None}, ["--packing", "--max-length"]),
        ({"peft": "{target_modules: [no_such]}"}, ["--peft", "no_such"]),
        ({"peft": "{target_modules: '*_proj'}"}, ["--peft: target_modules: '*_proj' is no regular expression"]),
        ({"peft": "{rank_pattern: {'*': 8}}"}, ["--peft: rank_pattern: '*' is no regular expression"]),
        ({"objective": "grpo", "max_length": 64}, ["--max-length", "--objective rank"]),
        ({"beta": 0.5}, ["--beta", "--objective dpo"]),
        ({"objective": "dpo", "packing": True}, ["--packing", "--objective instruct"]),
        ({"rotate": False}, ["--rotate", "--objective rank"]),
        ({"objective": "dpo", "columns": ("prompt=question",)}, ["--columns", "--objective rank and grpo"]),
        ({"context": "given"}, ["--context", "--objective rank and dpo"]),
        ({"objective": "grpo", "completion": "yes"}, ["--completion yes", "letters"]),
        ({"objective": "rank", "chat_format": "phi3"}, ["--chat-format", "--objective instruct and dpo"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_before_any_work(tmp_path, options, changes, parts):
    with pytest.raises(InputError) as error:
        check_objective(options(**changes))
    assert all(part in str(error.value) for part in parts), error.value
    assert not list(tmp_path.iterdir())


def test_other_bad_input_is_refused(tmp_path, options, files):
    with pytest.raises(InputError, match=r"example 1: the same as example 1 of .*instruct-train"):
        check_objective(options(validation=files["instruct"]["train"]))
    bare = tiny_folder(tmp_path / "bare", "llama")
    Path(bare, "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template; pass --chat-format"):
        check_objective(options(model=bare))
    assert check_objective(options(model=bare, chat_format="llama2"))


def test_the_most_believed_wrong_option():
    assert preference_rejected([0.5, 0.2, 0.3], 0, list("abc")) == 2
    assert preference_rejected([0.1, 0.2, 0.7], 0, list("abc")) == 2
    assert preference_rejected([0.4, 0.2, 0.2], 0, list("abc")) == 1
    assert preference_rejected([0.4, 0.4, 0.2], 0, list("aab")) == 2
    assert preference_rejected([0.5, 0.5], 0, list("aa")) is None


def test_a_runs_answers_give_preference_pairs(tmp_path, cluster, small_index, exam_file, options, monkeypatch):
    made = predict(PredictOptions(output=str(tmp_path / "run"), exam=exam_file, reader="longest"))
    questions = tables.read_table(str(tmp_path / "run/exam.parquet")).to_pylist()
    pairs = read_preferences(made.path, options("dpo"))
    assert len(pairs) == len(questions)
    for question, pair in zip(questions, pairs, strict=True):
        wrong = [question[letter] for letter in "ABCDE" if question.get(letter) and letter != question["answer"]]
        assert pair["chosen"] == messages(("assistant", question[question["answer"]]))
        assert pair["rejected"] == messages(("assistant", max(wrong, key=len)))
        assert question["prompt"] in pair["prompt"][-1]["content"]
    letters = read_preferences(made.path, options("dpo", completion="letter"))
    assert letters[0]["chosen"] == messages(("assistant", questions[0]["answer"]))
    with pytest.raises(InputError, match="--completion yes"):
        read_preferences(made.path, options("dpo", completion="yes"))
    plain = read_preferences(made.path, options("dpo", prompt="plain"))
    assert plain[0]["prompt"] == f"Question: {questions[0]['prompt']}\nAnswer:"
    assert plain[0]["chosen"] == f" {questions[0][questions[0]['answer']]}"
    asked = read_reward_prompts(made.path, options("grpo"))
    assert [row["answer"] for row in asked] == [row["answer"] for row in questions]
    assert asked == read_reward_prompts(exam_file, options("grpo"))
    monkeypatch.chdir(Path(made.path).parent)
    name = Path(made.path).name
    assert read_preferences(name, options("dpo", prompt="plain")) == plain
    assert read_reward_prompts(name, options("grpo")) == asked
    retrieve(RetrieveOptions(output=str(tmp_path / "run"), index=f"{small_index}/index", exam=exam_file))
    path = tables.table_records_path(made.path, tables.MANIFEST)
    record = storage.read_json(path)
    for changed, said in (
        ({"contexts": {"index": "other"}}, "other contexts than"),
        ({"exam": "x"}, "another exam"),
        ({"answers": {"one": "1", "two": "2"}}, r"a blend, .* pass the answers of one of its readers \(one, two\)"),
    ):
        storage.write_json(path, record | {"inputs": record["inputs"] | changed})
        with pytest.raises(InputError, match=said):
            read_preferences(made.path, options("dpo"))


@pytest.mark.slow
def test_patience_ends_a_run_that_gets_no_better(cluster, options):
    made = finetune(options(steps=12, eval_every=1, patience=2, learning_rate=1e-12))
    assert made.details["steps"] < 12


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "zero"), [(1, 0), (2, 2), (2, 3)])
def test_a_killed_worker_ends_as_an_undisturbed_run(tmp_path, cluster, options, capsys, workers, zero):
    steps = 20 if zero == 3 else 60  # long enough to be killed in the middle; steps of ZeRO-3 are slow on a CPU
    common = {"num_workers": workers, "zero": zero, "steps": steps, "eval_every": 5, "peft": "{lora_dropout: 0.1}"}
    expected = finetune(options(**common, name="undisturbed"))
    asked = options(**common, name="killed")
    killer = threading.Thread(target=kill_a_worker, args=(asked.folder, 1))
    killer.start()
    made = finetune(asked)
    killer.join()
    assert capsys.readouterr().err.count("finetune: a worker on ") == 1
    assert len(losses(made.path)) == steps
    np.testing.assert_allclose(losses(made.path), losses(expected.path), atol=1e-3)
    assert [row["step"] for row in history(made.path)] == [row["step"] for row in history(expected.path)]


@pytest.mark.parametrize("objective", mostly_slow(["instruct", "dpo", "reward", "grpo"], "reward", "grpo"))
def test_what_a_checkpoint_resumes_has_the_losses_of_an_undisturbed_run(tmp_path, options, exam, objective):
    changes = exam | {"generations": 2, "completion_tokens": 4} if objective == "grpo" else {}
    asked = options(objective, **changes, batch_size=4, peft="{lora_dropout: 0.1}")
    saved = {"save_strategy": "steps", "save_steps": 2}
    found = []
    for name, resumed in (("whole", None), ("rest", str(tmp_path / "whole/checkpoint-2"))):
        trainer = in_process(asked, tmp_path / name, 4, **saved)
        trainer.train(resume_from_checkpoint=resumed)
        weights = {key: weight for key, weight in trainer.model.named_parameters() if weight.requires_grad}
        found.append(([row["loss"] for row in trainer.state.log_history if "loss" in row], weights))
    (whole, expected), (rest, weights) = found
    assert len(rest) == 4
    np.testing.assert_allclose(rest, whole, atol=1e-6)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, expected[key], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["instruct", "dpo", "reward", "grpo"])
def test_a_killed_driver_and_a_killed_worker_leave_the_weights_of_an_undisturbed_run(
    tmp_path, cluster, options, exam, capsys, objective
):
    steps, every = {"reward": (1000, 50), "grpo": (200, 10)}.get(objective, (80, 8))  # long enough to be killed twice
    common = {"steps": steps, "eval_every": every, "num_workers": 1, "peft": "{lora_dropout: 0.1}"}
    if objective == "grpo":
        common |= exam | {"generations": 2, "completion_tokens": 4, "batch_size": 4}
    expected = finetune(options(objective, **common, name="undisturbed"))
    asked = options(objective, **common, name="killed")
    kill_driver(asked)
    snapshot = Path(asked.folder, "checkpoints", "checkpoint_manager_snapshot.json")

    def last_checkpoint():
        names = re.findall(r"checkpoint_\d[\w.-]+", snapshot.read_text() if snapshot.exists() else "")
        return max(names, default="")

    before = last_checkpoint()

    def kill_later():
        while last_checkpoint() <= before:
            time.sleep(0.02)
        kill_a_worker(asked.folder, 1)

    killer = threading.Thread(target=kill_later)
    killer.start()
    made = finetune(asked)
    killer.join()
    assert capsys.readouterr().err.count("finetune: a worker on ") == 1
    assert [row["step"] for row in history(made.path)] == [row["step"] for row in history(expected.path)]
    np.testing.assert_allclose(losses(made.path), losses(expected.path), atol=1e-5)
    assert made.details["best_step"] == expected.details["best_step"]
    files = [load_file(Path(each.path, "adapter_model.safetensors")) for each in (made, expected)]
    for key, weight in files[0].items():
        torch.testing.assert_close(weight, files[1][key], atol=1e-5, rtol=1e-4)


#: Fields without which peft refuses an adapter of that kind, or its defaults are too large for the tiny model.
FIELDS = {
    "ADALORA": {"total_step": 40, "tinit": 1, "tfinal": 1},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 32},
    "FOURIERFT": {"n_frequency": 20},
    "ROAD": {"group_size": 32},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "VBLORA": {"vector_length": 32, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 100},
}
#: Kinds that read more than a text, or the values of weights before they are loaded.
REFUSED = {"ADAMSS", "FROD", "MULTITASK_PROMPT_TUNING", "POLY", "SHIRA", "XLORA"}
QUESTION = {"prompt": "Which gas is noble?", "A": "helium", "B": "iron oxide", "answer": "A", "is_question": True}


@pytest.mark.parametrize("kind", mostly_slow(sorted(kind.value for kind in peft.PeftType), "IA3", "LOKR", "P_TUNING"))
def test_any_adapter_of_peft_is_trained_kept_and_read(tmp_path, options, model, kind):
    fields = {"peft_type": kind} | FIELDS.get(kind, {})
    asked = options(peft=json.dumps(fields))
    if kind in REFUSED:
        with pytest.raises(InputError, match="--peft: "):
            check_finetune_model(asked)
        return
    check_finetune_model(asked)
    base, tokenizer = load_base(model, "causal", torch.float32)
    torch.manual_seed(0)
    trained = adapter.add_trainable_adapter(base, "causal", "lora", fields)
    scorer = scorer_of_loaded(model, "causal", trained, tokenizer, PromptFormat(prompt="chat")).train()
    encoded = [scorer.encode(QUESTION, context) for context in ("", "Helium is noble.")]
    weights = [weight for weight in scorer.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.5)
    before = [weight.detach().clone() for weight in weights]
    for step in range(3):
        optimizer.zero_grad()
        with adapter.adapter_without_input_casts(scorer, active=True):
            mean_loss(scorer(encoded), [0, 0], "ranking").backward()
        optimizer.step()
        adapter.update_adapter_ranks(trained, step + 1)
    assert any((weight != then).any() for weight, then in zip(weights, before, strict=True))
    about = describe_adapter_files(model) | {"style": {"prompt": "chat"}}
    adapter.save_adapter_or_model(trained, tmp_path / "adapter", gather_sharded(trained, 0), about)
    found = load_scorer(model, adapter=str(tmp_path / "adapter"), precision="float32")
    with torch.no_grad():
        expected = [each.numpy() for each in scorer.eval()(encoded)]
        for one, other in zip(expected, found(encoded), strict=True):
            np.testing.assert_allclose(other.numpy(), one, atol=1e-4)


def test_bad_adapters_are_refused(options):
    with pytest.raises(InputError, match=r"--peft: no peft_type 'LORO' in this peft; there are ADALORA, .*LORA"):
        check_finetune_model(options(peft="{peft_type: loro}"))
    with pytest.raises(InputError, match=r"--peft: .*total_step"):
        check_finetune_model(options(peft="{peft_type: ADALORA}"))
    with pytest.raises(InputError, match=r"--zero: .*whole gradients"):
        check_finetune_model(options(peft="{peft_type: ADALORA, total_step: 9}", zero=2))
    with pytest.raises(InputError, match=r"--peft: deltaT: .* leave it at 1"):
        check_finetune_model(options(peft="{peft_type: ADALORA, total_step: 9, deltaT: 3}"))
    with pytest.raises(InputError, match=r"--zero 3: a soft prompt .* use --zero 2"):
        check_finetune_model(options(method="prompt-tuning", zero=3))
    check_finetune_model(options(method="prompt-tuning", zero=2))
    with pytest.raises(InputError, match=r"--peft: no weight is trained .* leave inference_mode out"):
        check_finetune_model(options(peft="{inference_mode: true}"))


@pytest.mark.parametrize(
    ("field", "right", "wrong"),
    [
        ("target_modules", ["q_proj", "v_proj"], ["q_proj", "v_porj"]),
        ("modules_to_save", ["head"], ["v_porj"]),
        ("rank_pattern", {r"^model\.layers\.0\..*v_proj": 2}, {"v_porj": 2}),
    ],
)
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # of peft, which leaves them out
def test_modules_that_a_model_has_not_are_refused(options, field, right, wrong):
    check_finetune_model(options(peft=json.dumps({field: right})))
    with pytest.raises(InputError, match=f"--peft: {field}: the model has no module 'v_porj'"):
        check_finetune_model(options(peft=json.dumps({field: wrong})))


def test_a_module_to_save_may_be_given_alone(model):
    base = load_on_meta_device(model, "causal", torch.float32)
    config = adapter.adapter_peft_config(base, "causal", "lora", {"modules_to_save": "lm_head"})
    assert config.modules_to_save == ["lm_head"]


def test_a_reward_model_needs_a_type_with_a_score(tmp_path, options, model):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shutil.copytree(model, tmp_path / "granite")
    config = transformers.GraniteConfig(vocab_size=len(tiny_tokenizer("llama")), **sizes)
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    check_objective(options("dpo", model=str(tmp_path / "granite")))
    with pytest.raises(InputError, match=r"--objective reward: .*granite is of the type granite, of which"):
        check_objective(options("reward", model=str(tmp_path / "granite")))


def test_a_row_has_no_more_tokens_than_the_model_has_positions(tmp_path, options):
    short = tiny_folder(tmp_path / "short", "llama", max_position_embeddings=64)
    assert in_process(options("dpo", model=short), tmp_path, 1).args.max_length == 64
    soft = {"method": "prompt-tuning", "peft": "{num_virtual_tokens: 4}"}
    assert in_process(options(model=short, **soft), tmp_path, 1).args.max_length == 60


def test_an_adapter_that_adapts_its_ranks_goes_on_with_what_it_has_seen(tmp_path, model):
    fields = {"peft_type": "ADALORA", "total_step": 6, "tinit": 1, "tfinal": 2, "init_r": 8, "target_r": 2}

    def train(first, last, start=None):
        base, tokenizer = load_base(model, "causal", torch.float32)
        torch.manual_seed(0)
        trained = adapter.add_trainable_adapter(base, "causal", "lora", fields)
        scorer = scorer_of_loaded(model, "causal", trained, tokenizer, PromptFormat(prompt="chat")).train()
        if start:
            trained.load_state_dict(start.state_dict())
            adapter.load_adapter_ranks(trained, tmp_path)
        optimizer = torch.optim.SGD([each for each in scorer.parameters() if each.requires_grad], lr=0.5)
        for step in range(first, last):
            optimizer.zero_grad()
            mean_loss(scorer([scorer.encode(QUESTION, "")]), [0], "ranking").backward()
            optimizer.step()
            adapter.update_adapter_ranks(trained, step + 1)
        adapter.save_adapter_ranks(trained, tmp_path)
        return trained

    whole = train(0, 6)
    for killed in (3, 5):  # while ranks are chosen, and after
        rest = train(killed, 6, train(0, killed))
        pattern = whole.peft_config["default"].rank_pattern
        assert rest.peft_config["default"].rank_pattern == pattern
        assert not all(all(kept) for kept in pattern.values())
        for name, weight in whole.named_parameters():
            torch.testing.assert_close(rest.get_parameter(name), weight)
    (tmp_path / adapter.RANKS).unlink()
    with pytest.raises(InputError, match="kept no ranks"):
        train(3, 6, whole)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["instruct", "dpo"])
@pytest.mark.parametrize("kind", ["IA3", "LOHA", "LOKR", "P_TUNING", "PREFIX_TUNING", "ADALORA", "LORA"])
def test_trl_trains_adapters_of_all_sorts(tmp_path, options, model, objective, kind):
    fields = {"peft_type": kind} | FIELDS.get(kind, {}) | ({"use_dora": True} if kind == "LORA" else {})
    trainer = in_process(options(objective, peft=json.dumps(fields), batch_size=2), tmp_path / "trainer", 3)
    trainer.add_callback(TrlReport(SimpleNamespace(write=lambda row: None), None, "validation_loss"))
    before = trainer.evaluate(trainer.train_dataset.select(range(4)))["eval_loss"]
    trainer.train()
    after = trainer.evaluate(trainer.train_dataset.select(range(4)))["eval_loss"]
    assert math.isfinite(after)
    assert after != before
    trainer.save_model(str(tmp_path / "adapter"))
    load_scorer(model, adapter=str(tmp_path / "adapter"), precision="float32")
