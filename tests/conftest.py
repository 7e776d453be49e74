"""What several tests share: a small demo set, and the material beside the checkout where there is some."""

import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# `make test-long` sets this variable: all mangled files, more kills, and all cores for each process.
LONG = bool(os.environ.get("CGD_LONG_TESTS"))

# The networks of the tests are so small that more threads only wait for one another, and they do not sleep meanwhile:
# where another program needs a core, a step takes ten times as long. MXNet reads the variable when it is imported.
if not LONG:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from cgd.data import birds  # noqa: E402
from cgd.data.datasets import Record  # noqa: E402
from cgd.data.loader import Loader  # noqa: E402
from cgd.network import backbones, model  # noqa: E402
from cgd.system import environment, errors  # noqa: E402
from cgd.system.environment import mx  # noqa: E402

needs_bfloat16 = pytest.mark.skipif(
    "avx512bw" not in Path("/proc/cpuinfo").read_text().split(), reason="oneDNN has bfloat16 on CPUs with AVX-512 only"
)

# A list file and its boxes.
LIST = "image_id class_id path\n1 0 images/a.jpg\n2 0 images/b.jpg\n3 1 images/c with blank.jpg\n"
BOXES = "1 60.9 27.0 325.0 304.0\n2 1 2 3 4\n3 5 6 7 8\n"


