"""Arguments of `Clip`: taken if their meaning is plain, else refused in one line."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from clip_jax.clip import Clip
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.retrieval import caption_labels, retrieval_recalls
from clip_jax.evaluation.zero_shot import zero_shot_classifier

SIZE = 32


class Words:
    """As much of a tokenizer as encoding needs."""

    vocab_size, context_length, eos_id, pad_id = 60, 12, 59, 0

    def __call__(self, texts: list[str], truncate: bool | None = None) -> np.ndarray:
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[:4] = [*(sum(text.encode()) * np.array([1, 3, 5]) % 50 + 1), self.eos_id]
        return rows


@pytest.fixture(scope="module")
def clip() -> Clip:
    bare = tiny_clip.tiny()
    return Clip(bare.config, bare.params, Words())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def path(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def torch_tensor(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(array)


class OnlyReads:
    """As the body of a response: it cannot go back."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115

    def read(self) -> bytes:
        with self._file:
            return self._file.read()


def written(path: Path) -> io.BytesIO:
    """As a program leaves it that has just written a picture: at the end."""
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    return buffer


# One image each, made of the path of a file and of its pixels (S, S, 3).
ONE_IMAGE: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "path": lambda path, pixels: path,
    "string": lambda path, pixels: str(path),
    "bytes": lambda path, pixels: path.read_bytes(),
    "memoryview": lambda path, pixels: memoryview(path.read_bytes()),
    "open file": lambda path, pixels: open(path, "rb"),  # noqa: SIM115
    "BytesIO at its end": lambda path, pixels: written(path),
    "response": lambda path, pixels: OnlyReads(path),
    "PIL image": lambda path, pixels: Image.open(path),
    "uint8": lambda path, pixels: pixels,
    "float to 1": lambda path, pixels: (pixels / 255).astype(np.float32),
    "float to 255": lambda path, pixels: pixels.astype(np.float64),
    "jax": lambda path, pixels: jnp.asarray(pixels),
    "torch": lambda path, pixels: torch_tensor(pixels),
}


@pytest.mark.parametrize("form", ONE_IMAGE)
def test_one_image_alone_and_in_a_list(
    clip: Clip, path: Path, pixels: np.ndarray, form: str
) -> None:
    expected = clip.encode_image(pixels[None])
    make = ONE_IMAGE[form]
    np.testing.assert_array_equal(clip.transform(make(path, pixels)), pixels)
    np.testing.assert_array_equal(clip.encode_image(make(path, pixels)), expected)
    np.testing.assert_array_equal(clip.encode_image([make(path, pixels)]), expected)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1)])
def test_a_grey_array_is_one_image(clip: Clip, shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rgb = np.repeat(grey.reshape(40, 50, 1), 3, axis=2)
    expected = clip.encode_image(rgb)
    assert expected.shape == (1, 16)
    np.testing.assert_array_equal(clip.encode_image(grey), expected)
    np.testing.assert_array_equal(clip.encode_image([grey]), expected)
    assert clip.logits(grey, ["a", "b"]).shape == (1, 2)
    assert {len(block) for block in clip.image_features(grey).outputs.values()} == {1}


# Three images each.
MANY: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "list": lambda path, pixels: [path, str(path), pixels],
    "generator": lambda path, pixels: (path for _ in range(3)),
    "dict keys": lambda path, pixels: {path: 1, str(path): 2, path.read_bytes(): 3}.keys(),
    "array of objects": lambda path, pixels: np.array([path, str(path), None], object)[[0, 1, 0]],
    "series": lambda path, pixels: pytest.importorskip("pandas").Series([str(path)] * 3),
    "uint8": lambda path, pixels: np.stack([pixels] * 3),
    "float to 1": lambda path, pixels: np.stack([pixels] * 3) / np.float32(255),
    "torch": lambda path, pixels: torch_tensor(np.stack([pixels] * 3)),
}


