"""The report holds what it promises, of every kind of run, and is safe to open."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UserError
from clip_jax.report import write_report

HOSTILE = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the finished run that a test may damage."""
    target = tmp_path / "run"
    shutil.copytree(tiny_run, target, ignore=shutil.ignore_patterns("checkpoints", "*cache*"))
    return target


@pytest.fixture(scope="module")
def glyph_report(tiny_run, tmp_path_factory):
    """The report of the untouched glyph run, as text."""
    target = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(tiny_run, target, ignore=shutil.ignore_patterns("checkpoints", "*cache*"))
    path = write_report(target)
    assert path == target / "report.html"
    return path.read_text(encoding="utf-8")


def reconfigure(run, **groups):
    """Changes keys of the run's config.json."""
    path = run / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for group, values in groups.items():
        config[group] = config[group] | values if isinstance(values, dict) else values
    path.write_text(json.dumps(config), encoding="utf-8")


def make_images(folder, captions):
    """A folder of coloured squares with a .txt each."""
    folder.mkdir(parents=True)
    for number, caption in enumerate(captions):
        pixels = np.full((40, 40, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")


def sections(page):
    """Title -> HTML of each section."""
    found = re.findall(r"<section>\s*<h2>(.*?)</h2>(.*?)</section>", page, flags=re.DOTALL)
    return {html.unescape(title): body for title, body in found}


def test_glyph_report_has_every_section(glyph_report):
    assert list(sections(glyph_report)) == [
        "Run",
        "Training",
        "Evaluation",
        "Which letter is this?",
        "Which character is this?",
        "Search by text",
        "Similarity",
    ]
    assert "Left out" not in glyph_report


def test_pictures_are_inside_the_file_and_can_be_decoded(glyph_report):
    sources = re.findall(r'(?:src|srcset)="([^"]*)"', glyph_report)
    # 4 charts in two versions, 12 + 12 images to label, 6 × 8 found ones, 8 pairs.
    assert len(sources) == 4 * 2 + 24 + 48 + 8
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()


def test_nothing_is_loaded_from_elsewhere(glyph_report):
    assert not re.search(r'\b(?:src|srcset|href)\s*=\s*(?!"data:)', glyph_report)
    assert not re.search(r"url\(|@import|<link|<script|<iframe|https?://", glyph_report)
    assert "default-src 'none'" in glyph_report


def test_figures_of_the_run(glyph_report, tiny_run):
    last = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"<b>{last['loss']:.3f}</b><span>final loss" in glyph_report
    assert f"<b>{last['step']:,}</b><span>steps" in glyph_report
    assert f"<b>{last['samples_seen']:,}</b><span>pairs seen" in glyph_report
    run = sections(glyph_report)["Run"]
    config = json.loads((tiny_run / "config.json").read_text())
    learning_rate = config["optimizer"]["learning_rate"]
    assert f"<dt>peak learning rate</dt><dd>{learning_rate}</dd>" in run
    whole = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", run, re.DOTALL)[1]))
    assert whole == config


def test_title_names_the_model_and_its_size(glyph_report, tiny_run):
    import clip_jax

    clip = clip_jax.load(tiny_run)
    title = re.search(r"<h1>(.*?)</h1>", glyph_report)[1]
    assert clip.config.name in title
    assert f"{clip.num_parameters:,} parameters" in title


def test_evaluation_table_has_the_last_row_of_each_dataset(glyph_report, tiny_run):
    table = sections(glyph_report)["Evaluation"]
    rows = [json.loads(line) for line in (tiny_run / "evaluation.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    assert f"After step {rows[-1]['step']}" in table
    bodies = re.findall(r"<tbody>(.*?)</tbody>", table, re.DOTALL)
    assert sum(body.count("<tr>") for body in bodies) == len(last)
    recall = next(r for r in last if "image_to_text_recall_at_10" in r)
    assert f">{100 * recall['image_to_text_recall_at_10']:.1f}</td>" in table
    assert f">{100 * last[0]['accuracy_top1']:.1f}</td>" in table


def test_quiz_shows_the_models_own_probabilities(glyph_report, tiny_run):
    import clip_jax
    from clip_jax.data.sources.glyphs import is_ascii_letter, open_glyphs

    body = sections(glyph_report)["Which letter is this?"]
    cards = body.split('class="card guess"')[1:]
    assert len(cards) == 12
    assert "12 of the 52 letters, drawn at random with seed 0" in body
    assert "Held-out glyphs of the typeface STIXGeneral" in body
    assert body.count("✓ right") + body.count("✗ wrong") == 12
    glyphs = open_glyphs("test")
    letters = [i for i, c in enumerate(glyphs.codepoints) if is_ascii_letter(int(c))]
    names = [glyphs.names[i] for i in letters]
    clip = clip_jax.load(tiny_run)
    for card in cards[:3]:
        truth = re.search(r'alt="(.*?)"', card)[1]
        image = glyphs[letters[names.index(truth)]].image
        row = clip.classify([image], names, "none")[0]
        bars = re.findall(r"<span>(.*?)</span><span>(.*?) %</span>", card)
        assert len(bars) == 5
        best = np.argsort(-row, kind="stable")[:5]
        shown = [float(share) for _, share in bars]
        np.testing.assert_allclose(shown, 100 * row[best], atol=0.06)
        assert ("✓ right" in card) == (names[best[0]] == truth)
        assert ('class="true"' in card) == (truth in [names[i] for i in best])


def test_search_has_the_typed_queries_and_marks_hits(glyph_report):
    body = sections(glyph_report)["Search by text"]
    cards = body.split('class="card query"')[1:]
    assert len(cards) == 6
    for query, card in zip(
        ("greek small letter omega", "rightwards arrow", "roman numeral seven"),
        cards[:3],
        strict=True,
    ):
        assert f"“{query}”" in card
        results = re.findall(r"<li.*?</li>", card, re.DOTALL)
        assert len(results) == 8
        scores = [float(re.search(r"<b>(.*?)</b>", result)[1]) for result in results]
        assert scores == sorted(scores, reverse=True)
        for result in results:
            assert ('class="hit"' in result) == (f'title="{query}"' in result)
    assert "(no image has this caption)" in cards[2]  # STIX General has no roman numerals
    assert "(no image has this caption)" not in cards[0]


def test_similarity_outlines_the_diagonal(glyph_report):
    rows = re.findall(r"<tr><th>.*?</tr>", sections(glyph_report)["Similarity"], re.DOTALL)[1:]
    cells = [re.findall(r"<td.*?</td>", row) for row in rows]
    assert [[index for index, cell in enumerate(row) if "pair" in cell] for row in cells] == [
        [index] for index in range(8)
    ]
    assert all(len(row) == 8 for row in cells)


def test_same_run_same_bytes_and_nothing_left_aside(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(p.name for p in run.iterdir() if "report" in p.name) == ["report.html"]


def test_run_that_left_a_face_out_is_not_shown_the_test(run):
    reconfigure(run, data={"path": "train_without_validation"})
    page = write_report(run).read_text(encoding="utf-8")
    assert "Held-out glyphs of the typeface DejaVuSerif" in page
    assert "STIX" not in page


def test_without_evaluation_the_rest_is_there(run):
    (run / "evaluation.jsonl").unlink()
    found = sections(write_report(run).read_text(encoding="utf-8"))
    assert "Left out: evaluation.jsonl has no rows" in found["Evaluation"]
    assert found["Training"].count("data:image/png") == 3 * 2
    assert "Left out" not in found["Search by text"]


def test_without_metrics_the_rest_is_there(run):
    (run / "metrics.jsonl").unlink()
    found = sections(write_report(run).read_text(encoding="utf-8"))
    assert "Left out: metrics.jsonl has no rows" in found["Training"]
    assert "Left out" not in found["Evaluation"]


def test_damaged_model_leaves_curves_and_table(run):
    (run / "model" / "model.safetensors").write_bytes(b"not a model")
    page = write_report(run).read_text(encoding="utf-8")
    found = sections(page)
    assert "The model cannot be read" in page
    assert re.search(r"Left out: .*model\.safetensors", found["Images"])
    assert "Left out" not in found["Training"]
    assert "Search by text" not in found


def test_missing_data_are_named(run, tmp_path):
    gone = tmp_path / "gone"
    reconfigure(run, data={"path": str(gone), "format": "auto"})
    found = sections(write_report(run).read_text(encoding="utf-8"))
    assert re.search(rf"Left out: .*{re.escape(str(gone))} does not exist", found["Images"])
    assert "Left out" not in found["Training"]


def test_own_images_captions_are_escaped_and_origin_is_said(run, tmp_path):
    folder = tmp_path / "photos"
    endless = "word " * 2000
    make_images(folder, [HOSTILE, endless, *(f"a grey of level {i}" for i in range(2, 10))])
    (folder / "5.png").write_bytes(b"broken")
    reconfigure(run, data={"path": str(folder), "format": "auto"})
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert html.escape(HOSTILE, quote=True) in page
    assert max(len(line) for line in re.sub(r'="data:[^"]*"', "", page).splitlines()) < 2000
    found = sections(page)
    body = found["Which caption fits?"]
    assert f"Training images of {folder}, which the model has seen" in body
    assert body.count('class="card guess"') == 9  # ten but for the broken one
    assert "chooses among 9 captions" in body
    assert "The best 8 of 9 training images" in found["Search by text"]


def test_own_images_with_classes_are_held_out_ones(run, tmp_path):
    for name in ("dark_grey", "light-grey", "white"):
        make_images(tmp_path / "test" / name, [""] * 5)
        for caption in (tmp_path / "test" / name).glob("*.txt"):
            caption.unlink()
    held_out = tmp_path / "test"
    reconfigure(
        run,
        data={"path": str(tmp_path / "train"), "format": "folder"},
        evaluations=[{"data": {"path": str(held_out)}, "templates": "photo"}],
    )
    body = sections(write_report(run).read_text(encoding="utf-8"))["What is this?"]
    assert f"Held-out images of {held_out}" in body
    assert "chooses among 3 class names (templates: photo)" in body
    assert body.count('class="card guess"') == 12
    labels = set(re.findall(r"<span>(.*?)</span><span>", body))
    assert labels == {"dark grey", "light grey", "white"}


def test_class_numbers_are_named_by_the_file(run, tmp_path):
    for name in ("0", "1"):
        make_images(tmp_path / "test" / name, [""] * 3)
        for caption in (tmp_path / "test" / name).glob("*.txt"):
            caption.unlink()
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n", encoding="utf-8")
    data = {"path": "elsewhere", "format": "folder"}
    own = {"path": str(tmp_path / "test")}
    evaluation = {"data": own, "classnames": str(names), "templates": "none"}
    reconfigure(run, data=data, evaluations=[evaluation])
    body = sections(write_report(run).read_text(encoding="utf-8"))["What is this?"]
    assert set(re.findall(r'alt="(.*?)"', body)) == {"cat", "dog"}


def test_photos_become_small_pictures():
    from clip_jax.report.page import THUMBNAIL, picture

    noise = np.random.default_rng(0).integers(0, 256, (336, 336, 3), np.uint8)
    data = re.search(r"base64,([^\"]*)", picture(noise, "noise"))[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (THUMBNAIL, THUMBNAIL)


def test_not_a_run(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*give the folder of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"neither config\.json nor metrics\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_needs_no_matplotlib():
    code = "import sys, clip_jax, clip_jax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_command_line(run):
    command = [sys.executable, "-m", "clip_jax.report"]
    done = subprocess.run([*command, f"--workdir={run}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"written: {run / 'report.html'}"
    assert (run / "report.html").stat().st_size > 50_000
    for arguments, message in (
        ([], "error: --workdir: is missing"),
        ([f"--workdir={Path('nowhere')}"], "error: --workdir=nowhere: no such folder"),
    ):
        failed = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert failed.returncode == 2
        assert failed.stderr.startswith(message)
        assert len(failed.stderr.strip().splitlines()) == 1
