"""Process that builds tar indexes: one JSON line in, one JSON line out per finished archive."""

import json
import sys
from pathlib import Path

from clip_jax.data.options import SourceOptions
from clip_jax.data.tars.collection import index_file
from clip_jax.errors import UserError
from clip_jax.files.stores import Stat


def main() -> None:
    request = json.loads(sys.stdin.readline())
    options = SourceOptions(**request["options"])
    for number, path, stat, target in request["jobs"]:
        try:
            problem = index_file(path, Stat(**stat), Path(target), options)
        except UserError as error:
            print(json.dumps({"error": str(error)}), flush=True)
            return
        print(json.dumps({"number": number, "problem": problem}), flush=True)


if __name__ == "__main__":
    main()
