"""A model streamed layer by layer, beside the same model whole in memory and by accelerate's disk offload.

The model is a Llama with random weights, by default 44 of the layers of a 1.1B one (4.1 GB in bfloat16), written layer
by layer to a temporary folder. Each side answers the same 64 questions with five options in a process of its own, with
nothing of the model in the page cache at its start. accelerate is given as much memory for weights as the streamed
process may take in all, and a row per option as its users write it, in one batch of all rows and in batches of 64 (of
which one is run, and its time multiplied); then the rows of this project, which hold the prompt once. Memory is the
peak (VmHWM) of the whole process, imports and all. Usage: python benchmarks/streaming.py [LAYERS [FOLDER]]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUESTIONS, OPTIONS = 64, 5
PROMPT_TOKENS, OPTION_TOKENS = (32, 44), (3, 5)
SHARE = 0.25
LLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}


def questions(vocabulary, count=QUESTIONS):
    """Return random questions in tokens, the same in every process."""
    import numpy as np

    from sciqa.models.scorer import EncodedForScorer

    rng = np.random.default_rng(0)

    def tokens(least, most):
        return rng.integers(3, vocabulary, rng.integers(least, most + 1)).tolist()

    return [
        EncodedForScorer(tokens(*PROMPT_TOKENS), [tokens(*OPTION_TOKENS) for _ in range(OPTIONS)], [1.0] * OPTIONS)
        for _ in range(count)
    ]


def make(folder, layers, kind="bfloat16", **sizes):
    """Write a model, a file for each layer, and never hold more than one."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from sciqa.core.model_files import find_model
    from sciqa.models.load import load_safetensors_folder

    config = transformers.LlamaConfig(**LLAMA | sizes, num_hidden_layers=layers, vocab_size=32000, dtype=kind)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(load_safetensors_folder(find_model("SmolLM2-135M-Instruct")))
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    files, weight_map = {}, {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "outside"
        files.setdefault(f"layer-{part}.safetensors", {})[name] = parameter.shape
    torch.manual_seed(0)
    for file, shapes in files.items():
        weights = {
            name: torch.ones(shape, dtype=getattr(torch, kind))
            if "norm" in name
            else torch.randn(shape, dtype=getattr(torch, kind)) * 0.02
            for name, shape in shapes.items()
        }
        save_file(weights, Path(folder, file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, file)
    Path(folder, "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return {}


def drop_cache(folder):
    """Have the kernel forget what it has read of a model."""
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak():
    """Return the most memory that this process has had, in bytes."""
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def read_bytes():
    """Return how much this process has had read from disk."""
    return next(int(line.split()[1]) for line in Path("/proc/self/io").open() if line.startswith("read_bytes"))


def disk(folder):
    """Return the bytes a second at which the model's files are read, by the quicker of two ways and of two rounds."""
    from concurrent.futures import ThreadPoolExecutor
    from mmap import mmap

    chunk, paths = 8 << 20, list(Path(folder).glob("*.safetensors"))
    buffers = [mmap(-1, chunk) for _ in range(2)]

    def read(number, flags):
        for path in paths[number::2]:
            file, at = os.open(path, os.O_RDONLY | flags), 0
            while got := os.preadv(file, [buffers[number]], at):
                at += got
                if got % 4096:
                    break
            os.close(file)

    rates = []
    for flags in (0, os.O_DIRECT) * 2:
        drop_cache(folder)
        started = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, range(2), [flags] * 2))
        rates.append(sum(path.stat().st_size for path in paths) / (time.perf_counter() - started))
    return {"rate": max(rates)}


def ours(folder, streams, precision="bfloat16"):
    """Score all questions by the scorer that `sciqa predict` uses, streamed or not."""
    import numpy as np

    from sciqa.models.load import load_scorer
    from sciqa.models.scorer import score_options
    from sciqa.models.streamed_weights import StreamedWeightsSettings

    asked = questions(32000)
    before = read_bytes()
    scorer = load_scorer(
        folder, precision=precision, threads=os.cpu_count(), streaming=StreamedWeightsSettings() if streams else None
    )
    started = time.perf_counter()
    scores = np.concatenate(score_options(scorer, asked))
    seconds = time.perf_counter() - started
    states = sum(question.length for question in asked) * scorer.model.config.hidden_size * scorer.model.dtype.itemsize
    return {
        "seconds": seconds,
        "read": read_bytes() - before,
        "peak": peak(),
        "states": states,
        "scores": scores.tolist(),
    }


def streamed(folder):
    """Streamed."""
    return ours(folder, True)


def whole(folder):
    """In memory."""
    return ours(folder, False)


def same(folder):
    """Return the largest difference of scores between a small model streamed and whole, in float32."""
    import numpy as np

    make(folder, 6, "float32", hidden_size=512, intermediate_size=1408, num_attention_heads=8)
    pair = [ours(folder, streams, "float32")["scores"] for streams in (True, False)]
    return {"difference": float(np.abs(np.subtract(*pair)).max()), "spread": float(np.ptp(pair[1]))}


def offloaded(folder):
    """Return the model as accelerate spreads it over memory and disk."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map="auto",
        max_memory={"cpu": int(SHARE * size)},
        offload_folder=tempfile.mkdtemp(dir=folder),
    ).eval()


def accelerate_rows(folder, rows_per_batch, batches=None):
    """Score a row per option, batches of like length; the first `batches` of those in the middle where it is given."""
    import torch

    rows = [(question.prompt, option) for question in questions(32000) for option in question.options]
    rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
    parts = [rows[at : at + rows_per_batch] for at in range(0, len(rows), rows_per_batch)]
    chosen = parts[len(parts) // 2 :][:batches]
    model = offloaded(folder)
    drop_cache(folder)
    before, started = read_bytes(), time.perf_counter()
    for part in chosen:
        width = max(len(prompt + option) for prompt, option in part)
        ids = torch.tensor([prompt + option + [0] * (width - len(prompt + option)) for prompt, option in part])
        mask = torch.tensor([[1] * len(p + o) + [0] * (width - len(p + o)) for p, o in part])
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, (prompt, option) in zip(logits, part, strict=True):
                predicted = row[len(prompt) - 1 : len(prompt + option) - 1].float().log_softmax(-1)
                predicted.gather(1, torch.tensor(option)[:, None]).sum()
    factor = len(parts) / len(chosen)
    return {
        "seconds": (time.perf_counter() - started) * factor,
        "read": (read_bytes() - before) * factor,
        "peak": peak(),
    }


def accelerate_all(folder):
    """In one batch of all rows."""
    return accelerate_rows(folder, QUESTIONS * OPTIONS)


def accelerate_64(folder):
    """In batches of 64 rows."""
    return accelerate_rows(folder, 64, 1)


def accelerate_shared(folder):
    """With this project's rows and batches."""
    from sciqa.models.causal import CausalScorer
    from sciqa.models.prompt_format import PromptFormat
    from sciqa.models.scorer import score_options

    scorer = CausalScorer(offloaded(folder), None, PromptFormat())
    drop_cache(folder)
    before, started = read_bytes(), time.perf_counter()
    score_options(scorer, questions(32000), 1 << 20)
    return {"seconds": time.perf_counter() - started, "read": read_bytes() - before, "peak": peak()}


def side(name, folder, *arguments):
    """Run a function of this file in a process of its own and return what it returns."""
    drop_cache(folder)
    command = [sys.executable, __file__, "--side", name, folder, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Print one table."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 44
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as root:
        folder, small = f"{root}/model", f"{root}/small"
        Path(folder).mkdir()
        Path(small).mkdir()
        side("make", folder, layers)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        rate = side("disk", folder)["rate"]
        print(f"{layers} layers, {size / 1e9:.2f} GB in bfloat16; disk {rate / 1e9:.2f} GB/s", flush=True)
        sides = {
            "streamed": "streamed",
            "whole": "in memory",
            "accelerate_all": "accelerate, one batch of rows",
            "accelerate_64": "accelerate, batches of 64 rows",
            "accelerate_shared": "accelerate, prompts shared",
        }
        found = {}
        print(f"{'':<32}{'seconds':>9}{'peak':>16}{'read':>8}  times streamed", flush=True)
        for name, words in sides.items():
            found[name] = row = side(name, folder)
            share, times = row["peak"] / size, row["seconds"] / found["streamed"]["seconds"]
            print(
                f"{words:<32}{row['seconds']:>9.1f}{row['peak'] / 1e9:>7.2f} GB {share:>4.0%}"
                f"{row['read'] / size:>9.3f}  {times:.2f}",
                flush=True,
            )
        allowed = max(size / rate, found["whole"]["seconds"])
        ratio = allowed / found["streamed"]["seconds"]
        print(
            f"reading at the disk's rate {size / rate:.1f} s, computing in memory {found['whole']['seconds']:.1f} s: "
        )
        print(f"streamed at {ratio:.2f} of what the longer allows; states {found['streamed']['states'] / 1e6:.0f} MB")
        apart = max(abs(a - b) for a, b in zip(found["streamed"]["scores"], found["whole"]["scores"], strict=True))
        exact = side("same", small)
        print(f"largest difference of scores: bfloat16 {apart:.4f}; float32, a small model {exact['difference']:.6f}")
        print(f"(scores of the small model from {exact['spread']:.0f} apart)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        import logging

        logging.disable(logging.WARNING)
        name, folder, *given = sys.argv[2:]
        print(json.dumps(globals()[name](folder, *map(int, given))))
    else:
        main()
