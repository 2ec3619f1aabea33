"""The forms in which sets were published: annotation files beside folders of images.

Each form is read into rows of an image and its captions, which become JSON lines in the cache.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.errors import UserError
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.suites.layout import cached_text
from clip_jax.evaluation.suites.sets import EvaluationSet

Row = tuple[Path, list[str]]  # an image, and its captions


class Form(NamedTuple):
    """One form of files."""

    wanted: str  # files in the set's folder, for messages
    read: Callable[[EvaluationSet, Path], Iterator[Row] | None]  # None if the files are not there


def read_files(chosen: EvaluationSet, folder: Path) -> str | None:
    """Returns the path of JSON lines with "image" and "captions"; None if the files are absent.

    Raises UserError if the set's files in `folder` have another form.
    """
    form = FORMS[chosen.files or ""]
    try:
        rows = form.read(chosen, folder)
        if rows is None:
            return None
        lines = [json.dumps({"image": str(image), "captions": texts}) for image, texts in rows]
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: is not {form.wanted} ({reason})") from error
    return cached_text(f"{chosen.name}.jsonl", "".join(f"{line}\n" for line in lines))


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _images(folder: Path, name: str) -> Path:
    """Returns the absolute folder of images: a subfolder, or the folder itself."""
    return (folder / name if (folder / name).is_dir() else folder).absolute()


def _sugar_crepe(chosen: EvaluationSet, folder: Path) -> Iterator[Row] | None:
    path, images = folder / f"{chosen.language}.json", _images(folder, "val2017")
    if not path.is_file():
        return None
    rows = _json(path).values()
    return ((images / x["filename"], [x["caption"], x["negative_caption"]]) for x in rows)


def _coco(chosen: EvaluationSet, folder: Path) -> Iterator[Row] | None:
    path, images = folder / f"coco_{chosen.split}_karpathy.json", _images(folder, "val2014")
    if not path.is_file():
        return None
    values = _json(path)
    captions: dict[int, list[str]] = {}
    for each in values["annotations"]:
        captions.setdefault(each["image_id"], []).append(each["caption"])
    return ((images / x["file_name"], captions[x["id"]]) for x in values["images"])


def _flickr(chosen: EvaluationSet, folder: Path) -> Iterator[Row] | None:
    path, images = folder / f"{chosen.name}_{chosen.split}_karpathy.txt", _images(folder, "images")
    if not path.is_file():
        return None
    captions: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").split("\n")[1:]:  # after the header
        if line.strip():
            # Captions have commas, too.
            name, caption = line.strip().split(".jpg,", 1)
            captions.setdefault(f"{name}.jpg", []).append(caption)
    return ((images / name, texts) for name, texts in captions.items())


def _crossmodal(chosen: EvaluationSet, folder: Path) -> Iterator[Row] | None:
    path, images = folder / "captions.jsonl", _images(folder, "images")
    if not path.is_file():
        return None
    rows = map(json.loads, path.read_text("utf-8").strip().split("\n"))
    return ((images / f"{x['image/key']}.jpg", x[chosen.language]["caption"]) for x in rows)


def _xtd(chosen: EvaluationSet, folder: Path) -> Iterator[Row] | None:
    path, images = folder / f"test_1kcaptions_{chosen.language}.txt", _images(folder, "images")
    if not path.is_file():
        return None
    names = (folder / "test_image_names.txt").read_text("utf-8").strip().split("\n")
    texts = path.read_text("utf-8").strip().split("\n")
    pairs = zip(names, texts, strict=True)
    return ((images / name.strip(), [text.strip()]) for name, text in pairs)


FORMS = {
    "sugar_crepe": Form("SugarCrepe's add_att.json … with COCO's val2017/", _sugar_crepe),
    "coco": Form("coco_test_karpathy.json with COCO's val2014/", _coco),
    "flickr": Form("flickr30k_test_karpathy.txt (flickr8k_…) with images/", _flickr),
    "crossmodal": Form("captions.jsonl with images/", _crossmodal),
    "xtd": Form("test_image_names.txt, test_1kcaptions_de.txt … with images/", _xtd),
}


def babel_prompts(chosen: EvaluationSet, folder: Path) -> tuple[str, str] | None:
    """Returns the paths of (class names, templates) of ImageNet in a language, as `get_classes` and
    `get_templates` read them; None if the files are absent.

    The files are babel_imagenet.json of github.com/gregor-ge/Babel-ImageNet, the numbers and names
    of ImageNet's classes by language, and nllb_dist13b_prompts.json, templates by language.

    Raises UserError if they have another form.
    """
    names, templates = folder / "babel_imagenet.json", folder / "nllb_dist13b_prompts.json"
    whole = published("imagenet1k")
    assert whole is not None
    if not names.is_file() or not templates.is_file():
        return None
    language = (chosen.language or "").upper()
    try:
        in_language = dict(zip(*_json(names)[language], strict=True))
        texts = [template.strip() for template in _json(templates)[language]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: is not Babel-ImageNet's ({reason})") from error
    classes = [
        [each.label] + ([in_language[number]] if number in in_language else [])
        for number, each in enumerate(whole.classes)
    ]
    return (
        cached_text(f"{chosen.name}.json", json.dumps(classes, ensure_ascii=False)),
        cached_text(f"{chosen.name}.txt", "".join(f"{text}\n" for text in texts)),
    )
