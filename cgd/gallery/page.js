"use strict";

const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const thumbnails = byId("thumbnails").textContent.split("\n"); // base64 of JPEG files
const STEP = 20; // rows that are built at a time

/** An element with properties or attributes, and children: elements and texts, which are never read as HTML. */
function element(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// ---- Pictures

const pictures = data.pictures.map(([name, label, width, height, link]) => ({ name, label, width, height, link }));
const labelOf = id => data.labels[pictures[id].label] || "";
const describe = id => [labelOf(id), fileOf(id)].filter(Boolean).join(", ");

/** The name of a picture's file, without a folder that is called as its class. */
function fileOf(id) {
  const folder = labelOf(id) + "/";
  return pictures[id].name.startsWith(folder) ? pictures[id].name.slice(folder.length) : pictures[id].name;
}

/** The file and the folder that it lies in: the end of a path, for where all of it has no place. */
const endOf = name => name.split("/").slice(-2).join("/");

/** A long name, which may be broken into lines behind each _ and /. */
function breakable(name) {
  const node = element("span", { className: "name" });
  for (const part of name.match(/[^_/]*[_/]|[^_/]+$/g) || []) node.append(part, element("wbr"));
  return node;
}

/** A square with a picture that keeps its aspect ratio. */
function square(id) {
  const { width, height, link } = pictures[id];
  const frame = element("span", { className: "frame" });
  frame.style.width = 100 * Math.min(1, width / height) + "%";
  frame.style.height = 100 * Math.min(1, height / width) + "%";
  const source = link ? link[0] : thumbnails[id] && "data:image/jpeg;base64," + thumbnails[id];
  if (source) frame.append(image(id, source, link ? link.slice(1) : [width, height, 0, 0]));
  else frame.append(element("span", { className: "broken" }, "cannot be read"));
  return element("span", { className: "square" }, frame);
}

/** A picture of W x H pixels, moved and enlarged so that only its part from (x, y) is seen. */
function image(id, src, [W, H, x, y]) {
  const { width, height } = pictures[id];
  const node = element("img", { src, alt: describe(id), decoding: "async" });
  node.style.width = (100 * W) / width + "%";
  node.style.height = (100 * H) / height + "%";
  node.style.left = (-100 * x) / width + "%";
  node.style.top = (-100 * y) / height + "%";
  return node;
}

// ---- Rows: {query, items, distances, positive: [place in items, rank], maps}

/** Whether an item of a row is of its query's class; null if a class is not known. */
function isRight(row, place) {
  const [a, b] = [pictures[row.query].label, pictures[row.items[place]].label];
  return a < 0 || b < 0 ? null : a === b;
}

const isWrong = row => isRight(row, 0) === false;
const judged = data.rows.some(row => isRight(row, 0) !== null); // whether the classes of queries are known
const rankOf = (row, place) => (place < data.k ? place + 1 : row.positive[1]);

/** What is said of a pair, as a text for those who do not see it. */
function verdict(row, place) {
  const right = isRight(row, place);
  const said = [`neighbour ${rankOf(row, place)}`, `distance ${short(row.distances[place])}`];
  if (right !== null) said.push(right ? "same class" : "another class");
  return said.join(", ");
}

/** A tick or a cross, or nothing if a class is not known. */
function mark(right) {
  if (right === null) return "";
  const [name, sign] = right ? ["right", "\u2713"] : ["wrong", "\u2717"];
  return element("span", { className: "mark " + name, "aria-hidden": "true" }, sign);
}

const caption = id => breakable(labelOf(id) || endOf(fileOf(id)));
const short = distance => (distance ? distance.toPrecision(3) : "0");

function queryTile(row) {
  const label = "query: " + describe(row.query);
  const named = { type: "button", className: "tile query", "aria-label": label, title: describe(row.query) };
  return element("button", named, square(row.query), element("span", { className: "line" }, "query"));
}

function itemTile(row, place) {
  const id = row.items[place];
  const right = isRight(row, place);
  const far = place >= data.k;
  const className = ["tile", right === null ? "" : right ? "right" : "wrong", far ? "far" : ""].join(" ");
  const label = `${verdict(row, place)}: ${describe(id)}`;
  const first = element("span", { className: "line" }, mark(right), " ", short(row.distances[place]));
  if (far) first.append(` #${row.positive[1]}`);
  const named = { type: "button", className, "aria-label": label, title: describe(id) };
  return element("button", named, square(id), first, caption(id));
}

function heading(row) {
  const right = isRight(row, 0);
  const parts = [mark(right), " ", element("b", {}, labelOf(row.query)), " ", breakable(fileOf(row.query))];
  if (right === false) {
    const found = row.positive;
    if (found) parts.push(`; nearest of its class: rank ${found[1]}`);
    else if (data.ranked) parts.push("; no other picture of its class");
  }
  return element("h3", {}, ...parts);
}

function build(row) {
  const tiles = [queryTile(row), ...row.items.map((_, place) => itemTile(row, place))];
  tiles.forEach((tile, place) => {
    tile.tabIndex = -1;
    tile.addEventListener("click", () => openPair(row, Math.max(0, place - 1)));
    tile.addEventListener("focus", () => {
      makeTabStop(tile);
      markPoint(place ? row.items[place - 1] : row.query);
    });
  });
  return element("li", { className: "row" }, heading(row), element("div", { className: "strip" }, ...tiles));
}

// ---- The list: rows that pass the filters, built while they are scrolled to

let pair = null; // the two classes whose confusion is shown
let shown = []; // rows that pass the filters, in order

const of = (row, label) => pictures[row.query].label === label;
const first = (row, label) => pictures[row.items[0]].label === label;
const confuses = (row, [a, b]) => (of(row, a) && first(row, b)) || (of(row, b) && first(row, a));

function refresh() {
  const label = byId("class").value;
  shown = data.rows.filter(
    row =>
      (!byId("wrong").checked || isWrong(row)) &&
      (label === "" || of(row, Number(label))) &&
      (!pair || confuses(row, pair))
  );
  const badness = row => (isWrong(row) ? (row.positive ? row.positive[1] : 1) : 0);
  if (byId("order").value === "worst") shown.sort((a, b) => badness(b) - badness(a));
  for (const button of byId("confused").querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(button.pair === pair));
  const wrong = shown.filter(isWrong).length;
  const said = judged ? `; the first neighbour of ${wrong} is wrong` : "";
  const part = judged ? `${shown.length} of ` : ""; // else there are no filters
  byId("count").textContent = `${part}${data.rows.length} ${data.rows.length > 1 ? "queries" : "query"}${said}`;
  byId("rows").replaceChildren();
  fill();
  const tile = byId("rows").querySelector(".tile");
  if (tile) makeTabStop(tile);
  draw();
}

function more() {
  const built = byId("rows").children.length;
  byId("rows").append(...shown.slice(built, built + STEP).map(build));
}

/** The element of a row, which is built if need be. */
function elementOf(index) {
  while (byId("rows").children.length <= index) more();
  return byId("rows").children[index];
}

new IntersectionObserver(
  entries => {
    if (entries.some(entry => entry.isIntersecting)) fill();
  },
  { rootMargin: "1500px" }
).observe(byId("end"));

/** Builds rows until the window is full: the observer only tells when the end comes into view. */
function fill() {
  if (byId("rows").children.length >= shown.length) return;
  more();
  requestAnimationFrame(() => {
    if (byId("end").getBoundingClientRect().top < innerHeight + 1500) fill();
  });
}

/** Only one picture of the list is reached by the Tab key; arrows move from it to the others. */
function makeTabStop(tile) {
  for (const other of byId("rows").querySelectorAll('.tile[tabindex="0"]')) other.tabIndex = -1;
  tile.tabIndex = 0;
}

function focusTile(index, place) {
  if (index < 0 || index >= shown.length) return;
  const tiles = elementOf(index).querySelectorAll(".tile");
  const tile = tiles[Math.min(Math.max(place, 0), tiles.length - 1)];
  tile.focus();
  tile.scrollIntoView({ block: "nearest", inline: "nearest" });
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The move of an arrow key; none with another key held down, which is the browser's own: Alt and left goes back. */
const moveOf = event => (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey ? null : MOVES[event.key]);

byId("rows").addEventListener("keydown", event => {
  const move = moveOf(event);
  const tile = event.target.closest(".tile");
  if (!move || !tile) return;
  event.preventDefault();
  const row = tile.closest(".row");
  const index = [...row.parentNode.children].indexOf(row);
  const place = [...row.querySelectorAll(".tile")].indexOf(tile);
  focusTile(index + move[0], place + move[1]);
});

/** Goes to the first row with a picture, as its query if possible. */
function goTo(id) {
  const among = rows => {
    const index = rows.findIndex(row => row.query === id);
    return index >= 0 ? index : rows.findIndex(row => row.items.includes(id));
  };
  if (among(shown) < 0) showAll();
  const index = among(shown);
  focusTile(index, shown[index].items.indexOf(id) + 1);
  elementOf(index).scrollIntoView({ block: "center" });
}

function showAll() {
  byId("wrong").checked = false;
  byId("order").value = "given";
  byId("class").value = "";
  pair = null;
  refresh();
}

// ---- A large pair

const dialog = byId("pair");
let opened = null; // {row, place}
let letter = 0; // the similarity map that is shown

function openPair(row, place) {
  opened = { row, place };
  const right = isRight(row, place);
  byId("verdict").replaceChildren(mark(right), " ", verdict(row, place));
  const figure = (title, id) =>
    element("figure", {}, square(id), element("figcaption", {}, element("b", {}, title), " ", breakable(describe(id))));
  byId("large").replaceChildren(figure("query", row.query), figure("neighbour", row.items[place]));
  byId("previous").disabled = place === 0;
  byId("next").disabled = place === row.items.length - 1;
  byId("above").disabled = row === shown[0];
  byId("below").disabled = row === shown[shown.length - 1];
  showMaps();
  if (!dialog.open) dialog.showModal();
  if (document.activeElement.disabled) byId("close").focus(); // else the keys would no longer reach the dialog
}

function movePair([rows, places]) {
  const index = shown.indexOf(opened.row) + rows;
  const row = shown[index];
  if (row && row.items[opened.place + places] !== undefined) openPair(row, opened.place + places);
  else if (row && rows) openPair(row, 0); // this row has no nearest positive behind its neighbours
}

dialog.addEventListener("keydown", event => {
  const move = moveOf(event);
  if (!move || event.target.matches("input")) return;
  event.preventDefault();
  movePair(move);
});
dialog.addEventListener("click", event => {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const inside = left <= event.clientX && event.clientX <= right && top <= event.clientY && event.clientY <= bottom;
  if (event.target === dialog && !inside) dialog.close();
});
dialog.addEventListener("close", () => focusTile(shown.indexOf(opened.row), opened.place + 1));
byId("previous").addEventListener("click", () => movePair(MOVES.ArrowLeft));
byId("next").addEventListener("click", () => movePair(MOVES.ArrowRight));
byId("above").addEventListener("click", () => movePair(MOVES.ArrowUp));
byId("below").addEventListener("click", () => movePair(MOVES.ArrowDown));
byId("close").addEventListener("click", () => dialog.close());

// ---- Similarity maps: [name, value, map of the query, map of the neighbour], each map [h, w, scale, base64]

function showMaps() {
  const maps = opened.row.maps && opened.row.maps[opened.place];
  byId("controls").hidden = !maps;
  byId("unmapped").hidden = !opened.row.maps || Boolean(maps);
  if (!maps) return;
  letter = Math.min(letter, maps.length - 1); // the pair before may have had more
  const choices = maps.map(([name, value], index) => {
    const radio = element("input", { type: "radio", name: "letter", checked: index === letter });
    radio.addEventListener("change", () => {
      letter = index;
      overlay(maps[letter]);
    });
    return element("label", {}, radio, ` ${name} ${value.toFixed(3)}`);
  });
  byId("letters").replaceChildren(byId("letters").querySelector("legend"), ...choices);
  overlay(maps[letter]);
}

/** Lays the maps of both pictures over them, in the same colours: the strongest place of either is opaque. */
function overlay([, , ...maps]) {
  const values = maps.map(([, , scale, code]) => Array.from(atob(code), c => ((c.charCodeAt(0) << 24) >> 24) * scale));
  const strongest = Math.max(...values.flat().map(Math.abs)) || 1;
  [...byId("large").querySelectorAll(".frame")].forEach((frame, index) => {
    const [height, width] = maps[index];
    const canvas = element("canvas", { width, height, "aria-hidden": "true" });
    const pixels = new ImageData(width, height);
    values[index].forEach((value, place) => {
      const colour = value > 0 ? [255, 106, 0] : [0, 114, 255];
      pixels.data.set([...colour, (255 * Math.abs(value)) / strongest], 4 * place);
    });
    canvas.getContext("2d").putImageData(pixels, 0, 0); // the browser interpolates when it enlarges it
    for (const old of frame.querySelectorAll("canvas")) old.remove();
    frame.append(canvas);
  });
  byId("scale").textContent =
    `Orange places add to the similarity, blue ones take from it; the strongest has ${strongest.toPrecision(2)}. ` +
    "It is the cosine without what all pictures share, so that it is less than the distance tells.";
  fade();
}

/** The picture loses its own colours as the map gains them. */
function fade() {
  const opacity = byId("opacity").value / 100;
  for (const map of byId("large").querySelectorAll("canvas")) map.style.opacity = opacity;
  for (const node of byId("large").querySelectorAll("img")) node.style.filter = `grayscale(${opacity})`;
}
byId("opacity").addEventListener("input", fade);

// ---- The scatter plot

const canvas = byId("points");
const points = data.scatter ? data.scatter.points.map(([id, x, y]) => ({ id, x, y })) : [];
const queries = new Map(data.rows.map(row => [row.query, row]));
let current = null; // the point that is marked

const extent = name => {
  const values = points.map(point => point[name]);
  return [Math.min(...values), Math.max(...values)];
};
const bounds = { x: extent("x"), y: extent("y") };

/** The place of a point on the canvas, in CSS pixels. */
function placeOf(point) {
  const share = name => (point[name] - bounds[name][0]) / (bounds[name][1] - bounds[name][0] || 1);
  const [width, height] = [canvas.clientWidth - 16, canvas.clientHeight - 16];
  return [8 + share("x") * width, 8 + (1 - share("y")) * height];
}

function draw() {
  if (!data.scatter || !canvas.clientWidth) return;
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue("--" + name);
  const ratio = devicePixelRatio;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const label = byId("class").value;
  const chosen = id => (label !== "" && pictures[id].label === Number(label)) || (pair && pair.includes(pictures[id].label));
  const rank = ({ id }) => (chosen(id) ? 2 : queries.has(id) ? 1 : 0); // those that matter are drawn last
  for (const point of [...points].sort((a, b) => rank(a) - rank(b))) {
    const [x, y] = placeOf(point);
    const row = queries.get(point.id);
    context.strokeStyle = context.fillStyle = colour(chosen(point.id) ? "accent" : row && isWrong(row) ? "wrong" : "dot");
    symbol(context, x, y, row ? (isWrong(row) ? "cross" : "disc") : "dot");
  }
  if (current) {
    context.strokeStyle = colour("ink");
    context.lineWidth = 2;
    context.beginPath();
    context.arc(...placeOf(current), 7, 0, 7);
    context.stroke();
  }
}

function symbol(context, x, y, kind) {
  context.beginPath();
  if (kind === "cross") {
    context.lineWidth = 1.5;
    context.moveTo(x - 3, y - 3);
    context.lineTo(x + 3, y + 3);
    context.moveTo(x + 3, y - 3);
    context.lineTo(x - 3, y + 3);
    context.stroke();
  } else {
    context.arc(x, y, kind === "disc" ? 2.2 : 1, 0, 7);
    context.fill();
  }
}

/** Marks a point and shows its picture beside the plot. */
function markPoint(id) {
  current = points.find(point => point.id === id) || null;
  if (current && byId("scatter").open) byId("point").replaceChildren(square(id), element("span", {}, describe(id)));
  draw();
}

/** The point that is nearest by a measure, if any. */
function least(measure) {
  let best = null;
  let smallest = Infinity;
  for (const point of points) {
    const size = measure(point);
    if (size < smallest) [best, smallest] = [point, size];
  }
  return best;
}

function under(event) {
  const box = canvas.getBoundingClientRect();
  const away = point => {
    const [x, y] = placeOf(point);
    return Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
  };
  const point = least(away);
  return point && away(point) < 12 ? point : null;
}

// Read aloud only while the plot has the focus: a picture of the list has a label of its own.
canvas.addEventListener("focus", () => byId("point").setAttribute("aria-live", "polite"));
canvas.addEventListener("blur", () => byId("point").setAttribute("aria-live", "off"));
canvas.addEventListener("pointermove", event => {
  const point = under(event);
  if (point && point !== current) markPoint(point.id);
});
canvas.addEventListener("click", event => {
  const point = under(event);
  if (point) goTo(point.id);
});
canvas.addEventListener("keydown", event => {
  const move = moveOf(event);
  const enter = event.key === "Enter" && current;
  if (!move && !enter) return;
  event.preventDefault(); // else the key would also press the picture that gets the focus
  if (enter) return goTo(current.id);
  if (!current) return markPoint(points[0].id);
  const [x, y] = placeOf(current);
  const [down, across] = move;
  const next = least(point => {
    const [dx, dy] = [placeOf(point)[0] - x, placeOf(point)[1] - y];
    const along = dx * across + dy * down;
    const beside = Math.abs(dx * down) + Math.abs(dy * across);
    return point !== current && along > 0 && beside <= along ? along + beside : Infinity;
  });
  if (next) markPoint(next.id);
});
byId("scatter").addEventListener("toggle", draw);
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// ---- The start

function definitions(list, pairs) {
  list.append(...pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function start() {
  document.title = byId("title").textContent = data.title;
  definitions(byId("recalls"), data.recalls.map(([name, value]) => [name, value.toFixed(4)]));
  definitions(byId("facts"), data.note ? [...data.facts, ["shown", data.note]] : data.facts);
  byId("filters").hidden = !judged;
  const counts = new Map();
  for (const row of data.rows) counts.set(pictures[row.query].label, (counts.get(pictures[row.query].label) || 0) + 1);
  data.labels.forEach((label, index) => {
    if (counts.has(index)) byId("class").append(element("option", { value: index }, `${label} (${counts.get(index)})`));
  });
  for (const id of ["wrong", "order", "class"]) byId(id).addEventListener("change", refresh);
  byId("reset").addEventListener("click", showAll);
  const wide = innerWidth > 760;
  byId("confused").hidden = !data.confused.length;
  byId("confused").open = byId("scatter").open = wide;
  byId("scatter").hidden = !data.scatter;
  if (data.scatter) {
    const [x, y] = data.scatter.explained.map(share => (100 * share).toFixed(0) + " %");
    canvas.setAttribute("aria-label", "Scatter plot of the descriptors. Arrow keys move, Enter shows the row.");
    const all = data.pictures.length;
    const some = data.scatter.points.length < all ? ` ${data.scatter.points.length} of the ${all} pictures.` : "";
    const kinds = judged ? "\u25cf query, right \u2717 query, wrong \u00b7 other picture" : "\u25cf query \u00b7 other picture";
    byId("legend").textContent = `${kinds}. Axes: ${x} and ${y} of the variance.${some}`;
  }
  byId("confused").querySelector("ol").append(
    ...data.confused.map(([a, b, wrong, count]) => {
      const here = data.rows.filter(row => confuses(row, [a, b])).length;
      const names = element("span", {}, breakable(data.labels[a]), " \u2194 ", breakable(data.labels[b]));
      const button = element("button", { type: "button" }, names, `${wrong} of ${count} (${here})`);
      button.pair = [a, b];
      button.disabled = !here;
      button.addEventListener("click", () => {
        pair = pair === button.pair ? null : button.pair;
        refresh();
      });
      return element("li", {}, button);
    })
  );
  const aside = document.querySelector("aside");
  aside.hidden = ![...aside.children].some(part => !part.hidden);
  refresh();
}

start();
