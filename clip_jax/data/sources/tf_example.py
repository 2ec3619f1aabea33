"""Serialized tf.train.Example messages, read and written without TensorFlow.

The messages are those of tensorflow/core/example/feature.proto.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

Feature = list[bytes] | list[float] | list[int]

_Field = descriptor_pb2.FieldDescriptorProto
_LISTS = {bytes: "bytes_list", float: "float_list", int: "int64_list"}


@functools.cache
def _example_class() -> Any:
    """Makes the class of messages; its own pool keeps it apart from TensorFlow's, if loaded."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")

    def add(messages: Any, name: str, *fields: tuple[str, Any, bool]) -> Any:
        """Adds a message with fields (name, type or name of a message, whether repeated)."""
        made = messages.add(name=name)
        for number, (field, kind, repeated) in enumerate(fields, start=1):
            is_message = isinstance(kind, str)
            made.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
                type=_Field.TYPE_MESSAGE if is_message else kind,
                type_name=f".tf.{kind}" if is_message else None,
            )
        return made

    messages = file.message_type
    add(messages, "BytesList", ("value", _Field.TYPE_BYTES, True))
    add(messages, "FloatList", ("value", _Field.TYPE_FLOAT, True))
    add(messages, "Int64List", ("value", _Field.TYPE_INT64, True))
    lists = zip(_LISTS.values(), ("BytesList", "FloatList", "Int64List"), strict=True)
    feature = add(messages, "Feature", *((name, kind, False) for name, kind in lists))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add(messages, "Features", ("feature", "Features.FeatureEntry", True))
    of_entry = (("key", _Field.TYPE_STRING, False), ("value", "Feature", False))
    add(features.nested_type, "FeatureEntry", *of_entry).options.map_entry = True
    add(messages, "Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def parse_example(data: bytes) -> dict[str, Feature]:
    """Returns the features by name. Raises ValueError if `data` is not a tf.train.Example."""
    try:
        features = _example_class().FromString(data).features.feature
    except message.DecodeError as error:
        raise ValueError(str(error)) from None
    found: dict[str, Feature] = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind is not None else []
    return found


def make_example(
    features: Mapping[str, Sequence[bytes] | Sequence[float] | Sequence[int]],
) -> bytes:
    """Serializes features, which are sequences of bytes, floats (stored as float32) or ints.

    Raises ValueError if the values of a feature have mixed or other types.
    """
    example = _example_class()()
    for name, values in features.items():
        kinds = {type(value) for value in values} or {bytes}
        if len(kinds) > 1 or not kinds <= set(_LISTS):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(f"a feature of {names}; accepted are bytes, floats or ints, not mixed")
        made = getattr(example.features.feature[name], _LISTS[kinds.pop()])
        made.SetInParent()
        made.value.extend(values)
    data: bytes = example.SerializeToString(deterministic=True)
    return data
