"""`inspect`, `convert` and `tokenizer` read what training with the same --config would."""

import base64
import html
import io
import json
import re
from pathlib import Path

import pytest
from clip_jax.dataset_tools.inspect.token_lengths import token_lengths
from dataset_tools_runs import make_shards, mistake, run
from PIL import Image
from places import REPOSITORY

from clip_jax.dataset_tools.inspect.as_trained import run_config
from clip_jax.errors import UserError
from clip_jax.text.tokenizer import train_sentencepiece
from clip_jax.training.config import build_config, default_config, to_dict

OWN_IMAGES = f"--config={REPOSITORY / 'configs' / 'own_images.py'}"
QUICK = ("--workers=0", "--samples=4")


def words(page: str) -> str:
    """The text of a page, without styles."""
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.S))
    )


def inspected(capsys: pytest.CaptureFixture[str], output: Path, *flags: object) -> str:
    """The page that `inspect` writes."""
    ended = run(capsys, "inspect", *flags, f"--output={output}", *QUICK)
    assert ended.code == 0, ended.err
    return output.read_text(encoding="utf-8")


def test_inspect_shows_what_the_config_trains_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards(tmp_path / "in", samples=8, side=80)
    page = inspected(
        capsys, tmp_path / "page.html", OWN_IMAGES, f"--config.data.path={data}",
        "--config.model.context_length=8", "--config.augmentation.grayscale_probability", "0.5",
    )  # fmt: skip
    shown = words(page)
    assert "context length 8 tokens" in shown
    assert "image size 64 pixels" in shown
    assert "crop 0.4–1 of the area, bicubic" in shown
    assert "flip_probability=0.5, grayscale_probability=0.5" in shown
    assert "configs/own_images.py --config.data.path=" in shown, "it says whose eyes these are"
    card = re.findall(r'class="card guess".*?base64,([^"]+)"', page, re.DOTALL)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in card]
    assert sizes == [(64, 64)] * 4
    captions = [f"a photo number {n} of many colours" for n in (*range(0, 8, 2), *range(1, 8, 2))]
    trained = train_sentencepiece(captions, 2000, context_length=8)
    assert f"vocabulary {trained.vocab_size} ids" in shown
    over = (token_lengths(trained, captions) > 8).mean()
    assert f"{100 * over:.1f} % over 8 tokens" in shown


def test_inspect_reads_mixtures_rules_and_cleaned_captions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_shards(tmp_path / "a", samples=5)
    second = make_shards(tmp_path / "b", samples=4, side=20)
    (tmp_path / "mixed.py").write_text(
        "from clip_jax.training.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.data.mixture = ({{'path': {str(first)!r}, 'weight': 3.0}},\n"
        f"        {{'path': {str(second)!r}}})\n"
        "    config.data.filters.min_side = 30\n"
        "    config.data.captions.clean = True\n"
        "    return config\n"
    )
    mixed = f"--config={tmp_path / 'mixed.py'}"
    shown = words(inspected(capsys, tmp_path / "page.html", mixed, "--config.steps=10"))
    assert "9 samples with a caption" in shown
    assert "image_filtered 0 4" in shown
    assert "config.data.captions.clean True" in shown
    assert re.search(r"00001\.tar:\d+|record \d+", shown)
    out = tmp_path / "out"
    ended = run(capsys, "convert", mixed, "--config.steps=10", f"--output={out}", "--workers=0")
    assert ended.code == 0, ended.err
    record = json.loads((out / "convert.json").read_text())
    assert (record["samples"], record["left_out"]) == (5, {"image_filtered": 4})
    assert record["source"]["data.filters.min_side"] == 30
    ended = run(
        capsys, "tokenizer", mixed, "--config.steps=10", "--vocab_size=300",
        f"--output={tmp_path / 'tokenizer'}",
    )  # fmt: skip
    assert "from 9 captions" in ended.out


def test_data_may_stand_beside_a_config_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards(tmp_path / "in")
    page = inspected(capsys, tmp_path / "page.html", OWN_IMAGES, f"--data={data}")
    assert f"config.data.path {data}" in words(page)


def test_flags_that_contradict_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"--output={tmp_path / 'page.html'}"
    data = f"--data={make_shards(tmp_path / 'in')}"
    for flag, said in (
        ("--image_size=32", "give --config.model.image_size=… instead"),
        ("--context_length=32", "give --config.model.context_length=… instead"),
        ("--tokenizer=clip_bpe", "give --config.tokenizer.source=… instead"),
        ("--caption_column=alt", "give --config.data.caption_column=… instead"),
        ("--model=runs/mine", "give one of them"),
        ("--config.data.path=elsewhere", "give one of them"),
        ("--config.data.pth=elsewhere", "did you mean 'config.data.path'?"),
        ("--config.data.streaming=True", "set it to False"),
        ("--config.model.name=ViT", "ViT"),
    ):
        steps = "--config.steps=10"
        assert said in mistake(capsys, "inspect", OWN_IMAGES, steps, data, out, flag), flag
    assert "needs --config" in mistake(capsys, "inspect", data, out, "--config.seed=3")
    assert "no such file" in mistake(capsys, "inspect", data, out, "--config=none.py")
    assert "config.data.path=''" in mistake(capsys, "inspect", OWN_IMAGES, out)
    assert "config.seed" in mistake(capsys, "verify", data, "--config.seed=3")
    assert not (tmp_path / "page.html").exists()


def test_the_configuration_of_a_run(tmp_path: Path) -> None:
    assert run_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert run_config(tmp_path) is None, "another layout's"
    values = default_config()
    values.data.path, values.steps, values.augmentation.flip_probability = "photos", 10, 0.25
    config = build_config(values)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert run_config(tmp_path) == config
    (tmp_path / "config.json").write_text('{"data": {}, "augmentation": {"flip": 1}}')
    with pytest.raises(UserError, match=r"config\.json: unknown key 'config\.augmentation\.flip'"):
        run_config(tmp_path)


@pytest.mark.slow
def test_a_run_is_shown_with_its_own_settings(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((tiny_run / "config.json").read_text())
    low, high = config["augmentation"]["crop_scale"]
    own = words(inspected(capsys, tmp_path / "own.html", f"--model={tiny_run}"))
    assert f"configuration {tiny_run / 'config.json'}" in own
    assert f"crop {low:g}–{high:g} of the area" in own
    data = make_shards(tmp_path / "in")
    moved = inspected(capsys, tmp_path / "moved.html", f"--model={tiny_run}", f"--data={data}")
    assert f"configuration {tiny_run / 'config.json'}" in words(moved)
    assert "All 6 samples were looked at" in words(moved)
