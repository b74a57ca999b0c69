"""ZeRO-3: what two ranks load and save together, beside what one process loads and saves."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import transformers
from ports import free_port
from tiny import tiny_folder

from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED, ADAPTER_CONFIG, find_model
from sciqa.core.storage import write_json
from sciqa.training import sharding
from sciqa.training.loop import train_loop
from sciqa.training.options import FinetuneOptions
from sciqa.training.rewards import reward_hash
from sciqa.training.trl_loop import train_trl_loop
from sciqa.training.trl_trainers import find_trl_trainer_models

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


class Exchange:
    """What two ranks exchange, of which the other one has an error at a given time."""

    def __init__(self, fails_at: int) -> None:
        self.calls, self.fails_at = 0, fails_at

    def __call__(self, mine: object) -> list:
        self.calls += 1
        return [mine, InputError("only there: no room") if self.calls == self.fails_at else None]


def test_a_check_that_fails_on_one_rank_fails_on_all(monkeypatch):
    monkeypatch.setattr(sharding, "sharding_exchange", Exchange(2))
    assert sharding.sharding_checked(lambda: 3) == 3
    with pytest.raises(InputError, match="only there: no room"):
        sharding.sharding_checked(lambda: 3)
    with pytest.raises(InputError, match="here: no model"):
        sharding.sharding_checked(lambda: find_model("here: no model"))


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("objective", ["rank", "dpo"])
def test_an_error_of_another_rank_ends_a_loop(tmp_path, monkeypatch, objective, fails_at):
    """It comes before, or when, the examples and the model are read; this rank would wait for the other one."""
    monkeypatch.setattr(sharding, "sharding_exchange", Exchange(fails_at))
    about = {"get_world_rank": lambda: 0, "get_world_size": lambda: 1}
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(**about))
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    monkeypatch.setattr("sciqa.training.loop.share_example_file", lambda *_: [None] * 16)
    monkeypatch.setattr("sciqa.training.loop._Run._build", lambda _: None)
    monkeypatch.setattr("sciqa.training.trl_loop._mapped", lambda *_: None)
    options = FinetuneOptions(model=tiny_folder(tmp_path, "llama"), precision="float32", objective=objective)
    config = {"options": options, "train": "", "validation": "", "threads": 1, "device": "cpu", "progress": None}
    config["recorded"] = {}
    ended = train_loop(config | {"steps": 1}) if objective == "rank" else train_trl_loop(config)
    assert ended == {"input_error": "only there: no room", "diverged": False}


def test_a_reward_model_is_looked_for_on_every_rank(tmp_path):
    model = tiny_folder(tmp_path / "llama", "llama")
    common = {"objective": "grpo", "model": model}
    with pytest.raises(InputError, match=r"--rewards: .*judge is not there on "):
        find_trl_trainer_models(FinetuneOptions(**common, rewards=("answer", str(tmp_path / "judge"))), {})
    (tmp_path / "judge").mkdir()
    write_json(f"{tmp_path}/judge/{ADAPTER_CONFIG}", {})
    write_json(f"{tmp_path}/judge/{ABOUT_TRAINED}", {"base": str(tmp_path / "base")})
    with pytest.raises(InputError, match=r"/base"):
        find_trl_trainer_models(FinetuneOptions(**common, rewards=(str(tmp_path / "judge"),)), {})
    options = FinetuneOptions(**common, rewards=("answer", model))
    find_trl_trainer_models(options, {"rewards": ["answer", reward_hash(model)]})
    with pytest.raises(InputError, match=r"llama: other files on .* than where the command was given"):
        find_trl_trainer_models(options, {"rewards": ["answer", "0f"]})


def lose_the_model_on_one_rank(model: str) -> None:
    """Run the loop of each rank, the second of which does not find the model."""
    import ray.train

    import sciqa.training.loop as ranking
    import sciqa.training.trl_loop as aligning

    torch.distributed.init_process_group("gloo")
    ray.train.get_context = None  # what comes after is not reached

    def fail(*_: object) -> None:
        raise InputError("no such model on the second node")

    if torch.distributed.get_rank() == 1:
        ranking.find_model = aligning.find_trl_trainer_models = fail
    for objective, loop in (("rank", ranking.train_loop), ("dpo", aligning.train_trl_loop)):
        config = {"options": FinetuneOptions(model=model, precision="float32", objective=objective), "threads": 1}
        config |= {"train": "", "validation": "", "device": "cpu", "progress": None, "recorded": {}}
        ended = loop(config | ({"steps": 1} if objective == "rank" else {}))
        assert ended == {"input_error": "no such model on the second node", "diverged": False}


@pytest.mark.slow
def test_a_model_that_one_node_lacks_ends_both_workers(tmp_path):
    run_two_ranks(f"lose_the_model_on_one_rank({tiny_folder(tmp_path, 'llama')!r})")


def run_two_ranks(call: str) -> None:
    """Run a function of this file in two processes that are a group."""
    port = str(free_port())
    common = os.environ | {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", f"import test_sharding; test_sharding.{call}"]
    own = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    ranks = [subprocess.Popen(command, env=common | each, stderr=subprocess.PIPE, text=True) for each in own]
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]


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
    run_two_ranks(f"load_and_save_shares({str(tmp_path)!r})")
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
