"""Writer of samples as a WebDataset archive for any reader, with reproducible bytes.

A sample is KEY.jpg (.png, … by content), KEY.txt with its first caption, and KEY.json with its
metadata, if any. If there are several captions, the .json has all of them as the list "captions",
which our reader prefers; other readers get the first. Keys become names that are unique and stay
inside the folder where the archive is extracted; the .json keeps a changed key as "source_key".
"""

import io
import json
import math
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.records import IMAGE_EXTENSIONS
from clip_jax.data.tars.captions import SEVERAL_FIELD
from clip_jax.dataset_tools.recode import extension_of

Sample = tuple[str, bytes, tuple[str, ...], dict[str, Any]]  # key, image, captions, metadata

_LONGEST_KEY = 1024  # characters
_CHANGED_KEY = "source_key"


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """Writes the samples in order; metadata must have passed through `plain`.

    Raises OSError if it cannot.
    """
    used: set[str] = set()
    # Long or non-ASCII names get pax headers, which tar programs have known since 2001.
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for key, image, captions, metadata in samples:
            name = _unique(safe_name(key), used)
            used.add(name)
            fields = dict(metadata)
            fields.pop(SEVERAL_FIELD, None)
            if len(captions) > 1:
                fields[SEVERAL_FIELD] = list(captions)
            if name != key:
                fields.setdefault(_CHANGED_KEY, key)
            _add(archive, f"{name}.{extension_of(image)}", image)
            if captions:
                _add(archive, f"{name}.txt", captions[0].encode())
            if fields:
                text = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
                _add(archive, f"{name}.json", text.encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    # A TarInfo has no owner and time 0 by default, so the bytes are reproducible.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def safe_name(key: str) -> str:
    """A key as a member name without extension; most keys are unchanged.

    Removes image extensions, "..", "." and leading slashes. Replaces by "_" control characters, and
    dots in the last part, where the first dot would start the extension.
    """
    text = key.encode("utf-8", "replace").decode()
    stem, dot, ending = text.rpartition(".")
    if dot and ending.lower() in IMAGE_EXTENSIONS:
        text = stem
    text = re.sub(r"[\x00-\x1f\x7f\\]", "_", text)[:_LONGEST_KEY]
    parts = [part for part in text.split("/") if part.strip() not in ("", ".", "..")]
    return "/".join([*parts[:-1], parts[-1].replace(".", "_")]) if parts else "sample"


def _unique(name: str, used: set[str]) -> str:
    if name not in used:
        return name
    number = 2
    while f"{name}-{number}" in used:
        number += 1
    return f"{name}-{number}"


def plain(value: Any) -> Any:
    """Anything as JSON values: numpy numbers as numbers, NaN as null, the rest as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
