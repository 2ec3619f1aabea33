"""Averages models of one architecture, and writes the result as a model.

python -m clip_jax.soup --model=runs/a,runs/b,runs/c --output=soup
python -m clip_jax.soup --model=runs/a,runs/b,runs/c --method=greedy --data=photos/validation
--output=soup
python -m clip_jax.soup --model=openai/clip-vit-base-patch32,runs/tuned --method=interpolate
--data=photos/validation --output=between

"greedy" adds models, best first, while the accuracy on --data does not fall (Wortsman et al. 2022).
"interpolate" goes from the first model to the second (WiSE-FT), shows the accuracy along the way,
and writes the best. --data must not be the data that the result is tested on.
"""

import functools
import json
import sys
from typing import Any

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import telling, write_text
from clip_jax.training import source_flags
from clip_jax.training.source_flags import SourceFlags

_MODEL = flags.DEFINE_list("model", None, "Two or more of what clip_jax.load takes.")
_METHOD = flags.DEFINE_enum(
    "method", "uniform", ["uniform", "greedy", "interpolate"], "How models are averaged."
)
_WEIGHTS = flags.DEFINE_list("weights", None, "uniform: a number a model, instead of equal ones.")
_STEPS = flags.DEFINE_integer("steps", 10, "interpolate: parts of the way.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the new model.")
_DATA = SourceFlags(TaskData)
flags.adopt_module_key_flags(source_flags)


def main() -> int:
    """Loads the models, averages them, writes the result and how it came about."""
    names = _MODEL.value or []
    if len(names) < 2:
        raise UserError("--model: is missing; give two or more models with commas between")
    if not _OUTPUT.value:
        raise UserError("--output: is missing; give a new folder for the model")
    output, data, method = local_path(_OUTPUT.value, "--output"), _DATA.read(), _METHOD.value
    if method != "uniform" and not data.path:
        raise UserError(f"--data: is missing; --method={method} chooses by labelled images")
    if method == "interpolate" and len(names) != 2:
        raise UserError(f"--model: names {len(names)} models; interpolation is between two")
    from clip_jax.clip import Clip
    from clip_jax.evaluation.embeddings import Embedders
    from clip_jax.evaluation.soup import greedy_soup, soup
    from clip_jax.evaluation.tasks import check_task, run_task
    from clip_jax.loading import load

    if method != "uniform":
        check_task("zero_shot", data)
    first, *others = [load(source) for source in names]
    trees = [clip.params for clip in (first, *others)]

    def accuracy(params: Any) -> float:
        clip = Clip(first.config, params, first.tokenizer)
        encode_text = functools.partial(clip.encode_text, truncate=True)
        embedders = Embedders(clip.encode_image, encode_text, clip.transform)
        return float(run_task("zero_shot", embedders, data)[0]["accuracy_top1"])

    record: dict[str, Any] = {"method": method, "models": names}
    if method == "uniform":
        weights = _numbers(_WEIGHTS.value)
        mixed = soup(trees, weights)
        record["weights"] = weights or [1 / len(trees)] * len(trees)
    elif method == "greedy":
        mixed, chosen, scores = greedy_soup(trees, accuracy)
        for name, score in zip(names, scores, strict=True):
            print(f"{100 * score:6.2f} %  {name}")
        print(f"{100 * accuracy(mixed):6.2f} %  soup of {', '.join(names[i] for i in chosen)}")
        record |= {"chosen": [names[i] for i in chosen], "accuracy_top1": scores}
    else:
        curve = []
        for step in range(_STEPS.value + 1):
            part = step / _STEPS.value
            curve.append((part, accuracy(soup(trees, (1 - part, part)))))
            print(f"{part:5.2f}  {100 * curve[-1][1]:6.2f} %")
        best = max(curve, key=lambda point: point[1])[0]
        print(f"best: {best:.2f} of the way from {names[0]} to {names[1]}")
        mixed = soup(trees, (1 - best, best))
        record |= {"part": best, "curve": curve}
    Clip(first.config, mixed, first.tokenizer).save(output)
    with telling(f"--output={output}"):
        write_text(output / "soup.json", json.dumps(record, indent=1) + "\n")
    print(f"written: {output}")
    return 0


def _numbers(values: list[str] | None) -> list[float] | None:
    if not values:
        return None
    try:
        return [float(value) for value in values]
    except ValueError:
        raise UserError(
            f"--weights={','.join(values)}: accepted are numbers, one a model"
        ) from None


if __name__ == "__main__":
    command_line.run(main, sys.argv)
