"""torchvision's RandomResizedCrop on Pillow images as a worker of decode.py, in an environment of
its own.

Reads one JSON object a line (`folder` of JPEG files, `scale`, `size`), goes through the files once,
answers with the seconds that took; reading them from the disk is not in it.
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

with contextlib.suppress(ImportError):
    import torchvision_operators  # noqa: F401  (mends a torchvision that torch does not fit)

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision import transforms


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    print(json.dumps(versions | {"pillow": PIL.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        files = [path.read_bytes() for path in sorted(Path(request["folder"]).iterdir())]
        crop = transforms.RandomResizedCrop(
            request["size"],
            scale=tuple(request["scale"]),
            interpolation=transforms.InterpolationMode.BICUBIC,
            antialias=True,
        )
        begun = time.perf_counter()
        for file in files:
            np.asarray(crop(Image.open(io.BytesIO(file)).convert("RGB")))
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)


if __name__ == "__main__":
    main()
