"""UTF-16 where UTF-8 is wanted: Windows programs save it, and it decodes as text full of NULs."""

_LOOKED_AT_BYTES = 4096
_NUL_SHARE = 0.3  # of the high bytes, where half of the text is not Latin
_STRAY_SHARE = 0.05  # of the low bytes


def utf16_problem(data: bytes) -> str | None:
    """The end of a sentence that says what is wrong with a file; None unless it is UTF-16.

    Args:
      data: the file's first bytes, 4,096 of which are looked at.
    """
    encoding = _utf16_encoding(data[:_LOOKED_AT_BYTES])
    if encoding is None:
        return None
    return (
        f"is UTF-16; save it as UTF-8 (iconv -f {encoding} -t UTF-8): what is not UTF-8 is not read"
    )


def _utf16_encoding(data: bytes) -> str | None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    pairs = len(data) // 2
    if pairs < 2:
        return None
    first, second = data[0::2].count(0), data[1::2].count(0)
    if second > _NUL_SHARE * pairs and first <= _STRAY_SHARE * pairs:
        return "UTF-16LE"
    if first > _NUL_SHARE * pairs and second <= _STRAY_SHARE * pairs:
        return "UTF-16BE"
    return None
