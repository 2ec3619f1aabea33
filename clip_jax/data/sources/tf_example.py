"""Serialized tf.train.Example messages, read and written without TensorFlow.

The protocol buffer, from tensorflow/core/example/feature.proto:

    Example {Features features = 1}      Features {map<string, Feature> feature = 1}
    Feature {oneof: BytesList bytes_list = 1, FloatList float_list = 2, Int64List int64_list = 3}
    each list {repeated value = 1}, numbers packed or one by one
"""

import struct
from collections.abc import Iterator, Mapping, Sequence

Feature = list[bytes] | list[float] | list[int]

_BYTES, _FLOATS, _INTS = 1, 2, 3
# These are the wire types of protocol buffers.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def parse_example(data: bytes) -> dict[str, Feature]:
    """Returns the features by name. Raises ValueError if `data` is not a tf.train.Example."""
    features: dict[str, Feature] = {}
    for number, value in _fields(memoryview(data)):
        if number != 1:
            continue
        for entry_number, entry in _fields(_message(value)):
            if entry_number == 1:
                name, feature = _parse_entry(_message(entry))
                features[name] = feature
    return features


def make_example(
    features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]],
) -> bytes:
    """Serializes features, which are sequences of bytes, floats (stored as float32) or ints.

    Raises ValueError if the values of a feature have mixed or other types.
    """
    entries = []
    for name, values in features.items():
        name_field = _length_delimited(1, name.encode())
        entries.append(_length_delimited(1, name_field + _length_delimited(2, _feature(values))))
    return _length_delimited(1, b"".join(entries))


def _parse_entry(entry: memoryview) -> tuple[str, Feature]:
    name, feature = "", memoryview(b"")
    for number, value in _fields(entry):
        if number == 1:
            name = bytes(_message(value)).decode("utf-8", "replace")
        elif number == 2:
            feature = _message(value)
    kind = _BYTES
    values: list = []
    for number, value in _fields(feature):
        if number not in (_BYTES, _FLOATS, _INTS):
            continue
        if number != kind:  # the last member of a oneof wins
            kind, values = number, []
        values += _parse_list(_message(value), kind)
    return name, values


def _parse_list(data: memoryview, kind: int) -> list:
    values: list = []
    for number, value in _fields(data):
        if number != 1:
            continue
        if kind == _BYTES:
            values.append(bytes(_message(value)))
        elif kind == _FLOATS:
            packed = _message(value)
            if len(packed) % 4:
                raise ValueError("a list of floats is cut off")
            values += struct.unpack(f"<{len(packed) // 4}f", packed)
        elif isinstance(value, int):
            values.append(_signed(value))
        else:
            at = 0
            while at < len(value):
                item, at = _varint(value, at)
                values.append(_signed(item))
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (field number, bytes or varint value). Raises ValueError if the data is cut off."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == _LENGTH:
            size, at = _varint(data, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if at + size > end:
            raise ValueError("the message is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns (number, position after it)."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number is cut off or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _feature(values: Sequence[bytes] | Sequence[float] | Sequence[int]) -> bytes:
    kinds = {type(value) for value in values}
    if kinds <= {bytes}:
        return _length_delimited(
            _BYTES,
            b"".join(_length_delimited(1, value) for value in values),  # type: ignore[arg-type]
        )
    if kinds == {float}:
        packed = struct.pack(f"<{len(values)}f", *values)
        return _length_delimited(_FLOATS, _length_delimited(1, packed))
    if kinds == {int}:
        packed = b"".join(_as_varint(int(value) & ((1 << 64) - 1)) for value in values)
        return _length_delimited(_INTS, _length_delimited(1, packed))
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise ValueError(f"a feature of {names}; accepted are bytes, floats or ints, not mixed")


def _length_delimited(number: int, data: bytes) -> bytes:
    return _as_varint(number << 3 | _LENGTH) + _as_varint(len(data)) + data


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
