"""Streaming writer of .safetensors: holds at most one tensor in memory.

The library needs a dictionary of all tensors at once. The format: 8 bytes of header length, a JSON
header padded with spaces, then the tensors without gaps. Readers want each tensor aligned to its
item size, so wider dtypes come first.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError

MAX_SHARD_BYTES = 5 * 10**9  # transformers' default

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
) -> list[Path]:
    """Writes one file, or, above `max_shard_bytes` of data, shards and an index like transformers.

    Shards are `STEM-00001-of-0000N.safetensors` with `PATH.index.json`; None never splits. Write
    to a new folder: files of an earlier call in the other form stay. `metadata` defaults to
    {"format": "pt"}, which transformers demands. Returns the weight files.

    Raises `UserError` for a name given twice or a dtype that the format lacks.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    metadata = {"format": "pt"} if metadata is None else metadata
    path.parent.mkdir(parents=True, exist_ok=True)
    shards = [_Shard(path, 1)]
    seen = set[str]()
    for name, tensor in pairs:
        if name in seen:
            raise UserError(f"{path}: tensor {name} was given twice")
        if tensor.dtype not in _NAMES:
            raise UserError(f"{path}: {name} is of dtype {tensor.dtype}, which cannot be saved")
        seen.add(name)
        size = shards[-1].bytes + tensor.nbytes
        if shards[-1].header and max_shard_bytes is not None and size > max_shard_bytes:
            shards[-1].finish(metadata)
            shards.append(_Shard(path, len(shards) + 1))
        shards[-1].add(name, tensor)
    shards[-1].finish(metadata)
    count, finals = len(shards), [path]
    if count > 1:
        endings = (f"-{n:05d}-of-{count:05d}{path.suffix}" for n in range(1, count + 1))
        finals = [path.with_name(path.stem + ending) for ending in endings]
    placed = list(zip(shards, finals, strict=True))
    for shard, final in placed:
        shard.path.replace(final)
    if count > 1:
        about = {
            "metadata": {"total_size": sum(shard.bytes for shard in shards)},
            "weight_map": {name: final.name for shard, final in placed for name in shard.header},
        }
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        path.with_name(f"{path.name}.index.json").write_text(text, encoding="utf-8")
    return finals


class _Shard:
    """One unfinished file: a data stream per item size; the header is known only at the end."""

    def __init__(self, path: Path, number: int):
        self.path = path.with_name(f".{path.name}-{number}")
        self.header: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}  # …, offset in stream
        self.bytes = 0
        self._streams: dict[int, IO[bytes]] = {}

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Appends one tensor's data to the stream of its item size."""
        size = tensor.dtype.itemsize
        if size not in self._streams:
            self._streams[size] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
        self.header[name] = tensor.dtype, tensor.shape, self._streams[size].tell()
        data = np.ascontiguousarray(tensor).reshape(-1)
        self._streams[size].write(data.view(np.uint8).data)
        self.bytes += tensor.nbytes

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Writes the file, and closes the streams."""
        starts, start = {}, 0
        for size in sorted(self._streams, reverse=True):
            starts[size] = start
            start += self._streams[size].tell()
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        for name, (dtype, shape, offset) in self.header.items():
            begin = starts[dtype.itemsize] + offset
            end = begin + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            about = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
            header[name] = about
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(self.path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for size in starts:
                self._streams[size].seek(0)
                shutil.copyfileobj(self._streams[size], file, 16 * 2**20)
                self._streams[size].close()
