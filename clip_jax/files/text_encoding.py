"""Detection of UTF-16 and UTF-32 files among those that should be UTF-8.

Windows programs save UTF-16; without a byte order mark, both decode as UTF-8 text full of NULs.
"""

_LOOKED_AT_BYTES = 4096
_NUL_SHARE = 0.3  # of the high bytes; low enough for text that is half non-Latin
_STRAY_SHARE = 0.05  # of the low bytes


def utf16_problem(data: bytes) -> str | None:
    """Returns the end of a sentence about a file in UTF-16 or UTF-32; None for any other.

    Args:
      data: the file's first bytes, of which 4,096 are examined.
    """
    encoding = _encoding(data[:_LOOKED_AT_BYTES])
    if encoding is None:
        return None
    return (
        f"is {encoding[:6]}; save it as UTF-8 (iconv -f {encoding} -t UTF-8): what is not UTF-8 is"
        " not read"
    )


def _encoding(data: bytes) -> str | None:
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):  # the first begins like UTF-16's
        return "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    pairs, quads = len(data) // 2, len(data) // 4
    # No character is above 0x10ffff, and few texts have one whose last byte is 0.
    for encoding, high, next_high, low in (("UTF-32LE", 3, 2, 0), ("UTF-32BE", 0, 1, 3)):
        is_small = quads > 1 and not any(data[high::4]) and max(data[next_high::4]) <= 0x10
        if is_small and data[low::4].count(0) <= _STRAY_SHARE * quads:
            return encoding
    for encoding, high, low in (("UTF-16LE", 1, 0), ("UTF-16BE", 0, 1)):
        has_nuls = pairs > 1 and data[high::2].count(0) > _NUL_SHARE * pairs
        if has_nuls and data[low::2].count(0) <= _STRAY_SHARE * pairs:
            return encoding
    return None
