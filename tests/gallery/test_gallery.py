"""The page of queries and neighbours: what is written, without a browser."""

import base64
import hashlib
import io
import json
import os
import re
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import numpy as np
import pytest
from PIL import Image

from cgd.data.datasets import Class
from cgd.gallery import page, pictures, report
from cgd.retrieval.recall import count_nearer, nearest, recall_at_k
from conftest import ROOT

EVIL = "</script><b>\"Bird\" & 'co'</b><!--"


class Elements(HTMLParser):
    """The scripts and styles of a page, as a browser separates them: [(attributes, text)]; and its meta elements."""

    def __init__(self, text):
        super().__init__()
        self.inline, self.metas, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        if tag == "meta":
            self.metas.append(dict(attributes))
        if tag in ("script", "style"):
            self.inline.append((dict(attributes, tag=tag), ""))

    def handle_data(self, text):
        if self.inside in ("script", "style"):
            self.inline[-1] = (self.inline[-1][0], self.inline[-1][1] + text)

    def handle_endtag(self, tag):
        self.inside = None


def read(file):
    """(data, list of thumbnails as bytes, Elements) of a page."""
    elements = Elements(Path(file).read_text(encoding="utf-8"))
    parts = {attributes.get("id"): text for attributes, text in elements.inline}
    thumbnails = [base64.b64decode(line) for line in parts["thumbnails"].split("\n")]
    return json.loads(parts["data"]), thumbnails, elements


