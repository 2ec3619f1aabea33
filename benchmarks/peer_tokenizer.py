"""open_clip's tokenizer as a worker of tokenizer.py; runs in an environment with open_clip.

Reads one JSON object a line (`captions`: the set to keep, or `time`: go through it once), answers
with one.
"""

import contextlib
import json
import sys
import time

with contextlib.suppress(ImportError):
    import torchvision_operators  # noqa: F401  (mends a torchvision that torch does not fit)

import open_clip
from open_clip.tokenizer import SimpleTokenizer


def main() -> None:
    tokenizer = SimpleTokenizer()
    print(json.dumps({"open_clip": open_clip.__version__}), flush=True)
    captions: list[str] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "captions" in request:
            captions = request["captions"]
            print(json.dumps({"captions": len(captions)}), flush=True)
            continue
        size = request["time"]
        checksum = 0
        begun = time.perf_counter()
        rows = [tokenizer(captions[i : i + size]) for i in range(0, len(captions), size)]
        seconds = time.perf_counter() - begun
        for row in rows:
            checksum += int(row.sum())
        print(json.dumps({"seconds": seconds, "checksum": checksum}), flush=True)


if __name__ == "__main__":
    main()
