"""Search for the data of a set: below a root, here or in a store, in any of its forms."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_classes
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.suites.files import FORMS, babel_prompts, read_files
from clip_jax.evaluation.suites.layout import CLASSES, cached_text, lines_of, read_layout
from clip_jax.evaluation.suites.sets import EvaluationSet, all_sets
from clip_jax.files.patterns import is_remote, what_is_wrong

_HUB = re.compile(
    r"https://huggingface\.co/(datasets/[^/]+)(/.*)?"
)  # a page, as a browser shows it


def find_data(chosen: EvaluationSet, data_root: str = "") -> TaskData:
    """Returns where a set's data are and how they are read.

    Below `data_root` these are tried: folders of the set's name in clip-benchmark's layout, those
    with the set's own files, folders of images, and a folder of TFDS.

    Raises UserError: nothing is there, or what is there cannot be this set.
    """
    data = _with_prompts(chosen)
    if data.path:
        return _found_at(chosen, data.path.rstrip("/"), data) or data
    root = _local(data_root)
    if not root:
        how = how_to_get(chosen)
        raise UserError(f"--data_root: is missing, and {chosen.name} would be below it; {how}")
    if not is_remote(root) and not os.path.isdir(root):
        raise UserError(f"--data_root={data_root}: {what_is_wrong(root)}; give a folder of sets")
    if chosen.files == "babel":
        return _find_babel(chosen, root)
    looked = []
    for folder in chosen.folders:
        looked.append(folder)
        found = _found_at(chosen, f"{root}/{folder}", data)
        if found is not None:
            return found
    if not is_remote(root):
        in_parent = f"{root}/{chosen.name.partition('/')[0]}"
        path = read_files(chosen, Path(in_parent)) if chosen.files else None
        if path is not None:
            return dataclasses.replace(data, path=path, format="jsonl")
        for parent in ("", "tfds/") if chosen.tfds else ():
            looked.append(f"{parent}{chosen.tfds}")
            place = f"{root}/{parent}{chosen.tfds}"
            if os.path.isdir(place):
                return _of_tfds(chosen, place, data)
    names = ", ".join(dict.fromkeys(looked))
    where = f"not found under --data_root={data_root} (looked for {names})"
    raise UserError(f"{chosen.name}: {where}; {how_to_get(chosen, root)}")


def _find_babel(chosen: EvaluationSet, root: str) -> TaskData:
    """Returns ImageNet's data with the names and templates of a language."""
    folder = Path(root, "babel_imagenet")
    prompts = None if is_remote(root) else babel_prompts(chosen, folder)
    if prompts is None:
        raise UserError(
            f"{chosen.name}: not found (looked at {folder}); {how_to_get(chosen, root)}"
        )
    images = find_data(all_sets()["imagenet1k"], root)
    return dataclasses.replace(images, classnames=prompts[0], templates=prompts[1])


def how_to_get(chosen: EvaluationSet, root: str = "DATA_ROOT") -> str:
    """Returns half a sentence about where a set's data come from."""
    root = "DATA_ROOT" if is_remote(root) else root
    if chosen.repository:
        owner, _, name = chosen.repository.partition("/")
        return (
            f"get it by `hf download --repo-type=dataset {chosen.repository} --local-dir"
            f" {root}/{name}`, or give --data_root=hf://datasets/{owner}"
        )
    if chosen.tfds:
        return f"get it by `tfds build {chosen.tfds} --file_format=array_record --data_dir={root}`"
    if chosen.files in FORMS:
        folder = chosen.name.partition("/")[0]
        return f"put {FORMS[chosen.files].wanted} into {root}/{folder}"
    if chosen.files == "babel":
        files = "babel_imagenet.json and nllb_dist13b_prompts.json"
        return f"put {files} into {root}/babel_imagenet, beside ImageNet's own folder"
    if chosen.kind == "winogavil":
        return f"put its CSV file and its images into {root}/{chosen.name}"
    if chosen.kind == "winoground":
        columns = "image_0, image_1, caption_0 and caption_1"
        return f"put a dataset with columns {columns} into {root}/{chosen.name}"
    if chosen.kind == "fairness":
        return f"put fairface_label_val.csv and the images that it names into {root}/{chosen.name}"
    return f"put it into {root}/{chosen.folders[0]}, a folder of images a class"


def _local(data_root: str) -> str:
    """Returns a root without "~" and last "/"; a page of the hub becomes an hf:// URL."""
    page = _HUB.fullmatch(data_root)
    root = f"hf://{page[1]}" if page else os.path.expanduser(data_root)
    return root.rstrip("/") or root


def _with_prompts(chosen: EvaluationSet) -> TaskData:
    """Returns the set's data with the class names and templates that were published for it."""
    data, name = chosen.data, chosen.prompts
    if name is None and not data.path:
        name = chosen.name
    known = published(name) if name is not None else None
    if known is None or name is None:
        return data
    changes: dict[str, Any] = {}
    if known.classes and data.classnames is None:
        changes["classnames"] = name
    if data.templates == TaskData.templates:
        changes["templates"] = name
    return dataclasses.replace(data, **changes)


def _found_at(chosen: EvaluationSet, place: str, data: TaskData) -> TaskData | None:
    """Returns how the set at a place is read; None if there is none."""
    if chosen.kind not in ("winoground", "winogavil"):
        found = read_layout(place, chosen.kind, chosen.split, data)
        if found is not None:
            return _in_order(chosen, place, found)
    if is_remote(place) or not os.path.isdir(place):
        return None
    if chosen.files in FORMS:
        path = read_files(chosen, Path(place))
        if path is not None:
            return dataclasses.replace(data, path=path, format="jsonl")
    depths = ("", "*/", "*/*/")
    if data.format == "auto" and any(any(Path(place).glob(f"{x}features.json")) for x in depths):
        return _of_tfds(chosen, place, data)
    return dataclasses.replace(data, path=place)


def _of_tfds(chosen: EvaluationSet, place: str, data: TaskData) -> TaskData:
    split = chosen.tfds_split or chosen.split
    key = data.label_key if data.label_key != TaskData.label_key else chosen.label
    return dataclasses.replace(data, path=place, format="tfds", split=split, label_key=key)


def _in_order(chosen: EvaluationSet, root: str, data: TaskData) -> TaskData:
    """Returns `data` with the classes in the order of classnames.txt, if that has the same names.

    Raises UserError if it has another number of names.
    """
    lines = lines_of(root, CLASSES, data.remote)
    if lines is None or data.classnames is None or published(data.classnames) is None:
        return data
    classes = get_classes(data.classnames)
    evaluated = [each for each in classes if each.names]
    if len(lines) != len(evaluated):
        wanted = f"{chosen.name} has {len(evaluated):,} classes"
        raise UserError(f"{root}/{CLASSES}: has {len(lines):,} names, but {wanted}")
    theirs = [_form(line) for line in lines]
    ours = [_form(each.names[0]) for each in evaluated]
    if ours == theirs or sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
        return data
    by_form = dict(zip(ours, evaluated, strict=True))
    ordered = [[by_form[form].label, *by_form[form].names] for form in theirs]
    text = cached_text(f"{chosen.name}.json", json.dumps(ordered, ensure_ascii=False))
    return dataclasses.replace(data, classnames=text)


def _form(name: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", name.casefold()).split())
