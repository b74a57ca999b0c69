"""What is computed on what: as the driver says, though a worker sees GPUs, and in types that the hardware has."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import ray
import torch
from test_rerank import cross_encoder
from tiny import tiny_folder

from sciqa.ask import AskOptions
from sciqa.core import cluster, model_workers
from sciqa.core.device import device_half_precision, this_device
from sciqa.core.errors import InputError
from sciqa.core.options import RunOptions
from sciqa.models.load import load_base, load_scorer
from sciqa.models.streamed_weights import StreamedWeightsSettings
from sciqa.predict import PredictOptions
from sciqa.predict.vllm import check_vllm
from sciqa.retrieval import IndexOptions, embedder_checkpoint
from sciqa.retrieval.contexts import FindContexts
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.options import FindOptions
from sciqa.training import FinetuneOptions, finetune


@pytest.fixture
def gpu_in_sight(monkeypatch):
    """A GPU that PyTorch sees, of a given compute capability; to compute on it fails."""

    def see(major=8):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major, minor=0))
        # What PyTorch answers where bfloat16 is emulated.
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)

    return see


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"), "llama")


def test_models_stay_on_the_cpu_where_a_worker_sees_a_gpu(gpu_in_sight, llama):
    gpu_in_sight()
    assert load_scorer(llama).device.type == "cpu"
    assert load_scorer(llama, streaming=StreamedWeightsSettings()).device.type == "cpu"
    assert load_base(llama, "causal", torch.float32)[0].device.type == "cpu"
    assert load_base(llama, "causal", torch.float32, nf4=True)[0].device.type == "cpu"
    embedder = load_embedder("all-MiniLM-L6-v2", threads=1, backend="torch")
    assert embedder.module.device.type == "cpu"
    assert embedder.encode(["A text."]).shape == (1, 384)


def test_the_cross_encoder_computes_where_it_is_told(monkeypatch, tmp_path, gpu_in_sight):
    gpu_in_sight()
    folder, asked = cross_encoder(tmp_path / "model"), []

    def load(name, kind, device, precision):
        asked.append(device)
        return SimpleNamespace(num_labels=1)

    monkeypatch.setattr(embedder_checkpoint, "load_embedder_checkpoint", load)  # there is no GPU to load it on
    embed = {"model": "all-MiniLM-L6-v2", "threads": 1, "backend": "openvino"}
    options = FindOptions(output=str(tmp_path), rerank=folder)
    for device in ("cpu", "cuda"):
        FindContexts(None, options, None, embed | {"device": device}, options)
    assert asked == ["cpu", "cuda"]


@pytest.mark.usefixtures("cluster")  # without Ray all is computed in this process, on its CPUs
@pytest.mark.parametrize(("accelerator", "expected"), [("cpu", "cpu"), ("auto", "cuda"), ("gpu", "cuda")])
def test_the_driver_tells_workers_what_to_compute_on(monkeypatch, tmp_path, accelerator, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4, "GPU": 1})
    monkeypatch.setattr(cluster, "_resources", lambda: [{"CPU": 4, "GPU": 1}])
    given = {"output": str(tmp_path), "accelerator": accelerator}
    assert cluster.cluster_device(RunOptions(**given)) == expected
    embed = IndexOptions(**given).embed_arguments(1)
    assert (embed["device"], embed["backend"]) == (expected, {"cpu": "openvino", "cuda": "torch"}[expected])
    assert PredictOptions(**given).reader_arguments(expected, 1)["device"] == expected
    # A pool of GPU workers takes no CPUs, of which the tasks that feed it may need the only one.
    pool = model_workers.model_worker_pool(RunOptions(**given), 1, 1, 0)
    assert (pool["num_cpus"], pool["num_gpus"]) == {"cpu": (0.9 * 4, None), "cuda": (0, 1)}[expected]


def test_ask_computes_where_its_option_says(gpu_in_sight):
    with pytest.raises(InputError, match=r"PyTorch .* cannot use; .* or pass --accelerator cpu"):
        this_device("gpu")
    assert this_device("auto") == "cpu"
    gpu_in_sight()
    asked = {
        name: this_device(AskOptions(question="?", accelerator=name).accelerator) for name in ("auto", "cpu", "gpu")
    }
    assert asked == {"auto": "cuda", "cpu": "cpu", "gpu": "cuda"}


def test_a_gpu_that_pytorch_cannot_use_is_one_clear_error(llama):
    for load in (
        lambda: load_scorer(llama, device="cuda"),
        lambda: load_embedder("all-MiniLM-L6-v2", threads=1, backend="torch", device="cuda"),
    ):
        with pytest.raises(InputError, match=r"CUDA build .* or pass --accelerator cpu"):
            load()


def test_types_are_those_that_the_hardware_computes_in(monkeypatch, gpu_in_sight):
    for major, expected in ((7, torch.float16), (8, torch.bfloat16), (9, torch.bfloat16)):
        gpu_in_sight(major)
        assert device_half_precision("cuda") == expected
    for able, expected in (
        ({"avx512_f": True, "avx512_bw": True, "avx512_vl": True, "avx512_dq": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "arm64", "bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert device_half_precision("cpu") == expected


def test_a_vllm_for_cpus_is_not_given_gpus(monkeypatch, tmp_path, cluster, llama):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    given = {"engine": "vllm", "model": llama, "output": str(tmp_path)}
    with pytest.raises(InputError, match="this build of vLLM computes on CPUs; pass --accelerator cpu"):
        check_vllm(PredictOptions(**given, accelerator="gpu"))
    check_vllm(PredictOptions(**given, accelerator="cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "paged-adamw", "zero": 2, "offload": True}, "--optimizer paged-adamw: .*--offload"),
        ({"precision": "float16", "zero": 2}, "--precision float16: .*--precision float32"),
        ({"optimizer": "paged-adamw"}, "--optimizer paged-adamw: .* no GPU is used"),
    ],
)
def test_training_that_the_device_cannot_do_is_refused(tmp_path, cluster, data, llama, changes, said):
    with pytest.raises(InputError, match=said):
        finetune(FinetuneOptions(**data, output=str(tmp_path), model=llama, **changes))
    assert not (tmp_path / "trained").exists()
