"""Evaluates models on named tasks and sets; every figure with its 95 % interval.

python -m clip_jax.evaluate --model=runs/quickstart --tasks=glyphs/letters,glyphs/retrieval
python -m clip_jax.evaluate --model=runs/mine --tasks=zero_shot --data=photos/test
--output=result.json
python -m clip_jax.evaluate --model=runs/mine --tasks=linear_probe,knn,few_shot --data=photos/test
--train_data=photos/train --output=results/mine
python -m clip_jax.evaluate --model=runs/mine,runs/other --suite=imagenet_robustness,retrieval
--data_root=/data --compare --output=results/two

A folder as --output gets results.json, results.csv and report.html, and keeps embeddings; the same
command goes on with what is missing.
"""

import dataclasses
import functools
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from absl import flags

from clip_jax import command_line, job_flags
from clip_jax.arguments import local_path
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import telling, write_text
from clip_jax.training import source_flags
from clip_jax.training.source_flags import SourceFlags

if TYPE_CHECKING:
    from clip_jax.evaluation.embeddings import AnyEmbedders, Embedders
    from clip_jax.evaluation.ensemble import Method

ENSEMBLE = "ensemble"  # in the rows, of all models together

_MODEL = flags.DEFINE_list("model", None, "What clip_jax.load takes; several with commas between.")
_TASKS = flags.DEFINE_list("tasks", None, "Comma-separated tasks, on --data.")
_SUITE = flags.DEFINE_list(
    "suite", None, "Suites and sets by name (docs/sets.md), or .toml files of your own sets."
)
_DATA_ROOT = flags.DEFINE_string("data_root", "", "Folder or URL with the sets of --suite.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder, or a .json file; without it the table is all."
)
_COMPARE = flags.DEFINE_boolean("compare", False, "Add differences of the models to the report.")
_ENSEMBLE = flags.DEFINE_enum(
    "ensemble", None, ["similarities", "logits", "probabilities"],
    "Evaluate the models together too, by the mean of these.",
)  # fmt: skip
_ENSEMBLE_DATA = flags.DEFINE_string(
    "ensemble_data", None, "Labelled validation images to fit weights and temperatures on."
)
_DATA = SourceFlags(TaskData)
flags.adopt_module_key_flags(source_flags)
flags.adopt_module_key_flags(job_flags)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")


def main() -> int:
    """Loads each model, runs what is not finished, prints a table, writes files and the page."""
    if not _MODEL.value:
        raise UserError("--model: is missing; give a training run or an export")
    with job_flags.joined_job():
        return _evaluate(_MODEL.value)


def _evaluate(models: list[str]) -> int:
    import jax

    from clip_jax.evaluation.jobs import Job, find_disagreements, run_jobs
    from clip_jax.evaluation.results import Results, results_json
    from clip_jax.evaluation.suites.sets import resolve_suite
    from clip_jax.evaluation.tasks import TASKS, check_task
    from clip_jax.training.log.summary import format_models

    if not _TASKS.value and not _SUITE.value:
        raise UserError(f"--tasks: is missing; choose of {', '.join(TASKS)}; or give --suite")
    file, folder = _outputs(_OUTPUT.value)
    if _COMPARE.value and (folder is None or len(models) < 2):
        raise UserError("--compare: needs two models or more, and a folder as --output")
    if _ENSEMBLE.value and len(models) < 2:
        raise UserError(f"--ensemble={_ENSEMBLE.value}: needs two models or more")
    if _ENSEMBLE_DATA.value and not _ENSEMBLE.value:
        raise UserError("--ensemble_data: is for --ensemble, which is missing")
    data = _DATA.read()
    for task in _TASKS.value or ():
        check_task(task, data)
    jobs = [Job(task, data) for task in _TASKS.value or ()]
    for suite in _SUITE.value or ():
        jobs += [Job(chosen.kind, chosen.data, chosen) for chosen in resolve_suite(suite)]
    results = Results(folder)
    fine = True
    loaded: list[tuple[Embedders, str]] = []
    for model in [*models, *([ENSEMBLE] if _ENSEMBLE.value else [])]:
        embedders: AnyEmbedders
        if model == ENSEMBLE:
            embedders, model_hash = _ensemble(loaded, data, cast("Method", _ENSEMBLE.value))
        else:
            embedders, model_hash = _embedders(model, folder)
            if _ENSEMBLE.value:  # otherwise a model's memory is free for the next
                loaded.append((embedders, model_hash))
        prefix = f"{model}: " if len(models) > 1 else ""
        say = functools.partial(_say, prefix)
        fine &= run_jobs(
            model, model_hash, embedders, jobs, results, data_root=_DATA_ROOT.value, say=say
        )
    if jax.process_index() != 0:
        return 0 if fine else 1
    print(format_models([row for row in results.rows if "error" not in row]))
    if file is not None:
        with telling(f"--output={file}"):
            write_text(file, results_json(results.rows))
        print(f"written: {file}")
    if folder is not None:
        from clip_jax.report.evaluation import write_evaluation_page

        found = find_disagreements(jobs, results, _DATA_ROOT.value) if _COMPARE.value else None
        print(f"written: {write_evaluation_page(results, found)}")
    return 0 if fine else 1


