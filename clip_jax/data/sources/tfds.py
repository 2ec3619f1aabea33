"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

The library provides files, splits and features; records are read as stored, so that images stay
encoded and are decoded only once, when the crop is known.
"""

import glob
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Reader
from clip_jax.data.sources.array_record import ExampleSource, Shard
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Columns,
    find_columns,
)
from clip_jax.data.sources.splits import choose_split, find_split
from clip_jax.errors import UserError, first_line
from clip_jax.files.patterns import is_remote


class TfdsSource(ExampleSource):
    """Source of one split of a TFDS dataset.

    The image is the feature of type Image, the captions those of type Text, or else the names of
    the ClassLabel put into `caption_template` (and into `metadata["class"]`). Of several such
    features, the one with a usual name is taken. Parts of nested features are named with "/", such
    as "captions/text"; a sequence of texts is several captions. The key is the feature "key",
    otherwise FILE:RECORD.

    Nothing is downloaded or built. As in `ArrayRecordSource`, a bad record raises `DecodeError`
    when it is read; only the records of missing files are dropped at opening.

    Args:
      path: a folder that TFDS wrote (with dataset_info.json, or one above it), local or remote, or
        the name of a dataset in TFDS's own folder, such as "coco_captions" or "NAME/CONFIG".
      options: `split` may be anything that TFDS understands, such as "train[:80%]+validation".

    Raises:
      UserError: no such dataset or split, not in ArrayRecord format, or no such feature.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        builder = _builder(path)
        info = builder.info
        where = f"TFDS dataset {info.full_name}"
        stored = info.file_format.value if info.file_format else "an unknown"
        if stored != "array_record":
            raise UserError(
                f"{where} in {builder.data_dir} is in {stored} format, which has no random access;"
                " write it again: pip install tensorflow, then tfds convert_format"
                f" --dataset_dir={builder.data_dir} --out_file_format=array_record --out_path=…"
            )
        self.split, shards = _shards(where, info.splits, options)
        dropped = Drops(options.listed_drops)
        super().__init__([shard for shard in shards if _is_there(shard, dropped)], options, dropped)
        self._check_not_empty(f"{where}: split {self.split} has no record", "give its files")
        features = list(_flatten("", info.features))
        classes = {feature.name: feature.classes for feature in features if feature.classes}
        self._set_columns(_columns(where, features, options), classes)


class _Feature(NamedTuple):
    """A leaf feature. `kind`: "image", "text", "class" or "" for all others."""

    name: str
    kind: str
    classes: tuple[str, ...] = ()


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "TFDS datasets need tensorflow-datasets: pip install 'clip_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _builder(path: str) -> Any:
    """Returns the read-only builder of a prepared dataset; runs no code of the dataset."""
    tfds = _import_tfds()
    if is_remote(path) or os.path.isdir(path):
        folder = path if is_remote(path) else _dataset_folder(path)
        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:  # from the library, stores or JSON
            raise UserError(f"{path} is no dataset of TFDS: {first_line(error)}") from error
    try:
        name, options = tfds.core.naming.parse_builder_name_kwargs(path)
        return tfds.core.read_only_builder.builder_from_files(str(name), **options)
    except Exception as error:  # the library raises many types for unknown names
        raise UserError(
            f"TFDS dataset {path!r} is not prepared here ({first_line(error)}); give the folder"
            " with its dataset_info.json, or prepare it: pip install tensorflow-datasets"
            f" tensorflow, then tfds build {path} --file_format=array_record"
        ) from error


def _dataset_folder(path: str) -> str:
    """Returns the folder with dataset_info.json: `path`, or the only such folder below it."""
    if os.path.isfile(os.path.join(path, "dataset_info.json")):
        return path
    depths = ("*", "*/*", "*/*/*")  # NAME/CONFIG/VERSION
    patterns = (f"{glob.escape(path)}/{depth}/dataset_info.json" for depth in depths)
    found = [name for pattern in patterns for name in sorted(glob.glob(pattern))]
    if len(found) == 1:
        return os.path.dirname(found[0])
    hint = f", such as {os.path.dirname(found[0])}" if found else ""
    raise UserError(
        f"{path} has no dataset_info.json of TFDS; give the folder of one version{hint}"
    )


def _shards(where: str, splits: Any, options: SourceOptions) -> tuple[str, list[Shard]]:
    """Returns (name of the split, its shards)."""
    names = sorted(splits)
    if not names:
        raise UserError(f"{where} has no splits; prepare it first")
    split = options.split
    if split is None or find_split(names, split) is not None:
        split = choose_split(where, names, options)
    # Any other name may be an expression over splits in TFDS's syntax.
    try:
        instructions = splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
        raise UserError(
            f"{where} has no split {split!r} ({first_line(error)}); it has {', '.join(names)},"
            " and parts of these, such as train[:80%]"
        ) from error
    return split, [Shard(str(part.filename), part.skip, part.take) for part in instructions]


def _is_there(shard: Shard, dropped: Drops) -> bool:
    """Returns whether a file exists, else drops all its records; remote files are not checked."""
    if is_remote(shard.path) or os.path.isfile(shard.path):
        return True
    dropped.add("shard_unreadable", shard.path, "no such file")
    dropped.counts["shard_unreadable"] += shard.count - 1
    return False


def _flatten(name: str, feature: Any, is_repeated: bool = False) -> Iterator[_Feature]:
    """Yields the leaf features, under their names in the examples."""
    features = _import_tfds().features
    if isinstance(feature, features.FeaturesDict):
        for part, value in feature.items():
            yield from _flatten(f"{name}/{part}" if name else part, value, is_repeated)
    elif type(feature) is features.Sequence:
        yield from _flatten(name, feature.feature, is_repeated=True)
    elif isinstance(feature, features.Image) and not is_repeated and feature.np_dtype == "uint8":
        yield _Feature(name, "image")
    elif isinstance(feature, features.Text):
        yield _Feature(name, "text")
    elif isinstance(feature, features.ClassLabel) and not is_repeated:
        yield _Feature(name, "class", tuple(feature.names))
    else:
        yield _Feature(name, "")


def _columns(where: str, features: list[_Feature], options: SourceOptions) -> Columns:
    by_kind: dict[str, list[str]] = {"image": [], "text": [], "class": [], "": []}
    for feature in features:
        by_kind[feature.kind].append(feature.name)

    def candidates(known: tuple[str, ...], *kinds: str) -> tuple[str, ...]:
        """Returns the usual names of the first kind that has any, or its only name."""
        for kind in kinds:
            usual = [name for name in known if name in by_kind[kind]]
            if usual or len(by_kind[kind]) == 1:
                return tuple(usual or by_kind[kind])
        return known

    # Texts with unusual names are often file names, so the class is a better caption.
    has_usual_text = bool(set(by_kind["text"]) & set(MANY_CAPTION_COLUMNS))
    kinds = ("text",) if has_usual_text else ("class", "text")
    columns = find_columns(
        where,
        [feature.name for feature in features],
        options,
        candidates(ENCODED_IMAGE_COLUMNS, "image"),
        candidates((*MANY_CAPTION_COLUMNS, "label"), *kinds),
    )
    if columns.image not in by_kind["image"]:
        raise UserError(
            f"{where}: feature {columns.image!r} is no image of 8 bits; those are:"
            f" {', '.join(by_kind['image']) or '(none)'}"
        )
    return columns


READER = Reader(
    "tfds", TfdsSource, signs=(("features.json", "dataset_info.json"),), rank=4, files="folder"
)
