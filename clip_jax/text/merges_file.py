"""Location of CLIP's merges file: on disk, in an installed package, or downloaded once."""

import hashlib
import importlib.util
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from clip_jax.arguments import with_home
from clip_jax.errors import UserError
from clip_jax.files.disk import replacing
from clip_jax.files.stores import cache_folder
from clip_jax.text.byte_pairs import BPE_FILE_NAME

BPE_FILE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BPE_FILE_VARIABLE = "CLIP_JAX_BPE"
BPE_FILE_URL = f"https://raw.githubusercontent.com/openai/CLIP/main/clip/{BPE_FILE_NAME}"
_DOWNLOAD_TIMEOUT_SECONDS = 30


def find_bpe_file(path: str | Path | None = None, beside: str | Path | None = None) -> Path:
    """Path of CLIP's merges file `bpe_simple_vocab_16e6.txt.gz`, verified.

    Looks only at `path` if it is given. Otherwise tries, in this order: the environment variable
    CLIP_JAX_BPE; the folder `beside` (of the weights); the cache (~/.cache/clip_jax, or
    CLIP_JAX_CACHE); an installed `open_clip` or `clip` package (located, not imported); a download
    from OpenAI's repository into the cache.

    Raises:
      UserError: none was found or downloaded, or its SHA-256 differs from OpenAI's file.
    """
    if path is not None:
        return _verified(Path(with_home(path, "path")), "the given path")
    if named := os.environ.get(BPE_FILE_VARIABLE):
        origin = f"the environment variable {BPE_FILE_VARIABLE}"
        return _verified(Path(with_home(named, BPE_FILE_VARIABLE)), origin)
    cached = cache_folder() / BPE_FILE_NAME
    near = () if beside is None else (Path(beside) / BPE_FILE_NAME,)
    for candidate in (*near, cached, *_package_candidates()):
        if candidate.is_file():
            return _verified(candidate, "the search for the file")
    return _download(cached)


def _package_candidates() -> Iterable[Path]:
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(folder) / BPE_FILE_NAME


def _verified(path: Path, origin: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} (from {origin}) is not a file; expected {BPE_FILE_NAME} of CLIP")
    _check(path.read_bytes(), f"{path} (from {origin})", "")
    return path


def _check(content: bytes, what: str, advice: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != BPE_FILE_SHA256:
        raise UserError(
            f"{what} has SHA-256 {digest}; CLIP's {BPE_FILE_NAME} has {BPE_FILE_SHA256}{advice}"
        )


def _download(target: Path) -> Path:
    """Downloads the merges file to `target` atomically, after verification."""
    advice = f": place it at {target} or set {BPE_FILE_VARIABLE} to its path"
    try:
        with urllib.request.urlopen(BPE_FILE_URL, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as response:
            content = response.read()
    except OSError as error:
        raise UserError(
            f"CLIP's merges file {BPE_FILE_NAME} was not found, and downloading {BPE_FILE_URL} "
            f"failed ({error}){advice} (SHA-256 {BPE_FILE_SHA256})"
        ) from error
    _check(content, BPE_FILE_URL, advice)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise UserError(f"{BPE_FILE_NAME} cannot be stored at {target}: {error}") from error
    return target
