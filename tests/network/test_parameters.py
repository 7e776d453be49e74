"""Parameter files: every layout that MXNet has written, and none that would mislead it."""

import struct

import numpy as np
import pytest

from cgd.network.parameters import read_arrays, write_arrays
from cgd.system.environment import mx
from cgd.system.errors import InputError

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
HEADS = {
    "since MXNet 1.0": struct.pack("<Iiiqq", 0xF993FAC9, 0, 2, 2, 3),
    "before 1.0": struct.pack("<Iiqq", 0xF993FAC8, 2, 2, 3),
    "the first": struct.pack("<III", 2, 2, 3),
}


CPU, GPU_3 = (1, 0), (2, 3)  # the kind of the device, and its number


def by_hand(head, names=(b"arg:a",), arrays=1, devices=(CPU,)):
    """The bytes of a file with one array for each device, as MXNet's source lays them out."""
    array = b"".join(head + struct.pack("<iii", *device, 0) + VALUES.tobytes() for device in devices)
    end = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, arrays) + array + struct.pack("<Q", len(names)) + end


@pytest.mark.parametrize("age", HEADS)
def test_every_age_of_the_format_is_read(tmp_path, age):
    (tmp_path / "a.params").write_bytes(by_hand(HEADS[age]))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.params")["arg:a"].asnumpy(), VALUES)


@pytest.mark.parametrize("age", HEADS)
@pytest.mark.parametrize("devices", [(CPU, GPU_3), (GPU_3, GPU_3), (GPU_3, (1, 1)), ((3, 0), (5, 0))])
def test_arrays_of_any_device_are_loaded_on_the_cpu(tmp_path, monkeypatch, age, devices):
    """The CPU build ignores the device, the GPU build loads the array there: so what it is given is looked at."""
    names, given, load = (b"arg:a", b"aux:b"), [], mx.nd.load_frombuffer
    monkeypatch.setattr(mx.nd, "load_frombuffer", lambda data: given.append(data) or load(data))
    monkeypatch.setattr(mx.nd, "load", lambda file: pytest.fail("the file was loaded as it stands"))
    (tmp_path / "a.params").write_bytes(by_hand(HEADS[age], names, 2, devices))
    found = read_arrays(tmp_path / "a.params")
    assert given == [by_hand(HEADS[age], names, 2, (CPU, CPU))]
    assert sorted(found) == ["arg:a", "aux:b"]
    for value in found.values():
        assert value.context == mx.cpu()
        np.testing.assert_array_equal(value.asnumpy(), VALUES)


def test_a_file_of_the_cpu_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(mx.nd, "load_frombuffer", lambda data: pytest.fail("the file was copied"))
    (tmp_path / "a.params").write_bytes(by_hand(HEADS["since MXNet 1.0"]))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.params")["arg:a"].asnumpy(), VALUES)


@pytest.mark.parametrize("number", [0, 1])
def test_arrays_of_any_device_are_written_from_the_cpu(tmp_path, number):
    """A second CPU context stands in for a GPU."""
    write_arrays(tmp_path / "a.params", {"arg:a": mx.nd.array(VALUES, ctx=mx.cpu(number))})
    assert (tmp_path / "a.params").read_bytes() == by_hand(HEADS["since MXNet 1.0"])


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
