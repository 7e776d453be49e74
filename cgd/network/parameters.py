"""Parameter files, checked before MXNet sees them.

MXNet believes what stands in such a file: a wrong size makes it reserve any amount of memory, and fill it for minutes.
Each array has a device in the file, the one it was saved from, and MXNet's GPU build loads it there: a file saved on
GPU 3 cannot be loaded on a machine with one GPU. So files are written, and read, as if all arrays were on the CPU.
"""

import errno
import struct
from pathlib import Path

from cgd.system.environment import mx
from cgd.system.errors import InputError

FILE_MAGIC = 0x112
ARRAY_MAGIC, OLDER_MAGIC = 0xF993FAC9, 0xF993FAC8  # since MXNet 1.0, and before; older still, there was none
ITEM_SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8}  # bytes, by MXNet's number of the data type
MAX_DIMENSIONS = 8
CPU = struct.pack("<ii", 1, 0)  # a device in a file: MXNet's number of its kind (2 is a GPU), and its own number


def read_arrays(file):
    """{name: NDArray}, on the CPU, of a file that mx.nd.save wrote on any device.

    Raises InputError where it is missing or broken.
    """
    try:
        data = Path(file).read_bytes()
        elsewhere = [at for at in _devices(data) if data[at : at + len(CPU)] != CPU]
        arrays = mx.nd.load_frombuffer(_on_cpu(data, elsewhere)) if elsewhere else mx.nd.load(str(file))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    except (mx.base.MXNetError, ValueError) as error:
        reason = "" if isinstance(error, mx.base.MXNetError) else f" ({error})"
        raise InputError(f"{file}: not a parameter file that MXNet can read{reason}; is it whole?")
    if not isinstance(arrays, dict):
        raise InputError(f"{file}: expected named parameters")
    return arrays


def write_arrays(file, arrays):
    """Writes {name: NDArray} as mx.nd.save does, from the CPU. Raises OSError where it could not be written whole.

    MXNet does not notice when only the last bytes find no room, so what was written is looked through.
    """
    arrays = {name: value.as_in_context(mx.cpu()) for name, value in arrays.items()}
    try:
        mx.nd.save(str(file), arrays)
        _devices(Path(file).read_bytes())
    except (mx.base.MXNetError, ValueError):
        raise OSError(errno.ENOSPC, "it could not be written whole; is the disk full?")


def _on_cpu(data, places):
    """The bytes of a file with the devices at these places set to the CPU."""
    data = bytearray(data)
    for at in places:
        data[at : at + len(CPU)] = CPU
    return bytes(data)


def _devices(data):
    """Where the device of each array stands. Raises ValueError where a file of parameters does not hold together.

    The layout: a magic number, 0, the number of arrays, the arrays, the number of names, the names.
    """
    (magic, _, arrays), at = _take("QQQ", data, 0)
    if magic != FILE_MAGIC:
        raise ValueError("it begins otherwise")
    devices = []
    for _ in range(arrays):
        device, at = _device_and_end(data, at)
        devices.append(device)
    (names,), at = _take("Q", data, at)
    if names not in (0, arrays):
        raise ValueError(f"{names} names for {arrays} arrays")
    for _ in range(names):
        (length,), at = _take("Q", data, at)
        data[at : at + length].decode("ascii")
        at += length
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where {at} were expected")
    return devices


def _device_and_end(data, at):
    """Where an array's device stands, and where the array ends.

    The layout: magic number, storage (0 for dense), dimensions, device (its kind and number), data type, values.
    """
    (magic,), at = _take("I", data, at)
    storage, dimensions, size_layout = 0, magic, "I"  # of the oldest layout
    if magic == ARRAY_MAGIC:
        (storage, dimensions), at = _take("ii", data, at)
        size_layout = "q"
    elif magic == OLDER_MAGIC:
        (dimensions,), at = _take("i", data, at)
        size_layout = "q"
    if storage != 0 or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"an array of unknown layout, at byte {at}")
    sizes, at = _take(size_layout * dimensions, data, at)
    device = at
    (_, _, kind), at = _take("iii", data, at)
    if kind not in ITEM_SIZES or min(sizes) < 1:
        raise ValueError(f"an array without values or of unknown type, at byte {at}")
    values = ITEM_SIZES[kind]
    for size in sizes:
        values *= size
    return device, at + values


def _take(layout, data, at):
    """The numbers of this layout that stand at a byte, and the byte after them."""
    layout = "<" + layout
    end = at + struct.calcsize(layout)
    if end > len(data):
        raise ValueError(f"it ends after {len(data)} bytes")
    return struct.unpack_from(layout, data, at), end
