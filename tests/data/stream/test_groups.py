"""Training by group: weights of records, balanced sampling, and words changed in captions."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.options import AttributeWordOptions
from clip_jax.data.records import Drops, Record
from clip_jax.data.stream.caption_words import caption_words
from clip_jax.data.stream.groups import BalancedSource, sample_weight
from clip_jax.data.stream.pipeline import BatchIterator, training_batches
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation

SIZE = 8
WORDS = ("a man and his dog", "a woman sings", "two trees")


class People:
    """Record i has caption i % 3; 3 of 4 are of men. Those in `bad` do not decode."""

    dropped = Drops()
    fingerprint = "people"

    def __init__(self, count: int = 40, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"key{index}"

    def captions(self, index: int) -> tuple[str, ...]:
        return (WORDS[index % 3],)

    def metadata(self, index: int) -> dict[str, Any]:
        weight = "heavy" if index == 39 else index / 10
        return {"gender": "female" if index % 4 == 0 else "male", "weight": weight}

    def __getitem__(self, index: int) -> Record:
        image: Any = np.full((SIZE, SIZE, 3), index, np.uint8)
        return Record(
            self.key(index), b"broken" if index in self.bad else image, self.captions(index)
        )


def tokenize(texts: list[str]) -> np.ndarray:
    rows = np.zeros((len(texts), 24), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [ord(letter) for letter in text]
    return rows


def batches(source: Any, **options: Any) -> BatchIterator:
    options = {"batch_size": 8, "seed": 3, "max_bad_fraction": 0.5} | options
    return training_batches(
        source, tokenize, SIZE, "bicubic", Augmentation(crop_scale=(1, 1)), **options
    )


def take(iterator: BatchIterator, count: int) -> list[dict[str, np.ndarray]]:
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def everything(source: Any, **options: Any) -> BatchIterator:
    """All three at once."""
    balanced = BalancedSource(source, "gender")
    words = caption_words(AttributeWordOptions("gender"))
    weigh = sample_weight(balanced, "1/gender")
    return batches(balanced, weigh=weigh, change_caption=words, **options)


def test_groups_come_equally_often_and_every_record_of_a_group() -> None:
    source = BalancedSource(People(), "gender")
    found = np.concatenate([batch["indices"] for batch in take(batches(source), 1024)])
    women = [source.metadata(int(index))["gender"] == "female" for index in found]
    assert sum(women) == len(found) / 2  # exactly, in a block of 8,192
    counts = np.bincount(found, minlength=40)
    assert counts[:10].max() - counts[:10].min() <= 1  # of the women, each in each epoch
    assert counts[10:].max() - counts[10:].min() <= 1
    assert sorted(source.key(n) for n in range(40)) == sorted(f"key{n}" for n in range(40))
    assert source.fingerprint != People().fingerprint
    assert source.fingerprint != BalancedSource(People(), "weight").fingerprint


def test_a_bad_record_is_replaced_by_one_of_its_group() -> None:
    source = BalancedSource(People(bad=(0, 4, 8)), "gender")
    found = np.concatenate([batch["indices"] for batch in take(batches(source), 128)])
    assert abs(sum(found < 10) - len(found) / 2) < 20
    assert not set(found) & {0, 1, 2}


def test_weights_are_those_of_the_records() -> None:
    source = People()
    by_group = sample_weight(source, "1/gender")
    assert np.mean([by_group(source, n) for n in range(40)]) == pytest.approx(1, abs=1e-12)
    (batch,) = take(batches(source, weigh=by_group), 1)
    expected = [40 / (2 * (10 if n % 4 == 0 else 30)) for n in batch["indices"]]
    np.testing.assert_allclose(batch["weights"], expected, rtol=1e-7)
    small = People(30)
    (batch,) = take(batches(small, weigh=sample_weight(small, "weight")), 1)
    np.testing.assert_allclose(batch["weights"], batch["indices"] / 10, rtol=1e-7)
    assert batch["weights"].dtype == np.float32


def test_a_weight_that_is_none() -> None:
    source = People()
    with pytest.raises(UserError, match=r"sample_weight='weight': record key39 has 'heavy'; acc"):
        take(batches(source, weigh=sample_weight(source, "weight")), 5)
    with pytest.raises(UserError, match=r"record key0 has no metadata field 'age' \(has: gender"):
        sample_weight(source, "1/age")
    with pytest.raises(UserError, match=r"config\.data\.balance_by: record key0 has no"):
        BalancedSource(source, "age")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resumes_hosts_and_workers_change_nothing(workers: int) -> None:
    whole = take(everything(People(bad=(5,))), 8)
    for start, rows in ((0, range(8)), (3, range(4)), (6, (5, 2))):
        now: dict[str, Any] = {"start_batch": start, "rows": rows, "workers": workers}
        found = take(everything(People(bad=(5,)), **now), 8 - start)
        for batch, expected in zip(found, whole[start:], strict=True):
            for name in ("images", "tokens", "indices", "weights"):
                np.testing.assert_array_equal(batch[name], expected[name][list(rows)])


def test_without_options_nothing_is_drawn() -> None:
    """The same batches as without this file's options: words at probability 0 draw, but change no
    caption."""
    plain = take(batches(People()), 4)
    words = caption_words(AttributeWordOptions("gender", probability=0.0))
    for one, other in zip(plain, take(batches(People(), change_caption=words), 4), strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert "weights" not in plain[0]


def changed(caption: str, words: str = "gender", **options: Any) -> Counter[str]:
    change = caption_words(AttributeWordOptions(words, **options))
    assert change is not None
    rng = np.random.default_rng(0)
    return Counter(change(caption, rng) for _ in range(1000))


def test_words_are_swapped_together_half_of_the_time() -> None:
    found = changed("A man and his dog.")
    assert set(found) == {"A man and his dog.", "A woman and her dog."}
    assert 450 < found["A woman and her dog."] < 550
    assert set(changed("He sees a woman", probability=1.0)) == {"She sees a man"}
    assert set(changed("a mantelpiece", probability=1.0)) == {"a mantelpiece"}


def test_words_are_dropped() -> None:
    assert set(changed("A man and his dog", change="drop", probability=1.0)) == {"A and dog"}
    assert set(changed("woman", change="drop", probability=1.0)) == {"woman"}


def test_words_of_a_file(tmp_path: Any) -> None:
    path = tmp_path / "words.txt"
    path.write_text("young,old,middle-aged\n\nboy,grandpa,man\n")
    found = changed("an old grandpa", str(path), probability=1.0)
    assert set(found) == {"an young boy", "an middle-aged man"}
    path.write_text("a,b\nc,d,e\n")
    with pytest.raises(UserError, match=r"words=.*: line 'c,d,e'; accepted are as many words"):
        attribute_words(str(path), "config.data.attribute_words.words")
    with pytest.raises(UserError, match=r"project_out='hair': accepted are gender, race, or a"):
        attribute_words("hair", "project_out")
