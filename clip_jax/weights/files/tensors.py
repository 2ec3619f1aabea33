"""Named tensors in files, read one at a time: safetensors, sharded indices, torch files, npz.

The kind of a file is detected from its content, not from its name. Nothing runs code from a file,
or keeps more of it in memory than the requested tensor, except for TorchScript archives (see
`pytorch.py`).
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.files.names import Tensors, damaged, listed
from clip_jax.weights.files.pytorch import ScriptTensors, TorchTensors
from clip_jax.weights.files.safetensors_writer import DTYPES
from clip_jax.weights.files.wrappers import Unwrapped


def find_weights(directory: Path, names: Sequence[str]) -> Path | None:
    """The first of the file names, or of their sharded forms `NAME.index.json`, that exists.

    Otherwise the only variant of a name ("model.fp16.safetensors"). Raises `UserError` if there are
    several variants.
    """
    candidates = (directory / file for name in names for file in (name, f"{name}.index.json"))
    plain = next((path for path in candidates if path.is_file()), None)
    return plain or _find_variant(directory, names)


def _find_variant(directory: Path, names: Sequence[str]) -> Path | None:
    """A file written by transformers' `save_pretrained(…, variant=…)` or by diffusers."""
    for name in names:
        stem, suffix = map(re.escape, name.rsplit(".", 1))
        pattern = re.compile(
            rf"{stem}\.(\w+)\.{suffix}(\.index\.json)?|{stem}\.{suffix}\.index\.(\w+)\.json"
        )
        there = sorted(p for p in directory.glob("*") if pattern.fullmatch(p.name) and p.is_file())
        if len(there) > 1:
            raise UserError(
                f"{directory}: holds several variants of {name} "
                f"({listed([path.name for path in there])}); give the file that you want"
            )
        if there:
            return there[0]
    return None


def open_tensors(path: Path) -> Tensors:
    """Opens .safetensors, `*.index.json` of shards, torch .bin/.pt/.pth, TorchScript .pt, or .npz.

    Names are those of the layout: prefixes and containers that training programs add are stripped,
    with a log message (see `wrappers.py`).

    Raises `UserError` naming the file if it is missing, empty, truncated, of an unknown kind, an
    adapter, or holds several models, or if it needs torch and torch is not installed.
    """
    tensors = open_raw(path)
    if isinstance(tensors, NpzFile):
        return tensors
    return Unwrapped(tensors)


def open_raw(path: Path) -> Tensors:
    """The file's tensors under their stored names."""
    start = _first_bytes(path)
    # Safetensors starts with the header's length in 8 bytes, then JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return SafetensorsFile(path)
    if start.startswith(b"PK"):
        return _open_zip(path)
    if start.startswith(b"\x80"):  # torch's format before 1.6: bare pickles
        return TorchTensors(path)
    if is_index(path):
        return Shards(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)  # its checks report what is wrong
    raise UserError(
        f"{path}: not weights of a known kind (begins with {start[:16]!r}); accepted are "
        ".safetensors, .safetensors.index.json, torch .bin/.pt/.pth and .npz"
    )


def _first_bytes(path: Path) -> bytes:
    """The first 512 bytes. Raises `UserError` for files often mistaken for weights."""
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not start:
        raise UserError(f"{path}: is empty (0 bytes); download it again")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path}: is a git-lfs pointer, not the weights; run `git lfs pull` in its repository"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: is a web page, not weights; download the file itself")
    return start


