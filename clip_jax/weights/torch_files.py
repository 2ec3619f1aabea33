"""Torch's own files as `Tensors`, without ever running the code that a pickle can contain.

State dictionaries go through torch's weights-only loader, which refuses everything but tensors and
plain containers. TorchScript archives (OpenAI's releases), which that loader does not take, go
through `torch.jit.load`: it runs no Python and compiles their code without running it, but for
`__setstate__` methods, so archives with these are refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.errors import UserError
from clip_jax.weights.tensors import WRAPPER_PREFIXES, without_prefix

# Pages of a mapped file that were read count as resident memory until it is mapped anew.
REMAP_BYTES = 128 * 2**20


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: is a torch file and torch is not installed; run "
            "`pip install torch`, or convert the file to .safetensors elsewhere"
        ) from error
    return torch


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _to_numpy(tensor: Any, path: Path, name: str) -> np.ndarray:
    """A copy that shares nothing with the file; bfloat16, which numpy lacks, by its bits."""
    import torch

    try:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {name} cannot become an array ({_first_line(error)})") from error


class TorchTensors:
    """A state dictionary saved by `torch.save`, bare or under "state_dict" as in checkpoints.

    The prefixes of data-parallel and compiling wrappers are taken off.
    """

    def __init__(self, path: Path):
        self.where = path
        self._read_bytes = 0
        self._state: dict[str, Any] = self._open()
        self._stored = without_prefix(self._state, WRAPPER_PREFIXES)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(self._state[key].shape) for name, key in self._stored.items()
        }

    def read(self, name: str) -> np.ndarray:
        """See `Tensors.read`."""
        array = _to_numpy(self._state[self._stored[name]], self.where, name)
        self._read_bytes += array.nbytes
        if self._read_bytes > REMAP_BYTES:
            self._state, self._read_bytes = {}, 0  # unmap first
            self._state = self._open()
        return array

    def _open(self) -> dict[str, Any]:
        torch, path = _torch(self.where), self.where
        # The format before torch 1.6 is no zip archive and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about how the file was written, long ago
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"asks for {found[1]}" if found else _first_line(error)
            raise UserError(
                f"{path}: holds more than tensors ({reason}) and could run code when unpickled; "
                "refused. Save its state_dict alone, best as .safetensors"
            ) from error
        except Exception as error:  # the loader raises nearly anything on damaged bytes
            raise UserError(
                f"{path}: is damaged or truncated ({_first_line(error)}); download it again"
            ) from error
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        found_tensors = {
            name: value
            for name, value in (content.items() if isinstance(content, dict) else ())
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        if not found_tensors:
            what = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else "none"
            raise UserError(
                f"{path}: holds no state dictionary, bare or under 'state_dict' (keys: {what})"
            )
        return found_tensors


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
        except Exception as error:  # as above: anything, on damaged bytes
            raise UserError(
                f"{self.where}: is a damaged TorchScript archive ({_first_line(error)}); "
                "download it again"
            ) from error
        return dict(state)
