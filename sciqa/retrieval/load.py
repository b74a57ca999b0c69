"""An embedding model loaded, and proved once on each machine."""

from sciqa.core.device import Device, check_device
from sciqa.retrieval.embedder import Backend, Embedder, OpenVinoEmbedder, TorchEmbedder
from sciqa.retrieval.proof import prove


def load_embedder(model: str, threads: int, backend: Backend = "openvino", device: Device = "cpu") -> Embedder:
    """Return a sentence-transformers model.

    Args:
        model: name as `sciqa.core.hub.find_model` takes it.
        threads: CPU threads of this worker.
        backend: `torch`, or `openvino`, which computes on the CPU those models whose vectors it gives.
        device: what torch computes on.

    Raises:
        InputError: no such model, one whose files lack some of its weights, or no such device.
    """
    check_device(device)
    if backend == "torch":
        return TorchEmbedder(model, threads, device)

    folder, about = prove(model, threads)
    if about["backend"] == "openvino":
        return OpenVinoEmbedder(model, threads, folder, about)
    embedder = TorchEmbedder(model, threads, device, about["precision"] if device == "cpu" else None)
    embedder.notes.append(f"{model} is computed by {embedder.computing}, not OpenVINO: {about['reason']}")
    return embedder
