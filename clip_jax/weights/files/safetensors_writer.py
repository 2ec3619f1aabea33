"""Streaming writer of .safetensors: holds at most one tensor and a buffer in memory.

The library needs a dictionary of all tensors at once. The format: 8 bytes of header length, a JSON
header padded with spaces, then the tensors without gaps. Readers want each tensor aligned to its
item size, so wider dtypes come first.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError

MAX_SHARD_BYTES = 5 * 10**9  # transformers' default
_BUFFER_BYTES = 64 * 2**20  # larger streams spill from memory to a temporary file

_DTYPE_NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int16): "I16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(bool): "BOOL",
}


def save_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = MAX_SHARD_BYTES,
) -> list[Path]:
    """Writes one file, or, above `max_shard_bytes` of data, shards and an index like transformers.

    Shards are `STEM-00001-of-0000N.safetensors` with `PATH.index.json`; None never splits. All
    files are written to a temporary folder and renamed at the end; an earlier call's files in the
    other form are deleted. `metadata` defaults to {"format": "pt"}, which transformers demands.
    Returns the weight files.

    Raises `UserError` for a name given twice or a dtype that the format lacks.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        written: list[tuple[Path, list[str], int]] = []
        shard, seen = _Shard(aside), set[str]()
        for name, tensor in pairs:
            if name in seen:
                raise UserError(f"{path}: tensor {name} was given twice")
            if tensor.dtype not in _DTYPE_NAMES:
                raise UserError(f"{path}: {name} is of dtype {tensor.dtype}, which cannot be saved")
            seen.add(name)
            full = max_shard_bytes is not None and shard.bytes + tensor.nbytes > max_shard_bytes
            if full and shard.entries:
                written.append(shard.finish(aside / f"{len(written)}", metadata))
                shard = _Shard(aside)
            shard.add(name, tensor)
        written.append(shard.finish(aside / f"{len(written)}", metadata))
        return _put_in_place(path, written)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Shard:
    """One unfinished file: a data stream per item size; the header is known only at the end."""

    def __init__(self, folder: Path):
        self.entries: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}  # …, offset in stream
        self.bytes = 0
        self._folder = folder
        self._streams: dict[int, tempfile.SpooledTemporaryFile[bytes]] = {}

    def add(self, name: str, tensor: np.ndarray) -> None:
        """Appends one tensor's data to the stream of its item size."""
        size = tensor.dtype.itemsize
        if size not in self._streams:
            self._streams[size] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
                _BUFFER_BYTES, dir=str(self._folder)
            )
        stream = self._streams[size]
        if stream.tell() + tensor.nbytes > _BUFFER_BYTES:
            stream.rollover()  # before writing, or the data would be held twice for a while
        self.entries[name] = tensor.dtype, tensor.shape, stream.tell()
        data = np.ascontiguousarray(tensor).reshape(-1)
        stream.write(data.view(np.uint8).data)
        self.bytes += tensor.nbytes

    def finish(self, path: Path, metadata: dict[str, str]) -> tuple[Path, list[str], int]:
        """Writes the file; returns (path, tensor names, bytes of data)."""
        starts, start = {}, 0
        for size in sorted(self._streams, reverse=True):
            starts[size] = start
            start += self._streams[size].tell()
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        for name, (dtype, shape, offset) in self.entries.items():
            begin = starts[dtype.itemsize] + offset
            nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            header[name] = {
                "dtype": _DTYPE_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [begin, begin + nbytes],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for size in starts:
                self._streams[size].seek(0)
                shutil.copyfileobj(self._streams[size], file, 16 * 2**20)
                self._streams[size].close()
        return path, list(self.entries), self.bytes


def _put_in_place(path: Path, written: list[tuple[Path, list[str], int]]) -> list[Path]:
    index = path.with_name(f"{path.name}.index.json")
    stale = {path, index, *path.parent.glob(f"{path.stem}-?????-of-?????{path.suffix}")}
    if len(written) == 1:
        finals = [path]
    else:
        count = len(written)
        finals = [
            path.with_name(f"{path.stem}-{n:05d}-of-{count:05d}{path.suffix}")
            for n in range(1, count + 1)
        ]
    for (aside, _, _), final in zip(written, finals, strict=True):
        os.replace(aside, final)
    if len(written) > 1:
        about = {
            "metadata": {"total_size": sum(size for _, _, size in written)},
            "weight_map": {
                name: final.name
                for (_, names, _), final in zip(written, finals, strict=True)
                for name in names
            },
        }
        aside = written[0][0].with_name("index")
        aside.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(aside, index)
    kept = {*finals, *([index] if len(written) > 1 else [])}
    for leftover in stale - kept:
        leftover.unlink(missing_ok=True)
    return finals
