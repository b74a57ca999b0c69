"""Plans beside what is measured: weights, adapters, shards, memory, operations, and published figures."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

from sciqa.estimate import peak_activations, sketch, training_memory
from sciqa.models.scorer import Encoded
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
