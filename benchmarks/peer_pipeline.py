"""open_clip's own WebDataset loader as a worker of input_pipeline.py, in an environment of its own.

Reads one JSON object a line (`tars`, `samples`, `batch_size`, `workers`, `seconds`), reads batches
for so long, answers with images a second; what comes before the first batch is not in it.
"""

import contextlib
import json
import sys
import time
from types import SimpleNamespace

with contextlib.suppress(ImportError):
    import torchvision_operators  # noqa: F401  (mends a torchvision that torch does not fit)

import open_clip
import torch
from open_clip_train.data import get_wds_dataset


def main() -> None:
    torch.set_num_threads(1)
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        args = SimpleNamespace(
            train_data=request["tars"],
            train_num_samples=request["samples"],
            train_data_upsampling_factors=None,
            dataset_resampled=True,
            seed=0,
            batch_size=request["batch_size"],
            workers=request["workers"],
            world_size=1,
        )
        info = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer)
        count, begun = 0, None
        while begun is None or time.perf_counter() - begun < request["seconds"]:
            for images, _ in info.dataloader:
                if begun is None:
                    begun = time.perf_counter()
                    continue
                count += len(images)
                if time.perf_counter() - begun >= request["seconds"]:
                    break
        print(json.dumps({"rate": count / (time.perf_counter() - begun)}), flush=True)


if __name__ == "__main__":
    main()
