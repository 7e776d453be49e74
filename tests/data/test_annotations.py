"""Readers of annotation and list files, row by row."""

import sys

import pytest

from cgd.data import annotations
from cgd.system.errors import InputError
from conftest import BOXES, LIST, annotations_file

PARTITION = """3
image_name item_id evaluation_status
img/a.jpg   id_01   train
img/b.jpg id_02 query
img/c.jpg id_02 gallery
"""


def written(folder, text):
    file = folder / "file.txt"
    file.write_bytes(text.encode("utf-8"))
    return file


@pytest.mark.parametrize("extra", ["", "view_id ", "super_class_id "])
def test_a_list_is_read_as_written(tmp_path, extra):
    text = LIST.replace("class_id ", "class_id " + extra)
    if extra:
        text = text.replace(" images", " 7 images")
    assert annotations.read_list(written(tmp_path, text)) == [
        (2, 1, 0, "images/a.jpg"),
        (3, 2, 0, "images/b.jpg"),
        (4, 3, 1, "images/c with blank.jpg"),
    ]


def test_boxes_are_cut_to_whole_pixels(tmp_path):
    boxes = annotations.read_boxes(written(tmp_path, BOXES))
    assert boxes == {1: (60, 27, 325, 304), 2: (1, 2, 3, 4), 3: (5, 6, 7, 8)}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n") + "\n  \n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" ", "   "),
    ],
    ids=["Windows line ends", "byte order mark", "blank lines", "no last line end", "several blanks"],
)
def test_what_editors_do_to_a_file_does_not_matter(tmp_path, change):
    for text, read in ((LIST.replace(" with blank", ""), annotations.read_list), (BOXES, annotations.read_boxes)):
        expected = read(written(tmp_path, text))
        found = read(written(tmp_path, change(text)))
        if read is annotations.read_list:  # whose rows begin with the line's number
            expected, found = [row[1:] for row in expected], [row[1:] for row in found]
        assert found == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("1 0 images/a.jpg\n", "file.txt:1: .*header"),
        ("image_id class_id\n1 0\n", "file.txt:1: .*header"),
        ("image_id class_id whatever path\n1 0 0 a.jpg\n", "file.txt:1: .*header"),
        ("image_id class_id path\n1 0\n", "file.txt:2: expected 3 columns, found 2"),
        ("image_id class_id view_id path\n1 0 a.jpg\n", "file.txt:2: expected 4 columns, found 3"),
        ("image_id class_id view_id path\n1 0 x a.jpg\n", "file.txt:2: .*number.*'x'"),
        ("image_id class_id path\nx 0 a.jpg\n", "file.txt:2: .*number.*'x'"),
        ("image_id class_id path\n1 -1 a.jpg\n", "file.txt:2: .*'-1'"),
        ("image_id class_id path\n1 1.0 a.jpg\n", "file.txt:2: .*'1.0'"),
        ("image_id class_id path\n1 \u00b2 a.jpg\n", "file.txt:2: .*number"),
        ("image_id class_id path\n1 {} a.jpg\n".format("9" * 5000), "file.txt:2: .*number"),
        ("image_id class_id path\n1 0 a.jpg\n1 0 b.jpg\n", "file.txt:3: image 1 .*twice"),
        ("image_id class_id path\n1 0 a.jpg\n2 0 a.jpg\n", "file.txt:3: 'a.jpg' .*twice"),
        ("image_id class_id path\n", "no images"),
        ("", "file.txt: empty"),
        ("\n \n", "file.txt: empty"),
    ],
)
def test_a_bad_list_is_named_with_its_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        annotations.read_list(written(tmp_path, text))


@pytest.mark.parametrize(
    "row, words",
    [
        ("2 1 2 3", "file.txt:2: expected 5 columns, found 4"),
        ("2 1 2 3 4 5", "file.txt:2: .*'4 5'"),
        ("2 1 2 x 4", "file.txt:2: .*'x'"),
        ("2 1 2 nan 4", "file.txt:2: .*'nan'"),
        ("2 1 2 inf 4", "file.txt:2: .*'inf'"),
        ("2 1 2 1_0 4", "file.txt:2: .*'1_0'"),
        ("2 1 2 0.5 4", "file.txt:2: .*no area"),
        ("2 1 2 3 -4", "file.txt:2: .*no area"),
        ("2 -1 2 3 4", "file.txt:2: .*outside"),
        ("2 1 2 3 40000000", "file.txt:2: .*outside"),
        ("1 1 2 3 4", "file.txt:2: image 1 already has a box"),
        ("2.0 1 2 3 4", "file.txt:2: .*'2.0'"),
    ],
)
def test_a_bad_box_is_named_with_its_line(tmp_path, row, words):
    with pytest.raises(InputError, match=words):
        annotations.read_boxes(written(tmp_path, BOXES.replace("2 1 2 3 4", row)))


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.txt: No such file.*--data-dir"):
        annotations.read_boxes(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="Is a directory"):
        annotations.read_boxes(tmp_path)
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="picture.jpg: not a UTF-8 text file"):
        annotations.read_list(tmp_path / "picture.jpg")