def _open_zip(path: Path) -> Tensors:
    """Opens .npz, TorchScript or torch's format: all are zip archives, told apart by members."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, error) from error
    if any(name.endswith(".npy") for name in members):
        return NpzFile(path)
    if any(name.split("/")[1:2] in (["constants.pkl"], ["code"]) for name in members):
        return ScriptTensors(path)
    if any(name.endswith("/data.pkl") for name in members):
        return TorchTensors(path)
    raise UserError(
        f"{path}: a zip archive of neither torch nor numpy (holds {', '.join(members[:3])}…)"
    )


def is_index(path: Path) -> bool:
    """Whether a file is named like an index of shards: "….index.json", "….index.fp16.json"."""
    return re.search(r"\.index(\.\w+)?\.json$", path.name) is not None


class SafetensorsFile:
    """One .safetensors file: the library checks the header, tensors are read by their offsets.

    The library's own reader maps the file, and the pages that were read stay in this process's
    resident memory until it is closed.
    """

    def __init__(self, path: Path):
        import safetensors

        self.where = path
        try:
            with safetensors.safe_open(path, framework="numpy"):
                pass  # opening checks that names, shapes and offsets cover the file exactly
            with open(path, "rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_bytes))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise damaged(path, error) from error
        header.pop("__metadata__", None)
        self._entries: dict[str, dict[str, Any]] = header
        self._data_start = 8 + header_bytes
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(entry["shape"]) for name, entry in header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        entry = self._entries[name]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise UserError(
                f"{self.where}: {name} is of dtype {entry['dtype']}; accepted are "
                f"{', '.join(DTYPES)}"
            )
        start, stop = entry["data_offsets"]
        # It reads bytes, because numpy cannot read ml_dtypes' types from files.
        data = np.fromfile(self.where, np.uint8, stop - start, offset=self._data_start + start)
        if len(data) != stop - start:
            raise UserError(f"{self.where}: {name}: the file became shorter while it was read")
        return data.view(dtype).reshape(self.shapes[name])


class NpzFile:
    """numpy's .npz, as big_vision writes it: names with "/", bfloat16 stored as two raw bytes.

    A training checkpoint (`params/…`, `opt/…`) shows only its parameters.
    """

    def __init__(self, path: Path):
        self.where = path
        self._archive = zipfile.ZipFile(path)
        names = [name for name in self._archive.namelist() if name.endswith(".npy")]
        parameters = [name for name in names if name.startswith("params/")]
        self._members = {
            name.removeprefix("params/").removesuffix(".npy"): name for name in parameters or names
        }
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: self._read(stored, _npy_shape) for name, stored in self._members.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        array = self._read(
            self._members[name], lambda file: np.lib.format.read_array(file, allow_pickle=False)
        )
        if array.dtype == np.dtype("V2"):
            array = array.view(ml_dtypes.bfloat16)
        return np.ascontiguousarray(array).reshape(array.shape)

    def _read(self, member: str, reader: Callable[[Any], Any]) -> Any:
        try:
            with self._archive.open(member) as file:
                return reader(file)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            if "allow_pickle" in str(error):
                raise UserError(
                    f"{self.where}: {member} holds pickled objects, which could run code; "
                    "accepted are plain arrays"
                ) from error
            raise damaged(self.where, error) from error


def _npy_shape(file: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError("objects need allow_pickle")
    return shape


class Shards:
    """Several weight files with one index: {"weight_map": {tensor name: file name}}."""

    def __init__(self, index: Path):
        self.where = index
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(names.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{index}: is no index of shards ({{"weight_map": {{tensor: file}}}})'
            ) from error
        outside = [str(f) for f in files if not isinstance(f, str) or Path(f).name != f]
        if outside:
            raise UserError(f"{index}: names files outside its folder: {listed(outside)}")
        missing = [file for file in files if not (index.parent / file).is_file()]
        if missing:
            raise UserError(
                f"{index}: {len(missing)} of {len(files)} shards are missing beside it: "
                f"{listed(missing)}"
            )
        self._shard_of: dict[str, Tensors] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            shard = open_raw(index.parent / file)
            twice = sorted(shapes.keys() & shard.shapes.keys())
            if twice:
                raise UserError(f"{index.parent / file}: also in another shard: {listed(twice)}")
            shapes.update(shard.shapes)
            self._shard_of.update(dict.fromkeys(shard.shapes, shard))
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        absent = sorted(names.keys() - shapes.keys())
        if absent:
            raise UserError(f"{index}: in none of its shards: {listed(absent)}")

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        return self._shard_of[name].read(name)
