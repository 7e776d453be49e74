"""Parameter files: every layout that MXNet has written, and none that would mislead it."""

import struct

import numpy as np
import pytest

from cgd.environment import mx
from cgd.errors import InputError
from cgd.parameters import read_arrays

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
HEADS = {
    "since MXNet 1.0": struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 2, 3),
    "before 1.0": struct.pack("<Iiqq", 0xF993FAC8, 2, 2, 3),
    "the first": struct.pack("<III", 2, 2, 3),
}


def by_hand(head, names=(b"arg:a",), arrays=1):
    """The bytes of a file with one array, as MXNet's source lays them out."""
    array = head + struct.pack("<iii", 1, 0, 0) + VALUES.tobytes()
    end = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, arrays) + array + struct.pack("<Q", len(names)) + end


@pytest.mark.parametrize("age", HEADS)
def test_every_age_of_the_format_is_read(tmp_path, age):
    (tmp_path / "a.params").write_bytes(by_hand(HEADS[age]))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.params")["arg:a"].asnumpy(), VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int32", "int8", "int64"])
def test_what_mxnet_writes_is_read(tmp_path, dtype):
    arrays = {"arg:a": mx.nd.array(VALUES, dtype=dtype), "aux:b": mx.nd.ones((1, 2, 1, 3), dtype=dtype)}
    mx.nd.save(str(tmp_path / "a.params"), arrays)
    found = read_arrays(tmp_path / "a.params")
    assert sorted(found) == sorted(arrays)
    for name, value in found.items():
        assert value.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(value.asnumpy(), arrays[name].asnumpy())


V2 = HEADS["since MXNet 1.0"]
BROKEN = {
    "empty": b"",
    "no such file at all": b"PK" + by_hand(V2),
    "cut off": by_hand(V2)[:-1],
    "more than whole": by_hand(V2) + b"x",
    "more arrays announced": by_hand(V2, arrays=2),
    "2 ** 60 arrays announced": by_hand(V2, arrays=2**60),
    "a name too many": by_hand(V2, names=(b"a", b"b")),
    "no text for a name": by_hand(V2, names=(b"\xff\xfe",)),
    "a name beyond the end": by_hand(V2)[:-13] + struct.pack("<Q", 2**40) + b"arg:a",
    "a giant array": by_hand(struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 2**31, 2**31)),
    "a negative size": by_hand(struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, -2, -3)),
    "too many dimensions": by_hand(struct.pack("<Iii", 0xF993FAC9, 0, 10**9)),
    "a sparse array": by_hand(struct.pack("<Iiiqq", 0xF993FAC9, 1, 2, 2, 3)),
    "names are missing": by_hand(V2, names=()),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_named(tmp_path, what):
    (tmp_path / "a.params").write_bytes(BROKEN[what])
    with pytest.raises(InputError, match="a.params: "):
        read_arrays(tmp_path / "a.params")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="a.params: No such file"):
        read_arrays(tmp_path / "a.params")
