"""Files are replaced whole, and nothing but a file is replaced."""

import os
import stat

import pytest

from cgd.system import files
from cgd.system.errors import InputError


def write(path, text="new"):
    with files.replacing(path) as part:
        part.write_text(text)


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    (tmp_path / "link").symlink_to(os.path.join("far", "file"))
    (tmp_path / "nowhere").symlink_to(os.path.join("far", "later"))
    files.must_be_writable(tmp_path / "link")
    write(tmp_path / "link")
    write(tmp_path / "nowhere")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").read_text() == "new"
    assert (tmp_path / "far" / "later").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["far", "file", "later", "link", "nowhere"]


def test_an_output_is_not_a_file_that_is_read_nor_one_of_another_kind(tmp_path):
    (tmp_path / "net.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("net.json")
    files.check_output("--results", tmp_path / "other.json", (".json",), [tmp_path / "net.json"])
    for name in ("net.json", "link.json"):
        with pytest.raises(InputError, match=f"--results .*{name}: is a file that this command reads"):
            files.check_output("--results", tmp_path / name, (".json",), [tmp_path / "net.json"])
    for name in ("photo.jpg", ".html", "page"):
        with pytest.raises(InputError, match=f"--html .*{name}: expected a name that ends with .html"):
            files.check_output("--html", tmp_path / name, (".html",))


def test_a_pipe_and_a_device_are_left_alone(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    for path, what in ((tmp_path / "pipe", "a device or a pipe"), ("/dev/null", "a device"), (tmp_path, "a folder")):
        for function in (files.must_be_writable, write):
            with pytest.raises(InputError, match=f"is {what}.*; expected a file name"):
                function(path)
    assert stat.S_ISFIFO(os.stat(str(tmp_path / "pipe")).st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)
