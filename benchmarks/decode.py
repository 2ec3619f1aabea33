"""Images a second from JPEG bytes to a random-resized crop of uint8 pixels, on one core.

    python benchmarks/decode.py --tars='PATH/grocery/train/*.tar' \\
        --peer_python=PATH_OF_AN_ENVIRONMENT_WITH_TORCHVISION/bin/python

Photos are stretched to `--sizes` and saved again as JPEG, then read in turns by: ours; Pillow's
full decode and resize, which is ours with `fast_decode=False`; and torchvision's
RandomResizedCrop (bicubic, antialiased) on a Pillow image, in a process of its own. All on the same
core, one after another. For crops of 0.9 to 1 of the area, open_clip's default, and of 0.08 to 1,
torchvision's. Prints one JSON object; a ratio is the median of the turns' ratios, and above 1 ours
is faster.
"""

import glob
import io
import json
import os
import statistics
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from clip_jax.hosts.memory import keep_freed_memory

_TARS = flags.DEFINE_string("tars", None, "Archives of photos, a glob pattern.", required=True)
_PEER = flags.DEFINE_string("peer_python", None, "Python of an environment with torchvision.")
_PEER_PATH = flags.DEFINE_string("peer_pythonpath", "", "PYTHONPATH for the peer.")
_PHOTOS = flags.DEFINE_integer("photos", 100, "How many photos a turn.", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", ["640x480", "1024x768", "2048x1536"], "Of the JPEG files.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels of the result, both sides.")
_QUALITY = flags.DEFINE_integer("quality", 90, "Of the JPEG files.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each; the first warms up.", lower_bound=3)
SCALES = ((0.9, 1.0), (0.08, 1.0))


def read_photos(count: int) -> list[bytes]:
    found: list[bytes] = []
    for path in sorted(glob.glob(_TARS.value)):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".jpg") else None
                if file is not None:
                    found.append(file.read())
    if not found:
        raise SystemExit(f"error: --tars={_TARS.value}: no .jpg files there")
    return found[:: max(1, len(found) // count)][:count]


def saved_again(photo: bytes, width: int, height: int) -> bytes:
    from PIL import Image

    picture = Image.open(io.BytesIO(photo)).convert("RGB")
    stream = io.BytesIO()
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    resized.save(stream, "JPEG", quality=_QUALITY.value)
    return stream.getvalue()


class Torchvision:
    """The worker process of peer_decode.py."""

    def __init__(self) -> None:
        worker = Path(__file__).with_name("peer_decode.py")
        self.process = subprocess.Popen(
            [str(_PEER.value), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _PEER_PATH.value, "OMP_NUM_THREADS": "1"},
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("error: the peer ended; its message is above")

    def seconds(self, folder: Path, scale: tuple[float, float]) -> float:
        assert self.process.stdin is not None
        request = {"folder": str(folder), "scale": scale, "size": _IMAGE_SIZE.value}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()["seconds"]


def our_seconds(files: list[bytes], scale: tuple[float, float], is_fast: bool) -> float:
    import numpy as np

    from clip_jax.images.augmentation import Augmentation, training_image

    augmentation = Augmentation(crop_scale=scale, fast_decode=is_fast)
    rng = np.random.default_rng(0)
    begun = time.perf_counter()
    for file in files:
        training_image(file, _IMAGE_SIZE.value, "bicubic", augmentation, rng)
    return time.perf_counter() - begun


def compare(folder: Path, scale: tuple[float, float], peer: Torchvision | None) -> dict[str, Any]:
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    turns: dict[str, list[float]] = {"ours": [], "pillow": []}
    if peer is not None:
        turns["torchvision"] = []
    for turn in range(_ROUNDS.value):
        for side, seconds in turns.items():
            if side == "torchvision":
                assert peer is not None
                spent = peer.seconds(folder, scale)
            else:
                spent = our_seconds(files, scale, is_fast=side == "ours")
            if turn:
                seconds.append(spent)
    result: dict[str, Any] = {
        f"{side}_images_per_second": round(len(files) / statistics.median(seconds), 1)
        for side, seconds in turns.items()
    }
    for side in list(turns)[1:]:
        pairs = zip(turns[side], turns["ours"], strict=True)
        ratios = [theirs / mine for theirs, mine in pairs]
        result[f"ratio_to_{side}"] = round(statistics.median(ratios), 2)
    return result


def main(_: list[str]) -> None:
    keep_freed_memory()  # as our programs do
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the peer inherits it
    photos = read_photos(_PHOTOS.value)
    peer = Torchvision() if _PEER.value else None
    result: dict[str, Any] = {"photos": len(photos), "image_size": _IMAGE_SIZE.value}
    if peer is not None:
        result["peer"] = peer.about
    for size in _SIZES.value:
        width, height = (int(side) for side in size.split("x"))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for number, photo in enumerate(photos):
                folder.joinpath(f"{number:05}.jpg").write_bytes(saved_again(photo, width, height))
            result[size] = {
                "kilobytes": round(
                    statistics.mean(path.stat().st_size for path in folder.iterdir()) / 1000
                ),
                **{
                    f"crops_of_{low:g}_to_{high:g}": compare(folder, (low, high), peer)
                    for low, high in SCALES
                },
            }
    first = result[_SIZES.value[0]]["crops_of_0.9_to_1"]
    result["ratio"] = first.get("ratio_to_torchvision", first["ratio_to_pillow"])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    app.run(main)
