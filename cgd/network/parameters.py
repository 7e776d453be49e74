"""Parameter files, validated before MXNet loads them.

MXNet does not validate them: a wrong size makes it allocate any amount of memory and fill it for minutes. The file also
stores the device of each array, and MXNet's GPU build loads the array there, so a file saved on GPU 3 cannot be loaded
on a machine with one GPU. Files are therefore written, and read, as if all arrays were on the CPU.
"""

import errno
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path

from cgd.system.environment import mx
from cgd.system.errors import InputError

FILE_MAGIC = 0x112
ARRAY_MAGIC, OLDER_MAGIC = 0xF993FAC9, 0xF993FAC8  # since MXNet 1.0, and before; the oldest format has none
ITEM_SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8}  # bytes, by MXNet's type flag
MAX_DIMENSIONS = 8
NOT_UTF8 = "MXNet takes names in UTF-8 only; rename it, or its folder"
CPU = struct.pack("<ii", 1, 0)  # a device in a file: device type (1 CPU, 2 GPU) and device id


def read_arrays(file):
    """{name: NDArray}, on the CPU, from a file that mx.nd.save wrote on any device.

    Raises InputError if the file is missing or invalid.
    """
    try:
        with open(file, "rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
            not_cpu = [at for at in _device_offsets(data) if data[at : at + len(CPU)] != CPU]
            arrays = mx.nd.load_frombuffer(_on_cpu(data, not_cpu)) if not_cpu else mx.nd.load(str(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    except UnicodeEncodeError:
        raise InputError(f"{file}: {NOT_UTF8}")
    except (mx.base.MXNetError, ValueError) as error:
        reason = "" if isinstance(error, mx.base.MXNetError) else f" ({error})"
        raise InputError(f"{file}: not a parameter file that MXNet can read{reason}; the file may be truncated")
    if not isinstance(arrays, dict):
        raise InputError(f"{file}: expected named parameters")
    return arrays


def write_arrays(file, arrays):
    """Writes {name: NDArray} with mx.nd.save, from the CPU. Raises OSError if the file could not be written completely.

    MXNet does not notice if the disk is full when the last bytes are flushed, so the file is validated.
    """
    arrays = {name: value.as_in_context(mx.cpu()) for name, value in arrays.items()}
    try:
        mx.nd.save(str(file), arrays)
        _device_offsets(Path(file).read_bytes())
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, NOT_UTF8)
    except (mx.base.MXNetError, ValueError):
        raise OSError(errno.ENOSPC, "the file is incomplete; the disk may be full")


def _on_cpu(data, offsets):
    """The bytes of a file, with the devices at these offsets set to the CPU."""
    data = bytearray(data)
    for at in offsets:
        data[at : at + len(CPU)] = CPU
    return bytes(data)


def _device_offsets(data):
    """The byte offset of the device of each array. Raises ValueError if the parameter file is invalid.

    File format: magic number, 0, number of arrays, arrays, number of names, names.
    """
    (magic, _, arrays), at = _unpack("QQQ", data, 0)
    if magic != FILE_MAGIC:
        raise ValueError("bad magic number")
    offsets = []
    for _ in range(arrays):
        offset, at = _device_and_end(data, at)
        offsets.append(offset)
    (names,), at = _unpack("Q", data, at)
    if names not in (0, arrays):
        raise ValueError(f"{names} names for {arrays} arrays")
    for _ in range(names):
        (length,), at = _unpack("Q", data, at)
        data[at : at + length].decode("ascii")
        at += length
    if at != len(data):
        raise ValueError(f"{len(data)} bytes, expected {at}")
    return offsets


def _device_and_end(data, at):
    """The byte offset of the device of the array that starts at `at`, and of the end of the array.

    Array format: magic number, storage type (0 is dense), number of dimensions, shape, device (type and id), data type,
    values.
    """
    (magic,), at = _unpack("I", data, at)
    storage, dimensions, size_format = 0, magic, "I"  # the oldest format
    if magic == ARRAY_MAGIC:
        (storage, dimensions), at = _unpack("ii", data, at)
        size_format = "q"
    elif magic == OLDER_MAGIC:
        (dimensions,), at = _unpack("i", data, at)
        size_format = "q"
    if storage != 0 or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"unknown array format at byte {at}")
    shape, at = _unpack(size_format * dimensions, data, at)
    device = at
    (_, _, dtype), at = _unpack("iii", data, at)
    if dtype not in ITEM_SIZES or min(shape) < 1:
        raise ValueError(f"empty array or unknown data type at byte {at}")
    size = ITEM_SIZES[dtype]
    for length in shape:
        size *= length
    return device, at + size


def _unpack(layout, data, at):
    """Unpacks little-endian numbers (struct format `layout`) at byte `at`; returns them and the offset after them."""
    layout = "<" + layout
    end = at + struct.calcsize(layout)
    if end > len(data):
        raise ValueError(f"unexpected end of file after {len(data)} bytes")
    return struct.unpack_from(layout, data, at), end
