"""The table that ends a run is narrow and right, and its commands are too."""

import json
import shlex
import subprocess
import sys

import pytest

from clip_jax.training.log.summary import (
    WIDTH,
    format_models,
    format_rows,
    next_commands,
    print_summary,
    shown_path,
)

LETTERS = {
    "task": "glyphs/letters",
    "dataset": "glyphs/test",
    "accuracy_top1": 0.8077,
    "accuracy_top5": 1.0,
    "mean_per_class_accuracy": 0.75,
    "num_images": 52,
    "num_classes": 52,
}
RETRIEVAL = {
    "task": "glyphs/retrieval",
    "dataset": "glyphs/test/unseen_names",
    **{f"image_to_text_recall_at_{k}": k / 100 for k in (1, 5, 10)},
    **{f"text_to_image_recall_at_{k}": k / 50 for k in (1, 5, 10)},
    "num_images": 3287,
    "num_texts": 3287,
    "num_image_queries": 1670,
    "num_text_queries": 1670,
}


def write_run(folder, config, evaluations=(), metrics=()):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, rows in (("evaluation", evaluations), ("metrics", metrics)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_tables_of_several_models_stand_below_their_names():
    one, two = LETTERS | {"model": "runs/one"}, LETTERS | {"model": "runs/two"}
    assert format_models([one]) == format_rows([one])
    table = format_rows([LETTERS])
    assert format_models([one, two]) == f"runs/one\n{table}\n\nruns/two\n{table}\n"


def test_table_has_a_line_a_row_and_fits():
    lines = format_rows([LETTERS, RETRIEVAL]).splitlines()
    assert len(lines) == 2 + 2
    assert max(map(len, lines)) <= WIDTH
    assert lines[2].split() == [
        "letters", "glyphs/test", "80.8", "100.0", "75.0", *"––––––", "52",
    ]  # fmt: skip
    assert lines[3].split() == [
        "retrieval", "glyphs/test/unseen_names", *"–––",
        "1.0", "5.0", "10.0", "2.0", "10.0", "20.0", "1,670",
    ]  # fmt: skip


def test_columns_stand_under_their_heads():
    heads, titles, letters, retrieval = format_rows([LETTERS, RETRIEVAL]).splitlines()
    end = titles.index("top-1") + len("top-1")
    assert letters[:end].endswith(" 80.8")
    end = titles.rindex("R@10") + len("R@10")
    assert retrieval[:end].endswith(" 20.0")
    assert len(titles) == len(letters) == len(retrieval)
    assert heads.index("zero-shot") < heads.index("image→text") < heads.index("text→image")


def test_columns_and_rows_out_of_the_ordinary():
    """No column that no row has; no row is lost; the end of a long path is what is shown."""
    alone = format_rows([RETRIEVAL])
    assert "top-1" not in alone
    assert "–" not in alone
    long = RETRIEVAL | {"task": "retrieval", "dataset": "/data/" + "x" * 200 + "/photos/test"}
    table = format_rows([{"task": "probe", "dataset": "d", "map": 0.25}, LETTERS, long])
    assert max(map(len, table.splitlines())) == WIDTH
    for part in ("probe  d  map 0.25", "80.8", "…", "/photos/test"):
        assert part in table
    assert format_rows([]) == "no evaluation was asked for"


def test_summary_shows_the_newest_evaluation_cost_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write_run(
        tmp_path / "runs" / "quickstart",
        {"data": {"format": "glyphs", "path": "train"}},
        [{"step": 20, **LETTERS, "accuracy_top1": 0.111}, {"step": 30, **LETTERS}],
        [{"step": 30, "samples_seen": 7680, "seconds": 75.2, "loss": 2.71828}],
    )
    (run / "report.html").touch()
    print_summary(run)
    shown = capsys.readouterr().out
    assert "evaluation at step 30" in shown
    assert "80.8" in shown
    assert "11.1" not in shown
    assert "trained 30 steps, 7,680 pairs, in 1:15; final loss 2.718" in shown
    assert "runs/quickstart/report.html" in shown
    assert str(tmp_path) not in shown
    assert shown_path(tmp_path.parent / "run") == tmp_path.parent / "run"


def test_commands_of_a_glyph_run(tmp_path):
    run = write_run(tmp_path / "a run", {"data": {"format": "glyphs", "path": "train"}})
    evaluate, load, train = (shlex.split(command) for command in next_commands(run))
    assert "python" in evaluate[0]
    assert evaluate[1:3] == ["-m", "clip_jax.evaluate"]
    assert f"--model={run}" in evaluate
    assert "--tasks=glyphs/letters,glyphs/retrieval" in evaluate
    assert not any(option.startswith("--data") for option in evaluate)
    assert "python" in load[0]
    assert load[1] == "-c"
    compile(load[2], "command", "exec")
    assert repr(str(run)) in load[2]
    assert "--config=configs/own_images.py" in train


def test_commands_of_a_run_on_own_images(tmp_path):
    source = {"path": "photos/test set", "split": "val", "remote": {"attempts": 2}}
    options = {"label_key": "coarse", "classnames": "names.txt", "templates": "openai"}
    other = {"task": "retrieval", "data": {"path": "pairs.csv"}}
    evaluations = [
        {"task": "zero_shot", "data": source, **options},
        other,
        {"task": "retrieval", "data": source, **options},
    ]
    data = {"path": "photos", "caption_column": "alt,long", "caption_weights": [1.0, 2.0]}
    config = {"steps": 5, "data": data, "evaluations": evaluations}
    run = write_run(tmp_path / "run", config)
    evaluate = shlex.split(next_commands(run)[0])
    assert {
        "--tasks=zero_shot,retrieval",
        "--data=photos/test set",
        "--label_key=coarse",
        "--classnames=names.txt",
        "--caption_column=alt,long",
        "--caption_weights=1.0,2.0",
        "--split=val",
        "--remote.attempts=2",
    } <= set(evaluate)
    assert not any(option.startswith("--templates") for option in evaluate)
    run = write_run(tmp_path / "bare", {"data": {"format": "auto", "path": "photos"}})
    evaluate = shlex.split(next_commands(run)[0])
    assert {"--tasks=retrieval", "--data=FOLDER"} <= set(evaluate)


@pytest.mark.slow
def test_suggested_commands_work_as_they_are(tiny_run, tmp_path):
    evaluate, load, _ = next_commands(tiny_run)
    for command in (evaluate, load):
        arguments = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert {row["task"] for row in result["results"]} == {"glyphs/letters", "glyphs/retrieval"}
