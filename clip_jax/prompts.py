"""Compares prompt templates on labelled images, and chooses among them.

python -m clip_jax.prompts --model=runs/mine --data=photos/validation --templates=candidates.txt
--test_data=photos/test --output=prompts

Each template of --templates is a candidate; --class_prompts=FILE.json of {class: [prompts]} is one
more. Several names a class (--classnames=FILE.json) share it in every template. Forward selection
chooses on --data, which must not be a test set. Figures of a choice are of images that it has not
seen: of --data by cross-validation, and of --test_data, which is measured once, at the end.
--learn_weights fits a weight for each candidate too. The folder --output gets

    templates.txt   the choice, as --templates of clip_jax.evaluate takes it; templates.json, with
                    the prompts of every class, if the choice has those of --class_prompts
    weights.json    learned weights by template
    results.json    all figures
    report.html     a page of them
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import telling, write_text
from clip_jax.training import source_flags
from clip_jax.training.source_flags import SourceFlags

if TYPE_CHECKING:
    from clip_jax.clip import Clip
    from clip_jax.evaluation.choice_data import Labelled
    from clip_jax.evaluation.labels import Labels
    from clip_jax.evaluation.prompt_candidates import Candidates
    from clip_jax.evaluation.prompt_comparison import Choice
    from clip_jax.evaluation.prompt_search import Judged, Trial

_MODEL = flags.DEFINE_string("model", None, "What clip_jax.load takes: an export, a training run.")
_CLASS_PROMPTS = flags.DEFINE_string(
    "class_prompts", None, "JSON file of {class: [prompts]}, such as CuPL's: one more candidate."
)
_LEARN = flags.DEFINE_boolean("learn_weights", False, "Fits weights of the candidates too.")
_TEST_DATA = flags.DEFINE_string("test_data", None, "As --data; measured once, at the end.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_DATA = SourceFlags(TaskData)
flags.adopt_module_key_flags(source_flags)


def main() -> int:
    """Loads the model, chooses prompts, measures the choice, writes the folder."""
    if not _MODEL.value:
        raise UserError("--model: is missing; give a training run or an export")
    if not _OUTPUT.value:
        raise UserError("--output: is missing; give a folder to write")
    output, data = local_path(_OUTPUT.value, "--output"), _DATA.read()
    if not data.path:
        raise UserError("--data: is missing; give labelled images that are not the test set")
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file; give a folder")
    from clip_jax.evaluation.choice_data import open_both
    from clip_jax.evaluation.embeddings import prompts_hash
    from clip_jax.evaluation.prompt_candidates import find_candidates
    from clip_jax.evaluation.prompt_comparison import CHOSEN, check_choice, choose_prompts
    from clip_jax.loading import load
    from clip_jax.report.prompts import build_prompts_page

    begun = time.perf_counter()
    opened = open_both(data, _TEST_DATA.value)
    candidates = find_candidates(opened[0].labels, data.templates, _CLASS_PROMPTS.value)
    names = candidates.names
    clip = load(_MODEL.value)
    trials, references, facts = _embedded(clip, output, data, opened, candidates, begun)
    choice = choose_prompts(trials[0], names, references[0], learn=_LEARN.value)
    _say(f"{len(choice.chosen)} candidates are chosen", begun)
    texts = [text for each in candidates.prompts for of_class in each for text in of_class]
    result: dict[str, Any] = {
        "model": _MODEL.value,
        "model_hash": clip.fingerprint,
        "num_classes": len(opened[0].labels.names),
        "prompts_hash": prompts_hash(texts),
        "chosen": [names[number] for number in choice.chosen],
        "validation": {**facts[0], **choice.figures},
    }
    if _TEST_DATA.value:
        result["test"] = {**facts[1], **check_choice(trials[1], choice, references[1])}
    result["seconds"] = round(time.perf_counter() - begun, 2)
    files = {**_chosen_files(opened[0].labels, candidates, choice), "results.json": _json(result)}
    _write(output, {**files, "report.html": build_prompts_page(result)})
    _tell(result, CHOSEN)
    print(f"written: {output}")
    return 0


def _embedded(
    clip: "Clip",
    output: Path,
    data: TaskData,
    opened: "Sequence[Labelled]",
    candidates: "Candidates",
    begun: float,
) -> "tuple[list[Trial], list[dict[str, Judged]], list[dict[str, Any]]]":
    """Embeds prompts and images; returns trials, judged references and facts of each data set."""
    from clip_jax.evaluation.embeddings import (
        Embedders,
        EmbeddingStore,
        data_hash,
        embed_source,
        embed_texts,
    )
    from clip_jax.evaluation.labels import UNLABELLED
    from clip_jax.evaluation.opening import dataset_fields
    from clip_jax.evaluation.prompt_search import make_trial, prompt_sums

    count, scale = len(candidates.names), clip.logit_scale
    store = EmbeddingStore(output / "embeddings", clip.fingerprint)
    encode_text = functools.partial(clip.encode_text, truncate=True)
    embedders = Embedders(clip.encode_image, encode_text, clip.transform, scale, store=store)
    sums = prompt_sums(
        functools.partial(embed_texts, embedders),
        [*candidates.prompts, *candidates.references.values()],
    )
    _say(f"{count} candidates for {len(opened[0].labels.names)} classes are embedded", begun)
    trials, references, facts = [], [], []
    for each in opened:
        images = embed_source(embedders, each.source, data.batch_size)
        numbers = each.labels.numbers[images.records]
        used = numbers != UNLABELLED
        sample = images.embeds[used], numbers[used], scale
        trials.append(make_trial(sums[:count], *sample))
        judged = make_trial(sums[count:], *sample).judge_each()
        references.append(dict(zip(candidates.references, judged, strict=True)))
        facts.append(
            {
                **dataset_fields(each.source, each.data),
                "num_images": int(used.sum()),
                "data_hash": data_hash(each.source, clip.transform),
            }
        )
        _say(f"{each.data.path}: {used.sum():,} images are embedded", begun)
    return trials, references, facts


def _chosen_files(
    labels: "Labels", candidates: "Candidates", choice: "Choice"
) -> dict[str, str | None]:
    """Returns the files of the choice; None for one that this choice does not have."""
    from clip_jax.evaluation.prompt_comparison import LEARNED

    names, by_class = candidates.names, None
    if candidates.has_class_prompts and len(names) - 1 in choice.chosen:
        by_class = {
            each.label: [text for n in choice.chosen for text in candidates.prompts[n][at]]
            for at, each in enumerate(labels.classes)
        }
    weights = choice.weights.get(LEARNED)
    by_name = None if weights is None else dict(zip(names, weights.tolist(), strict=True))
    chosen = "".join(f"{names[number]}\n" for number in choice.chosen)
    return {
        "templates.txt": None if by_class else chosen,
        "templates.json": _json(by_class) if by_class else None,
        "weights.json": _json(by_name) if by_name else None,
    }


def _write(output: Path, files: dict[str, str | None]) -> None:
    """Writes the files, and removes those that an earlier run wrote and this one does not."""
    with telling(f"--output={output}"):
        output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if text is None:
                (output / name).unlink(missing_ok=True)
            else:
                write_text(output / name, text)


def _tell(result: dict[str, Any], chosen: str) -> None:
    """Prints the choice, ensembles, and the difference that the choice makes."""
    for name in result["chosen"]:
        print(f"chosen: {name}")
    for part in ("validation", "test"):
        for row in result.get(part, {}).get("ensembles", ()):
            low, high = (100 * row[f"accuracy_top1_{end}"] for end in ("low", "high"))
            how = f"  {row['measured']}" if "measured" in row else ""
            value = 100 * row["accuracy_top1"]
            print(f"{part}: {value:6.2f} % ({low:.2f} to {high:.2f})  {row['prompts']}{how}")
        for row in result.get(part, {}).get("differences", ()):
            if row["prompts"] == chosen:
                value, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
                print(
                    f"{part}: {chosen} − {row['against']}: {value:+.2f} points"
                    f" ({low:+.2f} to {high:+.2f})"
                )


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _say(what: str, begun: float) -> None:
    print(f"{time.perf_counter() - begun:6.1f} s: {what}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main, sys.argv)
