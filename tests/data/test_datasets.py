"""Data sets: from files in every layout to records, and what is checked before any work."""

import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest

from cgd.data import datasets, flags
from cgd.data.datasets import Class, Record
from cgd.system.errors import InputError
from conftest import BOXES, LIST, annotations_file


def touch(folder, names):
    """Empty files: pictures are looked up, not opened."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def files(tmp_path):
    """A data folder with three pictures and its lists."""
    touch(tmp_path, ["images/{}.jpg".format(name) for name in ("a", "b", "c with blank")])
    (tmp_path / "list.txt").write_text(LIST)
    (tmp_path / "bbox.txt").write_text(BOXES)
    return tmp_path


def any_size(monkeypatch, name):
    """The data set of this name without the check of its official counts."""
    monkeypatch.setitem(datasets.SOURCES, name, datasets.SOURCES[name]._replace(counts=None))


def test_list_files_with_boxes(files):
    dataset = datasets.load("lists", files, files / "list.txt", files / "list.txt", files / "bbox.txt")
    assert (
        dataset.train
        == dataset.test
        == [
            Record(str(files / "images/a.jpg"), 0, (60, 27, 325, 304), 1),  # 60.9 is cut to 60
            Record(str(files / "images/b.jpg"), 0, (1, 2, 3, 4), 2),
            Record(str(files / "images/c with blank.jpg"), 1, (5, 6, 7, 8), 3),
        ]
    )
    assert dataset.gallery is None and dataset.ranks == (1, 2, 4, 8)


def test_identities_are_numbered_from_0_without_gaps(files):
    """Else the classifier would have no logit for some, and none would notice."""
    (files / "list.txt").write_text(LIST.replace("3 1 ", "3 12000 ").replace(" 0 ", " 11319 "))
    dataset = datasets.load("lists", files, files / "list.txt", files / "list.txt")
    assert [record.identity for record in dataset.train] == [0, 0, 1]


def test_a_gallery_has_the_numbers_of_its_queries(files):
    (files / "gallery.txt").write_text("image_id class_id path\n8 1 images/a.jpg\n9 7 images/b.jpg\n")
    dataset = datasets.load("lists", files, None, files / "list.txt", None, files / "gallery.txt")
    assert [record.identity for record in dataset.test] == [0, 0, 1]
    assert [record.identity for record in dataset.gallery] == [1, 2]
    assert dataset.classes == [Class(0, ""), Class(1, ""), Class(7, "")]
    assert dataset.train == []


def test_an_image_without_a_box_is_named(files):
    (files / "bbox.txt").write_text("1 60 27 325 304\n3 5 6 7 8\n")
    with pytest.raises(InputError, match="list.txt:3: image 2 has no bounding box"):
        datasets.load("lists", files, None, files / "list.txt", files / "bbox.txt")


def test_a_path_that_leaves_the_data_folder_is_named(files):
    (files / "list.txt").write_text(LIST.replace("images/b.jpg", "images/../../b.jpg"))
    with pytest.raises(InputError, match="list.txt:3: .*outside the data folder"):
        datasets.load("lists", files, None, files / "list.txt")


def test_missing_pictures_are_counted_before_any_work(files):
    (files / "images" / "b.jpg").unlink()
    with pytest.raises(InputError, match="1 of 3 images are missing, the first of them .*b.jpg"):
        datasets.load("lists", files, None, files / "list.txt")
    shutil.rmtree(str(files / "images"))
    with pytest.raises(InputError, match="3 of 3 images are missing, the first of them .*a.jpg"):
        datasets.load("lists", files, None, files / "list.txt")


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop", "folders"])
def test_a_missing_and_an_empty_folder_are_told(tmp_path, name):
    with pytest.raises(
        InputError, match="nowhere: no such folder.*--data-dir" + ("" if name == "folders" else ".*download.sh " + name)
    ):
        datasets.load(name, tmp_path / "nowhere")
    with pytest.raises(InputError, match=str(tmp_path)):
        datasets.load(name, tmp_path)


def test_flags_that_do_not_go_together_are_told(files):
    with pytest.raises(InputError, match="--train-txt and --test-txt"):
        datasets.load("lists", files)
    for words in ({"train_txt": "x"}, {"bbox_txt": "x"}, {"gallery_txt": "x"}):
        with pytest.raises(InputError, match="require --test-txt"):
            datasets.load("lists", files, **words)
    with pytest.raises(InputError, match="no data set 'cub'; .*cub200, cars196"):
        datasets.load("cub")


def official_counts(monkeypatch, name, **counts):
    monkeypatch.setitem(datasets.SOURCES, name, datasets.SOURCES[name]._replace(counts=counts))


@pytest.mark.parametrize("half", ["train", "test"])
def test_official_files_with_another_number_of_images_are_an_error(small_demo, monkeypatch, half):
    official_counts(monkeypatch, "demo", **dict({"train": (4, 24), "test": (4, 24)}, **{half: (5, 25)}))
    with pytest.raises(InputError, match=f"{half} split has 4 classes and 24 images, the official one 5 and 25"):
        datasets.load("demo", small_demo)


@pytest.mark.parametrize("flag", ["train_txt", "test_txt", "bbox_txt", "gallery_txt"])
def test_a_list_that_is_in_the_data_folder_only_is_told_with_its_path(files, monkeypatch, flag):
    monkeypatch.chdir(files.parent)
    words = {"test_txt": str(files / "list.txt"), "train_txt": str(files / "list.txt"), flag: "list.txt"}
    told = f"list.txt: no such file; lists are not looked for in --data-dir: give {files}/list.txt$"
    with pytest.raises(InputError, match=told):
        datasets.load("lists", str(files), **words)


@pytest.mark.parametrize("flag", ["train", "test", "bbox", "gallery"])
def test_a_list_that_is_not_there_is_told_with_its_flag(files, flag):
    for name, what in (("gone.txt", "no such file"), ("", "is a folder")):
        words = {"test_txt": files / "list.txt", "train_txt": files / "list.txt", f"{flag}_txt": files / name}
        with pytest.raises(InputError, match=f"--{flag}-txt {files / name}: {what}; expected a list file$"):
            datasets.load("lists", files, **words)
    for need_training, told in ((True, "lists by --train-txt and --test-txt"), (False, "list by --test-txt")):
        with pytest.raises(InputError, match=f"give its {told}, and the images' folder by --data-dir"):
            datasets.load("lists", files, need_training=need_training)


def test_lists_given_by_hand_may_have_any_number_of_images(files, capsys):
    dataset = datasets.load("cub200", files, None, files / "list.txt", files / "bbox.txt")
    assert [record.image_id for record in dataset.test] == [1, 2, 3]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "3 images, the official one 100 and 5924" in line
    datasets.load("cub200", files, files / "list.txt", files / "list.txt")
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the train split" in line and "the test split" in line
    official = datasets.load("cub200", files, files / "list.txt", files / "list.txt")
    with pytest.raises(InputError, match="the only training image of its class"):
        datasets.check_trainable(official)


def test_lists_of_the_official_size_are_not_warned_of(files, monkeypatch, capsys):
    official_counts(monkeypatch, "cub200", train=(2, 3), test=(2, 3))
    rows = (files / "list.txt").read_text().replace("jpg", "png").splitlines()
    others = [
        "{} {} {}".format(image, int(label) + 100, path) for image, label, path in (r.split(" ", 2) for r in rows[1:])
    ]
    (files / "test.txt").write_text("\n".join([rows[0], *others]))
    touch(files, ["images/{}.png".format(name) for name in ("a", "b", "c with blank")])
    datasets.load("cub200", files, files / "list.txt", files / "test.txt")
    assert capsys.readouterr().err == ""


def test_lists_are_compared_with_one_another(files, capsys):
    """Two of the three images of a list stand in another one, too, whose ids count from 1 again."""
    rows = (files / "list.txt").read_text().splitlines()
    again = ["{} {} ./{}".format(number, *row.split(maxsplit=2)[1:]) for number, row in enumerate(rows[2:], 1)]
    (files / "two.txt").write_text("\n".join([rows[0], *again]))
    datasets.load("lists", files, files / "two.txt", files / "list.txt", None, files / "two.txt")
    told = capsys.readouterr().err.splitlines()
    unseen = "images in common: the recall is not one of unseen images"
    assert told[0].endswith(f"list.txt have 2 {unseen}") and told[1].endswith(f"two.txt have 2 {unseen}")
    assert told[2].endswith("two.txt have 2 images in common: each finds itself")
    assert len(told) == 3
    datasets.load("lists", files, files / "two.txt", files / "list.txt", need_training=False)
    assert capsys.readouterr().err.splitlines() == [told[0]]
    with pytest.raises(InputError, match="list.txt: image 1 is .*, but .* in .*two.txt; with --bbox-txt"):
        datasets.load("lists", files, files / "two.txt", files / "list.txt", files / "bbox.txt")


def test_queries_of_in_shop_need_their_gallery(files, monkeypatch):
    counts = {"test": (2, 3), "gallery": (2, 3)}
    monkeypatch.setitem(datasets.SOURCES, "inshop", datasets.SOURCES["inshop"]._replace(counts=counts))
    with pytest.raises(InputError, match="--gallery-txt"):
        datasets.load("inshop", files, None, files / "list.txt")
    dataset = datasets.load("inshop", files, None, files / "list.txt", None, files / "list.txt")
    assert len(dataset.gallery) == 3 and dataset.ranks == (1, 10, 20, 30, 40, 50)


def test_the_demo_set_reads_as_drawn(small_demo):
    dataset = datasets.load("demo", small_demo)
    assert len(dataset.train) == len(dataset.test) == 24
    for half, first in ((dataset.train, 1), (dataset.test, 5)):
        for record in half:
            path = Path(record.path)
            assert path.is_file()
            assert path.parent.name.startswith("{:03d}.".format(record.identity + first))
    by_hand = dict(line.split(None, 1) for line in (small_demo / "bounding_boxes.txt").read_text().splitlines())
    for record in dataset.train + dataset.test:
        assert record.box == tuple(int(float(word)) for word in by_hand[str(record.image_id)].split())


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("image_class_labels.txt", lambda lines: lines[:-1], "images.txt:48: image 48 has no class"),
        ("image_class_labels.txt", lambda lines: lines[:-1] + ["48 x"], "image_class_labels.txt:48: .*'x'"),
        ("image_class_labels.txt", lambda lines: lines[:-1] + ["48 0"], "image_class_labels.txt:48: .*from 1, found 0"),
        ("image_class_labels.txt", lambda lines: lines + lines[:1], "image_class_labels.txt:49: image 1 .*twice"),
        ("images.txt", lambda lines: lines + lines[:1], "images.txt:49: image 1 .*twice"),
        ("bounding_boxes.txt", lambda lines: lines[:-1], "images.txt:48: image 48 has no bounding box"),
    ],
)
def test_a_broken_cub_layout_is_named_with_its_line(small_demo, tmp_path, name, change, words):
    for other in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt"):
        shutil.copy(str(small_demo / other), str(tmp_path / other))
    lines = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join(change(lines)))
    with pytest.raises(InputError, match=words):
        datasets.load("demo", tmp_path)


CARS = [
    ("car_ims/000001.jpg", 112, 7, 853, 717, 1, 0),
    ("car_ims/000002.jpg", 48, 24, 441, 202, 98, 1),
    ("car_ims/000003.jpg", 7, 4, 277, 180, 99, 0),
    ("car_ims/000004.jpg", 33, 50, 197, 150, 196, 1),
]
FIELDS = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]


def test_cars196_in_its_first_layout(tmp_path, monkeypatch):
    any_size(monkeypatch, "cars196")
    annotations_file(tmp_path, CARS, FIELDS).rename(tmp_path / "cars_annos.mat")
    touch(tmp_path, [row[0] for row in CARS])
    dataset = datasets.load("cars196", tmp_path)
    assert dataset.train == [
        Record(str(tmp_path / "car_ims/000001.jpg"), 0, (112, 7, 741, 710), 1),
        Record(str(tmp_path / "car_ims/000002.jpg"), 1, (48, 24, 393, 178), 2),
    ]
    assert dataset.test == [
        Record(str(tmp_path / "car_ims/000003.jpg"), 0, (7, 4, 270, 176), 3),
        Record(str(tmp_path / "car_ims/000004.jpg"), 1, (33, 50, 164, 100), 4),
    ]
    assert dataset.classes == [Class(99, ""), Class(196, "")]


@pytest.mark.parametrize("place", ["devkit", "."])
def test_cars196_in_its_later_layout(tmp_path, monkeypatch, place):
    any_size(monkeypatch, "cars196")
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    (tmp_path / "devkit").mkdir()
    for half, rows, where in (("train", CARS[0::2], "devkit"), ("test", CARS[1::2], place)):
        rows = [(*row[1:6], "{:05d}.jpg".format(number)) for number, row in enumerate(rows, 1)]
        name = "cars_train_annos.mat" if half == "train" else "cars_test_annos_withlabels.mat"
        annotations_file(tmp_path, rows, fields).rename(tmp_path / where / name)
        touch(tmp_path / ("cars_" + half), ["00001.jpg", "00002.jpg"])
    dataset = datasets.load("cars196", tmp_path)
    assert dataset.train == [
        Record(str(tmp_path / "cars_train/00001.jpg"), 0, (112, 7, 741, 710), 1),
        Record(str(tmp_path / "cars_test/00001.jpg"), 1, (48, 24, 393, 178), 3),
    ]
    assert [(record.path[-9:], record.identity) for record in dataset.test] == [("00002.jpg", 0), ("00002.jpg", 1)]


def test_the_devkit_without_labels_is_not_enough(tmp_path):
    touch(tmp_path, ["devkit/cars_train_annos.mat", "devkit/cars_test_annos.mat"])
    with pytest.raises(InputError, match="expected cars_annos.mat, or .*cars_test_annos_withlabels.mat"):
        datasets.load("cars196", tmp_path)


def test_sop_from_its_own_lists(tmp_path, monkeypatch):
    any_size(monkeypatch, "sop")
    header = "image_id class_id super_class_id path\n"
    (tmp_path / "Ebay_train.txt").write_text(header + "1 1 1 bicycle_final/1_0.JPG\n2 1 1 bicycle_final/1_1.JPG\n")
    (tmp_path / "Ebay_test.txt").write_text(header + "3 11319 12 mug_final/2_0.JPG\n4 11320 12 mug_final/3_0.JPG\n")
    touch(tmp_path, ["bicycle_final/1_0.JPG", "bicycle_final/1_1.JPG", "mug_final/2_0.JPG", "mug_final/3_0.JPG"])
    dataset = datasets.load("sop", tmp_path)
    assert dataset.train[1] == Record(str(tmp_path / "bicycle_final/1_1.JPG"), 0, None, 2)
    assert [record.identity for record in dataset.test] == [0, 1]
    assert dataset.classes == [Class(11319, ""), Class(11320, "")]
    assert dataset.ranks == (1, 10, 100, 1000)
    (tmp_path / "Ebay_train.txt").write_text("no list")
    tested = datasets.load("sop", tmp_path, need_training=False)
    assert tested == dataset._replace(train=None)
    (tmp_path / "Ebay_train.txt").unlink()
    assert datasets.load("sop", tmp_path, need_training=False) == tested
    with pytest.raises(InputError, match="Ebay_train.txt"):
        datasets.load("sop", tmp_path)


@pytest.mark.parametrize("drive", [False, True], ids=["flat", "as on the authors' drive"])
def test_in_shop_is_queries_against_a_gallery(tmp_path, monkeypatch, drive):
    any_size(monkeypatch, "inshop")
    rows = ["img/W/a.jpg id_1 train", "img/W/b.jpg id_9 query", "img/W/c.jpg id_9 gallery", "img/W/d.jpg id_5 gallery"]
    file = tmp_path / ("Eval/list_eval_partition.txt" if drive else "list_eval_partition.txt")
    file.parent.mkdir(exist_ok=True)
    file.write_text("4\nimage_name item_id evaluation_status\n" + "\n".join(rows))
    pictures = tmp_path / "Img" if drive else tmp_path
    touch(pictures, [row.split()[0] for row in rows])
    dataset = datasets.load("inshop", tmp_path)
    assert dataset.train == [Record(str(pictures / "img/W/a.jpg"), 0, None, 1)]
    assert dataset.test == [Record(str(pictures / "img/W/b.jpg"), 0, None, 2)]
    assert dataset.gallery == [
        Record(str(pictures / "img/W/c.jpg"), 0, None, 3),
        Record(str(pictures / "img/W/d.jpg"), 1, None, 4),
    ]
    assert [known.name for known in dataset.classes] == ["id_9", "id_5"]
    assert "| Query   |        1 |       1 |" in datasets.statistics(dataset)
    assert "| Gallery |        2 |       2 |" in datasets.statistics(dataset)
    assert "| Total   |        3 |       4 |" in datasets.statistics(dataset)


def test_class_folders_are_split_by_their_names(tmp_path, capsys):
    touch(tmp_path, ["b/2.JPG", "b/1.png", "a/1.jpeg", "c/1.bmp", "c/notes.txt", "d/1.jpg"])
    touch(tmp_path, [".hidden/1.jpg", "c/.DS_Store", "README.jpg"])
    dataset = datasets.load("folders", tmp_path)
    assert [(Path(r.path).name, r.identity) for r in dataset.train] == [("1.jpeg", 0), ("1.png", 1), ("2.JPG", 1)]
    assert [(Path(r.path).parent.name, r.identity) for r in dataset.test] == [("c", 0), ("d", 1)]
    assert "ignored 1 files" in capsys.readouterr().err
    assert dataset.train[0].box is None
    assert dataset.classes == [Class(3, "c"), Class(4, "d")]
    touch(tmp_path, ["an index/index.json", "runs/folders-MG-1/arguments.json", "x/arguments.json", "x/curves.png"])
    assert datasets.load("folders", tmp_path) == dataset
    assert "ignored 3 folders of runs or indices, the first of them an index" in capsys.readouterr().err
    touch(tmp_path, ["a/Thumbs.db"])
    for file in ("a/1.jpeg", "b/1.png", "b/2.JPG"):
        (tmp_path / file).unlink()
    assert datasets.load("folders", tmp_path, need_training=False) == dataset._replace(train=None)
    with pytest.raises(InputError, match="expected a folder for each class"):
        datasets.load("folders", tmp_path)


def test_class_folders_with_halves_of_their_own(tmp_path, capsys):
    touch(tmp_path, ["train/x/1.jpg", "train/x/2.jpg", "test/y/1.jpg", "test/z/1.jpg"])
    dataset = datasets.load("folders", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (2, 2)
    assert dataset.classes == [Class(1, "y"), Class(2, "z")]
    touch(tmp_path, ["test/x/1.jpg"])
    datasets.load("folders", tmp_path)
    assert "1 classes are in the training and in the test split, the first of them x:" in capsys.readouterr().err
    shutil.rmtree(str(tmp_path / "test" / "x"))
    shutil.rmtree(str(tmp_path / "train" / "x"))
    assert datasets.load("folders", tmp_path, need_training=False) == dataset._replace(train=None)
    with pytest.raises(InputError, match="train: expected a folder for each class"):
        datasets.load("folders", tmp_path)
    shutil.rmtree(str(tmp_path / "train"))
    assert datasets.load("folders", tmp_path).train == []
    assert datasets.load("folders", tmp_path, need_training=False).train is None


def test_training_pictures_are_not_looked_up_where_none_are_trained_on(small_demo, tmp_path):
    """The annotation files, which the test half needs too, still say how many there are."""
    whole = datasets.load("demo", small_demo)
    folder = tmp_path / "demo"
    shutil.copytree(str(small_demo), str(folder))
    for record in whole.train:
        (folder / Path(record.path).relative_to(small_demo)).unlink()
    with pytest.raises(InputError, match="24 of 48 images are missing"):
        datasets.load("demo", folder)
    tested = datasets.load("demo", folder, need_training=False)
    assert datasets.statistics(tested) == datasets.statistics(whole)
    Path(tested.test[0].path).unlink()
    with pytest.raises(InputError, match="1 of 24 images are missing"):
        datasets.load("demo", folder, need_training=False)


@pytest.mark.parametrize(
    "text, counted",
    [
        ("image_id class_id path\n7 90 gone/a.jpg\n8 95 gone/b.jpg\n", True),  # no such pictures, and no boxes
        ("no list", False),
        (None, False),
    ],
)
def test_a_training_list_is_for_counting_where_none_are_trained_on(files, capsys, text, counted):
    train = files / "train.txt"
    if text:
        train.write_text(text)
    words = (files, train, files / "list.txt", files / "bbox.txt")
    dataset = datasets.load("lists", *words, need_training=False)
    assert ("| Train   |        2 |       2 |" in datasets.statistics(dataset)) == counted
    assert len(dataset.test) == 3 and dataset.test[0].box
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == (not counted) and all(str(train) in line for line in warned)
    with pytest.raises(InputError, match="train.txt|missing"):
        datasets.load("lists", *words)


@pytest.mark.parametrize("names", [[], ["a/notes.txt"], ["a/1.jpg"]])
def test_folders_without_pictures_or_with_one_class_are_told(tmp_path, names):
    touch(tmp_path, names)
    with pytest.raises(InputError, match=str(tmp_path)):
        dataset = datasets.load("folders", tmp_path)
        datasets.check_trainable(dataset)


def dataset_of(train, test, gallery=None, ranks=(1, 2)):
    """A data set with these identities."""
    halves = [
        ids and [Record("{}/{}.jpg".format(half, n), i, None, n) for n, i in enumerate(ids)]
        for half, ids in (("train", train), ("test", test), ("gallery", gallery))
    ]
    return datasets.Dataset("lists", halves[0], halves[1], ranks, halves[2])


def test_a_class_of_one_image_cannot_be_trained_on(monkeypatch):
    datasets.check_trainable(dataset_of([0, 0, 1, 1], [0]))
    with pytest.raises(InputError, match="train/2.jpg: the only training image of its class.*1 of 3 classes"):
        datasets.check_trainable(dataset_of([0, 0, 1, 2, 2], [0]))
    with pytest.raises(InputError, match="no training images"):
        datasets.check_trainable(dataset_of([], [0]))
    official_counts(monkeypatch, "inshop", train=(1, 1))
    datasets.check_trainable(dataset_of([0], [0])._replace(name="inshop"))  # an official one is as it is


def test_a_k_larger_than_the_set_is_told():
    datasets.check_ranks(dataset_of([], [0, 0, 1]))
    with pytest.raises(InputError, match="Recall@3 of the test split: each query is searched in 2 images.*--recallk"):
        datasets.check_ranks(dataset_of([], [0, 0, 1], ranks=(1, 3)))
    datasets.check_ranks(dataset_of([], [0], [0, 0, 0], ranks=(3,)))
    with pytest.raises(InputError, match="3 images"):
        datasets.check_ranks(dataset_of([], [0] * 9, [0, 0, 0], ranks=(4,)))


def test_queries_that_cannot_be_a_hit_are_counted():
    assert datasets.count_lonely(dataset_of([], [0, 0, 1, 2, 2, 2])) == 1
    assert datasets.count_lonely(dataset_of([], [0, 1, 1, 2], [0, 2])) == 2


@pytest.mark.parametrize(
    "test, gallery, told", [([0, 0], None, True), ([0], [0, 1], False), ([0, 0, 1, 1], None, False)]
)
def test_a_test_split_of_one_class_is_told(capsys, test, gallery, told):
    flags.warn_of_lonely(dataset_of([], test, gallery))
    assert ("has one class only: every recall is 1" in capsys.readouterr().err) == told


def test_whole_pictures_have_no_boxes(files):
    dataset = datasets.load("lists", files, files / "list.txt", files / "list.txt", files / "bbox.txt")
    whole = datasets.without_boxes(dataset)
    assert {record.box for record in whole.train + whole.test} == {None} and whole.gallery is None
    assert [record.path for record in whole.test] == [record.path for record in dataset.test]


def test_the_last_training_classes_are_held_out():
    train = [datasets.Record(f"{n}.jpg", n // 2, None, n) for n in range(10)]
    test = [datasets.Record("test.jpg", 0, None, 10)] * 2
    dataset = datasets.Dataset("lists", train, test, (1,), gallery=test)
    for share, kept in ((0.01, 3), (0.2, 3), (0.4, 3), (0.6, 2), (0.99, 2)):
        changed = datasets.hold_out(dataset, share)
        assert changed.train == train[: 2 * kept] and changed.gallery is None
        assert [record.path for record in changed.test] == [f"{n}.jpg" for n in range(2 * kept, 10)]
        assert [record.identity for record in changed.test] == [n // 2 for n in range(10 - 2 * kept)]
    with pytest.raises(InputError, match="expected 4 training classes or more, found 3"):
        datasets.hold_out(dataset._replace(train=train[:6]), 0.2)
    with pytest.raises(InputError, match="Recall@4 of the validation classes: each query is searched in 3 images"):
        datasets.hold_out(dataset._replace(ranks=(1, 4)), 0.2)


def test_statistics_are_the_released_table():
    assert datasets.statistics(dataset_of([0, 1, 1], [0])) == "\n".join(
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
    unknown = datasets.statistics(dataset_of(None, [0, 0]))
    assert "Train" not in unknown and "| Total   |        1 |       2 |" in unknown


def pretend_pictures(monkeypatch):
    """The real annotation files are at hand, their pictures are not."""
    monkeypatch.setattr(datasets, "_check_pictures", lambda halves: None)


def test_cubs_official_files_and_the_released_lists_give_the_same_records(shared, monkeypatch):
    pretend_pictures(monkeypatch)
    lists, folder = shared / "data" / "released_lists" / "CUB200", shared / "data" / "CUB_200_2011"
    official = datasets.load("cub200", folder)
    assert (len(official.train), len(official.test)) == (5864, 5924)
    files = (lists / "train.txt", lists / "test.txt", lists / "bbox.txt")
    listed = datasets.load("cub200", folder, *files)
    assert (listed.train, listed.test) == (official.train, official.test)
    assert official.classes[0] == Class(101, "101.White_Pelican") and listed.classes[0] == Class(0, "")
    assert [known.id for known in official.classes] == list(range(101, 201))


def test_cars_lists_and_the_devkit_know_the_same_boxes(shared, monkeypatch):
    """Each of the devkit's training annotations, class and box, is among those of the authors' later lists."""
    pytest.importorskip("scipy.io", reason="no scipy here: MATLAB files cannot be read")
    pretend_pictures(monkeypatch)
    lists = shared / "data" / "released_lists" / "CARS196"
    dataset = datasets.load("cars196", shared, lists / "train.txt", lists / "test.txt", lists / "bbox.txt")
    assert (len(dataset.train), len(dataset.test)) == (8054, 8131)
    listed = [(record.identity + 1, record.box) for record in dataset.train]
    listed += [(record.identity + 99, record.box) for record in dataset.test]
    devkit = shared / "data" / "Cars196" / "devkit"
    rows = datasets.read_cars(devkit / "cars_train_annos.mat", "fname")
    assert len(rows) == 8144
    for _, _, label, box in rows:
        listed.remove((label, box))
    with pytest.raises(InputError, match="with labels"):
        datasets.read_cars(devkit / "cars_test_annos.mat", "fname")


def write_sop(folder, share=1):
    """The two lists of Stanford Online Products, or as many classes and images of a share of them."""
    for split, classes, images, first in (("train", 11318, 59551, 1), ("test", 11316, 60502, 11319)):
        rows = ["{} {} 1 x_final/{}.JPG".format(n, first + n % (classes // share), n) for n in range(images // share)]
        header = "image_id class_id super_class_id path"
        (folder / "Ebay_{}.txt".format(split)).write_text("\n".join([header, *rows]))


def test_sops_size_is_read(tmp_path, monkeypatch):
    pretend_pictures(monkeypatch)
    write_sop(tmp_path)
    dataset = datasets.load("sop", tmp_path)
    assert len(dataset.test) == 60502 and dataset.test[11316].identity == dataset.test[0].identity


def test_a_list_takes_memory_for_its_records_alone(tmp_path, monkeypatch):
    pretend_pictures(monkeypatch)
    official_counts(monkeypatch, "sop")  # any number of images
    write_sop(tmp_path, 10)
    tracemalloc.start()
    try:
        dataset = datasets.load("sop", tmp_path)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    images = len(dataset.train) + len(dataset.test)
    assert images == 5955 + 6050 and kept < 500 * images and peak < 700 * images  # bytes for each image


def test_reading_does_not_take_the_square_of_the_size(tmp_path, monkeypatch):
    """By the number of function calls, which is the same on every machine."""
    pretend_pictures(monkeypatch)
    official_counts(monkeypatch, "sop")  # any number of images
    calls = []
    for share in (100, 10):
        write_sop(tmp_path, share)
        calls.append(0)

        def count(frame, event, argument):
            if event.endswith("call"):
                calls[-1] += 1

        sys.setprofile(count)
        try:
            datasets.load("sop", tmp_path)
        finally:
            sys.setprofile(None)
    assert calls[1] < 11 * calls[0]
