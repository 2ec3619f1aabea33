"""Every option of a source reaches the reader, from every place where a person can set it."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from shards import photo, samples, write_shard

from clip_jax.data.options import SourceConfig, SourceOptions
from clip_jax.data.sources import refine
from clip_jax.data.task_data import TaskData
from clip_jax.dataset_tools.data_flags import gather_overrides
from clip_jax.dataset_tools.program import COMMANDS
from clip_jax.errors import UserError
from clip_jax.evaluation.tasks import check_task
from clip_jax.training.config import build_config
from clip_jax.training.run.data import open_data
from clip_jax.training.source_flags import SourceFlags, command_flags

# A value of each option that is not its default, as a flag spells it and as it is.
VALUES: dict[str, tuple[str, Any]] = {
    "path": ("photos", "photos"),
    "format": ("csv", "csv"),
    "image_column": ("picture", "picture"),
    "caption_column": ("alt,long", "alt,long"),
    "caption_weights": ("1,3.5", (1.0, 3.5)),
    "caption_template": ("this is a {}", "this is a {}"),
    "split": ("dev", "dev"),
    "remote.cache_gib": ("0.5", 0.5),
    "remote.attempts": ("2", 2),
    "remote.backoff_seconds": ("0.25", 0.25),
    "remote.timeout_seconds": ("7", 7.0),
    "remote.on_failure": ("stop", "stop"),
    "captions.choice": ("first", "first"),
    "captions.lines": ("true", True),
    "captions.clean": ("true", True),
    "filters.min_words": ("2", 2),
    "filters.max_words": ("20", 20),
    "filters.min_side": ("16", 16),
    "filters.max_aspect": ("3", 3.0),
    "exclude": ("seen.txt", "seen.txt"),
    "exclude_distance": ("3", 3),
}
NESTED = {"remote", "captions", "filters"}


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of each field of a dataclass."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def nested(key: str = "") -> dict[str, Any]:
    """The values above as groups."""
    groups: dict[str, Any] = {}
    for name, (_, value) in VALUES.items():
        group, _, field = name.rpartition(".")
        (groups.setdefault(group, {}) if group else groups)[field] = value
    return groups


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Records the arguments of each call of `open_source` instead of opening anything."""
    calls: list[dict[str, Any]] = []

    def record(path: str, format: str = "auto", options: SourceOptions | None = None) -> Any:
        assert options is not None
        calls.append({"path": path, "format": format, **leaves(options)})
        raise UserError("recorded")

    monkeypatch.setattr(refine, "open_source", record)
    return calls


def evaluated(own: dict[str, Any], data: dict[str, Any] | None = None, **options: Any) -> TaskData:
    """The data of an evaluation of a run on `data`."""
    values = {"steps": 1, "data": data or {"path": "elsewhere"}}
    config = build_config({**values, "evaluations": [{"data": own, **options}]})
    return config.evaluations[0].task_data()


def by_evaluate() -> None:
    values = flags.FlagValues()
    data = SourceFlags(TaskData, values)
    values(["evaluate", *(f"--{flag(key)}={text}" for key, (text, _) in VALUES.items())])
    check_task("retrieval", data.read())


def flag(key: str) -> str:
    return "data" if key == "path" else key


def by_command(name: str) -> Callable[[], None]:
    def run() -> None:
        command = importlib.import_module(f"clip_jax.dataset_tools.{name}")
        command.FLAGS.unparse_flags()
        arguments = [f"--config.data.{key}={text}" for key, (text, _) in VALUES.items()]
        arguments += [] if name == "verify" else ["--output=out"]
        command.FLAGS([name, *gather_overrides(arguments)])
        command.main()

    return run


ROUTES: dict[str, Callable[[], Any]] = {
    "evaluate": by_evaluate,
    "config.evaluations": lambda: check_task("zero_shot", evaluated(nested())),
    "config.data": lambda: open_data(build_config({"steps": 1, "data": nested()})),
    "mixture": lambda: open_data(
        build_config({"steps": 1, "data": {"mixture": ({**nested(), "weight": 2.0},)}})
    ),
    **{
        f"python -m clip_jax.data {name}": by_command(module)
        for name, module in COMMANDS.items()
        if name != "index"  # opens no reader
    },
}


