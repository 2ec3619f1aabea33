"""Caption augmentation: words for an attribute of people, such as gender, are swapped or dropped.

Source: counterfactual data augmentation (Lu et al. 2020, "Gender bias in neural natural language
processing"), here at random anew in each epoch.
"""

import functools
import re
from dataclasses import dataclass

import numpy as np

from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.options import AttributeWordOptions


@dataclass(frozen=True)
class CaptionWords:
    """Function from a caption to the same or a changed one; pickled to workers.

    Attributes:
      lines: words that stand in for each other, as `attribute_words` returns them.
      drop: leaves the words out, instead of putting those of another group in their place.
      probability: of a change.
    """

    lines: tuple[tuple[str, ...], ...]
    drop: bool
    probability: float

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """Returns the caption; always draws two numbers. All words get those of one group.

        A caption of nothing but such words is not dropped.
        """
        chance, choice = rng.random(2)
        first = self._pattern.search(caption)
        if first is None or chance >= self.probability:
            return caption
        if self.drop:
            return " ".join(self._pattern.sub(" ", caption).split()) or caption
        groups = len(self.lines[0])
        here = self._places[first[0].lower()][1]
        other = (here + 1 + int(choice * (groups - 1))) % groups

        def swapped(match: re.Match[str]) -> str:
            line, group = self._places[match[0].lower()]
            # In a caption of a man and a woman both change places, if there are two groups.
            place = other if group == here else here if group == other else group
            word = self.lines[line][place]
            return word.capitalize() if match[0][0].isupper() else word

        return self._pattern.sub(swapped, caption)

    @functools.cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Maps each word to its first line and its group."""
        found: dict[str, tuple[int, int]] = {}
        for number, line in enumerate(self.lines):
            for group, word in enumerate(line):
                found.setdefault(word.lower(), (number, group))
        return found

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        words = sorted(self._places, key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)


def caption_words(options: AttributeWordOptions) -> CaptionWords | None:
    """Returns the augmentation of `config.data.attribute_words`; None if it names no words."""
    if options.words is None:
        return None
    lines = attribute_words(options.words, "config.data.attribute_words.words")
    return CaptionWords(lines, options.change == "drop", options.probability)
