"""What the reader would gain on a CPU by OpenVINO: seconds of the same packed batches in PyTorch and in OpenVINO.

Scores questions of the packaged `test` exam with the packaged SmolLM2-135M-Instruct, each with its gold article, in
bfloat16, in turn. Prints operations a second beside a bare bfloat16 matrix product of 2048 rows and columns, the
machine's own limit. With one thread seconds are CPU seconds, so that other work on the machine changes little; with
more, the machine must be quiet. In the first round OpenVINO sees each shape of a batch for the first time, as it does
in a run. Nothing in the program uses it.
Usage: python benchmarks/openvino_reader.py [QUESTIONS [THREADS]]
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch.utils.flop_counter import FlopCounterMode

from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_scorer
from sciqa.models.packing import PackedRows
from sciqa.models.scorer import score_options

MODEL = "SmolLM2-135M-Instruct"
ROUNDS = 4
SIDE = 2048
THREADS = int(sys.argv[2]) if len(sys.argv) > 2 else 1


class Forward(torch.nn.Module):
    """A causal model with the inputs of packed rows."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits of some columns."""
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=columns, use_cache=False
        ).logits


def compiled() -> ov.CompiledModel:
    """Return the model compiled by OpenVINO for bfloat16."""
    model = load_scorer(MODEL, precision="float32").model
    tokens = 9
    least = torch.finfo(torch.bfloat16).min
    mask = torch.full((2, 1, tokens, tokens), least).triu(1)
    ids, positions = torch.arange(2 * tokens).reshape(2, tokens), torch.arange(tokens).repeat(2, 1)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        traced = ov.convert_model(Forward(model), example_input=(ids, mask, positions, torch.arange(4, tokens)))
        ov.save_model(traced, Path(folder, "model.xml"), compress_to_fp16=False)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS, "ENABLE_CPU_PINNING": False}
        return ov.Core().compile_model(
            Path(folder, "model.xml"), "CPU", settings | {"INFERENCE_PRECISION_HINT": "bf16"}
        )


def timed(work: Callable) -> tuple[float, object]:
    """Return the seconds of a function, and its result."""
    clock = time.process_time if THREADS == 1 else time.perf_counter
    started = clock()
    result = work()
    return clock() - started, result


def main() -> None:
    """Measure in rounds and print the ratios."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    model, scorer = compiled(), load_scorer(MODEL, precision="bfloat16", threads=THREADS)
    by_torch = scorer._logits

    def by_openvino(rows: PackedRows) -> torch.Tensor:
        mask = CausalScorer.mask(scorer, rows, torch.bfloat16).float().numpy()
        columns = np.arange(rows.first, rows.ids.shape[1])
        return torch.from_numpy(model([rows.ids.numpy(), mask, rows.positions.numpy(), columns])[0])

    articles = {article["title"]: article["text"] for article in read_articles("demo")}
    questions = read_exam("test").to_pylist()[:number]
    encoded = [scorer.encode(question, articles[question["title"]]) for question in questions]
    with FlopCounterMode(display=False) as counter:
        score_options(scorer, encoded)
    flops = counter.get_total_flops()
    square = torch.randn(SIDE, SIDE, dtype=torch.bfloat16)
    tokens = sum(each.length for each in encoded)
    print(f"{number} questions, {tokens:,} tokens, {flops / 1e12:.2f} TFLOP, threads: {THREADS}")
    seconds: dict[str, list[float]] = {"PyTorch": [], "OpenVINO": [], "product": []}
    for done in range(ROUNDS):
        scores = {}
        for name, logits in (("PyTorch", by_torch), ("OpenVINO", by_openvino)):
            scorer._logits = logits
            taken, scores[name] = timed(lambda: score_options(scorer, encoded))
            seconds[name].append(taken)
        seconds["product"].append(min(timed(lambda: square @ square)[0] for _ in range(20)))
        limit = 2 * SIDE**3 / seconds["product"][-1]
        ours, theirs = (np.concatenate(scores[name]) for name in ("PyTorch", "OpenVINO"))
        speeds = {name: flops / seconds[name][-1] for name in ("PyTorch", "OpenVINO")}
        said = ", ".join(f"{name} {speed / 1e9:.0f} GFLOP/s ({speed / limit:.2f})" for name, speed in speeds.items())
        ratio = seconds["PyTorch"][-1] / seconds["OpenVINO"][-1]
        print(f"round {done + 1}: {said}, limit {limit / 1e9:.0f} GFLOP/s, ratio {ratio:.2f}", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(seconds["PyTorch"], seconds["OpenVINO"], strict=True)]
    same = [np.argmax(a) == np.argmax(b) for a, b in zip(scores["PyTorch"], scores["OpenVINO"], strict=True)]
    print(f"median ratio {statistics.median(ratios):.2f}, first round {ratios[0]:.2f}")
    print(f"scores differ by up to {np.abs(ours - theirs).max():.3f}; the same option first for {np.mean(same):.1%}")


if __name__ == "__main__":
    main()
