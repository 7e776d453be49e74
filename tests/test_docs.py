"""The documentation: its examples run, its links lead somewhere, and what it names exists."""

import ast
import importlib.util
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from cgd.network import checkpoints
from conftest import ROOT, command, lively_network

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 1800

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKED = re.compile(r"^<!-- test -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")

# The programs with flags of their own, as the documentation writes them.
PROGRAMS = (
    "train.py",
    "test.py",
    "-m cgd.tables",
    "-m cgd.gallery.sheet",
    "-m cgd.training.curves",
    "-m cgd.export",
    "-m cgd.describe",
    "-m cgd.search",
    "-m cgd.explain",
    "-m cgd.quantize",
    "-m cgd.demo",
)
CALL = re.compile(r"(?:^|[ =\"])({})(?![\w.])(.*)".format("|".join(map(re.escape, PROGRAMS))))


def name_of(page):
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def prose(page):
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


def code(page):
    """The pieces of code on a page: each line of a block, with what continues it, each `span`. Without comments."""
    blocks = [re.sub(r"\\\n\s*", " ", block) for _, block in FENCE.findall(page.read_text())]
    lines = [line for block in blocks for line in block.split("\n")]
    spans = [" ".join(span.split()) for span in SPAN.findall(prose(page))]
    return [re.sub(r"(^|\s)# .*", "", piece) for piece in lines + spans]


def anchors(page):
    """The anchors that GitHub makes of a page's headings."""
    found, seen = [], {}
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        found.append(slug + ("-{}".format(seen[slug]) if seen[slug] else ""))
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A copy of the program, so that no example writes into the checkout, and none depends on the runs in it."""
    folder = tmp_path_factory.mktemp("program")
    shutil.copytree(str(ROOT / "cgd"), str(folder / "cgd"), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "test.py"):
        shutil.copy(str(ROOT / name), str(folder))
    return folder


@pytest.fixture(scope="module")
def flags(program):
    """{program: set of its flags}, by its --help."""

    def flags_of(name):
        done = command(*name.split(), "--help", cwd=program)
        assert done.returncode == 0, done.stderr
        return set(FLAG.findall(done.stdout))

    with ThreadPoolExecutor(2) as pool:
        flags = dict(zip(PROGRAMS, pool.map(flags_of, PROGRAMS)))
    flags["-m cgd.demo"] |= flags["train.py"]  # which gets what it does not know
    return flags


@every_page
def test_links_and_anchors_lead_somewhere(page):
    broken = []
    for link in LINK.findall(SPAN.sub("", prose(page))):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or ROOT not in [target, *target.parents]:
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []


def test_every_page_of_docs_is_linked_from_readme():
    linked = set(LINK.findall(README.read_text()))
    pages = {name_of(page) for page in PAGES if page.parent == ROOT / "docs"}
    assert pages <= {link.partition("#")[0] for link in linked}


def test_readme_is_short():
    assert len(README.read_text().split()) <= MOST_WORDS


@every_page
def test_modules_and_files_exist(page):
    missing = []
    for piece in code(page):
        for module in re.findall(r"-m (cgd[\w.]*\w)", piece):
            spec = importlib.util.find_spec(module)
            main = spec and (
                Path(spec.origin).parent / "__main__.py" if spec.submodule_search_locations else spec.origin
            )
            if not main or "__main__" not in Path(main).read_text():
                missing.append(module)
        for file in re.findall(
            r"(?<![\w./-])(?:(?:cgd|tests|docs|benchmarks|figures)/[\w./-]*|\w+\.(?:py|sh)\b)", piece
        ):
            if not (ROOT / file.rstrip(".")).exists():
                missing.append(file)
    assert missing == []


@every_page
def test_flags_exist(page, flags):
    """Those of a command by its own --help, those that stand alone by that of any."""
    unknown = []
    for piece in code(page):
        call = CALL.search(piece)
        if call:
            own, _, others = call.group(2).partition(" -- ")
            named = {flag: flags[call.group(1)] for flag in FLAG.findall(own)}
            named.update({flag: flags["train.py"] for flag in FLAG.findall(others)})
        else:
            named = {flag: set().union(*flags.values()) for flag in FLAG.findall(piece) if piece.startswith("--")}
        unknown += [(piece, flag) for flag, known in named.items() if flag not in known]
    assert unknown == []


def test_every_flag_of_training_is_documented(flags):
    described = set(FLAG.findall((ROOT / "docs" / "training.md").read_text()))
    assert flags["train.py"] - {"--help"} <= described


def test_python_examples_run(tmp_path, monkeypatch):
    """An expression with a literal in a comment behind it, as in `1 + 1  # 2`, has that value."""
    monkeypatch.chdir(tmp_path)
    described = {"image_width": 32, "image_height": 32}
    checkpoints.save(lively_network("mobilenet0.25", 32, dim=192), "runs/demo-1/trained/last", described)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (40, 50)).save(name)
    pages = README, ROOT / "docs" / "api.md"
    blocks = [block for page in pages for language, block in FENCE.findall(page.read_text()) if language == "python"]
    assert len(blocks) >= len(pages)
    checked = 0
    for block in blocks:
        names, lines = {}, block.split("\n")
        for node in ast.parse(block).body:
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(node, ast.Expr) and "  # " in text:
                expression, _, expected = text.partition("  # ")
                assert eval(expression, names) == ast.literal_eval(expected), text
                checked += 1
            else:
                exec(text, names)
    assert checked


def marked_examples():
    """[(command, the output shown below it)] of README's blocks below the mark `<!-- test -->`."""
    examples = []
    for block in MARKED.findall(README.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            examples.append((line, shown))
    return examples


def test_readme_has_marked_examples():
    assert len(marked_examples()) >= 3


@pytest.mark.parametrize("line, shown", marked_examples())
def test_marked_examples_run(program, line, shown):
    python, *words = shlex.split(line, comments=True)
    assert python == "python"
    done = command(*words, cwd=program)
    assert (done.returncode, done.stdout if shown else "") == (0, shown), done.stderr


@pytest.mark.parametrize(
    "extra, file", [("cpu", "requirements-cpu.txt"), ("gpu", "requirements.txt"), ("test", "requirements-test.txt")]
)
def test_extras_are_the_requirements_files(extra, file):
    text = (ROOT / "pyproject.toml").read_text()
    listed = ast.literal_eval(re.search(r"^{} = (\[.*?^\])".format(extra), text, re.MULTILINE | re.DOTALL).group(1))
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().split("\n")]
    assert [each.replace("; ", ";").replace("'", '"') for each in listed] == [
        line.replace("; ", ";") for line in lines if line
    ]


def test_packages_import_in_the_order_that_contributing_gives():
    sentence = re.search(r"Imports go one way: (.*)\.", (ROOT / "CONTRIBUTING.md").read_text()).group(1)
    order = re.findall(r"`(\w+)`", sentence)
    assert sorted(order) == sorted(folder.parent.name for folder in (ROOT / "cgd").glob("*/__init__.py"))
    for file in (ROOT / "cgd").glob("*/*.py"):
        imported = set(re.findall(r"^\s*(?:from|import) cgd\.(\w+)", file.read_text(), re.MULTILINE))
        allowed = order[: order.index(file.parent.name) + 1]
        assert imported <= set(allowed) - ({"data"} if file.parent.name == "network" else set()), file
