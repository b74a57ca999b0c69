"""Find tensors in safetensors files, and read them from disk ahead of their use."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sciqa.core.errors import InputError
from sciqa.core.hashes import find_hashed_weights
from sciqa.core.model_files import find_model, model_file_bytes, read_model_file

#: Decoders (`model_type` of config.json) that can be streamed: only their layers change the hidden states, and their
#: logits are the normalised last hidden states times the head.
STREAMED = ("llama", "mistral", "phi3", "qwen2", "qwen3")
#: Reading threads, and bytes per read. Two threads reach the full speed of the disk, through the page cache too.
READERS, CHUNK = 2, 8 << 20
#: Alignment of tensors in a buffer, in bytes, as in torch.
ALIGNMENT = 64


@dataclass(frozen=True)
class StreamedWeightsSettings:
    """Settings for reading a streamed model.

    Attributes:
        memory: most bytes of hidden states in memory; more are kept in a memory-mapped file.
        say: function that gets progress messages.
    """

    memory: int = 1_000_000_000
    say: Callable[[str], object] | None = None


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor, or some of its rows, in a safetensors file.

    Attributes:
        path: path of the file.
        kind: element type, by its name in safetensors.
        shape: shape of the tensor.
        offset: first byte of the tensor in the file.
        nbytes: size of the tensor in bytes.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.nbytes // self.shape[0]

    def rows(self, start: int, stop: int) -> "StreamedTensor":
        """Return the rows from `start` up to, not including, `stop`."""
        begin, end = start * self.row_bytes, stop * self.row_bytes
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=self.offset + begin, nbytes=end - begin)


Piece = dict[str, StreamedTensor]


def check_streamed_weights(name: str) -> None:
    """Raise `InputError` unless a model can be streamed, without reading its weights.

    A GGUF file is checked after its conversion.
    """
    if find_model(name).gguf_file:
        return
    kind = read_model_file(name, "config.json").get("model_type")
    if kind not in STREAMED:
        raise InputError(
            f"{name}: {kind} in its config.json; --stream reads decoders of the kinds {', '.join(STREAMED)}; "
            "leave it out for others"
        )
    find_streamed_tensors(find_model(name).folder)


def find_streamed_tensors(folder: str) -> dict[str, StreamedTensor]:
    """Return the location of every tensor of a model, by name.

    Raises:
        InputError: a file is missing, cut short or not safetensors.
    """
    found = {}
    for path in find_hashed_weights(Path(folder)):
        try:
            with safe_open(path, "np"):  # checks the header, and that the file holds all tensors
                pass
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
        except (OSError, SafetensorError, ValueError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); write or fetch it again") from error
        header.pop("__metadata__", None)
        for name, about in header.items():
            begin, end = about["data_offsets"]
            found[name] = StreamedTensor(
                str(path), about["dtype"], tuple(about["shape"]), 8 + size + begin, end - begin
            )
    return found


def streamed_weight_bytes(name: str) -> int:
    """Return the bytes of the two layers that are in memory at once; for a GGUF file, of the whole model.

    A GGUF file is converted as a whole before streaming.
    """
    if find_model(name).gguf_file:
        return model_file_bytes(name)
    layers: dict[str, int] = {}
    for tensor_name, tensor in find_streamed_tensors(find_model(name).folder).items():
        if tensor_name.startswith("model.layers."):
            layer = tensor_name.split(".")[2]
            layers[layer] = layers.get(layer, 0) + tensor.nbytes
    return 2 * max(layers.values(), default=0)


def streamed_weight_offsets(piece: Piece) -> tuple[list[int], int]:
    """Return the offset of each tensor of a piece in its buffer, and the buffer size, in bytes."""
    starts, end = [], 0
    for tensor in piece.values():
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, end


def stream_weights_ahead(pieces: Sequence[Piece], buffers: Sequence[memoryview]) -> Iterator[int]:
    """Read pieces alternately into two buffers, one piece ahead of use, and yield the buffer index of each piece.

    The content of a buffer is valid until the next piece is requested.

    Raises:
        InputError: a file ends before a tensor does.
    """
    with ExitStack() as stack, ThreadPoolExecutor(READERS) as pool:
        files = {path: os.open(path, os.O_RDONLY) for path in {t.path for piece in pieces for t in piece.values()}}
        for file in files.values():
            stack.callback(os.close, file)

        def begin(number: int) -> list[Future]:
            coming = []
            for start, tensor in zip(streamed_weight_offsets(pieces[number])[0], pieces[number].values(), strict=True):
                whole = buffers[number % 2][start : start + tensor.nbytes]
                for at in range(0, len(whole), CHUNK):
                    coming.append(pool.submit(_read, files[tensor.path], tensor, at, whole[at : at + CHUNK]))
            return coming

        coming = begin(0)
        for number in range(len(pieces)):
            reading, coming = coming, begin(number + 1) if number + 1 < len(pieces) else []
            for part in reading:
                part.result()
            yield number % 2


def _read(file: int, tensor: StreamedTensor, at: int, into: memoryview) -> None:
    while into:
        got = os.preadv(file, [into], tensor.offset + at)
        if not got:
            raise InputError(f"{tensor.path}: has become shorter since it was opened; write or fetch it again")
        into, at = into[got:], at + got
