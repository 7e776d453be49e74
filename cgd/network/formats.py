"""Weight files of several programs, recognised by their content: MXNet, ONNX and safetensors. Writes safetensors.

ONNX models and safetensors are read here, in a few lines, because only their arrays are needed, not their packages.
"""

import json
import struct
from pathlib import Path

import numpy as np

from cgd.network import protobuf
from cgd.network.parameters import FILE_MAGIC, read_arrays
from cgd.system.environment import mx
from cgd.system.errors import InputError
from cgd.system.files import replacing

# Floating-point types, by their names in safetensors and their numbers in ONNX. numpy has no bfloat16: its 16 bits are
# the upper half of a float32. Integers are shapes and counters, not weights, and are left out.
SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16"}
ONNX_TYPES = {11: "<f8", 1: "<f4", 10: "<f2", 16: "bfloat16"}

# Fields of ONNX's protobuf messages, from onnx.proto. Values are in RAW_DATA, or in a field that depends on their type;
# there, those of 16 bits are integers, one for each value.
GRAPH, INITIALISER = 7, 5
DIMS, DATA_TYPE, FLOAT_DATA, INT32_DATA, NAME, RAW_DATA, DOUBLE_DATA, DATA_LOCATION = 1, 2, 4, 5, 8, 9, 10, 14
TYPED_DATA = {"<f8": DOUBLE_DATA, "<f4": FLOAT_DATA, "<f2": INT32_DATA, "bfloat16": INT32_DATA}

KINDS = "Gluon parameters, an ONNX model or safetensors"
MXNET = struct.pack("<Q", FILE_MAGIC)  # what Gluon parameters begin with
OTHERS = {  # what files begin with that are refused with advice
    b"PK": "a zip archive or a PyTorch checkpoint: unpack an archive; save a PyTorch checkpoint as .safetensors "
    "(safetensors.torch.save_file)",
    b"\x80\x02": "a PyTorch checkpoint of before version 1.6: save it as .safetensors (safetensors.torch.save_file)",
    b"\x89HDF": "an HDF5 file, as Keras writes them",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: download the file",
}


def read(file):
    """{name: NDArray} in float32, the weights in a file, with the names that the file has.

    Reads what mx.nd.save wrote, ONNX models, safetensors, and a checkpoint given by its prefix: PREFIX-0000.params.
    Raises InputError if the file is missing, invalid, or of another kind.
    """
    file = resolved(file)
    try:
        with open(file, "rb") as opened:
            start = opened.read(32)
            data = memoryview(b"" if start.startswith(MXNET) else start + opened.read())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}")
    if start.startswith(MXNET):
        arrays = {name: value.astype("float32", copy=False) for name, value in read_arrays(file).items()}
        return _finite(arrays, file)
    safe = start[8:9] == b"{"  # safetensors begin with the length of their header, which may be any bytes
    for other, what in OTHERS.items():
        if start.startswith(other) and not safe:
            raise InputError(f"{file}: {what}; expected {KINDS}")
    try:
        arrays = _safetensors(data) if safe else _initialisers(data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(f"{file}: expected {KINDS}; the file may be truncated ({type(error).__name__}: {error})")
    arrays = {name: value for name, value in arrays.items() if value.size}  # an exporter's empty arrays are no weights
    if not arrays:
        raise InputError(f"{file}: contains no weights; expected {KINDS}")
    return _finite({name: mx.nd.array(np.atleast_1d(value), dtype="float32") for name, value in arrays.items()}, file)


def resolved(file):
    """The file that is meant: PREFIX-0000.params if there is no file PREFIX, but that one."""
    parameters = f"{file}-0000.params"
    return parameters if not Path(file).exists() and Path(parameters).exists() else file


def _finite(arrays, file):
    for name, value in arrays.items():
        if not np.isfinite(value.asnumpy()).all():
            raise InputError(f"{file}: {name} contains values that are not finite; the file may be damaged")
    return arrays


def write_safetensors(file, arrays, metadata):
    """Writes {name: NDArray}, in float32, and metadata {key: text} in the format that `_safetensors` reads."""
    header, end, values = {"__metadata__": metadata}, 0, []
    for name, value in arrays.items():
        values.append(value.asnumpy().astype(SAFETENSORS_TYPES["F32"]).tobytes())
        start, end = end, end + len(values[-1])
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    with replacing(file) as part:
        part.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *values]))


def _safetensors(data):
    """{name: array} of safetensors: the header's length in 8 bytes, the header in JSON, the values of all arrays."""
    start = 8 + struct.unpack_from("<Q", data)[0]
    if start > len(data):
        raise ValueError("unexpected end of the header")
    header = json.loads(bytes(data[8:start]).decode())
    header.pop("__metadata__", None)
    arrays, at = {}, start
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = (start + offset for offset in entry["data_offsets"])
        if not at == first <= end <= len(data):  # there are no gaps; arrays that overlap could take any memory
            raise ValueError(f"{name} does not follow the array before it, or reaches beyond the end of the file")
        at = end
        if entry["dtype"] in SAFETENSORS_TYPES:
            arrays[name] = _floats(data[first:end], SAFETENSORS_TYPES[entry["dtype"]]).reshape(entry["shape"])
    if at != len(data):
        raise ValueError(f"{len(data)} bytes, expected {at}")
    return arrays


def _initialisers(data):
    """{name: array} of the initialisers of an ONNX model, its weights."""
    graphs = [value for number, value in protobuf.fields(data) if number == GRAPH]
    fields = [field for graph in graphs for field in protobuf.fields(graph)]
    tensors = list(filter(None, (_tensor(value) for number, value in fields if number == INITIALISER)))
    arrays = dict(tensors)
    if len(arrays) < len(tensors):
        raise ValueError("two initialisers have one name")
    return arrays


def _tensor(data):
    """(name, array) of ONNX's TensorProto, or None if its values are integers."""
    fields = {}
    for number, value in protobuf.fields(data):
        fields.setdefault(number, []).append(value)
    name, kind = fields[NAME][0].tobytes().decode(), ONNX_TYPES.get(fields[DATA_TYPE][0])
    if kind is None:
        return None
    if fields.get(DATA_LOCATION, [0])[0]:
        raise ValueError(f"{name} is in another file")
    shape, parts = _integers(fields.get(DIMS, [])), fields.get(RAW_DATA)
    if parts is None:
        parts = fields.get(TYPED_DATA[kind], [])
        if TYPED_DATA[kind] == INT32_DATA:
            parts = [np.array(_integers(parts), "<u2")]
    values = np.concatenate([np.empty(0, np.float32), *(_floats(part, kind) for part in parts)])
    if not values.size and 0 not in shape:
        raise ValueError(f"{name} has no values")
    return name, values.reshape(shape)


def _floats(data, kind):
    """The float32 array of little-endian values."""
    if kind == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    with np.errstate(over="ignore"):  # `read` looks for infinite values
        return np.frombuffer(data, kind).astype(np.float32)


def _integers(values):
    """The integers of a repeated field: one by one, or packed into bytes."""
    found = []
    for value in values:
        found += [value] if isinstance(value, int) else protobuf.varints(value)
    return found