def test_no_option_is_forgotten_here() -> None:
    assert set(leaves(SourceConfig())) == set(VALUES)
    for key, value in leaves(SourceConfig()).items():
        assert VALUES[key][1] != value, key


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_every_option_reaches_the_reader(
    route: Callable[[], Any], opened: list[dict[str, Any]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="recorded"):
        route()
    (call,) = opened
    of_reader = {key: value for key, (_, value) in VALUES.items() if key in call}
    assert {key: call[key] for key in of_reader} == of_reader
    # The others are rules over what a reader gives.
    rest = set(VALUES) - set(of_reader)
    assert {key.partition(".")[0] for key in rest} == {"captions", "filters", "exclude"} | {
        "exclude_distance"
    }


def test_rules_hold_in_evaluations(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [("a", {"jpg": photo(0, (40, 10)), "txt": b"x &amp; y"})])
    write_shard(tmp_path / "1.tar", samples(range(1)))
    rules = {"captions": {"clean": True}, "filters": {"max_aspect": 3.0}}
    source = refine.open_refined(evaluated({"path": str(tmp_path), **rules}))
    assert source.captions(0) == ("x & y",)
    with pytest.raises(UserError, match="longer than 3 to 1"):
        source[0]
    assert source[1].captions == ("number 0",)


def test_an_evaluation_names_columns_as_the_training_does() -> None:
    data = {
        "path": "photos",
        "image_column": "picture",
        "caption_column": "alt,long",
        "caption_weights": (1.0, 3.0),
        "split": "train",
        "remote": {"attempts": 2},
        "filters": {"min_side": 64},
    }
    found = evaluated({"path": "test"}, data)
    assert (found.path, found.image_column, found.caption_column) == ("test", "picture", "alt,long")
    assert (found.caption_weights, found.remote.attempts) == ((1.0, 3.0), 2)
    assert (found.split, found.filters.min_side) == (None, 0)  # its own
    found = evaluated({"path": "test", "caption_column": "text"}, data)
    assert (found.caption_column, found.caption_weights) == ("text", ())
    assert evaluated({"path": "test", "image_column": None}, data).image_column is None


def test_columns_of_another_format_are_not_inherited(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "a.jpg").write_bytes(photo(0))
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("picture,alt\nphotos/cat/a.jpg,a cat\n")
    write_shard(tmp_path / "test.tar", samples(range(1)))
    columns = {"image_column": "picture", "caption_column": "alt"}
    table = {"path": str(tmp_path / "train.csv"), **columns}
    mixture = {"mixture": [{"path": table["path"]}], **columns}
    for data in (table, mixture):
        for name, inherited in (("test.csv", "picture"), ("photos", None), ("test.tar", None)):
            found = evaluated({"path": str(tmp_path / name)}, data)
            assert found.image_column == inherited
            check_task("retrieval", found)
    own = evaluated({"path": str(tmp_path / "test.tar"), "caption_column": "txt"}, table)
    assert own.caption_column == "txt"


def test_words_of_a_command_line_say_the_same() -> None:
    values = flags.FlagValues()
    read = SourceFlags(SourceConfig, values)
    values(["x", *(f"--{flag(key)}={text}" for key, (text, _) in VALUES.items())])
    config = read.read()
    words = command_flags(config, SourceConfig)
    again = flags.FlagValues()
    reread = SourceFlags(SourceConfig, again)
    again(["x", *(word.replace("'", "") for word in words)])
    assert reread.read() == config
    assert command_flags(SourceConfig(), SourceConfig) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--caption_weights=1,x", "--caption_column=a,b"], "--caption_weights=1,x: accepted are"),
        (["--caption_weights=1"], "for 0 caption columns"),
        (["--remote.attempts=0"], r"remote\.attempts=0"),
        (["--filters.max_aspect=0.5"], r"filters\.max_aspect=0\.5"),
        (["--filters.min_words=5", "--filters.max_words=2"], "less than min_words"),
    ],
)
def test_values_that_cannot_be_are_one_line(arguments: list[str], message: str) -> None:
    values = flags.FlagValues()
    data = SourceFlags(TaskData, values)
    values(["x", *arguments])
    with pytest.raises(UserError, match=message):
        data.read()


def test_evaluations_of_labels_need_no_columns_of_the_training(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(0))
    (tmp_path / "l.csv").write_text("filepath,label\na.jpg,cat\n")
    data = {"path": "elsewhere", "caption_column": "alt,long", "caption_weights": (1.0, 2.0)}
    found = evaluated(
        {"path": str(tmp_path / "l.csv")}, data | {"format": "csv"}, label_key="label"
    )
    check_task("zero_shot", found, "config.evaluations[0]")
    with pytest.raises(UserError, match=r"^config\.evaluations\[0\]\.data\.path=.*no column 'alt'"):
        check_task("retrieval", found, "config.evaluations[0]")


def test_an_evaluation_on_what_was_trained_on_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"image": [photo(0)], "caption": ["a"]})
    for number, (names, wanted, said) in enumerate(
        (
            (("train",), None, "a model may have seen it"),
            (("train", "validation"), None, "its split 'validation' is read, of train, validation"),
            (("train", "validation"), "val", ""),
        )
    ):
        folder = str(tmp_path / f"{number}")
        datasets.DatasetDict(dict.fromkeys(names, one)).save_to_disk(folder)
        caplog.clear()
        check_task("retrieval", TaskData(path=folder, split=wanted))
        assert said in caplog.text
        assert bool(said) == ("split" in caplog.text)
