"""OpenAI's tokenizer from the list of its rules, slow and plain; and strings to try it on."""

import html
import itertools
import random
import sys
import unicodedata

import ftfy
import regex

SCRIPTS = {
    "latin": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ",
    "accents": "éèàüößñçåøÉÀÜıİſŉǆ\u0301\u0308",
    "greek": "αβγδεζηθικλμνξοπρσςτΣΑ",
    "cyrillic": "абвгдежзийклмнопрстЖЯ",
    "chinese": "你好世界中文字符一二三",
    "kana": "あいうえおカタカナｶﾅ",
    "korean": "한국어가나다라",
    "indic": "हिन्दीभाषाதமிழ்",
    "arabic": "العربيةאבגד٣٤",
    "emoji": "😀🎉👩‍👩‍👧🇩🇪❤️👍🏽",
    "digits": "0123456789½²Ⅷ٣①",
    "marks": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~—–…“”‘’«»¿¡°™",
    "white": " \t\n\u00a0\u2003\u3000\u200b\u2028",
    "control": "\x00\x01\x08\x0b\x0c\x1b\x1c\x1f\x7f\x85\x9f\ufeff\ufffd\ufdd0",
}
PHRASES = [
    *("a photo of a cat", "don't", "it's", "WE'LL", "THEY'RE", "'s", "''tis", "I'd've", "3.14159"),
    *("&amp;", "&lt;b&gt;", "&amp;lt;", "&amp;amp;amp;", "&#39;", "&#x1F600;", "&eacute;"),
    *("&nbsp;", "&EACUTE;", "AT&T", "R&D", "&copy", "&notit;", "Ã©", "â€™s", "naÃ¯ve", "√©"),
    *("\x1b[31m", "<b>", "▁", "▁▁ab", "##ing", "http://x.org/a?b=c&d=e", "___", "..."),
    *("e\u0301", "ﬁ", "ＡＢＣ"),
]


class TextbookClip:
    """The rules of `reference/clip_details.md`, section 3, one after the other."""

    PIECES = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def __init__(self, tokenizer, context_length: int = 77):
        """`tokenizer`: a ClipBpeTokenizer, of which only the vocabulary is used."""
        self.ids = tokenizer.vocabulary.ids
        self.rank = {pair: rank for rank, pair in enumerate(tokenizer.vocabulary.merges)}
        self.context_length = context_length
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        self.stand_in = {b: chr(b) for b in printable}
        self.stand_in |= {b: chr(256 + i) for i, b in enumerate(others)}

    @staticmethod
    def clean(text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return " ".join(text.split()).strip().lower()

    def merge(self, piece: str) -> list[int]:
        """All pairs of the lowest rank at once, left to right; and begin again."""
        parts = [self.stand_in[b] for b in piece.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            pairs = set(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.rank.get(pair, sys.maxsize))
            if best not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return [self.ids[part] for part in parts]

    def __call__(self, text: str) -> list[int]:
        ids = [self.ids["<|startoftext|>"]]
        for piece in self.PIECES.findall(self.clean(text)):
            special = piece in ("<|startoftext|>", "<|endoftext|>")
            ids += [self.ids[piece]] if special else self.merge(piece)
        ids.append(self.ids["<|endoftext|>"])
        if len(ids) > self.context_length:
            ids = ids[: self.context_length]
            ids[-1] = self.ids["<|endoftext|>"]
        return ids + [0] * (self.context_length - len(ids))


def random_strings(count: int, seed: int, controls: bool = True) -> list[str]:
    """`count` strings: of all scripts, emoji, entities, white space, controls; some empty."""
    rng = random.Random(seed)
    names = [name for name in SCRIPTS if controls or name != "control"]
    strings = ["", " ", "\n\t"]
    while len(strings) < count:
        parts = []
        for _ in range(rng.randint(0, 6)):
            kind = rng.random()
            if kind < 0.25:
                parts.append(rng.choice(PHRASES))
            elif kind < 0.9:
                letters = SCRIPTS[rng.choice(names)]
                parts.append("".join(rng.choices(letters, k=rng.randint(1, 8))))
            else:
                parts.append(_any_character(rng))
            parts.append(rng.choice(["", " ", " ", "  "]))
        strings.append("".join(parts))
    return strings


def _any_character(rng: random.Random) -> str:
    while True:
        c = chr(rng.randrange(0x20, 0x30000))
        if unicodedata.category(c) not in ("Cs", "Cn", "Co", "Cc"):
            return c
