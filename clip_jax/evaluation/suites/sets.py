"""The table of evaluation sets and suites (`sets.toml`), and those of a user's own file."""

import dataclasses
import difflib
import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from clip_jax.arguments import Checked, Range, with_home
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.patterns import is_remote
from clip_jax.typed_values import build, unknown_key

_TABLE = Path(__file__).parent / "sets.toml"
_OWN_PATHS = ("path", "classnames", "templates", "exclude")  # of a row: relative to its file


@dataclass(frozen=True)
class EvaluationSet(Checked):
    """One evaluation set: what is measured on it, how large it is, and where it is found.

    Raises UserError if a number is out of range.
    """

    name: str
    kind: Literal[
        "zero_shot", "multilabel", "retrieval", "compositional", "winoground", "winogavil",
        "fairness",
    ] = "zero_shot"  # fmt: skip
    # The metric that is quoted, by its name in a row of results; "": the usual one of the kind.
    metric: str = ""
    classes: Annotated[int | None, Range(1)] = None
    # Images of the split, or problems where one has several images or captions; more than one
    # number if releases differ. (): any.
    samples: tuple[int, ...] = ()
    texts: tuple[int, ...] = ()  # captions, likewise
    chance: Annotated[float | None, Range(0, 1)] = None  # of the metric, by guessing
    prompts: str | None = None  # published class names and templates; None: those of the name
    # Repository of the Hugging Face hub with the set in clip-benchmark's layout, "" if there is
    # none; None: clip-benchmark/wds_NAME.
    hub: str | None = None
    tfds: str | None = None  # NAME or NAME/CONFIG of TensorFlow Datasets
    tfds_split: str | None = None  # None: `split`
    label: str = "label"  # feature of TFDS that holds the class, or the classes
    files: str | None = None  # the form of the set's own files, by its name in `files.py`
    # Worst-group accuracy: the metadata field of a table or TFDS, and the place in the `.npy`
    # beside each image of clip-benchmark's layout.
    group: str | None = None
    group_at: int | None = None
    open_clip: tuple[float, ...] = ()  # percent of OpenAI's ViT-B/32 and ViT-L/14 in its table
    clip_benchmark: tuple[float, ...] = ()  # likewise
    # How the data are read. A set with `data.path` is there, all others under a root.
    data: TaskData = field(default_factory=TaskData)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "metric", self.metric or _METRICS[self.kind])

    @property
    def split(self) -> str:
        """Name of the split that is evaluated."""
        return self.data.split or "test"

    @property
    def repository(self) -> str:
        """Repository of the hub, such as "clip-benchmark/wds_vtab-dtd"; "" if there is none."""
        return f"clip-benchmark/wds_{_flat(self.name)}" if self.hub is None else self.hub

    @property
    def language(self) -> str | None:
        """The part of the name after "/", such as "de" of "xtd10/de"."""
        return self.name.partition("/")[2] or None

    @property
    def folders(self) -> tuple[str, ...]:
        """Names that its folder may have under a root, the likeliest first."""
        in_hub = self.repository.rpartition("/")[2].removeprefix("wds_").removesuffix("_test")
        names = dict.fromkeys(name for name in (_flat(self.name), in_hub) if name)
        return tuple(f"{a}{name}{z}" for name in names for a, z in _AROUND)


_METRICS = {
    "zero_shot": "accuracy_top1",
    "multilabel": "mean_average_precision",
    "retrieval": "mean_recall_at_1",
    "compositional": "text_accuracy",
    "winoground": "accuracy",
    "winogavil": "jaccard_10_to_12",
    "fairness": "crime_or_non_human_rate",
}
_AROUND = (("", ""), ("wds_", ""), ("wds_", "_test"))  # ours, clip-benchmark's, DataComp's


def _flat(name: str) -> str:
    return name.replace("/", "-")


