"""Torch's own files as `Tensors`, without ever running the code that a pickle can contain.

State dictionaries go through torch's weights-only loader, which refuses everything but tensors and
plain containers. The harmless values that training programs save beside them (numpy scalars,
arguments) are replaced by an inert object. That loader does not take TorchScript archives (OpenAI's
releases); these go through `torch.jit.load`, which runs no Python and compiles their code without
running it, except for `__setstate__` methods, so archives with such methods are refused.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError, first_line
from clip_jax.weights.files.names import damaged, listed

# Pages that were read from a mapped file count as resident memory until it is mapped again.
REMAP_BYTES = 128 * 2**20
MAX_DEPTH = 5  # nesting of dictionaries


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: is a torch file and torch is not installed; run "
            "`pip install torch`, or convert the file to .safetensors elsewhere"
        ) from error
    return torch


def _to_numpy(tensor: Any, path: Path, name: str) -> np.ndarray:
    """A copy that shares no memory with the file; bfloat16, which numpy lacks, goes by its bits."""
    import torch

    try:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {name} cannot become an array ({first_line(error)})") from error


class _Inert:
    """Inert replacement for an object in a checkpoint that is not a tensor."""

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_DTYPES = (
    *("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float16"),
    *("Float32", "Float64", "LongDouble", "LongLong", "ULongLong", "Complex64", "Complex128"),
    *("Str", "Bytes", "Object"),
)
# Training programs save these beside the weights. None of them is built: numpy's own constructors
# would trust a crafted dtype.
_INERT = (
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.dtypes.{kind}DType" for kind in _DTYPES),
    *("numpy.dtype", "numpy.ndarray", "numpy.bool_", "numpy.bool"),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)),
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix")),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
)
_DICTIONARIES = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
)


class TorchTensors:
    """All tensors in a `torch.save` file, in nested dictionaries.

    `containers` maps each dictionary to the names in it. A nested dictionary is named by its path
    ("state_dict", "callbacks.ema"), which is the prefix of its tensors' names.
    """

    def __init__(self, path: Path):
        self.where = path
        self._read_bytes = 0
        self.containers: dict[str, list[str]] = {}
        self._state: dict[str, Any] = self._open()
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in self._state.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        array = _to_numpy(self._state[name], self.where, name)
        self._read_bytes += array.nbytes
        if self._read_bytes > REMAP_BYTES:
            self._state, self._read_bytes = {}, 0  # unmap first
            self._state = self._open()
        return array

    def _open(self) -> dict[str, Any]:
        torch, path = _torch(self.where), self.where
        replaced = [(_Inert, name) for name in _INERT] + [(dict, name) for name in _DICTIONARIES]
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        options = {"map_location": "cpu", "weights_only": True, "mmap": zipfile.is_zipfile(path)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they concern how old files were written
                with torch.serialization.safe_globals(replaced):
                    content = torch.load(path, **options)
        except pickle.UnpicklingError as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"asks for {named[1]}" if named else first_line(error)
            raise UserError(
                f"{path}: holds more than tensors ({reason}) and could run code when unpickled; "
                "refused. Save its state_dict alone, best as .safetensors"
            ) from error
        except Exception as error:  # the loader raises nearly anything on damaged bytes
            raise damaged(path, error) from error
        self.containers = {}
        found: dict[str, Any] = {}
        self._collect(content, "", found)
        if not found:
            keys = [str(key) for key in content] if isinstance(content, dict) else []
            raise UserError(
                f"{path}: holds no state dictionary: no tensors by name, bare or in dictionaries "
                f"(keys: {listed(keys, 8) or 'none'})"
            )
        return found

    def _collect(self, value: Any, container: str, found: dict[str, Any], depth: int = 0) -> None:
        """Adds the tensors of a dictionary, and of dictionaries nested in it, to `found`."""
        import torch

        if not isinstance(value, dict) or depth > MAX_DEPTH:
            return
        start = f"{container}." if container else ""
        for key, item in value.items():
            if isinstance(key, str) and isinstance(item, torch.Tensor):
                found[start + key] = item
                self.containers.setdefault(container, []).append(key)
            else:
                self._collect(item, f"{start}{key}", found, depth + 1)


class ScriptTensors:
    """A TorchScript archive. It is loaded whole; each tensor's memory is freed once it is read.

    Reading a tensor a second time loads the archive again.
    """

    def __init__(self, path: Path):
        self.where = path
        self._state = self._open()
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(tensor.shape) for name, tensor in self._state.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        if name not in self._state and name in self.shapes:
            self._state = self._open()
        return _to_numpy(self._state.pop(name), self.where, name)

    def _open(self) -> dict[str, Any]:
        torch = _torch(self.where)
        with zipfile.ZipFile(self.where) as archive:
            code = [name for name in archive.namelist() if name.endswith(".py")]
            if any(b"__setstate__" in archive.read(name) for name in code):
                raise UserError(
                    f"{self.where}: a TorchScript archive with a __setstate__ method, which would "
                    "run when it is loaded; refused. Save its state_dict as .safetensors"
                )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated; these files are not
                state = torch.jit.load(str(self.where), map_location="cpu").state_dict()
        except Exception as error:  # as above: damaged bytes raise nearly anything
            raise damaged(self.where, error, "a damaged TorchScript archive") from error
        return dict(state)
