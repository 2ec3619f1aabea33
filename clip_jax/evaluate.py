"""Evaluates a model on named tasks and writes one JSON file.

python -m clip_jax.evaluate --model=runs/quickstart --tasks=glyphs/letters,glyphs/retrieval
python -m clip_jax.evaluate --model=runs/mine --tasks=zero_shot --data=photos/test
--output=result.json
"""

import functools
import json
import sys
import time

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import telling, write_text
from clip_jax.training import source_flags
from clip_jax.training.source_flags import SourceFlags

_MODEL = flags.DEFINE_string("model", None, "What clip_jax.load takes: an export, a training run.")
_TASKS = flags.DEFINE_list("tasks", None, "Comma-separated tasks.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write; without it the table is all.")
_DATA = SourceFlags(TaskData)
flags.adopt_module_key_flags(source_flags)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")


def main() -> int:
    """Loads the model, runs the tasks, prints a table, writes the file."""
    if not _MODEL.value:
        raise UserError("--model: is missing; give a training run or an export")
    from clip_jax.evaluation.tasks import TASKS, Embedders, check_task, run_task
    from clip_jax.loading import load
    from clip_jax.training.log.summary import format_rows

    if not _TASKS.value:
        raise UserError(f"--tasks: is missing; choose of {', '.join(TASKS)}")
    output = local_path(_OUTPUT.value, "--output") if _OUTPUT.value else None
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"--output={output}: must be a file in a folder that exists")
    data = _DATA.read()
    for task in _TASKS.value:
        check_task(task, data)
    clip = load(_MODEL.value, _DTYPE.value)
    encode_text = functools.partial(clip.encode_text, truncate=True)  # captions may be long
    embedders = Embedders(clip.encode_image, encode_text, clip.transform)
    rows = []
    for task in _TASKS.value:
        begun = time.perf_counter()
        for row in run_task(task, embedders, data):
            rows.append({"model": _MODEL.value, **row})
        print(f"{task}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    print(format_rows(rows))
    if output is not None:
        text = json.dumps({"model": _MODEL.value, "results": rows}, indent=1)
        with telling(f"--output={output}"):
            write_text(output, text + "\n")
        print(f"written: {output}")
    return 0


if __name__ == "__main__":
    command_line.run(main, sys.argv)
