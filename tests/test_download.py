"""download.sh, run for real against a server on 127.0.0.1: small stand-ins take the place of its table of files.

Proxies that do not exist stand between the script and every other address, so that no test can reach one.
"""

import fcntl
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from cgd.data import birds
from cgd.network import weights
from conftest import heed_stops

SCRIPT = Path(__file__).resolve().parent.parent / "download.sh"
TABLE = re.compile(r"(?<=<<TABLE\n).*?(?=^TABLE$)", re.DOTALL | re.MULTILINE)
TOOLS = "bash cat cp cut dirname grep gzip md5sum mkdir mktemp mv rm sed sha1sum sha256sum tail tar wc".split()
FETCHERS = ["curl", "wget"]

PREFIX = "CGD.CUB200.C_concat_MG.ResNet50v.dim1536"
MXNETS, GLUONCVS = "resnet50_v1-0aee57f9", "resnet50_v1-cc729d95"


# --- Stand-ins


def noise(size, seed=0):
    return Random(seed).getrandbits(8 * size).to_bytes(size, "big")


def tar_of(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def md5(content):
    return "md5 " + hashlib.md5(content).hexdigest()


def list_of(rows, announced=None, end="\n"):
    lines = [str(len(rows) if announced is None else announced), "image_name item_id evaluation_status"]
    lines += ["{}     id_00000001   {}".format(*row) for row in rows]
    return "".join(line + end for line in lines).encode()


PICTURE = noise(200_000)
CUB = tar_of({"attributes.txt": b"", "CUB_200_2011/images.txt": b"1 a.jpg\n", "CUB_200_2011/images/a.jpg": PICTURE})
SOP = zip_of({"Stanford_Online_Products/Ebay_train.txt": b"header\n", "../../outside.txt": b"", "/outside.txt": b""})
CAR_IMS = tar_of({"car_ims/000001.jpg": noise(100, 1)})
CARS_ANNOS = noise(100, 2)
IMG = zip_of({"img/{}.jpg".format(n): noise(100, n) for n in (1, 2, 3)})
ROWS = [("img/1.jpg", "train"), ("img/2.jpg", "query"), ("img/3.jpg", "gallery")]
SMALL_LIST = "rows 3 announced: 1 train, 1 query, 1 gallery, 0 other"
CHECKPOINT = tar_of(
    {"some/where/{}-symbol.json".format(PREFIX): b"{}", "some/{}-0000.params".format(PREFIX): b"weights"}
)
WEIGHTS = {name: zip_of({name + ".params": name.encode()}) for name in (MXNETS, GLUONCVS)}

# Names of weights, and the files that they bring from archives with these names; without an archive, the same.
OTHER_WEIGHTS = {
    "resnet50_v1_onnx": ("resnet50-v1-7.onnx", None),
    "resnet50_v1_imgclsmob": ("resnet50-0604-a71d1d2a.params", ".zip"),
    "resnet50_v1b": ("resnet50_v1b-0ecdba34.params", "zip"),
    "se_resnet50": ("seresnet50-0560-e75ef498.params", ".zip"),
    "bn_inception": ("bninception-0754-75225419.params", ".zip"),
    "shufflenet_v2": ("shufflenetv2_w1-1123-27435039.params", ".zip"),
}


# --- A server with the faults of real ones


def serve(start=0, stop=None, ranges=True, pause=0.0, stall=0.0):
    """An answer: the file, or from a Range on. It breaks off after `stop` bytes, and is silent for `stall` s before."""

    def answer(handler, content):
        wanted = re.match(r"bytes=(\d+)-$", handler.headers.get("Range") or "")
        first = int(wanted.group(1)) if wanted and ranges else 0
        if first and first >= len(content):
            return status(416)(handler, content)
        handler.send_response(206 if first else 200)
        if first:
            handler.send_header("Content-Range", "bytes {}-{}/{}".format(first, len(content) - 1, len(content)))
        handler.send_header("Content-Length", str(len(content) - first))
        handler.end_headers()
        body = content[first : stop and first + stop]
        for place in range(0, len(body), 20_000):
            handler.wfile.write(body[place : place + 20_000])
            time.sleep(pause)
        handler.sent = len(body)
        handler.server.stopped.wait(stall)

    return answer


def status(code, **headers):
    def answer(handler, content):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"sorry")

    return answer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.sent = 0
        content = self.server.files.get(self.path)
        answers = self.server.answers.get(self.path)
        answer = answers.pop(0) if answers else serve() if content is not None else status(404)
        number = len(self.server.requests)
        self.server.requests.append((self.path, self.headers.get("Range"), None))
        try:
            answer(self, content)
        except OSError:  # the other side has had enough
            pass
        self.server.requests[number] = (self.path, self.headers.get("Range"), self.sent)

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    """Has `files` {path: content}, `answers` {path: the next ones}, and `requests` [(path, Range, bytes sent)]."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.answers, server.requests, server.stopped = {}, {}, [], threading.Event()
    server.url = "http://127.0.0.1:{}".format(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


# --- The script in a folder of its own


class Project:
    """A copy of the script, its table replaced by one row a file, and a PATH with little but `fetcher` on it."""

    def __init__(self, folder, server, fetcher):
        self.folder, self.server = folder / "project", server
        self.data, self.checkpoints = self.folder / "data", self.folder / "checkpoints"
        self.models = folder / "home" / ".mxnet" / "models"
        self.bin = folder / "bin"
        self.rows = {}
        for made in (self.folder, self.bin, folder / "home"):
            made.mkdir()
        for tool in TOOLS + [fetcher, *(["flock"] if shutil.which("flock") else [])]:
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "sleep").symlink_to(shutil.which("true"))  # no wait between one try and the next
        (self.bin / "python3").symlink_to(os.path.realpath(sys.executable))
        proxies = dict.fromkeys(["http_proxy", "https_proxy", "HTTPS_PROXY"], "http://127.0.0.1:9")
        self.environment = dict(
            proxies, no_proxy="127.0.0.1", PATH=str(self.bin), HOME=str(folder / "home"), LC_ALL="C"
        )

    def offer(self, file, content, check=None, size="-", paths=None):
        """A row of the table, and the file on the server at each of `paths`."""
        paths = ["/" + file] if paths is None else paths
        for path in paths:
            self.server.files[path] = content
        self.rows[file] = "{}|{}|{}|{}".format(
            file, size, check or md5(content), " ".join(self.server.url + path for path in paths)
        )

    def start(self, *names, shell="", cwd=None, **environment):
        script = TABLE.sub(lambda _: "".join(row + "\n" for row in self.rows.values()), SCRIPT.read_text())
        (self.folder / "download.sh").write_text(script)
        return subprocess.Popen(
            ["bash", "-c", shell + 'exec bash "$@"', "bash", str(self.folder / "download.sh"), *names],
            cwd=str(cwd or self.folder),
            env=dict(self.environment, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            start_new_session=True,
            preexec_fn=heed_stops,
        )

    def run(self, *names, **options):
        """(exit code, standard output, standard error)."""
        process = self.start(*names, **options)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out, err

    def good(self, *names, **options):
        code, out, err = self.run(*names, **options)
        assert code == 0, err
        return out, err

    def bad(self, *names, **options):
        """The one `error:` line, the last one, of a command that must fail."""
        code, out, err = self.run(*names, **options)
        assert code == 2, out + err
        assert "Traceback" not in err
        assert len(re.findall("^error: ", err, re.MULTILINE)) == 1
        assert err.splitlines()[-1].startswith("error: ")
        return err.splitlines()[-1]

    def left(self):
        """What is in data/."""
        return sorted(path.name for path in self.data.iterdir())

    def ranges(self):
        return [wanted for _, wanted, _ in self.server.requests]

    def asked(self):
        return [path for path, _, _ in self.server.requests]


@pytest.fixture(params=FETCHERS)
def project(request, tmp_path, server):
    if not shutil.which(request.param):
        pytest.skip("{} is not installed".format(request.param))
    project = Project(tmp_path, server, request.param)
    project.fetcher = request.param
    project.offer("CUB_200_2011.tgz", CUB, size=len(CUB))
    return project


with_curl = pytest.mark.parametrize("project", ["curl"], indirect=True)
with_either = pytest.mark.parametrize(  # for tests in which it does not matter
    "project", [next((name for name in FETCHERS if shutil.which(name)), FETCHERS[0])], indirect=True
)


def cub_is_whole(project):
    folder = project.data / "CUB_200_2011"
    assert sorted(path.name for path in folder.iterdir()) == ["images", "images.txt"]
    assert (folder / "images" / "a.jpg").read_bytes() == PICTURE
    return project.left() == ["CUB_200_2011"]


# --- Downloads


def test_a_download_is_unpacked_once(project):
    out, err = project.good("cub200")
    assert cub_is_whole(project)
    assert "ready: " in out and "data/CUB_200_2011" in out
    assert len(out.splitlines()) <= 3 and len(err.splitlines()) <= 1  # no bar where the output is no terminal
    out, err = project.good("cub200")
    assert out.startswith("already exists: ") and not err
    assert project.ranges() == [None]


@with_either
def test_a_second_one_does_not_disturb_the_first(project):
    """Both would write into one file, and each would take it for a wrong one."""
    if not shutil.which("flock"):
        pytest.skip("flock is not installed")
    project.data.mkdir(exist_ok=True)
    folder = os.open(str(project.data), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert "data: another download.sh is at work there; wait for its end" in project.bad("cub200")
    finally:
        os.close(folder)
    assert project.left() == [] and not project.asked()
    project.good("cub200")
    assert cub_is_whole(project)


def test_an_existing_folder_is_not_touched(project):
    (project.data / "CUB_200_2011").mkdir(parents=True)
    (project.data / "CUB_200_2011" / "mine.txt").write_text("mine")
    out, _ = project.good("cub200")
    assert out.startswith("already exists: ")
    assert [path.name for path in (project.data / "CUB_200_2011").iterdir()] == ["mine.txt"]
    assert project.asked() == []


def test_from_another_folder(project, tmp_path):
    project.good("cub200", cwd=tmp_path / "home")
    assert cub_is_whole(project)
    assert [path.name for path in (tmp_path / "home").iterdir()] == []


def test_what_broke_off_is_gone_on_from(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(stop=50_000), serve(stop=60_000)]
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.ranges() == [None, "bytes=50000-", "bytes=110000-"]
    assert sum(sent for _, _, sent in project.server.requests) == len(CUB)


def test_what_broke_off_without_ranges_is_taken_from_the_start(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(stop=50_000, ranges=False)] + [serve(ranges=False)] * 2
    project.good("cub200")
    assert cub_is_whole(project)


def test_an_earlier_part_is_gone_on_from(project):
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz.part").write_bytes(CUB[:120_000])
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.server.requests == [("/CUB_200_2011.tgz", "bytes=120000-", len(CUB) - 120_000)]


def test_a_whole_part_needs_no_request(project):
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz.part").write_bytes(CUB)
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.asked() == []


@pytest.mark.parametrize(
    "part", [noise(1000, 3), noise(len(CUB), 3), noise(len(CUB) + 7, 3)], ids=["short", "same", "long"]
)
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_part_of_something_else_is_fetched_anew(project, part, ranges):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(ranges=ranges)] * 2
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz.part").write_bytes(part)
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.ranges() == ["bytes={}-".format(len(part)), None]


@with_curl
def test_a_part_that_is_too_long_for_an_older_curl(project):
    curl = project.bin / "curl"
    curl.unlink()
    curl.write_text(  # it took 416, there is nothing beyond the part, for an error
        '#!/bin/bash\ngot=$({} "$@")\ncode=$?\necho "$got"\n[ "$got" != 416 ] || exit 22\nexit $code\n'.format(
            shutil.which("curl")
        )
    )
    curl.chmod(0o755)
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz.part").write_bytes(noise(len(CUB), 3))
    project.good("cub200")
    assert cub_is_whole(project)


def test_a_run_that_fails_leaves_its_part_to_the_next(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(stop=50_000), status(404)]
    assert "CUB_200_2011.tgz: could not be downloaded" in project.bad("cub200")
    assert project.left() == ["CUB_200_2011.tgz.part"]
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.ranges() == [None, "bytes=50000-", "bytes=50000-"]


def test_a_slow_answer_is_waited_for(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(pause=0.15)]
    project.good("cub200", CGD_STALL="1")
    assert cub_is_whole(project)
    assert project.ranges() == [None]


def test_a_silent_connection_is_given_up(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(stop=3, stall=30)]
    start = time.monotonic()
    project.good("cub200", CGD_STALL="1")
    assert time.monotonic() - start < 20
    assert cub_is_whole(project)
    assert project.ranges() == [None, "bytes=3-"]


def test_a_redirect_is_followed(project):
    project.server.files["/elsewhere"] = CUB
    project.server.answers["/CUB_200_2011.tgz"] = [status(302, Location="/elsewhere")] * 5
    project.good("cub200")
    assert cub_is_whole(project)
    first, *others, last = project.asked()  # now and then wget asks for the first address once more
    assert last == "/elsewhere" and {first, *others} == {"/CUB_200_2011.tgz"}


WRONG = {
    "another file": (serve(), noise(len(CUB), 4), "md5 .*, expected md5 "),
    "a page": (serve(), b"<!DOCTYPE html><title>Sign in</title>", "37 bytes, expected {}".format(len(CUB))),
    "nothing": (serve(), b"", None),
    "404": (status(404), b"", None),
    "503": (status(503), b"", None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_next_address_is_tried_after(wrong, project):
    answer, content, said = WRONG[wrong]
    project.offer("CUB_200_2011.tgz", CUB, size=len(CUB), paths=["/1", "/2"])
    project.server.files["/1"] = content
    project.server.answers["/1"] = [answer] * 5
    _, err = project.good("cub200")
    assert cub_is_whole(project)
    assert project.asked()[-1] == "/2"
    if said:
        assert [line for line in err.splitlines() if re.match(re.escape(project.server.url) + "/1: " + said, line)]


@pytest.mark.parametrize("content", [CUB, noise(len(CUB), 7)], ids=["same", "other"])
def test_the_next_address_goes_on_where_one_broke_off(project, content):
    project.offer("CUB_200_2011.tgz", CUB, size=len(CUB), paths=["/1", "/2"])
    project.server.files["/1"] = content
    project.server.answers["/1"] = [serve(stop=50_000), status(404)]
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.asked() == ["/1", "/1", "/2"] + ["/2"] * (content != CUB)
    assert project.ranges() == [None, "bytes=50000-", "bytes=50000-"] + [None] * (content != CUB)


def test_when_no_address_has_it(project):
    project.offer("CUB_200_2011.tgz", CUB, size=len(CUB), paths=["/1", "/2", "/3"])
    project.server.files.update({"/1": b"a page", "/2": noise(len(CUB), 5)})
    del project.server.files["/3"]
    line = project.bad("cub200")
    assert "CUB_200_2011.tgz" in line and "CGD_MIRROR" in line and "by hand" in line
    assert project.left() == []
    assert project.asked() == ["/1", "/2", "/3"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_mirror_comes_first(project, slash):
    project.server.files["/mirror/CUB_200_2011.tgz"] = CUB
    project.good("cub200", CGD_MIRROR=project.server.url + "/mirror" + slash)
    assert cub_is_whole(project)
    assert project.asked() == ["/mirror/CUB_200_2011.tgz"]


def test_after_the_mirror_comes_the_table(project):
    project.server.files["/mirror/CUB_200_2011.tgz"] = b"old"
    _, err = project.good("cub200", CGD_MIRROR=project.server.url + "/mirror")
    assert cub_is_whole(project)
    assert project.asked() == ["/mirror/CUB_200_2011.tgz", "/CUB_200_2011.tgz"]
    assert "/mirror/CUB_200_2011.tgz: 3 bytes, expected" in err


def test_a_file_that_cannot_be_written(project):
    line = project.bad("cub200", shell="ulimit -f 100; ")
    assert "CUB_200_2011.tgz.part: cannot be written (is the disk full?)" in line
    assert project.left() == ["CUB_200_2011.tgz.part"]
    project.good("cub200")
    assert cub_is_whole(project)
    assert project.ranges()[-1] == "bytes={}-".format(100 * 1024)


def test_ctrl_c_in_a_download_keeps_the_part(project):
    project.server.answers["/CUB_200_2011.tgz"] = [serve(stop=60_000, stall=30)]
    process = project.start("cub200")
    part = project.data / "CUB_200_2011.tgz.part"
    wait_for(lambda: part.exists() and part.stat().st_size)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.splitlines()[-1] == "interrupted"
    assert project.left() == ["CUB_200_2011.tgz.part"]
    project.good("cub200")
    assert cub_is_whole(project)


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it has not happened in 20 s")


@with_either
def test_without_curl_and_wget(project):
    (project.bin / project.fetcher).unlink()
    assert "curl or wget is needed" in project.bad("cub200")


# --- Files put there by hand


@with_either
def test_an_archive_put_there_by_hand_is_used_and_kept(project):
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz").write_bytes(CUB)
    project.good("cub200")
    assert not cub_is_whole(project)
    assert project.left() == ["CUB_200_2011", "CUB_200_2011.tgz"]
    assert project.asked() == []


@with_either
@pytest.mark.parametrize("content", [CUB[:-1], noise(len(CUB), 6)], ids=["size", "sum"])
def test_a_wrong_archive_put_there_by_hand_is_kept(project, content):
    project.data.mkdir()
    (project.data / "CUB_200_2011.tgz").write_bytes(content)
    line = project.bad("cub200")
    assert "data/CUB_200_2011.tgz: " in line and "expected" in line
    assert (project.data / "CUB_200_2011.tgz").read_bytes() == content
    assert project.left() == ["CUB_200_2011.tgz"]
    assert project.asked() == []


# --- Unpacking


@with_either
@pytest.mark.parametrize("name", ["cub200", "sop"])
def test_unpacking_that_cannot_be_written(project, name):
    zeros = bytes(3_000_000)
    project.offer("CUB_200_2011.tgz", tar_of({"CUB_200_2011/images.txt": b"", "CUB_200_2011/zeros": zeros}))
    members = {"Stanford_Online_Products/Ebay_train.txt": b"", "Stanford_Online_Products/zeros": zeros}
    project.offer("Stanford_Online_Products.zip", zip_of(members))
    line = project.bad(name, shell="ulimit -f 1000; ")
    assert re.search(r"cannot be unpacked \((tar: |OSError: ).*disk is full", line)
    assert [file for file in project.left() if not file.endswith(".part")] == []
    project.good(name)
    assert len(project.left()) == 1 and len(project.asked()) == 1


@with_either
def test_an_archive_that_is_broken_in_itself(project):
    project.offer("CUB_200_2011.tgz", CUB[:-1000])
    assert "cannot be unpacked" in project.bad("cub200")
    assert project.left() == ["CUB_200_2011.tgz.part"]


@with_either
def test_an_archive_of_something_else(project):
    project.offer("CUB_200_2011.tgz", tar_of({"CUB/images.txt": b""}))
    assert "does not contain CUB_200_2011" in project.bad("cub200")
    assert project.left() == ["CUB_200_2011.tgz.part"]


@with_either
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGKILL, -9)]
)
def test_unpacking_that_is_interrupted(project, number, code):
    if number == signal.SIGKILL and not shutil.which("flock"):
        pytest.skip("flock is not installed")
    (project.bin / "tar").unlink()
    (project.bin / "tar").write_text(  # the real one, and then it takes its time
        '#!/bin/bash\n{} "$@" && >{}/begun && {} 30\n'.format(
            shutil.which("tar"), project.folder, shutil.which("sleep")
        )
    )
    (project.bin / "tar").chmod(0o755)
    process = project.start("cub200")
    wait_for((project.folder / "begun").exists)
    assert len(project.left()) == 2  # the part, and the folder to unpack into
    os.killpg(process.pid, number)
    process.communicate(timeout=20)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert project.left() == ["CUB_200_2011.tgz.part"]
    mine = project.data / "CUB_200_2011.backup"  # as the user has named it
    mine.mkdir()
    (project.bin / "tar").unlink()
    (project.bin / "tar").symlink_to(shutil.which("tar"))
    project.good("cub200")
    mine.rmdir()
    assert cub_is_whole(project)


@with_either
def test_members_that_lead_out_of_the_folder(project, tmp_path):
    climbing = {"CUB_200_2011/images.txt": b"", "../../../climbed": b"", str(tmp_path / "rooted"): b""}
    project.offer("CUB_200_2011.tgz", tar_of(climbing))
    project.offer("Stanford_Online_Products.zip", SOP)
    before = sorted(tmp_path.glob("*"))
    project.run("cub200")
    project.good("sop")
    assert sorted(tmp_path.glob("*")) == before
    assert not list(tmp_path.parent.glob("climbed")) and not list(project.folder.glob("outside*"))
    assert not list(project.data.glob("*outside*")) and not Path("/outside.txt").exists()


# --- The names


@with_either
def test_sop(project):
    project.offer("Stanford_Online_Products.zip", SOP)
    project.good("sop")
    assert project.left() == ["Stanford_Online_Products"]
    assert (project.data / "Stanford_Online_Products" / "Ebay_train.txt").read_bytes() == b"header\n"


@with_either
def test_cars196(project):
    project.offer("car_ims.tgz", CAR_IMS)
    project.offer("cars_annos.mat", CARS_ANNOS)
    project.good("cars196")
    assert project.left() == ["Cars196"]
    assert (project.data / "Cars196" / "cars_annos.mat").read_bytes() == CARS_ANNOS
    assert (project.data / "Cars196" / "car_ims" / "000001.jpg").read_bytes() == noise(100, 1)


@with_either
@pytest.mark.parametrize("by_hand", [[], ["car_ims.tgz"], ["cars_annos.mat"]], ids=["none", "pictures", "labels"])
def test_cars196_says_what_to_get_by_hand(project, by_hand):
    contents = {"car_ims.tgz": CAR_IMS, "cars_annos.mat": CARS_ANNOS}
    for file, content in contents.items():
        project.offer(file, content)
    project.server.files.clear()
    project.data.mkdir()
    for file in by_hand:
        (project.data / file).write_bytes(contents[file])
    line = project.bad("cars196")
    for word in ["car_ims.tgz", "cars_annos.mat", "Kaggle", "Hugging Face", "data", "run this again"]:
        assert word in line
    assert project.left() == by_hand


def offer_inshop(project, rows=ROWS, check=SMALL_LIST, img=IMG, **options):
    project.offer("list_eval_partition.txt", b"", check=check, paths=[])
    project.offer("img.zip", b"", check="zip intact", paths=[])
    project.data.mkdir()
    (project.data / "list_eval_partition.txt").write_bytes(list_of(rows, **options))
    (project.data / "img.zip").write_bytes(img)


@with_either
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_inshop_by_hand(project, end):
    offer_inshop(project, end=end)
    project.good("inshop")
    assert project.left() == ["In-shop", "img.zip", "list_eval_partition.txt"]
    assert (project.data / "In-shop" / "list_eval_partition.txt").read_bytes() == list_of(ROWS, end=end)
    assert (project.data / "In-shop" / "img" / "3.jpg").read_bytes() == noise(100, 3)


@with_either
def test_inshop_from_a_mirror(project):
    offer_inshop(project)
    for file in ("list_eval_partition.txt", "img.zip"):
        project.server.files["/" + file] = (project.data / file).read_bytes()
        (project.data / file).unlink()
    project.good("inshop", CGD_MIRROR=project.server.url)
    assert project.left() == ["In-shop"]


@with_either
def test_inshop_says_what_to_get_by_hand(project):
    offer_inshop(project)
    (project.data / "img.zip").unlink()
    line = project.bad("inshop")
    for word in ["img.zip", "list_eval_partition.txt", "drive.google.com/drive/folders/0B7EVK8r0v71pVDZFQXRsMDZCX1E"]:
        assert word in line
    assert project.left() == ["list_eval_partition.txt"]


REAL = [("img/1.jpg", "train")] * 25882 + [("img/2.jpg", "query")] * 14218 + [("img/3.jpg", "gallery")] * 12612


@with_either
def test_inshop_list_of_the_real_size(project):
    (row,) = [row for row in real_table() if row[0] == "list_eval_partition.txt"]
    offer_inshop(project, rows=REAL, check=row[2])
    project.good("inshop")
    shutil.rmtree(str(project.data / "In-shop"))
    (project.data / "list_eval_partition.txt").write_bytes(list_of(REAL[:-1]))
    line = project.bad("inshop")
    assert "52711 announced: 25882 train, 14218 query, 12611 gallery, 0 other, expected rows 52712 announced" in line


@with_either
@pytest.mark.parametrize(
    "content",
    [
        list_of(ROWS, announced=4),
        list_of(ROWS + ROWS[:1], announced=3),
        list_of(ROWS + [("img/1.jpg", "val")], announced=3),
        list_of(ROWS).replace(b"item_id", b""),
        list_of(ROWS).replace(b"query", b"train"),
        list_of(ROWS).replace(b"id_00000001   query", b"query"),
        b"<html>",
        b"\xff\xd8\xff",
        b"",
    ],
    ids=["announced", "more", "other", "header", "kinds", "columns", "page", "binary", "empty"],
)
def test_a_wrong_inshop_list(project, content):
    offer_inshop(project)
    (project.data / "list_eval_partition.txt").write_bytes(content)
    assert "list_eval_partition.txt: rows " in project.bad("inshop")
    assert project.left() == ["img.zip", "list_eval_partition.txt"]


@with_either
@pytest.mark.parametrize("img", [IMG[:-1], IMG[:100] + b"broken" + IMG[106:], b"<html>"], ids=["cut", "crc", "page"])
def test_a_wrong_inshop_zip(project, img):
    offer_inshop(project, img=img)
    assert "img.zip: zip " in project.bad("inshop")
    assert project.left() == ["img.zip", "list_eval_partition.txt"]


@with_either
@pytest.mark.parametrize("mirror", [False, True], ids=["by-hand", "mirror"])
def test_inshop_pictures_that_are_missing(project, mirror):
    offer_inshop(project, img=zip_of({"img/2.jpg": b"picture"}))
    if mirror:
        for file in ("list_eval_partition.txt", "img.zip"):
            project.server.files["/" + file] = (project.data / file).read_bytes()
            (project.data / file).unlink()
    before = project.left()
    line = project.bad("inshop", **({"CGD_MIRROR": project.server.url} if mirror else {}))
    assert "img.zip" in line and "2 of the listed images are missing, the first of them img/1.jpg" in line
    assert project.left() == before


def blob(content):
    return "git " + hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@with_either
def test_checkpoint(project):
    project.offer(PREFIX + ".tar.gz", CHECKPOINT, check=blob(CHECKPOINT))
    project.good("checkpoint")
    assert sorted(path.name for path in project.checkpoints.iterdir()) == [
        PREFIX + "-0000.params",
        PREFIX + "-symbol.json",
    ]
    assert (project.checkpoints / (PREFIX + "-0000.params")).read_bytes() == b"weights"
    assert (project.checkpoints / (PREFIX + "-symbol.json")).read_bytes() == b"{}"
    assert project.good("checkpoint")[0].startswith("already exists: ")
    assert len(project.asked()) == 1


@with_either
def test_checkpoint_by_hand(project):
    project.offer(PREFIX + ".tar.gz", b"", check=blob(CHECKPOINT), paths=[])
    project.checkpoints.mkdir()
    (project.checkpoints / (PREFIX + ".tar.gz")).write_bytes(CHECKPOINT)
    project.good("checkpoint")
    assert len(list(project.checkpoints.iterdir())) == 3


@with_either
@pytest.mark.parametrize("end", ["-0000.params", "-symbol.json"])
def test_half_a_checkpoint_is_completed(project, end):
    project.offer(PREFIX + ".tar.gz", CHECKPOINT, check=blob(CHECKPOINT))
    project.checkpoints.mkdir()
    (project.checkpoints / (PREFIX + end)).write_bytes(b"mine")
    project.good("checkpoint")
    assert len(list(project.checkpoints.iterdir())) == 2
    assert (project.checkpoints / (PREFIX + end)).read_bytes() == b"mine"


@with_either
def test_a_wrong_checkpoint(project):
    other = tar_of({PREFIX + "-symbol.json": b"{}"})
    project.offer(PREFIX + ".tar.gz", other, check=blob(CHECKPOINT))
    assert "checkpoints" in project.bad("checkpoint")
    assert list(project.checkpoints.iterdir()) == []


def offer_weights(project):
    for name, whole in WEIGHTS.items():
        project.offer(name + ".zip", whole, check="params " + hashlib.sha1(name.encode()).hexdigest())


@with_either
@pytest.mark.parametrize("home", ["", "own"], ids=["default", "MXNET_HOME"])
def test_weights(project, tmp_path, home):
    offer_weights(project)
    models = tmp_path / home / "models" if home else project.models
    out, _ = project.good("weights", **({"MXNET_HOME": str(tmp_path / home)} if home else {}))
    assert sorted(path.name for path in models.iterdir()) == [MXNETS + ".params", GLUONCVS + ".params"]
    assert (models / (MXNETS + ".params")).read_bytes() == MXNETS.encode()
    assert "--backbone-params {}/{}.params".format(models, GLUONCVS) in out


@with_either
def test_weights_that_are_there_and_an_archive_by_hand(project):
    offer_weights(project)
    project.models.mkdir(parents=True)
    (project.models / (MXNETS + ".params")).write_bytes(b"mine")
    (project.models / (GLUONCVS + ".zip")).write_bytes(WEIGHTS[GLUONCVS])
    project.good("weights")
    assert (project.models / (MXNETS + ".params")).read_bytes() == b"mine"
    assert len(list(project.models.iterdir())) == 3
    assert project.asked() == []


def offer_other_weights(project, name):
    """Offers the weights in an archive, if any. Returns the name and the content of the file."""
    file, end = OTHER_WEIGHTS[name]
    content = noise(1000, len(name))
    if end:
        archive = file[: -len("params")] + end if end == "zip" else file + end
        project.offer(archive, zip_of({file: content}), check="params " + hashlib.sha1(content).hexdigest())
    else:
        project.offer(file, content, check="sha256 " + hashlib.sha256(content).hexdigest(), size=len(content))
    return file, content


@with_either
def test_weights_by_name(project):
    expected = dict(offer_other_weights(project, name) for name in OTHER_WEIGHTS)
    out, _ = project.good("weights", *OTHER_WEIGHTS)
    assert {path.name: path.read_bytes() for path in project.models.iterdir()} == expected
    assert f"--backbone-params {project.models}/resnet50-v1-7.onnx" in out
    assert project.good("weights", "se_resnet50", "shufflenet_v2")[0].count("already exists: ") == 2
    assert len(project.asked()) == len(OTHER_WEIGHTS)


@with_either
def test_weights_by_name_among_other_names(project):
    offer_weights(project)
    file, _ = offer_other_weights(project, "se_resnet50")
    project.good("weights", "se_resnet50", "cub200")
    assert [path.name for path in project.models.iterdir()] == [file] and project.left() == ["CUB_200_2011"]
    project.good("cub200", "weights")
    assert len(list(project.models.iterdir())) == 3


@with_either
def test_wrong_weights_by_name(project):
    file, content = offer_other_weights(project, "resnet50_v1_onnx")
    project.server.files["/" + file] = content[:-1] + b"x"
    assert file + ": could not be downloaded" in project.bad("weights", "resnet50_v1_onnx")
    assert list(project.models.iterdir()) == []


@with_either
def test_weights_without_an_archive_are_checked_where_they_are(project):
    file, content = offer_other_weights(project, "resnet50_v1_onnx")
    project.models.mkdir(parents=True)
    (project.models / file).write_bytes(b"junk")
    assert f"{file}: 4 bytes, expected 1000; replace or delete" in project.bad("weights", "resnet50_v1_onnx")
    (project.models / file).write_bytes(content[:-1] + b"x")
    assert f"expected sha256 {hashlib.sha256(content).hexdigest()}" in project.bad("weights", "resnet50_v1_onnx")
    (project.models / file).write_bytes(content)
    assert project.good("weights", "resnet50_v1_onnx")[0].startswith("already exists: ")
    assert [path.name for path in project.models.iterdir()] == [file] and project.asked() == []


@with_either
def test_another_server_is_named_if_the_zoo_fails(project):
    offer_weights(project)
    del project.server.files["/{}.zip".format(MXNETS)]
    assert "bash download.sh weights resnet50_v1_onnx" in project.bad("weights")


def test_weights_are_where_train_looks_for_them():
    assert {name: OTHER_WEIGHTS[name][0] for name in weights.OTHER_FILES} == weights.OTHER_FILES


@with_either
@pytest.mark.parametrize(
    "content", [zip_of({MXNETS + ".params": b"other"}), zip_of({"a": b""}), b"<html>"], ids=["other", "none", "page"]
)
def test_wrong_weights_in_the_zip(project, content):
    offer_weights(project)
    project.server.files["/{}.zip".format(MXNETS)] = content
    assert MXNETS + ".zip: could not be downloaded" in project.bad("weights")
    assert list(project.models.iterdir()) == []


@with_either
def test_demo(project, monkeypatch):
    python = project.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\necho "$@" >drawn.txt\nexit $CODE\n')
    python.chmod(0o755)
    assert "data/demo: could not be drawn" in project.bad("demo", CODE="2")
    project.good("demo", cwd="/", CODE="0")
    words = (project.folder / "drawn.txt").read_text().split()
    assert words[:2] == ["-m", "cgd.data.birds"]
    drawn = []
    monkeypatch.setattr(sys, "argv", words[1:])
    monkeypatch.setattr(birds, "draw_demo", lambda folder, *rest: drawn.append(str(folder)))
    birds.main()
    assert drawn == ["data/demo"]
    (project.data / "demo").mkdir(parents=True)
    assert project.good("demo", CODE="2")[0].startswith("already exists: ")


@with_either
def test_python_files_of_the_current_folder_do_not_matter(project, tmp_path):
    project.offer("Stanford_Online_Products.zip", SOP)
    offer_weights(project)
    for module in ("hashlib.py", "zipfile.py"):
        (tmp_path / "home" / module).write_text("raise SystemExit(9)")
    project.good("sop", "weights", cwd=tmp_path / "home")


@with_either
def test_without_python(project):
    (project.bin / "python3").unlink()
    assert "python3 is needed" in project.bad("cub200")


@with_either
def test_several_names(project):
    project.offer("Stanford_Online_Products.zip", SOP)
    project.good("sop", "cub200")
    assert project.left() == ["CUB_200_2011", "Stanford_Online_Products"]


@with_either
def test_the_first_error_is_the_last_word(project):
    project.offer("Stanford_Online_Products.zip", SOP)
    del project.server.files["/Stanford_Online_Products.zip"]
    project.bad("sop", "cub200")
    assert project.left() == []


@with_either
@pytest.mark.parametrize(
    "names",
    [[], ["mnist"], ["cub200", "mnist"], ["cub200 sop"], [""], ["se_resnet50"], ["weights", "sop", "se_resnet50"]],
    ids=" ".join,
)
def test_usage(project, names):
    line = project.bad(*names)
    assert ("no name given; " if not names else "unknown name '") in line
    assert (
        "usage: bash download.sh NAME..., with NAME one of: cub200 cars196 sop inshop checkpoint weights demo" in line
    )
    assert project.asked() == []


@with_either
def test_help(project):
    out, _ = project.good("--help")
    assert out.startswith("usage: bash download.sh NAME..., with NAME one of: cub200 ")
    assert all(name in out.splitlines()[1].split() for name in OTHER_WEIGHTS)
    assert project.asked() == []


# --- The table itself


def real_table(**environment):
    """The rows of the script as it is, as the script sees them."""
    code = "{}\ntable\n".format(SCRIPT.read_text().partition("\nusage=")[0])
    done = subprocess.run(
        ["bash", "-c", code],
        env=dict(environment, PATH=os.environ["PATH"], HOME="/home/me"),
        stdout=subprocess.PIPE,
        check=True,
    )
    return [line.split("|") for line in done.stdout.decode().splitlines()]


def test_the_real_table():
    kinds = {
        "md5": "[0-9a-f]{32}",
        "git": "[0-9a-f]{40}",
        "params": "[0-9a-f]{40}",
        "sha256": "[0-9a-f]{64}",
        "zip": "intact",
        "rows": ".* 0 other",
    }
    names = [row[0] for row in real_table()]
    assert len(set(names)) == len(names) == 15
    for file, size, check, addresses in real_table():
        kind, _, expected = check.partition(" ")
        assert re.fullmatch(kinds[kind], expected) and re.fullmatch("-|[0-9]+", size)
        assert all(re.match("https?://[a-z]", address) for address in addresses.split())
        assert kind != "params" or file.endswith((expected[:8] + ".zip", expected[:8] + ".params.zip"))


def test_the_table_has_every_weights_file():
    files = {row[0] for row in real_table()}
    for file, end in [(name + ".params", "zip") for name in (MXNETS, GLUONCVS)] + list(OTHER_WEIGHTS.values()):
        assert (file + end if end == ".zip" else file[: -len("params")] + end if end else file) in files


def test_weights_of_the_zoo_have_a_mirror_in_china():
    rows = [row[3].split() for row in real_table() if row[0].startswith("resnet50_v1")]
    assert len(rows) == 3 and all("amazonaws.com.cn/gluon/models/" in addresses[2] for addresses in rows)


@pytest.mark.parametrize("slash", ["", "/"])
def test_gluons_own_variable_names_the_zoo(slash):
    rows = real_table(MXNET_GLUON_REPO="http://zoo.example/mxnet" + slash)
    addresses = [row[3].split()[0] for row in rows if row[0].startswith("resnet50_v1-")]
    assert addresses == ["http://zoo.example/mxnet/gluon/models/{}.zip".format(name) for name in (MXNETS, GLUONCVS)]
