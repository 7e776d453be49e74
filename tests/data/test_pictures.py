"""Pictures of one's own: what is found in a folder and in a list."""

import os

import pytest

from cgd.data import pictures
from cgd.system.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a/z.PNG", "a/deep/c.bmp", "a/notes.txt", ".hidden/d.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    os.utime(str(tmp_path / "photos" / "b.jpg"), ns=(5, 7))
    return tmp_path / "photos"


def test_a_folder_is_searched_with_its_subfolders(folder, capsys):
    (folder / "nowhere.jpg").symlink_to("gone.jpg")
    (folder / "linked").symlink_to("a")
    root, found = pictures.find(folder, class_folders=True)
    assert root == str(folder)
    assert [(each.path, each.label) for each in found] == [
        ("a/deep/c.bmp", "deep"),
        ("a/z.PNG", "a"),
        ("b.jpg", "photos"),
    ]
    assert found[2] == pictures.Picture("b.jpg", 5, 7, None, "photos")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{folder}: ignored 1 links to folders, among them linked"
    assert told[1].endswith("among them a/notes.txt") and told[2].startswith(f"skipped: {folder}/nowhere.jpg: No such")


def test_paths_of_a_list_are_below_its_folder_or_absolute(folder, tmp_path):
    (tmp_path / "x.jpg").write_text("x")
    (folder / "list.txt").write_text(f"a/z.PNG\n\n  ./b.jpg \na/../b.jpg\n../x.jpg\n{folder}/a/deep/c.bmp\n")
    _, found = pictures.find(folder / "list.txt")
    assert [each.path for each in found] == [f"{tmp_path}/x.jpg", "a/deep/c.bmp", "a/z.PNG", "b.jpg"]


def test_a_line_of_a_list_is_a_path_whatever_is_in_it(folder):
    names = ["a\u2028b.jpg", "c\x0cd.jpg", " e.jpg"]
    for name in names:
        (folder / name).write_text("x")
    (folder / "list.txt").write_bytes("\r\n".join(names).encode())
    _, found = pictures.find(folder / "list.txt")
    assert sorted(each.path for each in found) == sorted(names)


@pytest.mark.parametrize(
    "text, told",
    [
        ("b.jpg\ngone.jpg\n", "list.txt: lists '.*photos/gone.jpg': No such file"),
        ("b.jpg\nb\0.jpg\n", "list.txt: lists .*: embedded null byte"),
        ("x" * 5000, "list.txt: lists .*: File name too long"),
    ],
)
def test_what_a_list_must_not_hold(folder, text, told):
    (folder / "list.txt").write_text(text)
    with pytest.raises(InputError, match=told):
        pictures.find(folder / "list.txt")


def test_a_list_with_a_header_in_a_relative_folder(folder, monkeypatch):
    """photos/photos/b.jpg, another picture, lies where the path leads if the folder is joined twice."""
    (folder / "photos").mkdir()
    (folder / "photos" / "b.jpg").write_text("another one")
    (folder / "list.txt").write_text("image_id class_id path\n1 1 b.jpg\n")
    monkeypatch.chdir(folder.parent)
    for source, data_dir in (("photos/list.txt", None), ("photos/list.txt", "photos"), (folder / "list.txt", None)):
        root, found = pictures.find(source, data_dir)
        assert (root, [(each.path, each.size) for each in found]) == (str(folder), [("b.jpg", 5)])
