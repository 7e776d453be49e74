"""The page in a headless Chromium: filters, keys, pairs, maps, plot; and that nothing is loaded from elsewhere."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from browser import Browser, missing
from PIL import Image

from cgd.data.datasets import Class, Record
from cgd.gallery import page, report
from cgd.retrieval.recall import count_nearer
from conftest import wait_until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

LABELS = ["</script><b>Pelican</b>", "\"quoted\" & 'co'", *(f"class {number}" for number in range(2, 10))]
MAPS = {"all": 0.75, "M": 0.25}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(result, dataset) of 60 small pictures of 10 classes, some of whose queries are misses."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    identities = np.arange(60) % 10
    centres = random.randn(10, 6)
    vectors = centres[identities] + 0.9 * random.randn(60, 6)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    records = []
    for number, identity in enumerate(identities):
        name = b"caf\xe9 #%d%%<i>.png" % number if number < 3 else b"%d.png" % number
        path = os.path.join(os.fsencode(str(folder)), name)
        Image.new("RGB", (40, 30), (20 * identity, 4 * number, 90)).save(path)
        records.append(Record(os.fsdecode(path), identity, (10, 0, 20, 30) if number % 2 else None, number))
    queries = SimpleNamespace(embeddings=vectors, identities=identities, records=records)
    classes = [Class(number, label) for number, label in enumerate(LABELS)]
    dataset = SimpleNamespace(name="birds", ranks=(1, 2), classes=classes)
    nearer = count_nearer(vectors, identities, 2)
    return SimpleNamespace(recalls=[0.5, 0.75], nearer=nearer, queries=queries, gallery=None), dataset


def maps(pairs):
    """One positive and one negative place, at opposite corners."""
    for _ in pairs:
        yield [page.SimilarityMap(name, v, np.diag([v, -v / 3]), np.diag([0, v / 2])) for name, v in MAPS.items()]


@pytest.fixture(scope="module")
def file(evaluated, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    report.write(file, *evaluated, [("checkpoint", LABELS[0])], maps=maps)
    return file


@pytest.fixture
def opened(browser, file):
    """The browser, in a light window of 1280 pixels, with the page just opened. Its console must stay empty."""
    browser.resize(1280, 800)
    browser.dark(False)
    browser.open(file)
    browser.console()
    yield browser
    assert [text for text in browser.console() if "willReadFrequently" not in text] == []  # advice for these tests


def numbers(opened):
    """(queries shown, queries on the page, misses among those shown), as the page says."""
    return list(map(int, re.findall(r"\d+", opened.texts("#count")[0])))


def focused(opened):
    """(row, place in the row) of the picture that has the focus."""
    return opened.run(
        "const tile = document.activeElement, row = tile.closest('.row');"
        "return [[...row.parentNode.children].indexOf(row), [...row.querySelectorAll('.tile')].indexOf(tile)]"
    )


def test_it_shows_names_as_they_are_and_loads_nothing(browser, file):
    browser.requested()
    browser.open(file)
    assert browser.texts("#facts dd")[0] == LABELS[0] and browser.texts("#recalls dd") == ["0.5000", "0.7500"]
    assert browser.texts(".row:first-child h3 b") == [LABELS[0]]
    assert browser.run("return document.querySelectorAll('main b b, main i, header b').length") == 0
    wait_until(lambda: browser.run("return [...document.images].every(i => i.complete)"))
    assert browser.run("return [...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    assert browser.console() == []
    asked = [url for url in browser.requested() if not url.startswith("chrome:")]  # of the tab before this page
    assert file.as_uri() in asked and all(url.startswith(("file:", "data:")) for url in asked)
    browser.run(
        "window.refused = []; addEventListener('securitypolicyviolation', e => refused.push(e.effectiveDirective));"
        "new Image().src = 'http://127.0.0.1:9/a.png'; fetch('http://127.0.0.1:9/b').catch(() => 0);"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script);"
    )
    assert wait_until(lambda: browser.run("return window.refused.length") == 3)
    assert set(browser.run("return window.refused")) == {"img-src", "connect-src", "script-src-elem"}
    assert not browser.run("return window.ran")


def test_ticks_and_ranks_are_those_of_the_evaluation(opened, evaluated):
    queries = evaluated[0].queries
    squares = np.square(queries.embeddings[:, None].astype(float) - queries.embeddings).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    order = squares.argsort(axis=1)
    right = queries.identities[order] == queries.identities[:, None]
    assert numbers(opened) == [60, 60, int((~right[:, 0]).sum())]
    for row in range(20):
        tiles = opened.run(
            "return [...document.querySelectorAll('.row')[arguments[0]].querySelectorAll('.tile:not(.query)')]"
            ".map(tile => [tile.querySelector('.mark').textContent, tile.getAttribute('aria-label')])",
            row,
        )
        rank = 1 + right[row].argmax()
        places = list(range(10)) + ([rank - 1] if rank > 10 else [])
        assert [sign for sign, _ in tiles] == ["\u2713" if right[row, place] else "\u2717" for place in places]
        for (_, label), place in zip(tiles, places):
            said = "same class" if right[row, place] else "another class"
            assert label.startswith(
                f"neighbour {place + 1}, distance {np.sqrt(squares[row, order[row, place]]):.3g}"[:-1]
            )
            assert said in label and LABELS[queries.identities[order[row, place]]] in label
        told = opened.texts(f".row:nth-child({row + 1}) h3")[0]
        assert (f"nearest of its class: rank {rank}" in told) == (rank > 1)


def test_filters(opened):
    count, everything, wrong = numbers(opened)
    assert count == everything == 60 and 0 < wrong < 60
    opened.click("#wrong")
    assert numbers(opened) == [wrong, 60, wrong]
    assert set(opened.texts(".row h3 .mark")) == {"\u2717"}
    opened.run(
        "const order = document.getElementById('order'); order.value = 'worst';order.dispatchEvent(new Event('change'))"
    )
    ranks = [int(rank) for text in opened.texts(".row h3") for rank in re.findall(r"rank (\d+)$", text)]
    assert len(ranks) >= min(wrong, 20) and ranks == sorted(ranks, reverse=True) and ranks[0] > ranks[-1]
    opened.click("#reset")
    assert numbers(opened) == [60, 60, wrong]
    choose = "const c = document.getElementById('class'); c.value = data.labels.indexOf(arguments[0]);"
    opened.run(choose + "c.dispatchEvent(new Event('change'))", LABELS[1])
    assert numbers(opened)[0] == 6 and set(opened.texts(".row h3 b")) == {LABELS[1]}
    opened.click("#reset")
    pair, told = opened.run(
        "const button = document.querySelector('#confused button:enabled');"
        "return [button.pair.map(label => data.labels[label]), button.textContent]"
    )
    here = int(re.search(r"\((\d+)\)$", told).group(1))
    opened.click("#confused button:enabled")
    assert numbers(opened) == [here, 60, here] and set(opened.texts(".row h3 b")) <= set(pair)
    opened.click("#confused button:enabled")
    assert numbers(opened)[0] == 60


def test_rows_are_built_when_they_are_scrolled_to(opened):
    opened.resize(1280, 100)
    opened.run("document.getElementById('reset').click()")
    assert len(opened.texts(".row")) < 60
    rows = "scrollTo(0, 1e6); return document.querySelectorAll('.row').length"
    assert wait_until(lambda: opened.run(rows) == 60)
    opened.resize(1280, 6000)  # the end of 20 rows is always near
    opened.click("#wrong")
    opened.click("#reset")
    assert wait_until(lambda: opened.run(rows) == 60)


def test_keys_move_and_open_pairs(opened):
    opened.run("document.querySelector('.tile[tabindex=\"0\"]').focus()")
    assert opened.run("return document.querySelectorAll('.tile[tabindex=\"0\"]').length") == 1
    assert focused(opened) == [0, 0]
    opened.press("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft")
    assert focused(opened) == [1, 1]
    opened.press("ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowRight")
    assert focused(opened) == [0, 1]
    opened.press("Enter")
    assert opened.run("return document.getElementById('pair').open")
    first = opened.texts("#large figcaption")
    assert LABELS[0] in first[0] and "neighbour 1," in opened.texts("#verdict")[0]
    opened.press("ArrowRight")
    assert "neighbour 2," in opened.texts("#verdict")[0]
    opened.press("ArrowDown")
    second = opened.texts("#large figcaption")
    assert LABELS[1] in second[0] and second[1] != first[1]
    opened.press("Escape")
    assert not opened.run("return document.getElementById('pair').open")
    assert wait_until(lambda: focused(opened) == [1, 2])  # the event of closing comes later


def test_the_keys_of_a_pair_work_on_behind_either_end(opened):
    """A button that has the focus is switched off there, and would take the keys with it."""
    opened.run("document.querySelector('.tile').focus()")
    opened.press("Enter", *["ArrowRight"] * 12)
    last = opened.texts("#verdict")[0]
    assert re.search("neighbour (10|11),", last)
    opened.press("ArrowRight", "ArrowLeft")
    assert opened.texts("#verdict")[0] != last
    opened.press("ArrowUp", *["ArrowLeft"] * 12)
    assert "neighbour 1," in opened.texts("#verdict")[0]
    opened.press("ArrowDown", "ArrowRight")
    assert "neighbour 2," in opened.texts("#verdict")[0] and LABELS[1] in opened.texts("#large figcaption")[0]
    opened.press("Escape")


def test_keys_of_the_browser_are_left_to_it(opened):
    prevented = (
        "const tile = document.querySelector('.tile'); tile.focus();"
        "const given = {key: 'ArrowLeft', bubbles: true, cancelable: true, ...arguments[0]};"
        "const event = new KeyboardEvent('keydown', given);"
        "tile.dispatchEvent(event); return event.defaultPrevented;"
    )
    assert opened.run(prevented, {})
    assert not any(opened.run(prevented, {key: True}) for key in ("altKey", "ctrlKey", "metaKey", "shiftKey"))


def test_a_click_within_the_border_of_a_pair_does_not_close_it(opened):
    opened.click(".tile")
    click = (
        "const pair = document.getElementById('pair'), box = pair.getBoundingClientRect();"
        "pair.dispatchEvent(new MouseEvent('click', {clientX: box.left + arguments[0], clientY: box.top + 20}));"
        "return pair.open;"
    )
    assert opened.run(click, 3) and not opened.run(click, -3)


def test_a_click_opens_a_pair_with_its_maps(opened):
    opened.click(".row:nth-child(2) .tile:nth-child(3)")
    assert len(opened.texts("#large figure")) == 2 and "neighbour 2," in opened.texts("#verdict")[0]
    assert [text.strip() for text in opened.texts("#letters label")] == ["all 0.750", "M 0.250"]
    pixels = (
        "return [...document.querySelectorAll('#large canvas')].map("
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])"
    )
    query, neighbour = (np.reshape(values, (2, 2, 4)) for values in opened.run(pixels))
    assert query[0, 0].tolist() == [255, 106, 0, 255]  # the strongest
    assert abs(query[1, 1, 3] - 255 / 3) < 2 and query[1, 1, 2] > 250 > query[1, 1, 0]  # negative: blue
    assert abs(neighbour[1, 1, 3] - 255 / 2) < 2 and neighbour[1, 1, 0] > 250
    assert query[0, 1, 3] == neighbour[0, 0, 3] == 0
    opacity = "return [...document.querySelectorAll('#large canvas')].map(c => Number(getComputedStyle(c).opacity))"
    before = opened.run(opacity)
    opened.run("document.getElementById('opacity').focus()")
    opened.press(*["ArrowLeft"] * 20)
    assert np.allclose(opened.run(opacity), np.array(before) - 0.2)
    assert "neighbour 2," in opened.texts("#verdict")[0]  # the arrows were the slider's
    opened.click("#letters label:last-child input")
    opened.click("#next")
    assert "neighbour 3," in opened.texts("#verdict")[0]
    assert opened.run("return document.querySelector('#letters label:last-child input').checked")
    assert np.allclose(opened.run(opacity), np.array(before) - 0.2)
    opened.click("#next")  # no map of the fourth, unless it is the nearest positive
    opened.click("#close")
    assert not opened.run("return document.getElementById('pair').open")


def test_a_pair_without_maps_opens_and_the_next_one_has_its_own_again(browser, evaluated, tmp_path):
    """As where a picture of an index was deleted after it had been described."""
    file = tmp_path / "page.html"

    def some(pairs):
        found = list(maps(pairs))
        return [[], *found[1:]]

    report.write(file, *evaluated, [], maps=some)
    browser.open(file)
    browser.console()
    for tile, with_maps in ((2, False), (3, True)):
        browser.click(f".row:nth-child(1) .tile:nth-child({tile})")
        assert browser.run("return document.getElementById('pair').open")
        assert browser.run("return document.querySelectorAll('#large canvas').length") == 2 * with_maps
        assert browser.run("return document.getElementById('unmapped').hidden") == with_maps
        browser.press("Escape")
    assert [text for text in browser.console() if "willReadFrequently" not in text] == []


def test_the_plot_is_linked_to_the_pictures(opened):
    assert opened.texts("#legend")[0].endswith("of the variance.")
    drawn = (
        "const c = document.getElementById('points');"
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.reduce((sum, value) => sum + value, 0)"
    )
    before = opened.run(drawn)
    assert before > 0
    opened.run("document.getElementById('points').focus()")
    opened.press("ArrowRight", "ArrowUp", "ArrowLeft")
    named = opened.texts("#point")[0]
    assert opened.run(drawn) != before
    opened.press("Enter")
    place = focused(opened)
    assert place[1] == 0 and named.endswith(opened.texts(f".row:nth-child({place[0] + 1}) h3 .name")[0])
    opened.press("ArrowRight")
    assert opened.texts("#point")[0] != named  # and back: the plot follows the pictures


def contrast(a, b):
    """The contrast of two colours, from 1 to 21: WCAG 2.1, "relative luminance" and "contrast ratio"."""

    def luminance(colour):
        channels = np.array([int(each) for each in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


def test_it_fits_two_widths_and_is_legible_in_both_modes(opened, tmp_path):
    colours = {}
    for dark in (False, True):
        opened.dark(dark)
        colours[dark] = opened.run(
            "const p = document.body.appendChild(document.createElement('p')), found = {};"
            "for (const name of ['paper', 'panel', 'ink', 'muted', 'right', 'wrong', 'accent'])"
            "{ p.style.color = `var(--${name})`; found[name] = getComputedStyle(p).color; } p.remove(); return found;"
        )
        for ground in ("paper", "panel"):
            for name in ("ink", "muted", "right", "wrong", "accent"):
                assert contrast(colours[dark][name], colours[dark][ground]) >= 4.5, (dark, name, ground)
    assert colours[True]["paper"] != colours[False]["paper"]
    for width in (1280, 400):
        opened.resize(width, 800)
        opened.run("document.getElementById('confused').open = document.getElementById('scatter').open = true")
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth")
        opened.click(".row:first-child .tile:first-child")
        box = opened.run(
            "const b = document.getElementById('pair').getBoundingClientRect(); return [b.left, b.right, b.bottom]"
        )
        assert box[0] >= 0 and box[1] <= width and box[2] <= 800
        opened.press("Escape")


def test_neighbours_of_known_classes_say_nothing_of_a_query_of_none(browser, evaluated, tmp_path):
    vectors, records = evaluated[0].queries.embeddings, evaluated[0].queries.records
    items = [page.Item(record.path, record.box, LABELS[record.identity]) for record in records]
    options = dict(title="Search", vectors=(vectors, vectors))
    page.write(tmp_path / "p.html", [items[0]._replace(label=None)], items, [[1, 2]], [[0.1, 0.2]], **options)
    browser.open(tmp_path / "p.html")
    assert browser.texts("#count") == ["1 query"] and "wrong" not in browser.texts("#legend")[0]
    assert browser.run("return document.getElementById('filters').hidden")
    assert LABELS[1] in browser.texts(".tile:nth-child(2)")[0] and not browser.texts(".mark")


def test_without_classes_there_are_no_marks_and_with_links_the_files_are_shown(browser, evaluated, tmp_path):
    records = evaluated[0].queries.records
    items = [page.Item(record.path, record.box, None) for record in records]
    vectors = evaluated[0].queries.embeddings
    file = tmp_path / "page.html"
    options = dict(title="Search", vectors=(vectors, vectors), link_images=True)
    page.write(file, items[:1], items, [[1, 2, 3]], [[0.1, 0.2, 0.3]], **options)
    browser.resize(1280, 800)
    browser.open(file)
    assert not browser.run("return document.querySelectorAll('.mark, .tile.right, .tile.wrong').length")
    hidden = "return ['filters', 'confused'].every(id => document.getElementById(id).hidden)"
    assert browser.run(hidden) and browser.texts("#count") == ["1 query"]
    assert browser.run("return endOf('a/b/c.png')") == "b/c.png"
    wait_until(lambda: browser.run("return [...document.images].every(i => i.complete)"))
    sizes = browser.run(
        "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.getBoundingClientRect().width /"
        "i.parentNode.getBoundingClientRect().width])"
    )
    assert [size[:2] for size in sizes] == [[40, 30]] * 4
    assert np.allclose([size[2] for size in sizes], [1, 2, 1, 2], atol=0.02)  # half of the width is in the box
    browser.click(".tile:nth-child(2)")
    assert not browser.run(
        "const id = i => document.getElementById(i); return !id('controls').hidden || !id('unmapped').hidden"
    )
    page.write(file, items[:1], items, [[1, 2, 3]], [[0.0, 0.2, 0.3]], title="Search")
    browser.open(file)
    assert browser.run("return document.querySelector('main').getBoundingClientRect().width") > 1200
    assert browser.texts(".tile:nth-child(2) .line") == [" 0"]
    items = [item._replace(label=str(number % 3)) for number, item in enumerate(items)]
    page.write(file, [items[0]._replace(label=None)], items, [[1, 2, 3]], [[0.1, 0.2, 0.3]], title="Search")
    browser.open(file)
    assert browser.texts("#count") == ["1 query"] and browser.run(hidden)
    for positives, said in ((None, False), ([None], True)):  # without ranks it is not known whether there is another
        page.write(file, items[:1], items, [[1, 2, 4]], [[0.0, 0.2, 0.3]], title="Search", positives=positives)
        browser.open(file)
        assert ("no other picture of its class" in browser.texts("h3")[0]) == said
    assert browser.console() == []
