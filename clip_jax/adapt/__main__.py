"""Adapts a model to labelled images, with a few a class or all of them.

python -m clip_jax.adapt --model=runs/mine --method=lora --data=photos/train
--test_data=photos/test --workdir=runs/lora
python -m clip_jax.adapt --model=openai/clip-vit-base-patch16 --method=lora,coop --shots=1,4,16
--seeds=3 --data=photos/train --test_data=photos/test --workdir=runs/few

Each method has one recipe, from its paper. Nothing is chosen on the test images: of the runs with
the most shots, the one with the best validation accuracy is kept. The folder --workdir gets

    adapter/      the adapter; clip_jax.load(WORKDIR) is the model with it
    result.json   the run that is kept, before and after with 95 % limits; "runs", all of them
    report.html   a page of them
"""

import dataclasses
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import write_text, writing
from clip_jax.training import source_flags
from clip_jax.training.source_flags import SourceFlags

if TYPE_CHECKING:
    from clip_jax.adapt.parts import Outcome, Part

_MODEL = flags.DEFINE_string("model", None, "What clip_jax.load takes: an export, a training run.")
_METHOD = flags.DEFINE_list("method", ["lora"], "Methods (docs/adapt.md), or all.")
_SHOTS = flags.DEFINE_list("shots", [], "Training images a class, nested; without it, all.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each, of which seeds draw the images.", 1)
_TEST_DATA = flags.DEFINE_string("test_data", None, "As --data; only measured, before and after.")
_SPLIT_FILE = flags.DEFINE_string(
    "split_file", None, "CoOp's split_zhou_*.json, of images below --data; replaces --test_data."
)
_CLASSES = flags.DEFINE_enum(
    "classes",
    "all",
    ["all", "base", "new"],
    "Classes: the first half, which is also judged on the second, or the second.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write.")
_RATES = flags.DEFINE_list(
    "learning_rate", [], "In place of the recipe's; of several, validation images choose."
)
_STEPS = flags.DEFINE_integer("steps", None, "In place of the recipe's.", lower_bound=1)
_TRAIN_BATCH = flags.DEFINE_integer("train_batch_size", None, "In place of the recipe's.", 1)
_FLIPS = flags.DEFINE_boolean("flips", True, "Mirror images at random; not if text is legible.")
_VIEWS = flags.DEFINE_integer(
    "views", 0, "Augmented views of each image for methods that read features once; 0: none.", 0
)
_DISTILLATION = flags.DEFINE_float(
    "distillation", 0.0, "Weight of the divergence from the zero-shot model.", lower_bound=0
)
_DATA = SourceFlags(TaskData)
flags.adopt_module_key_flags(source_flags)


def main() -> int:
    """Runs the methods, prints a table, writes the folder."""
    if not (model := _MODEL.value):
        raise UserError("--model: is missing; give a training run or an export")
    if not _WORKDIR.value:
        raise UserError("--workdir: is missing; give a folder to write")
    workdir, data = local_path(_WORKDIR.value, "--workdir"), _DATA.read()
    if not data.path:
        raise UserError("--data: is missing; give labelled images to learn from")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: is a file; give a folder")
    from clip_jax.adapt.classes import chosen_classes, judge_new
    from clip_jax.adapt.experiment import Experiment, Options
    from clip_jax.adapt.page import build_page
    from clip_jax.adapt.parts import Part
    from clip_jax.adaptation.folder import write_adaptation
    from clip_jax.adapted import AdaptedClip, named_base
    from clip_jax.loading import load

    methods, begun = _methods(_METHOD.value), time.perf_counter()
    if _DISTILLATION.value:
        _check_distillation(methods)
    options = Options(
        _shots(_SHOTS.value),
        _SEEDS.value,
        _rates(_RATES.value),
        _STEPS.value,
        _TRAIN_BATCH.value,
        _FLIPS.value,
        _VIEWS.value,
        _DISTILLATION.value,
    )
    train, test = _opened(data)
    train, test, new = chosen_classes(_CLASSES.value, train, test)
    clip = load(model)
    if isinstance(clip, AdaptedClip):
        raise UserError(
            f"--model={model}: has an adapter; give its base, {clip.adaptation.base}, or what"
            " clip.save writes of it"
        )
    base = named_base(model)
    with writing(workdir):
        experiment = Experiment(clip, base, data, train, test, options, workdir, _say)
        outcomes, failures = [], list[dict[str, str]]()
        for name in methods:
            try:
                outcomes += experiment.run(name)
            except UserError as error:
                if len(methods) == 1:
                    raise
                failures.append({"method": name, "error": str(error)})
                _say(f"{name}: {error}")
        if not outcomes:
            raise UserError(f"--method={','.join(methods)}: none can be run; the reasons are above")
        if new is not None:  # nothing is learned from it
            on_new = Experiment(clip, base, data, new, Part(*new), options, workdir, _say)
            for outcome in outcomes:
                judge_new(outcome, on_new)
        best = _best(outcomes)
        write_adaptation(workdir / "adapter", best.adaptation)
        result = {"failures": failures} if failures else {}
        result |= _result(best, outcomes, len(train.labels.names), time.perf_counter() - begun)
        write_text(workdir / "result.json", json.dumps(result, indent=1) + "\n")
        page = build_page(result, best.samples, None if test is None else test.source)
        write_text(workdir / "report.html", page)
    _tell(outcomes)
    print(f"written: {workdir}")
    return 1 if failures else 0


