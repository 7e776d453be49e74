"""The index as files: what is kept after an interruption, at any byte and between any two steps."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from cgd.data.pictures import Picture
from cgd.retrieval import index
from cgd.system.errors import InputError

FACTS = {
    "name": "net",
    "checksum": "a",
    "image_width": 8,
    "image_height": 8,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "dim": 3,
    "dtype": "float32",
    "stored": "float32",
}
PICTURES = [
    Picture(f"{name}.jpg", 10, number, (0, 0, 5, 5) if number else None, None) for number, name in enumerate("abcd")
]
PICTURES[3] = PICTURES[3]._replace(path='no \udcff UTF-8\n"quoted".jpg', label="class")


def vector_of(picture):
    """A vector that tells which picture it is of."""
    return [1 + picture.mtime, len(picture.path), picture.size]


def described(folder, pictures, name="1-of-1", facts=FACTS):
    """An index to which these pictures were added, not published."""
    current = index.Index(folder, facts)
    part = current.part(name)
    for picture in current.missing(pictures):
        part.append([picture], [vector_of(picture)])
    part.close()
    return current


def published(folder):
    """{picture: its vector} of an index."""
    _, items, vectors = index.read(folder)
    return dict(zip(items, map(list, vectors.tolist())))


def expected(pictures):
    return {picture: vector_of(picture) for picture in pictures}


def test_what_is_published_is_what_was_added(tmp_path):
    assert described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos") == (4, 0)
    assert published(tmp_path / "i") == expected(PICTURES)
    assert [picture for picture in index.read(tmp_path / "i")[1]] == PICTURES  # in the order that was given
    names = sorted(path.name for path in (tmp_path / "i").iterdir())
    assert names == [".lock", "index.json", "items.jsonl", "vectors.npy"]


def test_items_are_taken_as_those_of_a_list(tmp_path):
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    _, items, _ = index.read(tmp_path / "i")
    assert [items[-1], *items[1:3]] == [items[len(items) - 1], items[1], items[2]] and len(items[:99]) == len(items)
    with pytest.raises(IndexError):
        items[len(items)]


def test_changed_pictures_are_missing_and_deleted_ones_dropped(tmp_path):
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    changed = PICTURES[0]._replace(size=11)
    now = [changed, PICTURES[1], PICTURES[2]._replace(label="of another class")]
    assert index.Index(tmp_path / "i", FACTS).missing(now) == [changed]
    assert described(tmp_path / "i", now).publish(now, "/photos") == (3, 1)
    assert published(tmp_path / "i") == expected(now)


def test_shares_are_published_together_whatever_their_number(tmp_path):
    for name, pictures in (("1-of-3", PICTURES[::2]), ("3-of-3", PICTURES[3:])):
        described(tmp_path / "i", pictures, name)
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    described(tmp_path / "alone", PICTURES).publish(PICTURES, "/photos")
    for name in (index.VECTORS, index.ITEMS, index.FACTS):
        assert (tmp_path / "i" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize("ending", [".f", ".jsonl"])
def test_a_part_cut_anywhere_keeps_its_complete_pictures(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    described(tmp_path / "whole", PICTURES)
    part = tmp_path / "whole" / index.PARTS / "1-of-1"
    length = os.path.getsize(f"{part}{ending}")
    header = len(part.with_suffix(".jsonl").read_bytes().splitlines(keepends=True)[0])
    for kept in range(0, length, 1 if ending == ".f" else 7):
        folder = tmp_path / str(kept)
        shutil.copytree(str(tmp_path / "whole"), str(folder))
        os.truncate(str(folder / index.PARTS / ("1-of-1" + ending)), kept)
        before = len(index.Index(folder, FACTS).missing(PICTURES))
        if ending == ".f":
            assert before == 4 - kept // 12
        elif kept <= header:
            assert before == 4
        described(folder, PICTURES).publish(PICTURES, "/photos")
        assert published(folder) == expected(PICTURES), kept
        shutil.rmtree(str(folder))


def test_zeros_after_a_power_failure_are_not_taken_for_vectors(tmp_path):
    described(tmp_path / "i", PICTURES)
    with open(str(tmp_path / "i" / index.PARTS / "1-of-1.f"), "rb+") as file:
        file.seek(24)
        file.write(bytes(24))
    assert index.Index(tmp_path / "i", FACTS).missing(PICTURES) == PICTURES[1:]  # the second could end in zeros, too
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    assert published(tmp_path / "i") == expected(PICTURES)


def test_zeros_that_begin_within_a_vector_or_end_before_the_last_line(tmp_path):
    described(tmp_path / "i", PICTURES)
    part = tmp_path / "i" / index.PARTS / "1-of-1"
    with open(f"{part}.f", "rb+") as file:
        file.seek(20)
        file.write(bytes(28))
    described(tmp_path / "i", PICTURES)
    lines = part.with_suffix(".jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = bytes(len(lines[2]) - 1) + b"\n"
    part.with_suffix(".jsonl").write_bytes(b"".join(lines))
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    assert published(tmp_path / "i") == expected(PICTURES)


def test_a_command_that_failed_before_it_described_anything_binds_nobody(tmp_path):
    begun, other = index.Index(tmp_path / "i", FACTS).part("1-of-1"), dict(FACTS, checksum="b", dim=4)
    with pytest.raises(InputError, match="described by another network"):  # it may still describe something
        index.Index(tmp_path / "i", other)
    begun.close()
    current = index.Index(tmp_path / "i", other)
    part = current.part("1-of-1")
    part.append(PICTURES[:1], [[1, 2, 3, 4]])
    part.close()
    assert current.publish(PICTURES, "/photos") == (1, 0)
    assert index.read(tmp_path / "i")[0]["checksum"] == "b"


@pytest.mark.parametrize("line", [0, 2])
@pytest.mark.parametrize("text", [b"garbage\n", b"[]\n"])
def test_a_damaged_line_of_a_part_is_told(tmp_path, line, text):
    described(tmp_path / "i", PICTURES)
    file = tmp_path / "i" / index.PARTS / "1-of-1.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:line], text, *lines[line + 1 :]]))
    with pytest.raises(InputError, match="1-of-1.jsonl: is damaged .*; remove it and 1-of-1.f beside it"):
        index.Index(tmp_path / "i", FACTS)


class Killed(BaseException):
    """In the place of SIGKILL."""


def test_nothing_is_lost_if_publishing_ends_between_any_two_steps(tmp_path, monkeypatch):
    described(tmp_path / "old", PICTURES[:3]).publish(PICTURES[:3], "/photos")
    described(tmp_path / "old", PICTURES)
    for step in range(12):
        folder, left = tmp_path / str(step), [step]
        shutil.copytree(str(tmp_path / "old"), str(folder))

        def killed(real, left=left):
            def call(*arguments, **more):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **more)

            return call

        current = index.Index(folder, FACTS)
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed(os.replace))
            patched.setattr(os, "fsync", killed(os.fsync))
            patched.setattr(shutil, "rmtree", killed(shutil.rmtree))
            try:
                current.publish(PICTURES, "/photos")
            except Killed:
                pass
        current.lock.close()
        try:
            assert set(published(folder)) in (set(PICTURES[:3]), set(PICTURES))  # never a mixture
        except InputError as error:
            assert index.AGAIN in str(error)
        current = index.Index(folder, FACTS)
        assert not current.missing(PICTURES)
        current.publish(PICTURES, "/photos")
        assert published(folder) == expected(PICTURES)
        current.lock.close()
        if left[0]:
            return  # no step was left to be killed at
    pytest.fail("publishing has more steps than this test counts")


def test_two_processes_do_not_write_the_same(tmp_path):
    first = index.Index(tmp_path / "i", FACTS)
    part = first.part("1-of-1")
    second = index.Index(tmp_path / "i", FACTS)
    with pytest.raises(InputError, match="another process describes the same"):
        second.part("1-of-1")
    with pytest.raises(InputError, match="another process is writing"):
        second.publish(PICTURES, "/photos")
    part.close()


def test_an_index_that_is_published_while_another_process_opens_it(tmp_path, monkeypatch):
    """The other one waits for nothing, and finds its folder for parts."""
    described(tmp_path / "i", PICTURES[:2]).publish(PICTURES[:2], "/photos")
    first, real = described(tmp_path / "i", PICTURES[:3]), index._lock

    def lock(*arguments):
        monkeypatch.setattr(index, "_lock", real)
        first.publish(PICTURES[:3], "/photos")
        return real(*arguments)

    monkeypatch.setattr(index, "_lock", lock)
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    assert published(tmp_path / "i") == expected(PICTURES)


def test_a_move_that_another_process_has_ended_is_not_repeated(tmp_path):
    """A process may be killed while it writes .new, after this one has seen a move to end in it."""
    described(tmp_path / "i", PICTURES[:2]).publish(PICTURES[:2], "/photos")
    current = index.Index(tmp_path / "i", FACTS)
    (tmp_path / "i" / index.NEW).mkdir()
    (tmp_path / "i" / index.NEW / index.VECTORS).write_bytes(b"incomplete")
    current._move()
    assert published(tmp_path / "i") == expected(PICTURES[:2])


def test_files_that_are_replaced_while_they_are_read_are_not_mixed(tmp_path, monkeypatch):
    described(tmp_path / "i", PICTURES[:2]).publish(PICTURES[:2], "/photos")
    real, current = index.Items, described(tmp_path / "i", PICTURES[2:])

    def items(file):
        found = real(file)
        monkeypatch.setattr(index, "Items", real)
        current.publish(PICTURES[2:], "/photos")
        return found

    monkeypatch.setattr(index, "Items", items)
    with pytest.raises(InputError, match="not of one time"):
        index.read(tmp_path / "i")
    assert published(tmp_path / "i") == expected(PICTURES[2:])


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, kind):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(index.fcntl, "flock", flock)
    with pytest.raises(InputError, match="its file system has no flock"):
        index.Index(tmp_path / "i", FACTS)


@pytest.mark.parametrize(
    "key, value", [("checksum", "b"), ("stored", "float16"), ("image_width", 9), ("std", [1, 1, 2])]
)
@pytest.mark.parametrize("publish", [True, False])
def test_vectors_of_another_network_or_preparation_are_not_mixed(tmp_path, key, value, publish):
    if publish:
        described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    else:
        described(tmp_path / "i", PICTURES)
    with pytest.raises(InputError, match="give another folder by -o"):
        index.Index(tmp_path / "i", dict(FACTS, **{key: value}))


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is no index"):
        index.Index(tmp_path, FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    # nor if one of its files happens to have the name of one of an index
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match="is no index, and not empty"):
        index.Index(tmp_path, FACTS)
    with pytest.raises(InputError, match="no index .items.jsonl is missing."):
        index.read(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "letter.txt"]


def test_another_folder_of_pictures_does_not_replace_an_index(tmp_path):
    described(tmp_path / "i", PICTURES[:2]).publish(PICTURES[:2], "/photos/2019")
    current = index.Index(tmp_path / "i", FACTS)
    with pytest.raises(InputError, match="holds other pictures, of /photos/2019"):
        current.check_pictures(PICTURES[2:], "/photos/2020")
    current.check_pictures(PICTURES[2:], "/photos/2019")  # all of them replaced
    described(tmp_path / "k", PICTURES[:2]).publish(PICTURES[:2], str(tmp_path))
    for picture in PICTURES[:2]:
        (tmp_path / picture.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / picture.path).touch()
    with pytest.raises(InputError, match="holds other pictures"):  # another list of the same folder
        index.Index(tmp_path / "k", FACTS).check_pictures(PICTURES[2:], str(tmp_path))
    current.check_pictures(PICTURES[1:], "/photos/moved")


def test_a_folder_that_was_moved_needs_no_new_descriptions(tmp_path):
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    current = index.Index(tmp_path / "i", FACTS)
    assert not current.missing(PICTURES)
    current.publish(PICTURES, "/elsewhere")
    assert index.read(tmp_path / "i")[0]["folder"] == "/elsewhere"


def test_an_index_whose_parts_were_not_removed_may_be_moved(tmp_path, monkeypatch):
    """A kill between the move of the files and the removal of .parts leaves every vector in two places."""
    current = described(tmp_path / "i", PICTURES)
    current._look()
    with monkeypatch.context() as patch:
        patch.setattr(index.Index, "_move", lambda self: None)
        current._write(PICTURES, dict(FACTS, folder="/photos", count=4))
    current.lock.close()
    current = index.Index(tmp_path / "i", FACTS)  # ends the move; the parts stay
    assert list((tmp_path / "i" / ".parts").glob("*.jsonl"))
    current.check_pictures(PICTURES, "/elsewhere")
    current.publish(PICTURES, "/elsewhere")
    assert index.read(tmp_path / "i")[0]["folder"] == "/elsewhere"


def test_half_precision_and_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 3)
    facts = dict(FACTS, stored="float16")
    described(tmp_path / "i", PICTURES[1:3], "1-of-2", facts)
    described(tmp_path / "i", PICTURES, "2-of-2", facts).publish(PICTURES, "/photos")
    _, _, vectors = index.read(tmp_path / "i")
    assert vectors.dtype == np.float16 and vectors.tolist() == [vector_of(picture) for picture in PICTURES]


@pytest.mark.parametrize(
    "name, text",
    [("index.json", "{"), ("index.json", "[]"), ("items.jsonl", ""), ("vectors.npy", ""), ("vectors.npy", "x" * 999)],
)
def test_a_damaged_index_is_one_line(tmp_path, name, text):
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    (tmp_path / "i" / name).write_text(text)
    with pytest.raises(InputError, match="not a complete index"):
        index.read(tmp_path / "i")


def test_an_index_that_is_not_there_or_not_finished(tmp_path):
    with pytest.raises(InputError, match="python -m cgd.describe writes one"):
        index.read(tmp_path / "none")
    described(tmp_path / "i", PICTURES)
    with pytest.raises(InputError, match="not finished"):
        index.read(tmp_path / "i")


def test_the_checksum_is_of_the_networks_files(tmp_path):
    for ending in ("-symbol.json", "-0000.params"):
        (tmp_path / f"a{ending}").write_text("same")
        (tmp_path / f"b{ending}").write_text("same")
    same = index.checksum(str(tmp_path / "a"))
    assert index.checksum(str(tmp_path / "b")) == same
    (tmp_path / "b-0000.params").write_text("other")
    assert index.checksum(str(tmp_path / "b")) != same


def test_lines_are_json(tmp_path):
    described(tmp_path / "i", PICTURES).publish(PICTURES, "/photos")
    lines = (tmp_path / "i" / index.ITEMS).read_text().splitlines()
    assert [json.loads(line)["mtime"] for line in lines] == [0, 1, 2, 3]