@pytest.mark.parametrize("form", MANY)
@pytest.mark.parametrize("batch_size", [2, np.int64(256)])
def test_many_images(
    clip: Clip, path: Path, pixels: np.ndarray, form: str, batch_size: int
) -> None:
    expected = np.repeat(clip.encode_image(pixels), 3, axis=0)
    found = clip.encode_image(MANY[form](path, pixels), batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "none", [[], (), iter(()), np.array([]), np.zeros((0, SIZE, SIZE, 3), np.uint8)]
)
def test_no_image(clip: Clip, none: Any) -> None:
    assert clip.encode_image(none).shape == (0, 16)
    assert clip.encode_text([]).shape == (0, 16)


def text_file(path: Path) -> Any:
    path.with_suffix(".txt").write_text("a photo")
    return open(path.with_suffix(".txt"))


def closed_file(path: Path) -> Any:
    with open(path, "rb") as file:
        return file


# Each refused image is (function that makes it of a path, words of the message).
WRONG_IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "None": (lambda path: None, "images=None: must be an image"),
    "set": (lambda path: {path}, "is a set, whose order is random; give a list"),
    "dict": (lambda path: {"a": path}, "is a dict; give a list of images"),
    "None in a list": (lambda path: [path, None], r"images\[1\]: None is no image; accepted"),
    "list in a list": (lambda path: [[path]], r"images\[0\]: \[.* is no image"),
    "missing file": (lambda path: [path, "x.jpg"], r"images\[1\]: x\.jpg cannot be read: No such"),
    "folder": (lambda path: path.parent, "is a folder; give its images"),
    "null byte": (lambda path: "a\0.jpg", "is not a path"),
    "text file": (text_file, "opened as text; open images with mode 'rb'"),
    "image opened as text": (lambda path: open(path), "opened as text"),  # noqa: SIM115
    "closed file": (closed_file, "file cannot be read: .*closed file"),
    "empty file": (lambda path: io.BytesIO(), "empty"),
    "channels first": (
        lambda path: np.zeros((3, 40, 50), np.float32),
        r"channels come first: give image\.transpose\(1, 2, 0\)$",
    ),
    "batch, channels first": (
        lambda path: np.zeros((2, 3, SIZE, SIZE), np.float32),
        r"channels come first: give images\.transpose\(0, 2, 3, 1\)",
    ),
    "many grey ones": (lambda path: np.zeros((7, 40, 50), np.uint8), r"give a list: list\(images"),
    "of another size": (lambda path: np.zeros((7, 8, 8, 3), np.uint8), r"\(7, 8, 8, 3\)"),
    "five axes": (lambda path: np.zeros((1, 2, 8, 8, 3), np.uint8), r"accepted is \(H, W\)"),
    "one axis": (lambda path: np.zeros(7), r"accepted is \(H, W\)"),
    "normalised": (lambda path: np.full((9, 9, 3), -1.5), "not normalised"),
}


@pytest.mark.parametrize("form", WRONG_IMAGES)
@pytest.mark.parametrize("method", ["encode_image", "classify", "image_features"])
def test_what_is_no_image(clip: Clip, path: Path, form: str, method: str) -> None:
    make, message = WRONG_IMAGES[form]
    texts = [["a cat"]] if method == "classify" else []
    with pytest.raises(UserError, match=message) as caught:
        getattr(clip, method)(make(path), *texts)
    assert "\n" not in str(caught.value)


def test_a_broken_image_among_many_keeps_its_kind(clip: Clip, path: Path) -> None:
    with pytest.raises(DecodeError, match=r"^images\[1\]: .*truncated") as caught:
        clip.encode_image([path, path.read_bytes()[:-400]])
    assert caught.value.kind == "image_undecodable"


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, None, "8", [8]])
def test_batch_sizes(clip: Clip, pixels: np.ndarray, value: Any) -> None:
    message = r"^batch_size=.*: must be a whole number, 1 or more$"
    for images in (pixels, pixels[None], [], [pixels]):
        with pytest.raises(UserError, match=message):
            clip.encode_image(images, batch_size=value)
    with pytest.raises(UserError, match=message):
        clip.encode_text(["a"], batch_size=value)