def _methods(names: list[str]) -> list[str]:
    from clip_jax.adaptation.feature_methods import FEATURE_METHODS
    from clip_jax.adaptation.heads import PROBE
    from clip_jax.adaptation.methods import METHODS

    on_features = [name for name in FEATURE_METHODS if name != "zero_shot"]
    every = [PROBE, *on_features, *METHODS]
    if names == ["all"]:
        return every
    for name in names:
        if name not in every:
            raise UserError(f"--method={name}: choose of {', '.join(every)}, or all")
    return names


def _check_distillation(methods: list[str]) -> None:
    from clip_jax.adaptation.methods import METHODS

    if not set(methods) & set(METHODS):
        raise UserError(
            f"--distillation={_DISTILLATION.value:g}: no method of --method={','.join(methods)}"
            f" takes it; accepted are {', '.join(METHODS)}"
        )


def _best(outcomes: "list[Outcome]") -> "Outcome":
    """Returns the run of the most shots that is best on its validation images."""

    def rank(outcome: "Outcome") -> tuple[float, float, float]:
        row = outcome.row["validation"]
        return outcome.row["training_images"], row["accuracy_top1"], -row["log_loss"]

    return max(outcomes, key=rank)


def _shots(words: list[str]) -> tuple[int, ...]:
    try:
        shots = tuple(sorted({int(word) for word in words}))
    except ValueError:
        shots = (0,)
    if shots and shots[0] < 1:
        raise UserError(f"--shots={','.join(words)}: accepted are whole numbers of at least 1")
    return shots


def _rates(words: list[str]) -> tuple[float, ...]:
    try:
        rates = tuple(dict.fromkeys(float(word) for word in words))
    except ValueError:
        rates = (0.0,)
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"--learning_rate={','.join(words)}: accepted are numbers above 0")
    return rates


def _opened(data: TaskData) -> "tuple[Part, Part | None]":
    """Opens training and test images. Raises UserError if they share images, or classes differ."""
    from clip_jax.adapt.parts import Part
    from clip_jax.adapt.split_file import read_split_file
    from clip_jax.data.sources.refine import open_refined
    from clip_jax.evaluation.choice_data import refuse_shared_images
    from clip_jax.evaluation.labels import read_labels
    from clip_jax.evaluation.opening import open_labelled

    if _SPLIT_FILE.value:
        if _TEST_DATA.value or data.classnames:
            raise UserError("--split_file: names tests and classes; leave the flags of them out")
        return read_split_file(local_path(_SPLIT_FILE.value, "--split_file"), data.path)
    source = open_refined(
        data, preferred_splits=("train",), needs_captions=False, label_column=data.label_key
    )
    train = Part(source, read_labels(source, data))
    _note(train)
    if not _TEST_DATA.value:
        return train, None
    wanted = dataclasses.replace(data, path=_TEST_DATA.value, split=None)
    test_source = open_labelled(wanted)
    refuse_shared_images(source, test_source, _TEST_DATA.value)
    test = Part(test_source, read_labels(test_source, wanted))
    _note(test)
    unknown = sorted(set(test.labels.names) ^ set(train.labels.names))
    if test.labels.prompt_names != train.labels.prompt_names:
        shown = f", such as {unknown[0]!r}," if unknown else ""
        raise UserError(
            f"--test_data={_TEST_DATA.value}: its {len(test.labels.names)} classes are not the"
            f" {len(train.labels.names)} of --data{shown}; give the names of all by --classnames"
        )
    return train, test


def _note(part: "Part") -> None:
    for note in part.labels.notes:
        _say(f"note: {note}")


def _result(
    best: "Outcome", outcomes: "list[Outcome]", classes: int, seconds: float
) -> dict[str, Any]:
    return {
        "model": _MODEL.value,
        "data": _DATA.read().path,
        "test_data": _TEST_DATA.value or _SPLIT_FILE.value,
        "classes": _CLASSES.value,
        "num_classes": classes,
        **best.row,
        "all_seconds": round(seconds, 1),
        "runs": [outcome.row for outcome in outcomes],
    }


def _tell(outcomes: "list[Outcome]") -> None:
    for outcome in outcomes:
        row = outcome.row
        part = "" if "after" in row else "validation"
        before = row["validation_before"] if part else row["before"]
        after = row["validation"] if part else row["after"]
        print(
            f"{row['method']:>12}  {row['shots']:>4} shots  seed {row['seed']}  {part}"
            f" {100 * before['accuracy_top1']:.1f} % -> {100 * after['accuracy_top1']:.1f} %"
            f" ({100 * after['accuracy_top1_low']:.1f} to {100 * after['accuracy_top1_high']:.1f})"
            f"  {row['trained_parameters']:,} parameters"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, sys.argv)
