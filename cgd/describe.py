"""Describes the pictures of a folder, or of a list, and keeps their descriptors in an index to be searched.

    python -m cgd.describe runs/demo-MG-1/last photos -o photos-index
    python -m cgd.search photos-index photo.jpg

Run again, it describes new and changed pictures, and drops those that are gone. Stopped at any moment, it goes on
where it was. Pictures that cannot be read are reported and skipped. They are prepared as test.py does it; EXIF
orientation is ignored.

A list has a path in each line, or the header `image_id class_id path` and the same columns, which can have boxes
(--bbox-txt).

Several machines, or the tasks of a Slurm array, that see the same folders can share the work. When all have ended, the
command without --shard makes the index of what they have described, and describes what is missing:

    python -m cgd.describe PREFIX photos -o photos-index --shard 1/4      # on the first of 4 machines, and so on
    python -m cgd.describe PREFIX photos -o photos-index

The index is a folder: vectors.npy, (N, dim), rows of length 1; items.jsonl, a line with path, size, mtime, crop and
class (label) for each row; and index.json, which says how the pictures were described. Paths are relative to the folder
of the pictures, which may be moved: then describe it again.
"""

import argparse
import os
import re
import sys
import zlib

from cgd.data import flags, pictures
from cgd.network import descriptions
from cgd.network.options import DTYPES
from cgd.retrieval import index
from cgd.system import errors


def arguments():
    parser = errors.Parser(
        prog="python -m cgd.describe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prefix", metavar="PREFIX", help="the checkpoint: its path up to -symbol.json; or FILE.onnx")
    add("source", metavar="FOLDER_OR_LIST", help="a folder, searched with its subfolders; or a list file")
    add("-o", "--output", required=True, metavar="INDEX", help="folder of the index")
    add = parser.add_argument_group("pictures").add_argument
    add("--data-dir", metavar="DIR", help="folder of the pictures in a list (default: the list's folder)")
    add("--bbox-txt", metavar="FILE", help="bounding boxes of the listed pictures, to which they are cropped")
    add("--class-folders", action="store_true", help="the name of a picture's folder is its class")
    add = parser.add_argument_group("device").add_argument
    flags.add_device_flags(add)
    flags.add_workers_flag(add)
    add("--dtype", choices=DTYPES, default="float32", help="precision on a CPU (default: float32)")
    add = parser.add_argument_group("index").add_argument
    help_ = "type of the stored descriptors: float16 takes half the space (default: float32)"
    add("--stored", choices=index.STORED, default="float32", help=help_)
    add("--shard", type=shard, metavar="I/N", help="describe the I-th of N shares of the pictures, I from 1 to N")
    options = parser.parse_args()
    options.runtime = descriptions.choose_runtime(options.prefix, options.runtime, options.dtype)
    return options


def shard(text):
    """An argparse type: "2/4" -> (2, 4)."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found.group(1)) <= int(found.group(2)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, as in 1/4, found {text!r}")
    return int(found.group(1)), int(found.group(2))


def share(found, part):
    """The pictures of one share. It depends on the path alone, so that new pictures do not move others."""
    number, count = part
    return [picture for picture in found if zlib.crc32(os.fsencode(picture.path)) % count == number - 1]


def describe(options, root, todo, part):
    """Describes pictures, batch by batch, into a part of the index. Returns how many could be read."""
    # Not before: these import MXNet, which takes far longer than all the above.
    from cgd.retrieval import describer

    described = 0
    for numbers, vectors in describer.stream(options, root, todo):
        part.append([todo[number] for number in numbers], vectors)
        described += len(numbers)
    return described


def main():
    options = arguments()
    description = descriptions.read_with_dim(options.prefix)
    root, found = pictures.find(options.source, options.data_dir, options.bbox_txt, options.class_folders)
    if description["cropped"] and not options.bbox_txt:
        text = "note: this network was trained on pictures cropped to their objects; whole ones are retrieved less well"
        print(text, file=sys.stderr)
    dtype = description["dtype"] if options.dtype == "float32" else options.dtype
    facts = dict(index.facts_of(options.prefix, description), dtype=dtype, stored=options.stored)
    current = index.Index(options.output, facts)
    current.check_pictures(found, root)
    if not any(picture.label for picture in found) and any(item.label for item in current.items):
        text = "--class-folders, or a list with classes, keeps them"
        print(f"note: {options.output} had labels, which are dropped; {text}", file=sys.stderr)
    todo = current.missing(share(found, options.shard) if options.shard else found)
    described = 0
    if todo:
        part = current.part("{}-of-{}".format(*options.shard or (1, 1)))
        described = describe(options, root, todo, part)
        part.close()
    skipped = f", {len(todo) - described} skipped as unreadable" if len(todo) > described else ""
    if options.shard:
        print(f"share {options.shard[0]} of {options.shard[1]}: {described} pictures described{skipped}")
        return
    count, dropped = current.publish(found, root)
    gone = f", {dropped} dropped" if dropped else ""
    print(f"{described} pictures described{skipped}{gone}; {options.output} holds {count}")


if __name__ == "__main__":
    errors.run(main)