@pytest.fixture(autouse=True)
def as_in_a_new_process():
    """A test draws the same numbers, and sees the same notices, whichever ones ran before it in this process."""
    environment.seed_everything(0)
    environment._say_once.cache_clear()


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory):
    """A demo set of 8 classes x 6 pictures: 4 classes for training, 4 for test."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    birds.draw_demo(folder, classes=8, images_per_class=6)
    return folder


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Five pictures of noise on a slope, with boxes, some of which reach over the border."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    boxes = [(10, 5, 60, 70), (0, 0, 100, 80), (50, 40, 500, 500), None, (99, 79, 1, 1)]
    records = []
    for number, box in enumerate(boxes):
        pixels = random.randint(0, 100, (80, 100, 3)) + np.arange(100)[None, :, None]
        path = folder / "{}.jpg".format(number)
        Image.fromarray(pixels.astype(np.uint8)).save(str(path), quality=95)
        records.append(Record(str(path), number % 2, box, number + 1))
    return records


@pytest.fixture(scope="session")
def many_birds(tmp_path_factory):
    """8 identities to train on: enough for batches of 16 with 2 images of each."""
    folder = tmp_path_factory.mktemp("data") / "demo"
    birds.draw_demo(folder, classes=16, images_per_class=4)
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder of real annotation files, pictures and weights that stands beside some checkouts."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared here: real annotation files, pictures and weights are not at hand")
    return folder


def annotations_file(folder, rows, names=("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")):
    """A MATLAB file as Cars196 has them, written by scipy."""
    io = pytest.importorskip("scipy.io", reason="no scipy here: MATLAB files cannot be written")
    table = np.zeros((1, len(rows)), dtype=[(name, object) for name in names])
    for column, row in enumerate(rows):
        table[0, column] = row
    io.savemat(str(folder / "annos.mat"), {"annotations": table})
    return folder / "annos.mat"


def heed_stops():
    """For `preexec_fn` of a process that gets a signal: under nohup, or in the background, it would ignore some."""
    for number in errors.STOPS:
        signal.signal(number, signal.SIG_DFL)


def command(*words, cwd=ROOT, **environment):
    """Runs a command of the project as a user would; the finished process, its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=str(cwd),
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def start():
    """Starts a command of the project, its output thrown away, in a process group of its own: start(*words, **more).

    more : arguments of subprocess.Popen

    The groups are killed in the end, also if the test has failed.
    """
    started = []

    def start(*words, **more):
        words = [sys.executable, *map(str, words)]
        more = dict({"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}, **more)
        started.append(subprocess.Popen(words, cwd=str(ROOT), start_new_session=True, preexec_fn=heed_stops, **more))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def leave(code, text=""):
    """As errors.leave, but this process goes on."""
    if text:
        print(text, file=sys.stderr)
    sys.exit(code)


def command_here(monkeypatch, capfd, *words):
    """As `command`, but in this process, which saves the start of a Python.

    A stop (Ctrl-C, SIGTERM) that comes meanwhile is meant for the tests: it ends them. Were it left to the command,
    this run and the ones after it would be reported as interrupted.
    """
    capfd.readouterr()
    if words[0] == "-m":
        module = words[1].replace(".", "/")
        words = (module + ("/__main__.py" if (ROOT / module).is_dir() else ".py"), *words[2:])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.setattr(errors, "leave", leave)
    handlers = {number: signal.getsignal(number) for number in errors.STOPS}
    errors._asked.clear()  # of a stop in an earlier test
    code = None
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if errors._asked:
        errors._asked.clear()
        raise KeyboardInterrupt("the tests were stopped")
    return subprocess.CompletedProcess(words, code, *capfd.readouterr())


@pytest.fixture
def here(monkeypatch, capfd):
    """`command_here` as a function of the command's words."""
    return lambda *words: command_here(monkeypatch, capfd, *words)


def lively_network(backbone, side, change=None, **options):
    """A hybridized model.CGD of 12 dimensions whose embeddings differ by image, as those of a trained one do.

    With batch norm as it is initialised, maps fade with depth, and what is left is the bias of the last layers.

    change : a function of the network, called before it is initialised
    """
    mx.random.seed(1)
    net = model.CGD(**dict({"config": "SMG", "dim": 12, "backbone": backbone}, **options))
    net.infer_shape(mx.nd.zeros((1, 3, side, side)))
    if change:
        change(net)
    net.initialize(mx.init.Xavier(magnitude=2))
    random = np.random.RandomState(1)
    bounds = {"gamma": (0.5, 3), "beta": (-1, 3)}  # so that ReLU6 is active at both ends
    for name, parameter in net.collect_params().items():
        if name.rsplit("_", 1)[-1] in bounds:
            parameter.set_data(mx.nd.array(random.uniform(*bounds[name.rsplit("_", 1)[-1]], parameter.shape)))
    norms = backbones.children(net, mx.gluon.nn.BatchNorm)
    for momentum in (0.0, 0.9):  # first the running statistics become those of a batch
        for norm in norms:
            norm._kwargs["momentum"] = momentum
        if not momentum:
            with mx.autograd.record():
                embeddings = net.embed(mx.nd.array(random.randn(8, 3, side, side)))
            embeddings.backward()  # MXNet's batch norm updates them in the backward pass
            mx.nd.waitall()
    net.hybridize()
    return net


@pytest.fixture
def figures(monkeypatch):
    """The figures of matplotlib that are saved."""
    figure = pytest.importorskip("matplotlib.figure", reason="no matplotlib here: nothing is drawn")
    saved, savefig = [], figure.Figure.savefig
    monkeypatch.setattr(figure.Figure, "savefig", lambda *words: saved.append(words[0]) or savefig(*words))
    return saved


def one_batch(view, keys):
    """(pictures, identities) of a view's keys, as the loader gives them."""
    pictures, identities, _ = next(Loader(view, len(keys)).batches([keys]))
    return pictures, identities


def running(process):
    """Whether a process of this number is there and is no zombie."""
    try:
        return Path("/proc/{}/stat".format(process)).read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children_of(process):
    """The numbers of a process's children."""
    tasks = Path("/proc/{}/task".format(process)).iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def members_of(group):
    """The numbers of a process group's members."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = []
    for number in numbers:
        try:
            if os.getpgid(number) == group:
                found.append(number)
        except ProcessLookupError:
            pass  # it has ended since
    return found


def wait_until(condition, seconds=20):
    """Whether the condition holds within so many seconds."""
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.05)
    return condition()