def resolve_suite(text: str) -> tuple[EvaluationSet, ...]:
    """Returns the sets that a comma list names, each once: suites, sets and `.toml` files.

    A file has a table a set, [sets.NAME], whose keys are fields of `EvaluationSet` and `TaskData`
    (paths are relative to it), and may have [suites]. It stands for all its sets.

    Raises UserError: an unknown name (with the nearest), or a file that cannot be used.
    """
    found: dict[str, EvaluationSet] = {}
    sets, suites = dict(all_sets()), dict(all_suites())
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word.endswith(".toml"):
            own, own_suites = read_sets(word)
            sets, suites = sets | own, suites | own_suites | {word: tuple(own)}
    for word in words:
        # clip-benchmark calls the sets that have VTAB's splits "vtab/NAME".
        name = word if word in suites or word in sets else word.removeprefix("vtab/")
        if name not in sets and name not in suites:
            near = difflib.get_close_matches(word, [*suites, *sets], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"suites are {', '.join(suites)}"
            raise UserError(f"--suite={word}: no such suite, set or .toml file; {hint}")
        for member in suites.get(name, (name,)):
            if member not in sets:
                raise UserError(f"suite {name}: has no set {member!r}")
            found.setdefault(member, sets[member])
    if not found:
        raise UserError(f"--suite={text!r}: names nothing; suites are {', '.join(suites)}")
    return tuple(found.values())


@functools.cache
def all_sets() -> dict[str, EvaluationSet]:
    """Returns every set of the table by name; one a language for those in several."""
    table = _toml(_TABLE)
    sets = {name: _row(name, values, "sets") for name, values in table["sets"].items()}
    for name, languages in table["languages"].items():
        row = sets.pop(name)
        for language in languages:
            sets[f"{name}/{language}"] = dataclasses.replace(row, name=f"{name}/{language}")
        if isinstance(languages, dict):  # ImageNet's classes with a name in the language
            for language, classes in languages.items():
                row = sets[f"{name}/{language}"]
                sets[row.name] = dataclasses.replace(row, classes=classes, samples=(50 * classes,))
    return sets


@functools.cache
def all_suites() -> dict[str, tuple[str, ...]]:
    """Returns the names of each suite's sets."""
    table = _toml(_TABLE)
    suites = {name: tuple(members) for name, members in table["suites"].items()}
    in_languages = {
        name: tuple(f"{name}/{language}" for language in languages)
        for name, languages in table["languages"].items()
    }
    return suites | in_languages | {"languages": sum(in_languages.values(), ())}


def read_sets(path: str) -> tuple[dict[str, EvaluationSet], dict[str, tuple[str, ...]]]:
    """Returns (sets, suites) of a user's `.toml` file, by name.

    Raises UserError: it cannot be read, has no [sets.NAME], or one with an unknown or wrong value.
    """
    place = Path(with_home(path, "--suite"))
    values = _toml(place)
    for key in values:
        if key not in ("sets", "suites"):
            raise UserError(
                f"{path}: unknown key {key!r}; accepted is a table a set, such as [sets.shop] with"
                " a path, and [suites], lists of their names"
            )
    rows = values.get("sets")
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path}: has no set; give a table a set, such as [sets.shop] with a path")
    sets = {name: _own_row(name, row, path, place.parent) for name, row in rows.items()}
    suites = values.get("suites", {})
    if not isinstance(suites, dict) or not all(isinstance(x, list) for x in suites.values()):
        raise UserError(f"{path}: suites={suites!r}: must be lists of names")
    return sets, {name: tuple(map(str, members)) for name, members in suites.items()}


def _own_row(name: str, values: Any, path: str, folder: Path) -> EvaluationSet:
    """Builds a set of a user's file."""
    where = f"{path}: sets.{name}"
    found = _row(name, values, where)
    if not found.data.path:
        raise UserError(f"{where} has no path; give a folder, a table, tars")
    changes: dict[str, Any] = {}
    for key in _OWN_PATHS:
        value = getattr(found.data, key)
        if value and not is_remote(value) and (key == "path" or (folder / value).exists()):
            changes[key] = str(folder / Path(value).expanduser())
    return dataclasses.replace(found, data=dataclasses.replace(found.data, **changes))


def _row(name: str, values: Any, where: str) -> EvaluationSet:
    """Builds a set from the fields of `EvaluationSet` and, beside them, of `TaskData`."""
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r}: must be a table, such as [sets.shop]")
    own = {each.name for each in dataclasses.fields(EvaluationSet)} - {"data"}
    of_data = {each.name for each in dataclasses.fields(TaskData)}
    for key in values:
        if key not in own | of_data:
            known = [f"{where}.{each}" for each in own | of_data]
            raise UserError(unknown_key(f"{where}.{key}", known))
    data = {key: value for key, value in values.items() if key in of_data}
    mine = {key: value for key, value in values.items() if key in own}
    row = build(EvaluationSet, {"name": name, **mine}, where)
    return dataclasses.replace(row, data=build(TaskData, data, where))


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML: {error}") from error
