"""Readers of annotation and list files."""

import shutil
from pathlib import Path

import pytest

from cgd import datasets
from cgd.errors import InputError

LIST = "image_id class_id path\n1 0 images/a.jpg\n2 0 images/b.jpg\n3 1 images/c with blank.jpg\n"
BOXES = "1 60.9 27.0 325.0 304.0\n2 1 2 3 4\n3 5 6 7 8\n"


@pytest.fixture
def files(tmp_path):
    """A data folder with three pictures (empty files: pictures are looked up, not opened) and its lists."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c with blank"):
        (tmp_path / "images" / (name + ".jpg")).touch()
    (tmp_path / "list.txt").write_text(LIST)
    (tmp_path / "bbox.txt").write_text(BOXES)
    return tmp_path


def test_a_list_file_is_read_as_written(files):
    dataset = datasets.load("lists", files, None, files / "list.txt", files / "bbox.txt")
    assert dataset.train == []
    assert dataset.test == [
        datasets.Record(files / "images/a.jpg", 0, (60, 27, 325, 304), 1),  # 60.9 is cut to 60
        datasets.Record(files / "images/b.jpg", 0, (1, 2, 3, 4), 2),
        datasets.Record(files / "images/c with blank.jpg", 1, (5, 6, 7, 8), 3),
    ]


def test_windows_line_ends_and_blank_lines_do_not_matter(files):
    (files / "dos.txt").write_bytes(LIST.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert datasets.read_list(files / "dos.txt", files) == datasets.read_list(files / "list.txt", files)


@pytest.mark.parametrize(
    "text, words",
    [
        ("1 0 images/a.jpg\n", "list.txt:1: .*header"),
        ("image_id class_id path\n1 0\n", "list.txt:2: expected 3 columns"),
        ("image_id class_id path\nx 0 a.jpg\n", "list.txt:2: .*number.*'x'"),
        ("image_id class_id path\n1 -1 a.jpg\n", "list.txt:2: .*'-1'"),
        ("image_id class_id path\n1 0 a.jpg\n1 0 b.jpg\n", "list.txt:3: image 1 .*twice"),
        ("image_id class_id path\n1 0 ../a.jpg\n", "list.txt:2: .*out of the data folder"),
        ("image_id class_id path\n1 0 /a.jpg\n", "list.txt:2: .*out of the data folder"),
        ("image_id class_id path\n", "no images"),
        ("", "list.txt: empty"),
    ],
)
def test_a_bad_list_is_named_with_its_line(files, text, words):
    (files / "list.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        datasets.read_list(files / "list.txt", files)


@pytest.mark.parametrize(
    "text, words",
    [
        (BOXES.replace("1 2 3 4", "1 2 3"), "bbox.txt:2: expected 5 columns"),
        (BOXES.replace("1 2 3 4", "1 2 x 4"), "bbox.txt:2: .*'x'"),
        (BOXES.replace("1 2 3 4", "1 2 nan 4"), "bbox.txt:2: .*'nan'"),
        (BOXES.replace("1 2 3 4", "1 2 inf 4"), "bbox.txt:2: .*'inf'"),
        (BOXES.replace("1 2 3 4", "1 2 0.5 4"), "bbox.txt:2: .*no area"),
        (BOXES.replace("2 1 2", "1 1 2"), "bbox.txt:2: image 1 has a box already"),
        ("1 60 27 325 304\n3 5 6 7 8\n", "list.txt:3: image 2 has no bounding box"),
    ],
)
def test_a_bad_box_file_is_named_with_its_line(files, text, words):
    (files / "bbox.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        datasets.load("lists", files, None, files / "list.txt", files / "bbox.txt")


def test_missing_pictures_are_counted_before_any_work(files):
    (files / "images" / "b.jpg").unlink()
    with pytest.raises(InputError, match="1 of 3 images.*b.jpg"):
        datasets.load("lists", files, None, files / "list.txt")


def test_missing_annotations_name_the_flag(tmp_path):
    with pytest.raises(InputError, match="images.txt|image_class_labels.txt"):
        datasets.load("cub200", tmp_path)
    with pytest.raises(InputError, match="--train-txt and --test-txt"):
        datasets.load("lists", tmp_path)
    with pytest.raises(InputError, match="go with --test-txt"):
        datasets.load("cub200", tmp_path, train_txt="x")


def test_the_demo_set_reads_as_drawn(small_demo):
    dataset = datasets.load("demo", small_demo)
    assert len(dataset.train) == len(dataset.test) == 24
    for half, first in ((dataset.train, 1), (dataset.test, 5)):
        for record in half:
            assert record.path.is_file()
            assert record.path.parent.name.startswith("{:03d}.".format(record.identity + first))
    by_hand = dict(line.split(None, 1) for line in (small_demo / "bounding_boxes.txt").read_text().splitlines())
    for record in dataset.train + dataset.test:
        assert record.box == tuple(int(float(word)) for word in by_hand[str(record.image_id)].split())


def test_a_class_file_without_one_images_class_is_an_error(small_demo, tmp_path):
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        shutil.copy(str(small_demo / name), str(tmp_path / name))
    lines = (tmp_path / "image_class_labels.txt").read_text().splitlines()
    (tmp_path / "image_class_labels.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="images.txt:48: image 48 has no class"):
        datasets.cub200(tmp_path)


def test_statistics_are_the_released_table():
    record = datasets.Record(Path("x"), 0, None, 1)
    train = [record, record._replace(identity=1), record._replace(identity=1)]
    assert datasets.statistics(datasets.Dataset("x", train, [record], (1,))) == "\n".join(
        [
            "###### Dataset Statistics ######",
            "+------------------------------+",
            "| Subset  | #Classes | #Images |",
            "+------------------------------+",
            "| Train   |        2 |       3 |",
            "| Test    |        1 |       1 |",
            "+------------------------------+",
            "| Total   |        3 |       4 |",
            "+------------------------------+",
        ]
    )


def test_cubs_official_files_give_the_papers_split(shared):
    dataset = datasets.cub200(shared / "data" / "CUB_200_2011")
    assert (len(dataset.train), len(dataset.test)) == (5864, 5924)
    assert (datasets.count_identities(dataset.train), datasets.count_identities(dataset.test)) == (100, 100)


def test_cubs_official_files_and_the_released_lists_give_the_same_records(shared):
    lists = shared / "data" / "released_lists" / "CUB200"
    folder = shared / "data" / "CUB_200_2011"
    from_lists = datasets.from_lists(folder, lists / "train.txt", lists / "test.txt", lists / "bbox.txt", "cub200")
    assert from_lists == datasets.cub200(folder)
