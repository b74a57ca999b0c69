"""Peak growth of each rank's memory while a model is loaded for ZeRO-3, as a share of the model's bytes.

A random Llama (bfloat16, 2 GB unless told otherwise) is loaded on two ranks, for each method: plainly, for DeepSpeed to
shard it then, and as `sciqa finetune --zero 3` does, which shards each weight when it is read. The model's bytes are
those of its weights as the method holds them: float32 for `full`, bfloat16 for `lora`, NF4 for `qlora`. Needs 16 GB.
Usage: python benchmarks/loading.py [GIGABYTES]
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from sciqa.core.model_files import find_model
from sciqa.models.load import load_safetensors_folder

RANKS = 2


def write_model(folder: str, gigabytes: float) -> None:
    """Write a random model with about so many bytes of weights, in one file, and a tokenizer."""
    layers = max(1, round((gigabytes * 1e9 / 2 - 2 * 32000 * 2048) / 51.4e6))
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 32}
    config = transformers.LlamaConfig(vocab_size=32000, num_hidden_layers=layers, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    packaged = load_safetensors_folder(find_model("SmolLM2-135M-Instruct"))
    transformers.AutoTokenizer.from_pretrained(packaged).save_pretrained(folder)


def memory(name: str) -> int:
    """Return a figure of this process in bytes: VmRSS, the memory it has now, or VmHWM, the most that it had."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def load(folder: str, method: str, sharded: bool) -> None:
    """Load the model as a worker does, and print the figures of this rank."""
    import deepspeed

    from sciqa.models import adapter
    from sciqa.models.load import load_base
    from sciqa.training.options import FinetuneOptions
    from sciqa.training.sharding import deepspeed_config, shard_while_loading, sharded_parameter_bytes

    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    options = FinetuneOptions(model=folder, method=method, zero=3, num_workers=RANKS)
    config = deepspeed_config(options, RANKS, torch.bfloat16)
    import peft  # noqa: F401 (its memory is none of the model's)

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts anew
    with shard_while_loading(config) if sharded else contextlib.nullcontext():
        model, _ = load_base(folder, "causal", torch.bfloat16, method == "qlora")
    if method == "full":
        model = adapter.add_trainable_adapter(model, "causal", method, {})
    deepspeed.zero.Init(module=model, config_dict_or_path=config)  # as DeepSpeed does with what is whole when it starts
    held, whole = sharded_parameter_bytes(model)
    grown = memory("VmHWM") - before
    print("\n" + json.dumps({"held": held, "whole": whole, "grown": grown}))


def main() -> None:
    """Load in each way on all ranks at once, and print a row for each."""
    if len(sys.argv) > 2:
        load(sys.argv[1], sys.argv[2], sys.argv[3] == "sharded")
        return
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
        for method in ("lora", "full", "qlora"):
            for way in ("plain", "sharded"):
                command = [sys.executable, __file__, folder, method, way]
                own = [{"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(RANKS)} for n in range(RANKS)]
                ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | each) for each in own]
                found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
                shares = ", ".join(f"{each['grown'] / each['whole']:.0%}" for each in found)
                sizes = ", ".join(f"{each['grown'] / 1e6:,.0f} MB" for each in found)
                whole, held = found[0]["whole"], found[0]["held"] / found[0]["whole"]
                print(f"{method:<6} {way:<8} of {whole / 1e6:,.0f} MB: growth {shares} ({sizes}); held {held:.0%}")


if __name__ == "__main__":
    main()