def test_a_path_stays_in_its_folder():
    for path in ("a/b..c/.d.jpg", "\u5199\u771f\u3000\u4e00.jpg", "a\u00a0b.jpg"):  # blanks that are not ASCII's
        assert annotations.inside("data", path, "f", 1) == f"data/{path}"
    for path in ("../a.jpg", "a/../../b.jpg", "/a.jpg", ".."):
        with pytest.raises(InputError, match="f:7: .*outside the data folder"):
            annotations.inside("data", path, "f", 7)
    with pytest.raises(InputError, match="f:7: invalid file name"):
        annotations.inside("data", "a\0.jpg", "f", 7)


def test_a_partition_is_read_as_written(tmp_path):
    assert annotations.read_partition(written(tmp_path, PARTITION)) == [
        (3, "img/a.jpg", "id_01", "train"),
        (4, "img/b.jpg", "id_02", "query"),
        (5, "img/c.jpg", "id_02", "gallery"),
    ]


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("3\n", "4\n", "file.txt:1: announces 4 images, found 3"),
        ("3\n", "", "expected a count, then the header"),
        ("3\n", "three\n", "file.txt:1: .*'three'"),
        ("item_id ", "", "the header"),
        ("id_02 query", "query", "file.txt:4: expected a path"),
        ("query", "test", "file.txt:4: .*train, query or gallery"),
        ("img/c.jpg", "img/b.jpg", "file.txt:5: 'img/b.jpg' is listed twice"),
        ("img/c.jpg", "img/./b.jpg", "file.txt:5: 'img/./b.jpg' is listed twice"),
    ],
)
def test_a_bad_partition_is_named_with_its_line(tmp_path, old, new, words):
    with pytest.raises(InputError, match=words):
        annotations.read_partition(written(tmp_path, PARTITION.replace(old, new)))


def test_cars_boxes_turn_from_corners_to_sizes(tmp_path):
    file = annotations_file(
        tmp_path, [("car_ims/1.jpg", 112, 7, 853, 717, 1), ("car_ims/2.jpg", 48, 24, 441, 202, 196)]
    )
    assert annotations.read_cars(file, "relative_im_path") == [
        (1, "car_ims/1.jpg", 1, (112, 7, 741, 710)),
        (2, "car_ims/2.jpg", 196, (48, 24, 393, 178)),
    ]


@pytest.mark.parametrize(
    "row, words",
    [
        (("a.jpg", 5, 5, 5, 9, 1), "annos.mat:2: the box has no area"),
        (("a.jpg", 5, 5, "x", 9, 1), "annos.mat:2: expected a number, found 'x'"),
        (("a.jpg", 5, 5, float("nan"), 9, 1), "annos.mat:2: expected a number, found nan"),
        (("a.jpg", 5, 5, [7, 8], 9, 1), "annos.mat:2: expected a single value"),
        ((3, 5, 5, 7, 9, 1), "annos.mat:2: expected a file name"),
    ],
)
def test_a_bad_car_is_named_with_its_number(tmp_path, row, words):
    with pytest.raises(InputError, match=words):
        annotations.read_cars(annotations_file(tmp_path, [("a.jpg", 1, 1, 2, 2, 1), row]), "relative_im_path")


def test_a_matlab_file_without_what_is_needed_is_named(tmp_path):
    file = annotations_file(tmp_path, [("a.jpg", 1, 1, 2, 2)], ["fname", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"])
    with pytest.raises(InputError, match="annos.mat: .*with labels"):
        annotations.read_cars(file, "fname")
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"no MATLAB file"):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="annos.mat"):
            annotations.read_cars(file, "fname")
    with pytest.raises(InputError, match="nowhere.mat: no such file"):
        annotations.read_cars(tmp_path / "nowhere.mat", "fname")


def test_a_matlab_file_that_crashes_scipy_is_named(tmp_path):
    file = annotations_file(tmp_path, [("a.jpg", 1, 1, 2, 2, 1)])
    data = bytearray(file.read_bytes())
    assert data[-16:] == b"\x0c\0\0\0\x08\0\0\0\x01" + bytes(7)  # the last number: its type, its bytes, the 1
    data[-16] = 112  # no type
    file.write_bytes(data)
    with pytest.raises(InputError, match="annos.mat: .*may be truncated"):
        annotations.read_cars(file, "relative_im_path")


def test_without_scipy_its_install_line_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    (tmp_path / "annos.mat").touch()
    with pytest.raises(InputError, match="annos.mat: .*pip install scipy"):
        annotations.read_cars(tmp_path / "annos.mat", "fname")


def test_one_image_under_two_spellings_is_listed_twice(tmp_path):
    """It would find itself."""
    file = tmp_path / "list.txt"
    file.write_text("image_id class_id path\n1 0 images/a.png\n2 0 ./images//a.png\n")
    with pytest.raises(InputError, match="list.txt:3: './images//a.png' is listed twice"):
        annotations.read_list(file)