@pytest.fixture
def items(tmp_path):
    """Four items of two classes, one with a box, one whose name is not UTF-8, one of them missing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in ((b"a.png", "red"), (b"caf\xe9 <b>.png", "lime")):
        Image.new("RGB", (60, 40), colour).save(os.path.join(os.fsencode(str(folder)), name))
    two_colours = Image.new("RGB", (300, 100), "blue")
    two_colours.paste("white", (200, 0, 300, 100))
    two_colours.save(str(folder / "c.png"))
    paths = [str(folder / name) for name in ("a.png", os.fsdecode(b"caf\xe9 <b>.png"), "c.png", "missing.png")]
    boxes = [None, None, (200, 10, 500, 80), None]  # the third reaches over the border
    return [page.Item(*each) for each in zip(paths, boxes, ["one", EVIL, "one", EVIL])]


NEIGHBOURS = np.array([[1, 2], [0, 3]])


def write(file, items, **options):
    page.write(file, items[:2], items, NEIGHBOURS, np.array([[0.25, 0.5], [0.125, 1]]), title=EVIL, **options)
    return read(file)


def test_names_and_facts_come_through_as_they_are(tmp_path, items, capsys):
    facts = [(EVIL, EVIL), ("count", 3)]
    data, thumbnails, elements = write(tmp_path / "page.html", items, facts=facts, recalls=[("R@1", 2 / 3)])
    assert data["title"] == EVIL and data["facts"] == [[EVIL, EVIL], ["count", "3"]]
    assert data["recalls"] == [["R@1", 0.6667]]
    assert [data["labels"][label] for _, label, *_ in data["pictures"]] == ["one", EVIL, "one", EVIL]
    assert [name for name, *_ in data["pictures"]] == ["a.png", "caf? <b>.png", "c.png", "missing.png"]
    assert data["rows"][0] == {"query": 0, "items": [1, 2], "distances": [0.25, 0.5], "positive": None}
    assert data["rows"][1] == {"query": 1, "items": [0, 3], "distances": [0.125, 1], "positive": None}
    assert str(tmp_path) not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(thumbnails) == 4 and thumbnails[3] == b""
    assert "1 of 4 pictures of the page cannot be read" in capsys.readouterr().err


def test_names_of_a_search_are_without_the_folders_of_the_index_and_of_the_queries():
    found = [page.Item(f"/home/me/photos/{name}", None, None) for name in ("a.png", "far/b.png")]
    queries = [page.Item(f"/tmp/new/{name}", None, None) for name in ("x.png", "y/z.png")]
    assert page._names([*queries, *found], "/home/me/photos") == ["x.png", "y/z.png", "a.png", "far/b.png"]
    assert page._names(found, "/home/me/photos") == ["a.png", "far/b.png"]
    assert page._names(queries, "/home/me/photos") == ["x.png", "y/z.png"]
    assert page._names([found[1]]) == ["b.png"]


def test_the_points_of_the_plot_are_taken_evenly(monkeypatch):
    """Of ten pictures in the order of their classes, every third; neighbours count as the queries do."""
    monkeypatch.setattr(page, "MOST_POINTS", 4)
    items = {name: number for number, name in enumerate("abcdefghij")}
    queries, gallery = list("abcde"), list("fghij")
    vectors = [np.random.RandomState(seed).randn(5, 3) for seed in (0, 1)]
    found = page._scatter(queries, gallery, np.arange(5)[:, None], items, vectors)
    assert [picture for picture, *_ in found["points"]] == [0, 3, 6, 9]


def test_the_policy_allows_this_script_and_style_and_no_other_source(tmp_path, items):
    for link_images in (False, True):
        _, _, elements = write(tmp_path / "page.html", items, link_images=link_images)
        policy = next(
            meta["content"] for meta in elements.metas if "content" in meta and "default-src" in meta["content"]
        )
        code = {attributes["tag"]: text for attributes, text in elements.inline if "type" not in attributes}
        hashes = {tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for tag, text in code.items()}
        assert set(policy.split("; ")) == {
            "default-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            f"style-src 'sha256-{hashes['style']}'",
            f"script-src 'sha256-{hashes['script']}'",
            "img-src data:" + (" file: 'self'" if link_images else ""),
        }


def test_thumbnails_show_the_box(tmp_path, items):
    data, thumbnails, _ = write(tmp_path / "page.html", items)
    seen = [np.asarray(Image.open(io.BytesIO(each))) for each in thumbnails[:3]]
    assert [view.shape[1::-1] for view in seen] == [tuple(size) for _, _, *size in data["pictures"][:3]]
    assert [view.shape for view in seen] == [(40, 60, 3), (40, 60, 3), (80, 100, 3)]
    for view, colour in zip(seen, [(255, 0, 0), (0, 255, 0), (255, 255, 255)]):
        assert np.abs(view - np.array(colour)).max() < 12  # JPEG


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_is_shown_without_a_warning(tmp_path):
    image = Image.new("P", (9, 6), 1)
    image.putpalette([0, 0, 0, 200, 30, 20])
    image.save(str(tmp_path / "a.png"), transparency=bytes([0, 128]))
    size, kept = pictures.thumbnail(str(tmp_path / "a.png"), None)
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept))), int)
    assert size == (9, 6) and np.abs(seen - [200, 30, 20]).max() < 12


def test_large_and_unusual_pictures(tmp_path):
    slope = np.linspace(0, 255, 1000).astype(np.uint8)
    Image.fromarray(np.stack([np.tile(slope, (600, 1))] * 3, axis=2)).save(str(tmp_path / "large.jpg"), quality=95)
    Image.fromarray(np.tile(np.linspace(0, 65535, 90), (30, 1)).astype(np.uint16)).save(str(tmp_path / "deep.png"))
    for name, expected in (("large.jpg", (128, 77)), ("deep.png", (90, 30))):
        size, content = pictures.thumbnail(str(tmp_path / name), None)
        view = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"), float)
        assert size == expected
        assert np.abs(view.mean(axis=0) - np.linspace(0, 255, size[0])).max() < 6
    (tmp_path / "text.jpg").write_text("no picture")
    assert pictures.thumbnail(str(tmp_path / "text.jpg"), None) == ((128, 128), "")
    assert pictures.thumbnail(str(tmp_path / "deep.png"), (90, 0, 5, 5)) == ((128, 128), "")


def test_links_lead_to_the_files(tmp_path, items):
    file = tmp_path / "pages" / "page.html"
    data, thumbnails, _ = write(file, items, link_images=True)
    assert thumbnails == [b""]
    for item, (_, _, width, height, link) in zip(items[:3], data["pictures"]):
        address, *rest = link
        assert address.isascii() and not urlsplit(address).scheme
        found = unquote(urlsplit(urljoin(file.as_uri(), address)).path, errors="surrogateescape")
        assert found == item.path
        assert [width, height, *rest] == ([100, 80, 300, 100, 200, 10] if item.box else [60, 40, 60, 40, 0, 0])
    assert data["pictures"][3][2:] == [128, 128, None]


def test_the_nearest_positive_of_a_miss_is_shown_behind_the_neighbours(tmp_path, items):
    positives = [page.Positive(2, 2, 0.5), page.Positive(3, 2, 1.0)]
    data, _, _ = write(tmp_path / "page.html", items, positives=positives)
    assert [row["positive"] for row in data["rows"]] == [[1, 2], [1, 2]]
    more = items + [page.Item(items[0].path, (0, 0, 9, 9), "one")]
    page.write(
        tmp_path / "p", more[:1], more, [[1, 3]], [[0.1, 0.2]], title="", positives=[page.Positive(4, 57, 0.91239)]
    )
    row = read(tmp_path / "p")[0]["rows"][0]
    assert row == {"query": 0, "items": [1, 2, 3], "distances": [0.1, 0.2, 0.91239], "positive": [2, 57]}


def test_maps_are_asked_for_once_and_survive_quantisation(tmp_path, items):
    asked = []
    values = np.random.RandomState(0).randn(2, 3, 4)

    def maps(pairs):
        asked.extend(pairs)
        return ([page.SimilarityMap("all", 0.5, values[0], values[1])] for _ in pairs)

    data, _, _ = write(tmp_path / "page.html", items, maps=maps, positives=[page.Positive(2, 2, 0.5), None])
    assert asked == [(items[query], items[item]) for query in (0, 1) for item in NEIGHBOURS[query]]
    name, value, *both = data["rows"][1]["maps"][1][0]
    assert (name, value) == ("all", 0.5)
    for (h, w, scale, code), given in zip(both, values):
        kept = np.frombuffer(base64.b64decode(code), np.int8).reshape(h, w) * scale
        assert np.abs(kept - given).max() <= np.abs(given).max() / 254 + 1e-12
    assert page._quantised(np.zeros((1, 2)))[2:] == [1.0, "AAA="]


def test_maps_are_made_of_the_first_neighbours_and_the_nearest_positive(tmp_path, items):
    gallery = [page.Item(items[0].path, (0, 0, side, side), "two") for side in range(1, 8)] + items[:1]
    asked = []
    page.write(
        tmp_path / "p",
        items[:1],
        gallery,
        [range(6)],
        [range(6)],
        title="",
        positives=[page.Positive(7, 99, 1)],
        maps=lambda pairs: asked.extend(pairs) or [[]] * len(pairs),
    )
    assert [gallery.index(item) for _, item in asked] == [0, 1, 2, 7] and page.MAPPED == 3


@pytest.mark.parametrize("count", [1, 2, 40])
def test_principal_components_are_those_of_the_covariance(count):
    vectors = np.random.RandomState(0).randn(count, 6).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    points, shares = page.principal_components(vectors)
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(vectors.T, bias=True)))
    centred = vectors - vectors.mean(axis=0)
    assert points.shape == (count, 2)
    assert np.allclose(np.abs(points), np.abs(centred @ axes[:, :-3:-1]), atol=1e-5)
    assert np.allclose(shares, values[:-3:-1] / max(values.sum(), 1e-30), atol=1e-6)


def test_the_sample_is_even():
    identities = np.repeat([3, 1, 0, 2], [50, 2, 1, 30])
    for count in (3, 4, 20, 83, 100):
        rows = report.even_sample(identities, count)
        assert len(set(rows.tolist())) == len(rows) == min(count, 83) and (np.diff(rows) > 0).all()
        taken, there = np.bincount(identities[rows], minlength=4), np.bincount(identities)
        assert all(there[c] == taken[c] or taken[c] >= taken.max() - 1 for c in range(4))
    assert not np.array_equal(report.even_sample(identities, 8, 0), report.even_sample(identities, 8, 1))


def test_confusions_by_hand():
    queries, retrieved = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1, 0, 1, 0, 1, 0, 2])
    assert report.confusions(queries, retrieved) == [(0, 1, 3, 5), (0, 2, 1, 5)]
    assert report.confusions(queries, retrieved, most=1) == [(0, 1, 3, 5)]
    assert report.confusions(queries, queries) == []


def test_labels_tell_classes_apart():
    assert report.labels_of([Class(7, ""), Class(8, "a"), Class(9, "b")]) == ["class 7", "a", "b"]
    assert report.labels_of([Class(7, ""), Class(8, "a"), Class(9, "a")]) == ["class 7", "a (8)", "a (9)"]


@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-6])
def test_ranks_agree_with_recall_after_a_collapse(spread):
    random = np.random.RandomState(0)
    vectors = random.randn(1, 16) + spread * random.randn(100, 16)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    identities = np.arange(100) % 10
    found = report.nearest_positives(vectors, identities, vectors, identities, np.arange(100))
    nearer = count_nearer(vectors, identities, 100)
    assert [positive.rank for positive in found] == (1 + nearer).tolist()
    assert nearer.max() > 10


@pytest.mark.parametrize("with_gallery", [False, True])
def test_nearest_positives_by_a_full_sort(with_gallery):
    random = np.random.RandomState(0)
    vectors = random.randn(60, 5).astype(np.float32)
    vectors[30] = vectors[32] + 0.01
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[47] = vectors[30]  # as close to 32 as its nearest positive, but of another class
    identities = random.randint(0, 7, 60)
    identities[47], identities[30], identities[32], identities[38] = 0, 1, 1, 7
    queries = np.arange(0, 60, 2) if not with_gallery else np.arange(40)
    items = np.arange(60) if not with_gallery else np.arange(20, 60)
    found = report.nearest_positives(
        vectors[queries],
        identities[queries],
        vectors[items],
        identities[items],
        None if with_gallery else queries,
    )
    ranks = []
    for query, positive in zip(queries, found):
        others = [item for item in items if with_gallery or item != query]
        distance = {item: np.sqrt(np.square(vectors[item].astype(float) - vectors[query]).sum()) for item in others}
        own = [item for item in others if identities[item] == identities[query]]
        ranks.append(positive.rank if positive else np.inf)
        if not own:
            assert positive is None
            continue
        nearest = min(own, key=distance.get)
        before = [i for i in others if identities[i] != identities[query] and distance[i] <= distance[nearest] + 1e-9]
        assert items[positive.item] == nearest and positive.rank == 1 + len(before)
        assert abs(positive.distance - distance[nearest]) < 1e-7
    if with_gallery:
        recalls = recall_at_k(vectors[queries], identities[queries], [1, 2, 5], vectors[items], identities[items])
        assert np.allclose(recalls, [np.mean(np.array(ranks) <= k) for k in (1, 2, 5)])


def test_the_package_has_the_files_of_the_page():
    listed = re.search(r'^"cgd.gallery" = \[(.*)\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    there = {path.name for path in (ROOT / "cgd" / "gallery").iterdir() if path.suffix not in (".py", "")}
    assert set(re.findall(r'"([^"]+)"', listed)) == there


def test_among_equal_distances_those_of_other_classes_come_first():
    """As R@K counts them: a query whose nearest neighbours are all as near has not found its class."""
    found, distances = np.array([[4, 0, 2, 1]]), np.array([[0.0, 0.5, 0.5, 0.7]])
    identities = np.array([9, 7, 8, 8, 7])
    order, far = report.wrong_first(found, distances, np.array([9]), identities)
    assert order.tolist() == [[4, 2, 0, 1]] and far.tolist() == distances.tolist()


def test_a_page_agrees_with_recall_among_more_equal_items_than_are_shown():
    """40 equal descriptors of two classes, as of a collapsed network: R@1 is 0, and every first neighbour is wrong."""
    identities = (np.arange(40) >= 19).astype(int)  # the first ten items are all of one class
    embeddings = np.tile(np.float32([0.6, 0.8]), (40, 1))
    embeddings[38:] = [0, 1], [0.1, 1]  # these two have a nearest item that is wrong, and one that is right
    identities[38:] = 0, 0
    part = types.SimpleNamespace(embeddings=embeddings, identities=identities)
    result = types.SimpleNamespace(nearer=count_nearer(embeddings, identities, 8), queries=part, gallery=None)
    found, distances = nearest(embeddings, 10, return_distances=True)
    found, distances = report.wrong_first(found, distances, identities, identities)
    before = identities[found[:, 0]] == identities
    report.add_wrong(found, distances, result)
    right = identities[found[:, 0]] == identities
    assert before.sum() > right.sum() and right.tolist() == (result.nearer < 1).tolist()
    far = np.linalg.norm(embeddings[found].astype(float) - embeddings[:, None].astype(float), axis=2)
    np.testing.assert_allclose(distances, far, atol=1e-7)
    assert all(len(set(row)) == 10 for row in found.tolist())