@pytest.mark.parametrize("value", ["False", "yes", 2, 1.5, [], [True]])
@pytest.mark.parametrize("name", ["truncate", "normalize"])
def test_yes_or_no(clip: Clip, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}=.*: must be True or False$"):
        clip.encode_text(["a"], **{name: value})
    for good in (True, np.bool_(False), 1):
        assert clip.encode_text(["a"], **{name: good}).shape == (1, 16)
    if name == "truncate":
        for method in (clip.logits, clip.classify):
            with pytest.raises(UserError, match=f"^{name}=.*: must be True or False$"):
                method([], ["a"], truncate=value)


# Two strings each, in this order.
LISTS: dict[str, Callable[[], Any]] = {
    "list": lambda: ["cat", "dog"],
    "generator": lambda: (name for name in ("cat", "dog")),
    "array": lambda: np.array(["cat", "dog"]),
    "array of objects": lambda: np.array(["cat", "dog"], object),
    "series": lambda: pytest.importorskip("pandas").Series(["cat", "dog"], index=[5, 3]),
    "dict keys": lambda: {"cat": 0, "dog": 1}.keys(),
}


@pytest.mark.parametrize("form", LISTS)
def test_lists_of_names_and_texts(clip: Clip, pixels: np.ndarray, form: str) -> None:
    make, names = LISTS[form], ["cat", "dog"]
    np.testing.assert_array_equal(clip.encode_text(make()), clip.encode_text(names))
    np.testing.assert_array_equal(clip.logits(pixels, make()), clip.logits(pixels, names))
    expected = clip.zero_shot_classifier(names, "photo")
    np.testing.assert_array_equal(clip.zero_shot_classifier(make(), "photo"), expected)
    np.testing.assert_array_equal(zero_shot_classifier(clip.encode_text, make(), "photo"), expected)
    assert clip.classify(pixels, make(), "photo").shape == (1, 2)
    templates = (f"{{}} {name}" for name in make())
    assert get_templates(templates) == ("{} cat", "{} dog")


WRONG_LISTS: dict[str, tuple[Any, str]] = {
    "string": ("cat", r"='cat': is one string; give a list, such as \['cat'\]"),
    "array of one string": (np.array("cat"), "is one string"),
    "bytes": (b"cat", "is one string"),
    "dict": ({"cat": 0, "dog": 1}, "is a dict; give a list of strings"),
    "set": ({"cat", "dog"}, "is a set, whose order is random; give a list of strings"),
    "path": (Path("names.txt"), "is a file; .*read its lines first"),
    "file": (io.StringIO("cat\ndog\n"), "is a file; .*read its lines first"),
    "numbers": ([0, 1, 2], r"\[0\]=0: is of type int"),
    "None among them": (["cat", None], r"\[1\]=None: is missing"),
    "NaN among them": (["cat", float("nan")], r"\[1\]=nan: is of type float"),
    "bytes among them": (["cat", b"dog"], r"\[1\]=b'dog': is of type bytes"),
    "nested": ([["cat"], ["dog"]], r"\[0\]=\['cat'\]: is of type list"),
    "half a surrogate pair": (["cat", "a\ud83d"], r"\[1\]=.*: is not Unicode text \(character 1"),
}


