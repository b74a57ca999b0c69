"""Load embedding models; a model's OpenVINO trace is checked once on each machine."""

from sciqa.core.device import Device, check_device
from sciqa.core.model_files import find_model, has_static_model_files
from sciqa.retrieval.embedder import Backend, Embedder, OpenVinoEmbedder, TorchEmbedder
from sciqa.retrieval.openvino_check import check_openvino
from sciqa.retrieval.static_embedder import StaticEmbedder


def load_embedder(
    model: str, threads: int, backend: Backend = "openvino", device: Device = "cpu", revision: str | None = None
) -> Embedder:
    """Load a sentence-transformers model as an embedder.

    Args:
        model: name for `sciqa.core.model_files.find_model`.
        threads: CPU threads of this worker.
        backend: `torch`, or `openvino`: OpenVINO on the CPU, or PyTorch if OpenVINO does not give the model's vectors.
        device: device that PyTorch computes on. Static embedders are computed by PyTorch on the CPU, whatever the
            backend and the device, since looking up a vector takes less time than moving it.
        revision: hash of the model's files that the command has recorded.

    Raises:
        InputError: the model or the device does not exist, the model is another one than recorded, or its files lack
            some of its weights.
    """
    check_device(device)
    find_model(model, revision)
    embedder = _load(model, threads, backend, device)
    find_model(model, revision)  # its files may have been replaced meanwhile
    embedder.revision = revision
    return embedder


def _load(model: str, threads: int, backend: Backend, device: Device) -> Embedder:
    if has_static_model_files(model):
        return StaticEmbedder(model, threads)
    if backend == "torch":
        return TorchEmbedder(model, threads, device)

    folder, about = check_openvino(model, threads)
    if about["backend"] == "openvino":
        return OpenVinoEmbedder(model, threads, folder, about)
    embedder = TorchEmbedder(model, threads, device, about["precision"] if device == "cpu" else None)
    embedder.notes.append(f"{model} is computed by {embedder.computing}, not OpenVINO: {about['reason']}")
    return embedder
