"""ZeRO-3: what two ranks load and save together, beside what one process loads and saves."""

import os
import socket
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from tiny import tiny_folder

FAMILIES = {"llama": "causal", "tied": "causal", "untied": "causal", "phi3": "causal", "bert": "multiple-choice"}
FAMILIES |= {"t5": "seq2seq", "moe": "causal", "doubled": "causal"}


def load_and_save_shares(root: str) -> None:
    """On each rank: load every model sharded and plainly, compare all weights, and save it in parts."""
    import deepspeed

    from sciqa.models import adapter
    from sciqa.models.load import load_base
    from sciqa.training.options import FinetuneOptions
    from sciqa.training.sharding import deepspeed_config, save_sharded_model, shard_while_loading

    torch.distributed.init_process_group("gloo")
    config = deepspeed_config(FinetuneOptions(zero=3), 2, torch.float32)
    for name, method in product(FAMILIES, ("full", "lora", "qlora")):
        if method == "qlora" and FAMILIES[name] != "causal":
            continue
        family, models = FAMILIES[name], []
        for given in (None, config):
            torch.manual_seed(0)
            with shard_while_loading(given):
                model, _ = load_base(f"{root}/{name}", family, torch.bfloat16, nf4=method == "qlora")
            models.append(adapter.add_trainable_adapter(model, family, method, {}))
        plain, sharded = models
        weights = dict(plain.named_parameters(remove_duplicate=False))
        shares = dict(sharded.named_parameters(remove_duplicate=False))
        assert list(weights) == list(shares)
        whole = {each for each, weight in shares.items() if not hasattr(weight, "ds_id")}
        new = {each.rpartition(".")[0] for each in adapter.newly_initialised_weights(plain)}
        assert all("lora_" in each or any(module in each for module in new) for each in whole), whole
        for each, weight in weights.items():
            other = shares[each]
            with deepspeed.zero.GatheredParameters([other], enabled=hasattr(other, "ds_id")):
                assert (weight.dtype, weight.requires_grad) == (other.dtype, other.requires_grad), each
                same = torch.equal(weight.view(torch.uint8), other.view(torch.uint8))  # 4-bit ones may look like NaN
                assert same, (name, method, each)
        tied = [{(a, b) for a in found for b in found if found[a] is found[b]} for found in (weights, shares)]
        assert tied[0] == tied[1]
        assert plain.config.to_dict() == sharded.config.to_dict()
        if method == "full":
            save_sharded_model(sharded, Path(root, "saved", name), part_bytes=100_000)
            if torch.distributed.get_rank() == 0:
                plain.save_pretrained(f"{root}/plain/{name}")


@pytest.mark.slow
def test_ranks_load_and_save_together_what_one_process_loads_and_saves(tmp_path):
    for name in FAMILIES:
        if name in ("tied", "untied", "doubled"):
            folder = tiny_folder(tmp_path / name, "llama", tie_word_embeddings=True)
        elif name == "moe":
            fields = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 4}
            fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 200}
            tiny_folder(tmp_path / name, "llama")
            torch.manual_seed(0)
            folder = tmp_path / name
            transformers.MixtralForCausalLM(transformers.MixtralConfig(**fields)).save_pretrained(folder)
        else:
            folder = tiny_folder(tmp_path / name, name)
        if name in ("untied", "doubled"):  # a tied head in the file too, in which transformers believes the file
            path = Path(folder, "model.safetensors")
            weights = safetensors.torch.load_file(path)
            weights["lm_head.weight"] = (2 if name == "untied" else 1) * weights["model.embed_tokens.weight"]
            safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import test_sharding; test_sharding.load_and_save_shares({str(tmp_path)!r})"
    command = [sys.executable, "-c", code]
    own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    ranks = [subprocess.Popen(command, env=common | each, stderr=subprocess.PIPE, text=True) for each in own]
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    for name, family in FAMILIES.items():
        whole = tmp_path / "saved" / name
        assert len(list(whole.glob("model-*.safetensors"))) > 1
        expected = safetensors.torch.load_file(tmp_path / "plain" / name / "model.safetensors")
        found = {}
        for path in whole.glob("model-*.safetensors"):
            found |= safetensors.torch.load_file(path)
        assert found.keys() == expected.keys(), name
        assert all(torch.equal(found[each], expected[each]) for each in expected)
        assert (whole / "config.json").read_text() == (tmp_path / "plain" / name / "config.json").read_text()
        auto = {"causal": "CausalLM", "seq2seq": "Seq2SeqLM", "multiple-choice": "MultipleChoice"}[family]
        auto = getattr(transformers, f"AutoModelFor{auto}")
        again = auto.from_pretrained(whole).state_dict()
        plain = auto.from_pretrained(tmp_path / "plain" / name).state_dict()
        assert all(torch.equal(again[each], plain[each]) for each in plain)
