"""Reads protobuf messages, the container of ONNX, without the package protobuf. Does not import MXNet.

All functions raise ValueError for invalid data.
"""


def fields(data):
    """(number, value) of each field of a protobuf message; the value is an int, or a memoryview of bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"unknown wire type {kind} at byte {at}")
        if at > len(data):
            raise ValueError("unexpected end of a message")
        yield key >> 3, value


def _varint(data, at):
    """A protobuf integer at byte `at`, 7 bits in each byte, the lowest first; and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"invalid integer at byte {at}")
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def varints(data):
    """The integers of a packed field, a list."""
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values
