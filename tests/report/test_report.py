"""The report holds what it promises, of every kind of run, and is safe to open."""

import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pages import is_self_contained, pictures, sections, tiles
from PIL import Image
from programs import assert_mistake, run_program

import clip_jax
from clip_jax.data.sources.glyphs import is_ascii_letter, open_glyphs
from clip_jax.errors import UserError
from clip_jax.report import write_report
from clip_jax.report.page import THUMBNAIL, picture_url

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


def test_the_page_is_one_file(glyph_report):
    # 4 charts in two versions, 12 + 12 images to label, 6 × 8 found ones, 8 pairs.
    assert len(pictures(glyph_report)) == 4 * 2 + 24 + 48 + 8
    assert is_self_contained(glyph_report)


def test_figures_of_the_run(glyph_report, tiny_run):
    last = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])
    figures = tiles(glyph_report)
    assert figures["final loss"] == f"{last['loss']:.3f}"
    assert figures["steps"] == f"{last['step']:,}"
    assert figures["pairs seen"] == f"{last['samples_seen']:,}"
    run = sections(glyph_report)["Run"]
    config = json.loads((tiny_run / "config.json").read_text())
    learning_rate = config["optimizer"]["learning_rate"]
    assert f"<dt>peak learning rate</dt><dd>{learning_rate}</dd>" in run
    whole = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", run, re.DOTALL)[1]))
    assert whole == config
    clip = clip_jax.load(tiny_run)
    title = re.search(r"<h1>(.*?)</h1>", glyph_report)[1]
    assert title == f"run: {clip.config.name}, {clip.num_parameters:,} parameters"


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


def without_data(run):
    reconfigure(run, data={"path": str(run / "gone"), "format": "auto"})


@pytest.mark.parametrize(
    ("damage", "left_out", "reason"),
    [
        (lambda run: (run / "evaluation.jsonl").unlink(), "Evaluation", "evaluation.jsonl has no"),
        (lambda run: (run / "metrics.jsonl").unlink(), "Training", "metrics.jsonl has no rows"),
        (
            lambda run: (run / "model" / "model.safetensors").write_bytes(b"not a model"),
            "Images",
            r".*model\.safetensors",
        ),
        (without_data, "Images", r".*run/gone does not exist"),
    ],
    ids=["evaluation", "metrics", "model", "data"],
)
def test_if_a_part_is_missing_the_rest_is_there(run, damage, left_out, reason):
    damage(run)
    page = write_report(run).read_text(encoding="utf-8")
    found = sections(page)
    assert re.search(f"Left out: {reason}", found[left_out])
    assert page.count("Left out") == 1
    assert {"Run", "Training", "Evaluation"} < found.keys()
    assert ("Search by text" in found) == (left_out != "Images")
    assert ("The model cannot be read" in page) == ("safetensors" in reason)


def test_own_images_captions_are_escaped_and_origin_is_said(run, tmp_path):
    folder = tmp_path / "photos"
    endless = "word " * 2000
    make_images(folder, [HOSTILE, endless, *(f"a grey of level {i}" for i in range(2, 10))])
    (folder / "5.png").write_bytes(b"broken")
    reconfigure(run, data={"path": str(folder), "format": "auto"})
    page = write_report(run).read_text(encoding="utf-8")
    assert is_self_contained(page)
    assert HOSTILE in html.unescape(page)
    assert max(len(line) for line in re.sub(r'="data:[^"]*"', "", page).splitlines()) < 2000
    found = sections(page)
    body = found["Which caption fits?"]
    assert f"Training images of {folder}, which the model has seen" in body
    assert body.count('class="card guess"') == 9  # ten but for the broken one
    assert "chooses among 9 captions" in body
    assert "The best 8 of 9 training images" in found["Search by text"]


@pytest.mark.parametrize(
    ("folders", "names"),
    [(("dark_grey", "light-grey"), ("dark grey", "light grey")), (("0", "1"), ("cat", "dog"))],
)
def test_own_images_with_classes_are_held_out_ones(run, tmp_path, folders, names):
    """Class numbers are named by a file."""
    held_out = tmp_path / "test"
    for name in folders:
        make_images(held_out / name, [""] * 7)
        for caption in (held_out / name).glob("*.txt"):
            caption.unlink()
    evaluation = {"data": {"path": str(held_out)}, "templates": "photo"}
    if "0" in folders:
        (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
        evaluation["classnames"] = str(tmp_path / "names.txt")
    reconfigure(run, data={"path": "elsewhere", "format": "folder"}, evaluations=[evaluation])
    body = sections(write_report(run).read_text(encoding="utf-8"))["What is this?"]
    assert f"Held-out images of {held_out}" in body
    assert "chooses among 2 class names (templates: photo)" in body
    assert body.count('class="card guess"') == 12
    assert set(re.findall(r"<span>(.*?)</span><span>", body)) == set(names)
    assert set(re.findall(r'alt="(.*?)"', body)) == set(names)


def test_photos_become_small_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (336, 336, 3), np.uint8)
    assert [image.size for image in pictures(f'"{picture_url(noise)}"')] == [(THUMBNAIL, THUMBNAIL)]


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
    done = run_program("clip_jax.report", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"written: {run / 'report.html'}"
    assert (run / "report.html").stat().st_size > 50_000
    assert_mistake(run_program("clip_jax.report"), "error: --workdir: is missing")