def takers(clip: Clip) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(name of the argument, a function that takes a list of strings)."""
    image = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    yield "classnames", lambda x: clip.classify(image, x)
    yield "classnames", lambda x: clip.zero_shot_classifier(x)
    yield "classnames", lambda x: zero_shot_classifier(clip.encode_text, x)
    yield "templates", lambda x: clip.classify(image, ["cat"], x)
    yield "templates", lambda x: get_templates(x)
    yield "texts", clip.encode_text
    yield "texts", lambda x: clip.logits(image, x)
    yield "texts", clip.text_features
    embeds = np.eye(2, dtype=np.float32)
    yield "texts", lambda x: retrieval_recalls(embeds, embeds, [0, 1], texts=x)
    yield "texts", lambda x: caption_labels(x, np.arange(2), 2)


@pytest.mark.parametrize("form", WRONG_LISTS)
def test_what_is_no_list_of_strings(clip: Clip, form: str) -> None:
    value, message = WRONG_LISTS[form]
    is_text = isinstance(value, str) or (isinstance(value, np.ndarray) and value.ndim == 0)
    is_file = isinstance(value, Path)
    for number, (name, take) in enumerate(takers(clip)):
        if form == "nested" and name == "classnames":
            continue  # a class may have several names
        # One text may stand alone, and templates have names and files.
        if (is_text and (name == "templates" or number in (5, 6, 7))) or (
            is_file and name == "templates"
        ):
            continue
        with pytest.raises(UserError, match=f"^{name}.*{message}") as caught:
            take(value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[], (), np.array([], str), iter([]), ["cat", ""], ["\t ", "a"]])
def test_no_name_and_blank_names(clip: Clip, names: Any) -> None:
    with pytest.raises(UserError, match=r"at least one name|^classnames\[[01]\]=.*: is blank"):
        clip.classify([], names, "photo")


def test_one_text_and_blank_texts(clip: Clip) -> None:
    expected = clip.encode_text(["a cat"])
    for one in ("a cat", np.str_("a cat")):
        np.testing.assert_array_equal(clip.encode_text(one), expected)
    assert clip.encode_text(["", " "]).shape == (2, 16)  # the embedding of no words is of use
    with pytest.raises(UserError, match="texts: there are none"):
        clip.text_features([])
    with pytest.raises(UserError, match="images: there are none"):
        clip.image_features([])


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (None, r"^templates=None: accepted are openai, .*a text file .*, or a list of templates$"),
        ("", "^templates='': accepted are openai"),
        ("opena1", "^templates='opena1': accepted are openai"),
        ("a photo of a {}.", r"is one template; give a list, such as \['a photo of a \{\}\.'\]"),
        (5, "^templates=5: give a list of strings"),
        ([str.upper], r"templates\[0\]=.*: is of type method_descriptor"),
        (["a {}", None], r"^templates\[1\]=None: is missing"),
        (["a {} {}"], "exactly one"),
        ([], "no template"),
    ],
)
def test_templates(clip: Clip, templates: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        clip.classify([], ["cat"], templates)


@pytest.mark.parametrize(
    "ks", [5, "5", (1, 0), (1.5,), (True,), (None,), ["5"], (), [], np.array([0]), [-1]]
)
def test_the_k_of_recalls(ks: Any) -> None:
    embeds = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match=r"^ks=.*(whole number)"):
        retrieval_recalls(embeds, embeds, [0, 1, 2], ks)
    for good in ((1, 2), [1, 2], np.array([1, 2]), iter((1, 2))):
        assert retrieval_recalls(embeds, embeds, [0, 1, 2], good)["image_to_text_recall_at_2"] == 1


def test_tables_are_no_lists(clip: Clip, path: Path) -> None:
    """Iterated, a table gives the names of its columns."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"name": ["cat", "dog", "bird"], "a {}": [1, 2, 3]})
    for call in (
        lambda: clip.classify(path, table),
        lambda: clip.classify(path, ["cat"], templates=table),
        lambda: clip.encode_text(table),
        lambda: clip.classify(path, np.array([["cat", "dog"]])),
    ):
        with pytest.raises(UserError, match="has 2 dimensions; give a list of strings"):
            call()
    assert clip.classify(path, table["name"]).shape == (1, 3)
