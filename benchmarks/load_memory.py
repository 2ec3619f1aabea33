"""Host memory and time of loading a large model, by default bigG/14 in bfloat16.

    python benchmarks/load_memory.py --model=ViT-bigG-14 --stored=bfloat16

Writes a folder in open_clip's layout with random weights (5 GB for the default) and loads it in a
fresh process. The limit is 1.2 times the larger of the file and the parameters in their dtype. The
parameters are on the device, which here is the host as well. Prints one JSON object.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import app, flags

from clip_jax.models.architectures import get_architecture
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts.open_clip import open_clip_rules
from clip_jax.weights.layouts.open_clip_export import config_to_open_clip
from clip_jax.weights.rules.table import KINDS, our_shapes, part_shape

_MODEL = flags.DEFINE_string("model", "ViT-bigG-14", "A name of clip_jax.list_models().")
_STORED = flags.DEFINE_enum("stored", "bfloat16", ["float32", "bfloat16"], "In the file.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the parameters.")
_SCRATCH = flags.DEFINE_string("scratch", None, "Folder for the file; the system's by default.")

LOAD = """
import json, resource, sys, time
begun = time.perf_counter()
import jax
import clip_jax
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
clip = clip_jax.load(sys.argv[1], dtype=sys.argv[2])
seconds = time.perf_counter() - begun
size = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "parameters": size, "before": base * 1024,
                  "peak": peak * 1024}))
"""


def random_tensors(name: str, dtype: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the model by open_clip's name, one at a time."""
    config = get_architecture(name)
    shapes = our_shapes(config)
    noise = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(dtype)
    for rule in open_clip_rules(config):
        ours = np.broadcast_to(np.float32(0), part_shape(shapes[rule.ours], rule.at))
        shape = KINDS[rule.kind].write(ours).shape
        yield rule.theirs, np.resize(noise, int(np.prod(shape))).reshape(shape)


def main(_: list[str]) -> None:
    stored = np.dtype(np.float32 if _STORED.value == "float32" else ml_dtypes.bfloat16)
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        folder = Path(scratch)
        document = config_to_open_clip(get_architecture(_MODEL.value))
        (folder / "open_clip_config.json").write_text(json.dumps(document))
        file = folder / "open_clip_model.safetensors"
        save_safetensors(file, random_tensors(_MODEL.value, stored), max_shard_bytes=None)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder), _DTYPE.value],
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
        largest = max(file.stat().st_size, found["parameters"])
    gib = {key: round(found[key] / 2**30, 2) for key in ("parameters", "before", "peak")}
    result = {
        "model": _MODEL.value,
        "stored": _STORED.value,
        "dtype": _DTYPE.value,
        "seconds": round(found["seconds"], 1),
        "gib": gib | {"limit": round(1.2 * largest / 2**30, 2)},
        "ratio": round(found["peak"] / largest, 3),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
