"""TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow.

The library provides files, splits and features; records are read as stored, so that images stay
encoded and are decoded only once, when the crop is known.
"""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops
from clip_jax.data.sources.array_record import Examples, ExampleSource, Shard
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    KEY_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Columns,
    caption_of_class,
    find_column,
    find_label_column,
)
from clip_jax.data.sources.splits import choose_and_say, find_split
from clip_jax.data.sources.tf_example import Feature
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

    def __init__(self, path: str, options: SourceOptions = SourceOptions()) -> None:  # noqa: B008
        builder = _builder(os.fspath(path))
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
        features = list(_flatten("", info.features))
        columns = _columns(where, features, options)
        self._template = options.caption_template
        self._classes = {
            feature.name: feature.classes for feature in features if feature.classes is not None
        }
        if set(columns.captions) & set(self._classes):
            caption_of_class(self._template, "class")  # fails now, not at the first record
        dropped = Drops(options.listed_drops)
        there = [shard for shard in shards if _is_there(shard, dropped)]
        examples = Examples(there, options.remote)
        if not len(examples):
            why = next(iter(dropped.items()), None)
            raise UserError(
                f"{where}: split {self.split} has no record"
                + (f" ({why[0]}: {why[1]})" if why else "")
            )
        super().__init__(examples, columns, options, dropped)

    def _class_name(self, name: str, values: Feature | None) -> str | None:
        names = self._classes.get(name)
        number = values[0] if values else None
        if names is None or not isinstance(number, int) or not 0 <= number < len(names):
            return None
        return names[number]

    def _caption_cell(self, name: str, values: Feature | None) -> Any:
        if name not in self._classes:
            return values
        class_name = self._class_name(name, values)
        return None if class_name is None else caption_of_class(self._template, class_name)

    def metadata(self, index: int) -> dict[str, Any]:
        example = self._examples.read(index)
        found = super().metadata(index)
        for name in self._classes:
            class_name = self._class_name(name, example.get(name))
            if class_name is None:
                continue
            if name == self._columns.label or name not in self._columns.captions:
                found[name] = class_name
            if name in self._columns.captions:
                found["class"] = class_name
        return found


@dataclass(frozen=True)
class _Feature:
    """A leaf feature. `kind`: "image", "text", "class" or "" for all others."""

    name: str
    kind: str
    classes: tuple[str, ...] | None = None


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
    path = path if is_remote(path) else os.path.expanduser(path)
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
    found = [
        os.path.dirname(name)
        for depth in depths
        for name in sorted(glob.glob(os.path.join(glob.escape(path), depth, "dataset_info.json")))
    ]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{path} has no dataset_info.json of TFDS; give the folder of one version"
        + (f", such as {found[0]}" if found else "")
    )


def _shards(where: str, splits: Any, options: SourceOptions) -> tuple[str, list[Shard]]:
    """Returns (name of the split, its shards)."""
    names = sorted(splits)
    if not names:
        raise UserError(f"{where} has no splits; prepare it first")
    split = options.split
    if split is None or find_split(names, split) is not None:
        split = choose_and_say(where, names, options)
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
    names = [feature.name for feature in features]

    def of_kind(kind: str) -> list[str]:
        return [feature.name for feature in features if feature.kind == kind]

    def pick(given: str | None, known: tuple[str, ...], kinds: tuple[str, ...], option: str) -> str:
        if given is not None:
            return find_column(where, names, given, (), option)
        for kind in kinds:
            usual = [name for name in known if name in of_kind(kind)]
            if usual or len(of_kind(kind)) == 1:
                return (usual or of_kind(kind))[0]
        return find_column(where, names, None, known, option)

    image = pick(options.image_column, ENCODED_IMAGE_COLUMNS, ("image",), "image_column")
    if image not in of_kind("image"):
        raise UserError(
            f"{where}: feature {image!r} is no image of 8 bits; those are:"
            f" {', '.join(of_kind('image')) or '(none)'}"
        )
    texts = set(of_kind("text"))
    # Texts with unusual names are often file names, so the class is a better caption.
    kinds = ("text",) if texts & set(MANY_CAPTION_COLUMNS) else ("class", "text")
    captions: tuple[str, ...] = ()
    try:
        captions = tuple(
            pick(given, (*MANY_CAPTION_COLUMNS, "label"), kinds, "caption_column")
            for given in options.caption_columns or (None,)
        )
    except UserError:
        if options.needs_captions or options.caption_columns:
            raise
    key = next((name for name in KEY_COLUMNS if name in names), None)
    key = key if key not in (image, *captions) else None
    return Columns(image, captions, key, find_label_column(names, options))
