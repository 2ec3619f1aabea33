"""Zero-shot classifier and accuracies against the definition; templates and class names."""

import hashlib

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation import zero_shot
from clip_jax.evaluation.prompts import get_templates, read_classnames
from clip_jax.evaluation.zero_shot import (
    METRIC,
    evaluate_zero_shot,
    top_k_hits,
    zero_shot_classifier,
)

CLASSES = ["cat", "dog", "red {} fox", "owl", "bee", "ant"]


def embed_text(strings):
    """A fixed random direction a string, of length one."""
    rows = []
    for s in strings:
        seed = int.from_bytes(hashlib.sha256(s.encode()).digest()[:4], "big")
        rows.append(np.random.default_rng(seed).normal(size=16))
    embeds = np.array(rows, np.float32)
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


# --- Templates and class names ------------------------------------------------------------------


def test_openai_templates_are_openais():
    templates = get_templates("openai")
    assert len(templates) == len(set(templates)) == 80
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    # Of the list in OpenAI's notebook, joined by newlines.
    digest = hashlib.sha256("\n".join(templates).encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"


def test_simple_templates():
    simple = get_templates("openai_simple")
    assert (len(simple), simple[0], simple[-1]) == (7, "itap of a {}.", "a photo of the small {}.")
    assert set(simple) < set(get_templates("openai"))
    assert get_templates("photo") == ("a photo of a {}.",)
    assert get_templates("none") == ("{}",)


def test_templates_of_a_file_and_of_a_sequence(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("\ufeffa sketch of {}\r\n{} in a shop\n\n", encoding="utf-8")
    assert get_templates(path) == get_templates(str(path)) == ("a sketch of {}", "{} in a shop")
    assert get_templates(["x {}"]) == ("x {}",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a {}\nno braces\n", "template 2: 'no braces'"),
        ("{} and {}", "template 1.*exactly one"),
        ("a {}\n\nb {}\n", "template 2: ''"),
        ("", "no template"),
        (b"\xff\xff\xff", "not UTF-8"),
        ("a {}\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("a {}\n".encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
    ],
)
def test_bad_template_files(tmp_path, content, message):
    path = tmp_path / "templates.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        get_templates(path)
    assert str(path) in str(caught.value)


def test_read_classnames(tmp_path):
    path = tmp_path / "classnames.txt"
    path.write_text("golden apple \nkiwi\x85 fruit\n\n", encoding="utf-8")
    assert read_classnames(path) == ("golden apple", "kiwi\x85 fruit")
    path.write_text("a\n\nb\n")
    with pytest.raises(UserError, match="line 2: empty"):
        read_classnames(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="no class name"):
        read_classnames(path)
    with pytest.raises(UserError, match=r"absent.*cannot be read"):
        read_classnames(tmp_path / "absent")


# --- The classifier -----------------------------------------------------------------------------


@pytest.mark.parametrize("texts_per_call", [1, 7, 1024])
def test_classifier_is_the_definition(texts_per_call, monkeypatch):
    monkeypatch.setattr(zero_shot, "TEXTS_PER_CALL", texts_per_call)
    templates = get_templates("openai_simple")
    seen = []

    def embed(strings):
        seen.extend(strings)
        assert len(strings) <= texts_per_call
        return 3.0 * embed_text(strings)  # the length must not matter

    classifier = zero_shot_classifier(embed, CLASSES, templates)
    assert classifier.shape == (16, 6)
    assert classifier.dtype == np.float32
    assert len(seen) == 42
    assert "itap of a red {} fox." in seen
    for c, name in enumerate(CLASSES):
        mean = np.mean([embed_text([t.replace("{}", name)])[0] for t in templates], axis=0)
        np.testing.assert_allclose(classifier[:, c], mean / np.linalg.norm(mean), atol=1e-6)


def test_a_class_of_several_names_is_the_mean_over_all_its_prompts():
    templates, classes = ("a {}.", "the {}"), ("fox", ("happy", "smiling", ""), ["cat"])
    classifier = zero_shot_classifier(embed_text, classes, templates)
    for c, names in enumerate((("fox",), ("happy", "smiling", ""), ("cat",))):
        prompts = [t.replace("{}", name) for name in names for t in templates]
        mean = embed_text(prompts).mean(0)
        np.testing.assert_allclose(classifier[:, c], mean / np.linalg.norm(mean), atol=1e-6)
    for wrong in (("fox", ()), ("fox", ["a", 3])):
        with pytest.raises(UserError, match="classnames"):
            zero_shot_classifier(embed_text, wrong, templates)


def test_embeddings_of_a_class_that_are_not_finite():
    with pytest.raises(UserError, match=r"'cat'.*not finite"):
        zero_shot_classifier(lambda t: np.full((len(t), 4), np.nan), ["cat"], "none")


# --- Accuracy -----------------------------------------------------------------------------------


def test_accuracies_by_hand():
    # Image i is the unit vector of class PREDICTED[i]; class 3 does not occur.
    predicted = np.array([0, 0, 0, 1, 1, 2, 0, 5, 4])
    labels = np.array([0, 0, 0, 0, 1, 2, 2, 5, 5])
    classifier = zero_shot_classifier(embed_text, CLASSES, "photo")
    got, samples = evaluate_zero_shot(classifier.T[predicted], labels, classifier, np.matmul)
    scores = classifier.T[predicted] @ classifier
    top5 = np.mean([y in np.argsort(-s)[:5] for s, y in zip(scores, labels, strict=True)])
    expected = {
        "accuracy_top1": 6 / 9,
        "accuracy_top5": top5,
        "mean_top1_top5": (6 / 9 + top5) / 2,
        "mean_per_class_accuracy": (3 / 4 + 1 + 1 / 2 + 1 / 2) / 4,
        "num_images": 9,
        "num_classes": 6,
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert got["accuracy_top1_low"] < 6 / 9 < got["accuracy_top1_high"]
    assert samples["predictions"].tolist() == predicted.tolist()
    for name in ("accuracy_top1", "mean_per_class_accuracy", "macro_f1", "brier_score"):
        assert samples[f"{METRIC}{name}"].mean() == pytest.approx(got[name])


def test_blocks_of_images_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((50, 16)).astype(np.float32)
    classifier = zero_shot_classifier(embed_text, CLASSES, "photo")
    labels = rng.integers(0, 6, 50)
    whole = evaluate_zero_shot(embeds, labels, classifier, np.matmul)[0]
    monkeypatch.setattr("clip_jax.evaluation.zero_shot.ROWS_AT_ONCE", 7)
    parts = evaluate_zero_shot(embeds, labels, classifier, np.matmul)[0]
    assert parts == pytest.approx(whole, rel=1e-5)


def test_calibration_has_bins_of_equal_width_and_of_equal_mass():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((200, 6)) * 2
    # The surest half of the images is right and the rest is not, so that the signs of gaps differ.
    order = np.argsort(np.argsort(logits.max(1)))
    labels = (logits.argmax(1) + (order < 100)) % 6
    row, samples = evaluate_zero_shot(logits, labels, np.eye(6), np.matmul)
    sure, hits = samples["confidence"], samples[f"{METRIC}accuracy_top1"]
    for name, edges in (
        ("expected", np.linspace(0, 1, 16)),
        ("adaptive", np.quantile(sure, np.linspace(0, 1, 16))),
    ):
        bins = np.clip(np.searchsorted(edges, sure) - 1, 0, 14)
        gaps = [abs((hits - sure)[bins == b].sum()) for b in range(15)]
        assert row[f"{name}_calibration_error"] == pytest.approx(sum(gaps) / 200)
    widths = (row[f"{name}_calibration_error"] for name in ("expected", "adaptive"))
    assert abs(next(widths) - next(widths)) > 1e-3


def test_no_top5_under_five_classes():
    embeds = embed_text(["cat", "cat"])
    classifier = zero_shot_classifier(embed_text, CLASSES[:4], "none")
    four, _ = evaluate_zero_shot(embeds, np.array([0, 3]), classifier, np.matmul)
    assert "accuracy_top5" not in four
    assert four["accuracy_top1"] == 0.5
    classifier = zero_shot_classifier(embed_text, CLASSES[:5], "none")
    five, _ = evaluate_zero_shot(embeds, np.array([0, 3]), classifier, np.matmul)
    assert five["accuracy_top5"] == 1.0


def test_constant_embeddings_give_chance():
    constant = np.ones((8, 16), np.float32) / 4
    got, _ = evaluate_zero_shot(
        constant, np.zeros(8, int), np.ones((16, 10), np.float32) / 4, np.matmul
    )
    assert got["accuracy_top1"] == pytest.approx(0.1)
    assert got["accuracy_top5"] == pytest.approx(0.5)


def test_top_k_hits_with_ties():
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]] * 3, np.float32)
    labels = np.array([0, 2, 4])
    assert top_k_hits(scores, labels, 1).tolist() == [1.0, 0.0, 0.0]
    assert top_k_hits(scores, labels, 2).tolist() == pytest.approx([1.0, 1 / 3, 0.0])
    assert top_k_hits(scores, labels, 4).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 6]), "label 6: accepted is 0 to 5"),
        (np.array([-1, 0]), "label -1"),
        (np.array([0]), r"\(2,\)"),
        (np.array([0.0, 1.0]), "float64"),
    ],
)
def test_bad_labels(labels, message):
    classifier = zero_shot_classifier(embed_text, CLASSES, "none")
    with pytest.raises(UserError, match=message):
        evaluate_zero_shot(embed_text(["cat", "cat"]), labels, classifier, np.matmul)


def test_no_images():
    classifier = zero_shot_classifier(embed_text, CLASSES, "none")
    with pytest.raises(UserError, match="no images"):
        evaluate_zero_shot(np.zeros((0, 16), np.float32), np.zeros(0, int), classifier, np.matmul)