def _say(prefix: str, text: str) -> None:
    import jax

    if jax.process_index() == 0:
        print(prefix + text, file=sys.stderr, flush=True)


def _outputs(output: str | None) -> tuple[Path | None, Path | None]:
    """Returns (file, folder) of --output, of which at most one is given."""
    if not output:
        return None, None
    path = local_path(output, "--output")
    if path.suffix != ".json":
        if path.is_file():
            raise UserError(f"--output={path}: is a file; give a folder, or a file named .json")
        return None, path
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--output={path}: must be a file in a folder that exists")
    return path, None


def _embedders(source: str, folder: Path | None) -> "tuple[Embedders, str]":
    """Returns a model's functions, and its hash."""
    from clip_jax.adapted import AdaptedClip
    from clip_jax.evaluation.embeddings import Embedders, EmbeddingStore
    from clip_jax.loading import load

    clip = load(source, _DTYPE.value)
    if isinstance(clip, AdaptedClip) and clip.knows_only_classes:
        raise UserError(
            f"--model={source}: {clip.adaptation.method} learned classes, which only clip.classify"
            " gives; accepted are adapters of the towers, such as lora"
        )
    model_hash = hashlib.sha256(f"{clip.fingerprint} {_DTYPE.value}".encode()).hexdigest()
    embedders = Embedders(
        clip.encode_image,
        functools.partial(clip.encode_text, truncate=True),  # captions may be long
        clip.transform,
        clip.logit_scale,
        clip.config.embed_dim,
        shares=True,
        store=None if folder is None else EmbeddingStore(folder / "embeddings", model_hash),
        embed_pooled=functools.partial(clip.encode_image, projected=False),
    )
    return embedders, model_hash


def _ensemble(
    loaded: "list[tuple[Embedders, str]]", data: TaskData, method: "Method"
) -> "tuple[AnyEmbedders, str]":
    """Returns the models as one, with equal weights or those fitted on --ensemble_data."""
    from clip_jax.evaluation.embeddings import Ensemble
    from clip_jax.evaluation.ensemble import Mixture
    from clip_jax.evaluation.recognition import fit_ensemble

    members = tuple(embedders for embedders, _ in loaded)
    if _ENSEMBLE_DATA.value:
        path = dataclasses.replace(data, path=_ENSEMBLE_DATA.value, split=None)
        mixture = fit_ensemble(members, path, method)
        shown = ", ".join(f"{weight:.3f}" for weight in mixture.weights)
        _say(f"{ENSEMBLE}: ", f"weights {shown}")
    else:
        scales = np.asarray([member.logit_scale for member in members])
        mixture = Mixture(np.full(len(members), 1 / len(members)), scales)
    words = [model_hash for _, model_hash in loaded]
    words += [method, *map(repr, (*mixture.weights.tolist(), *mixture.scales.tolist()))]
    ensemble = Ensemble(members, mixture, method)
    return ensemble, hashlib.sha256(" ".join(words).encode()).hexdigest()


if __name__ == "__main__":
    command_line.run(main, sys.argv)
