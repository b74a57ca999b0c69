"""Questions a second of `sciqa finetune` on one worker beside a plain transformers Trainer with peft.

Both train LoRA adapters (r 16, all linear layers) of the packaged SmolLM2-135M-Instruct in bfloat16, on the same rows
in the same batches of 8 with the same loss (likelihood of the right option), on all CPUs (or one GPU). Start-up is left
out: the first two steps are not counted. Runs in turn, three rounds; needs `pip install -e '.[dev]'`, demo.txt, and
the contexts that `sciqa finetune` finds. Usage: python benchmarks/training.py RUN_FOLDER [STEPS]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time

import pyarrow as pa
import torch
import transformers

from sciqa.core import storage, tables
from sciqa.exam import read_exam
from sciqa.exam.open_exam import open_exam
from sciqa.exam.options import ExamOptions
from sciqa.models import adapter
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_base
from sciqa.models.prompt_format import PromptFormat
from sciqa.retrieval.contexts import CONTEXTS_FORMAT
from sciqa.training import FinetuneOptions, finetune
from sciqa.training.example_files import example_file_batches
from sciqa.training.examples import ExampleOrder, Examples

MODEL, BATCH, ROUNDS, SKIPPED = "SmolLM2-135M-Instruct", 8, 3, 2


def options_for(folder: str, output: str, steps: int) -> FinetuneOptions:
    """Return the options of our run: nothing but what the Trainer below does too."""
    return FinetuneOptions(
        output=output, train_contexts=f"{folder}/train/contexts", validation=f"{output}/one.jsonl",
        validation_contexts=f"{output}/validation/contexts", num_workers=1, steps=steps, eval_every=steps,
        batch_size=BATCH, micro_batch=BATCH, loss="completion", prompt="plain", rotate=False, peft="{r: 16}",
    )  # fmt: skip


def ours(folder: str, steps: int) -> dict:
    """Return the seconds of our steps, and the share of padding."""
    with tempfile.TemporaryDirectory() as output:
        rows = read_exam("direct-validation").slice(0, 1).to_pylist()
        storage.write_bytes(f"{output}/one.jsonl", json.dumps(rows[0]).encode())
        options = options_for(folder, output, steps)
        exam = tables.read_table(f"{folder}/validation/contexts").slice(0, 1)
        tables.write_table(f"{output}/validation/contexts/00000.parquet", exam)
        digest = open_exam(ExamOptions(output=f"{output}/validation", exam=options.validation)).sha256
        about = {"format": CONTEXTS_FORMAT, "inputs": {"exam": digest}, "rows": 1}
        tables.finish_table(f"{output}/validation/contexts", about)
        made = finetune(options)
        history = tables.read_table(f"{made.path}/metrics.parquet").to_pylist()
        seconds = [row["seconds"] for row in history if row["loss"] is not None]
        return {"seconds": seconds[SKIPPED:], "padding": made.details["padding"]}


def theirs(folder: str, steps: int) -> dict:
    """Return the seconds of the Trainer's steps."""
    with tempfile.TemporaryDirectory() as output:
        options = options_for(folder, output, steps)
        model, tokenizer = load_base(MODEL, "causal", torch.bfloat16)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = adapter.add_trainable_adapter(model, "causal", "lora", {"r": 16})
        scorer = CausalScorer(model, tokenizer, PromptFormat())
        exam = open_exam(ExamOptions(output=f"{output}/train", exam=options.train))
        examples = Examples(pa.concat_tables(example_file_batches(exam, options.train_contexts)))

        def encode(epoch: int, number: int) -> tuple:
            question, context, gold = examples.varied(number, epoch, options)
            return scorer.encode(question, context).only(gold), 0

        order = ExampleOrder(len(examples), steps, BATCH, options.seed, encode)
        rows = [
            {"input_ids": row.prompt + row.options[0], "labels": [-100] * len(row.prompt) + row.options[0]}
            for step in range(steps)
            for row, _ in order.batch(step)
        ]

        class InOrder(transformers.Trainer):
            def _get_train_sampler(self, dataset=None):
                return torch.utils.data.SequentialSampler(dataset)

        class Clock(transformers.TrainerCallback):
            def on_step_begin(self, *_, **__):
                self.began = time.monotonic()

            def on_step_end(self, *_, **__):
                seconds.append(time.monotonic() - self.began)

        seconds = []
        arguments = transformers.TrainingArguments(
            output_dir=output, per_device_train_batch_size=BATCH, max_steps=steps, bf16=True, report_to=[],
            use_cpu=not torch.cuda.is_available(), save_strategy="no", logging_strategy="no", disable_tqdm=True,
            learning_rate=options.learning_rate, lr_scheduler_type="cosine", max_grad_norm=1.0,
        )  # fmt: skip
        collate = transformers.DataCollatorForSeq2Seq(tokenizer)
        InOrder(model, arguments, collate, train_dataset=rows, callbacks=[Clock()]).train()
        return {"seconds": seconds[SKIPPED:]}


def main() -> None:
    """Run both in turn, each in a process of its own, and print speeds and their ratio."""
    folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12
    if len(sys.argv) > 3:
        transformers.utils.logging.set_verbosity_error()
        print(json.dumps({"ours": ours, "theirs": theirs}[sys.argv[3]](folder, steps)))
        return
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    padding = 0.0
    for _ in range(ROUNDS):
        for name, found in rates.items():
            command = [sys.executable, __file__, folder, str(steps), name]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            found.append(BATCH * len(result["seconds"]) / sum(result["seconds"]))
            padding = result.get("padding", padding)
    print(f"{steps - SKIPPED} steps of {BATCH} questions, bfloat16, padding {padding:.1%}")
    for name, label in (("ours", "sciqa finetune, one worker"), ("theirs", "transformers Trainer and peft")):
        low, middle, high = min(rates[name]), statistics.median(rates[name]), max(rates[name])
        print(f"{label:<30} {middle:5.2f} questions/s (rounds {low:.2f} to {high:.2f})")
    ratios = sorted(a / b for a, b in zip(rates["ours"], rates["theirs"], strict=True))
    print(f"ratio {statistics.median(ratios):.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
