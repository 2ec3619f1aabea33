"""Captions a second of CLIP's byte-pair tokenizer: ours, a pure-Python one, and open_clip's.

    python benchmarks/tokenizer.py --peer_python=PATH_OF_AN_ENVIRONMENT_WITH_OPEN_CLIP/bin/python

One core and one process each, in turns, on the same captions. They are drawn from a vocabulary of
words by Zipf's law, 8 to 20 words each, with capitals, punctuation, digits and HTML entities; a
tenth has characters outside ASCII. Each side first goes through another set of as many captions,
so that the caches of words are warm, and the timed captions are new to it. The sums of all ids must
agree. Prints one JSON object; `ratio` is ours / theirs, the median over the turns.
"""

import functools
import html
import itertools
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
from absl import app, flags

from clip_jax.text.byte_pairs import byte_symbols
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.merges_file import find_bpe_file

_PEER = flags.DEFINE_string("peer_python", None, "Python of an environment with open_clip.")
_PEER_PATH = flags.DEFINE_string("peer_pythonpath", "", "PYTHONPATH for the peer.")
_BPE_FILE = flags.DEFINE_string("bpe_file", None, "CLIP's merges file; searched if not given.")
_CAPTIONS = flags.DEFINE_integer("captions", 50_000, "Captions of one turn.", lower_bound=1)
_CALL = flags.DEFINE_integer("call", 1024, "Captions of one call.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns.", lower_bound=1)
_UNICODE = flags.DEFINE_float("unicode", 0.1, "Share of captions outside ASCII.", 0.0, 1.0)
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON object.")

_FOREIGN = [
    *("café", "naïve", "über", "señor", "“quoted”", "—", "it’s", "½", "你好", "東京", "猫の写真"),
    *("한국어", "москва", "ελλάδα", "हिन्दी", "😀", "🎉"),
]


def make_captions(tokenizer: ClipBpeTokenizer, count: int, share: float, seed: int) -> list[str]:
    """`count` captions; merges are learned by frequency, so their order serves as Zipf's rank."""
    rng = random.Random(seed)
    whole = (s.removesuffix("</w>") for s in tokenizer.vocabulary.ids if s.endswith("</w>"))
    common = [word for word in whole if word.isascii() and word.isalpha() and len(word) > 1]
    shuffled = random.Random(0)
    rare = ["".join(shuffled.sample(common, 2)) for _ in range(len(common))]
    words = common + rare
    weights = np.cumsum(1 / np.arange(1, len(words) + 1))
    captions = []
    for _ in range(count):
        drawn = rng.choices(words, cum_weights=weights, k=rng.randint(8, 20))
        drawn[0] = drawn[0].capitalize()
        for i in range(len(drawn)):
            kind = rng.random()
            if kind < 0.06:
                drawn[i] += rng.choice([",", ".", "!", ":", "'s", " -", " |"])
            elif kind < 0.10:
                drawn[i] = rng.choice([str(rng.randint(1, 3000)), drawn[i].upper()])
            elif kind < 0.102:
                drawn[i] += " &amp;"
        if rng.random() < share:
            drawn.insert(rng.randrange(len(drawn)), rng.choice(_FOREIGN))
        captions.append(" ".join(drawn) + rng.choice(["", "", "."]))
    return captions


class PurePython:
    """The textbook, in the steps of OpenAI's released code: cleaning, regular expression, stand-ins
    of the bytes, and a byte-pair loop with a cache, whose answer is a text of symbols."""

    _PIECES = regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, tokenizer: ClipBpeTokenizer):
        self.ids = tokenizer.vocabulary.ids
        self.rank = {pair: rank for rank, pair in enumerate(tokenizer.vocabulary.merges)}
        self.symbol = byte_symbols()
        self.merge = functools.lru_cache(maxsize=1 << 17)(self._merge)

    def _merge(self, spelled: str) -> str:
        parts = [*spelled[:-1], spelled[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return " ".join(parts)

    def __call__(self, texts: list[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 77), np.int32)
        for row, text in zip(rows, texts, strict=True):
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
            text = " ".join(text.split()).lower()
            ids = [49406]
            for piece in self._PIECES.findall(text):
                spelled = "".join(self.symbol[byte] for byte in piece.encode("utf-8"))
                ids.extend(self.ids[symbol] for symbol in self.merge(spelled).split(" "))
            ids.append(49407)
            if len(ids) > 77:
                ids = [*ids[:76], 49407]
            row[: len(ids)] = ids
        return rows


class OpenClip:
    """The worker process of peer_tokenizer.py."""

    def __init__(self) -> None:
        worker = Path(__file__).with_name("peer_tokenizer.py")
        self.process = subprocess.Popen(
            [str(_PEER.value), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": _PEER_PATH.value},
        )
        self.about = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("error: the peer ended; its message is above")

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def time(self, captions: list[str], size: int) -> tuple[float, int]:
        self.ask(captions=captions)
        answer = self.ask(time=size)
        return answer["seconds"], answer["checksum"]


def timed(
    tokenize: Callable[[list[str]], np.ndarray], captions: list[str], size: int
) -> tuple[float, int]:
    """(seconds, sum of all ids)."""
    begun = time.perf_counter()
    rows = [tokenize(captions[i : i + size]) for i in range(0, len(captions), size)]
    seconds = time.perf_counter() - begun
    return seconds, sum(int(row.sum(dtype=np.int64)) for row in rows)


def main(_: list[str]) -> None:
    content = find_bpe_file(_BPE_FILE.value).read_bytes()
    ours = ClipBpeTokenizer(content, truncate=True)
    sides: dict[str, Callable[[list[str], int], tuple[float, int]]] = {
        "ours": functools.partial(timed, ours),
        "pure_python": functools.partial(timed, PurePython(ours)),
    }
    result: dict[str, Any] = {"cores": os.cpu_count(), "captions": _CAPTIONS.value}
    if _PEER.value:
        peer = OpenClip()
        result["peer"] = peer.about
        sides["open_clip"] = peer.time
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(_ROUNDS.value + 1):
        captions = make_captions(ours, _CAPTIONS.value, _UNICODE.value, seed=turn)
        sums = set()
        for side, time_it in sides.items():
            spent, checksum = time_it(captions, _CALL.value)
            sums.add(checksum)
            if turn:  # the first warms the caches
                seconds[side].append(spent)
        if len(sums) != 1:
            raise SystemExit(f"error: the sides disagree: sums of ids {sums}")
    result["words_per_caption"] = round(sum(len(c.split()) for c in captions) / len(captions), 1)
    result["share_outside_ascii"] = round(sum(not c.isascii() for c in captions) / len(captions), 3)
    for side, times in seconds.items():
        rate = _CAPTIONS.value / statistics.median(times)
        result[f"{side}_captions_per_second"] = round(rate)
    for side in list(sides)[1:]:
        pairs = zip(seconds[side], seconds["ours"], strict=True)
        ratios = [theirs / mine for theirs, mine in pairs]
        result[f"ratio_to_{side}"] = round(statistics.median(ratios), 2)
    last = list(sides)[-1]
    result["ratio"] = result[f"ratio_to_{last}"]
    text = json.dumps(result, indent=1)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
