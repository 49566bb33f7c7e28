// Show the images of a run: a slider over the order of picking, the images on either side of the cut, a contact sheet and a map.
//
// The element with the id "data" has JSON. Images are numbers: the candidates come first, the best first, then the images of
// the pool. Of each image it has its name, its place on the map (x, y) and the number of its picture (-1: problems[problem[i]]
// is the reason); of each candidate its label, its distance and its nearest image (-1: none). The first `order` candidates are
// in the order of picking: a choice of k images takes the first k. The run took `taken`. `id` stands for the candidates and
// their order.
// biome-ignore lint/suspicious/noRedundantUseStrict: the page has it as a classic script, not as a module.
"use strict";

const D = JSON.parse(document.getElementById("data").textContent);
const SIDE = 4000; // of the map, in its own units
const CHUNK = 120; // images that are added to the sheet at a time
const PRINTED = 500; // images of the sheet on paper
const EDGE = 6; // images on either side of the cut
const FEW = 6000; // points up to which the map draws circles
const CHIPS = 12; // labels with a button each; the others are in a list

const $ = (id) => document.getElementById(id);

// --- the state of the page: what a person chose ---------------------------------------------------------------------------

const state = {
  k: D.taken, // how many images to label
  refused: new Set(), // candidates
  label: null, // the number of the only label on the sheet
  lasso: null, // the images drawn around, a Set
  sort: "rank",
  current: 0, // position on the sheet
};

/** Read the choice from the address, so that a reload keeps it. One of another run has other images under these numbers. */
function restore() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (wanted.get("of") !== D.id) return;
  if (wanted.has("n") && !D.isFixed) state.k = clamp(Number(wanted.get("n")) || 0, 0, D.order);
  for (const i of (wanted.get("refused") ?? "").split("-")) {
    if (i !== "" && Number(i) < D.candidates) state.refused.add(Number(i));
  }
}

function remember() {
  const choice = new URLSearchParams();
  if (state.k !== D.taken) choice.set("n", state.k);
  if (state.refused.size) choice.set("refused", [...state.refused].join("-"));
  if (String(choice)) choice.set("of", D.id);
  if (String(choice) !== location.hash.slice(1)) history.replaceState(null, "", `#${choice}`);
}

// --- small helpers --------------------------------------------------------------------------------------------------------

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const count = (n) => n.toLocaleString("en-US");
const digits = (distance, n = 4) => (distance === null ? "–" : String(Number(distance.toPrecision(n))));

/** Make an element. */
function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Make the picture of an image, or a box with the reason why there is none. */
function picture(i) {
  if (D.picture[i] >= 0) {
    return el("img", { src: `data:image/webp;base64,${D.pictures[D.picture[i]]}`, alt: D.names[i] });
  }
  return el("span", { class: "box" }, D.problems[D.problem[i]] ?? "no picture");
}

const isPool = (i) => i >= D.candidates;
const isPicked = (i) => i < state.k;

/** Return what happens to an image, in words. */
function fate(i) {
  if (isPool(i)) {
    const version = D.version[i - D.candidates];
    return `in the pool since ${D.weekOf[version] ?? `version ${version}`}`;
  }
  const refused = state.refused.has(i) ? "refused; " : "";
  if (isPicked(i)) return `${refused}number ${count(i + 1)}, ${distanceOf(i)}`;
  const threshold = thresholdOf(state.k);
  const isNearer = threshold !== null && D.distance[i] !== null && D.distance[i] < threshold;
  return `${refused}left out: ${D.why[i] ?? distanceOf(i)}${isNearer && !D.why[i] ? `, nearer than min_distance ${threshold}` : ""}`;
}

function distanceOf(i) {
  if (D.nearest[i] < 0) return "the first of the pool";
  return `${digits(D.distance[i])} from ${D.names[D.nearest[i]]}`;
}

// --- the cut: a number of images, or a min_distance -----------------------------------------------------------------------

/** Return how many images a min_distance takes: all before the first one that is nearer. */
function cutAt(minDistance) {
  for (let i = 0; i < D.order; i++) if (D.distance[i] !== null && D.distance[i] < minDistance) return i;
  return D.order;
}

/** Return a min_distance, with few digits, that takes exactly k images; null if there is none. */
function thresholdOf(k) {
  if (!D.byDistance || !k || (k === D.order && D.isCut)) return null;
  const high = D.distance[k - 1] ?? 2 * (D.distance[k] ?? 1) + 1;
  const low = Math.max(k < D.order ? (D.distance[k] ?? -1) : -1, D.again ?? -1);
  for (let places = 0; places < 17; places++) {
    const value = Number((Math.floor(high * 10 ** places) / 10 ** places).toFixed(places));
    if (value > low && value <= high) return value;
  }
  return high > low ? high : null; // equal distances: no threshold lies between them
}

/** Return whether a min_distance is to end the choice of k images, as it does in this run, rather than their number. */
const endsByDistance = (k) => D.stop.n_samples === -1 && thresholdOf(k) !== null;

/** Return the overrides that make a run take exactly k images. */
function overrides(k) {
  const stop = D.stop;
  if (endsByDistance(k)) return [`min_distance=${thresholdOf(k)}`];
  const n = k + (stop.n_samples_includes_datapool ? D.poolBefore : 0);
  const last = D.distance[k - 1];
  const isTooFar = D.byDistance && last !== null && stop.min_distance > last;
  return [`n_samples=${n}`, ...(isTooFar ? [`min_distance=${last}`] : [])];
}

/** Quote a text for a shell where it must be. */
const quoted = (text) => (/^[\w.,:/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** Return the lines of exclude.txt for the images that were refused. */
function refusedLines() {
  const lines = [...state.refused].sort((a, b) => a - b).map((i) => D.lines[i] ?? `${D.names[i]}\t${D.reason}`);
  return `${lines.join("\n")}\n`;
}

/** Return a name for a download that no other content has, so that a browser's "name (1).txt" is never another file. */
function refusedFile() {
  let hash = 0x811c9dc5; // FNV-1a
  for (const byte of new TextEncoder().encode(refusedLines())) hash = Math.imul(hash ^ byte, 0x01000193);
  return `refused-${D.week.replace(/[^\w.-]+/g, "_")}-${(hash >>> 0).toString(16).padStart(8, "0")}.txt`;
}

/** Return the command that keeps the choice. */
function keepCommand() {
  const parts = ["datapool keep"];
  if (state.k !== D.taken) parts.push(endsByDistance(state.k) ? `--min-distance ${thresholdOf(state.k)}` : `--n ${state.k}`);
  if (state.refused.size) parts.push(`--exclude ~/Downloads/${refusedFile()}`);
  return `${parts.join(" ")} -m ${quoted(D.week)}`;
}

/** Return what that command stands for. */
function dvcCommands() {
  const lines = [];
  if (state.k !== D.taken) lines.push(`dvc exp run ${overrides(state.k).map((each) => `-S stopping_condition.${each}`).join(" ")}`);
  if (state.refused.size) lines.push(`cat ~/Downloads/${refusedFile()} >> exclude.txt`, "dvc repro");
  return [...lines, `git add --all && git commit -m ${quoted(D.week)}`].join("\n");
}

// --- the decision ---------------------------------------------------------------------------------------------------------

function drawDecision() {
  const n = state.k === D.taken ? D.picked : state.k;
  const refused = [...state.refused].filter(isPicked).length;
  $("n").textContent = count(n);
  $("grows").textContent = `pool ${count(D.poolBefore)} → ${count(D.poolBefore + n - refused)}${refused ? `, ${count(refused)} refused` : ""}`;
  $("slider").value = state.k;
  $("number").value = state.k;
  const threshold = thresholdOf(state.k);
  $("distance").value = threshold ?? "";
  $("slider").setAttribute("aria-valuetext", `${state.k} images${threshold === null ? "" : `, min_distance ${threshold}`}`);
  $("reset").hidden = state.k === D.taken;
  if ($("command").textContent !== keepCommand()) $("said").textContent = "";
  $("command").textContent = keepCommand();
  $("below").textContent = dvcCommands();
  $("copy").disabled = !state.k;
  $("download").hidden = !state.refused.size;
  $("n-refused").textContent = state.refused.size;
  drawCurve();
}

/** Draw the distances in the order of picking, with a line at the cut. */
function drawCurve() {
  const points = [];
  const step = Math.max(1, Math.floor(D.order / 800)); // as many points as pixels
  for (let i = 0; i < D.order; i += step) if (D.distance[i] !== null) points.push([i + 0.5, D.distance[i]]);
  lineChart($("curve"), {
    lines: [
      { points: points.filter(([x]) => x >= state.k), name: "" },
      { points: points.filter(([x]) => x <= state.k + step), accent: true, name: "" },
    ],
    width: D.order,
    mark: state.k,
    isBare: true,
  });
}

function setCut(k) {
  if (D.isFixed) return;
  state.k = clamp(Math.round(k), 0, D.order);
  drawAll();
}

// --- line charts ----------------------------------------------------------------------------------------------------------

/** Draw lines into an svg element: {points, name, accent, dashed} each. Both axes begin at 0. */
function lineChart(svg, { lines, width, mark = null, isBare = false }) {
  const box = svg.getBoundingClientRect();
  const [left, right, top, bottom] = isBare ? [0, 0, 4, 2] : [44, 8, 8, 22];
  const all = lines.flatMap((line) => line.points);
  const height = Math.max(...all.map(([, y]) => y), 1e-12);
  const px = (x) => left + (x / width) * (box.width - left - right);
  const py = (y) => box.height - bottom - (y / height) * (box.height - top - bottom);
  const make = (tag, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  svg.replaceChildren();
  if (!isBare) {
    for (const part of [0, 0.5, 1]) {
      const y = py(part * height);
      svg.append(make("line", { class: "axis", x1: left, x2: box.width - right, y1: y, y2: y }));
      svg.append(make("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, digits(part * height)));
      const anchor = ["start", "middle", "end"][part * 2];
      svg.append(make("text", { x: px(part * width), y: box.height - 4, "text-anchor": anchor }, count(Math.round(part * width))));
    }
  }
  for (const { points, name, accent, dashed } of lines) {
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)},${py(y).toFixed(1)}`).join("");
    svg.append(make("path", { d, class: `${accent ? "accent" : ""} ${dashed ? "dashed" : ""}` }));
    if (name && points.length) {
      const [x, y] = points[Math.floor(points.length / 3)];
      svg.append(make("text", { x: px(x) + 4, y: py(y) - 6 }, name));
    }
  }
  if (mark !== null) svg.append(make("line", { class: "mark", x1: px(mark), x2: px(mark), y1: 0, y2: box.height }));
}

function drawCoverage() {
  if (!$("coverage") || !D.coverage.step) return;
  const { step } = D.coverage;
  const line = (key, name, accent) => ({
    points: step.map((x, i) => [x, D.coverage[key][i]]),
    name,
    accent,
    dashed: !accent,
  });
  lineChart($("coverage"), {
    lines: [
      line("chosen_p99", "99th percentile", true),
      line("random_p99", "", false),
      line("chosen", "mean", true),
      line("random", "", false),
    ],
    width: step[step.length - 1] || 1,
  });
}

// --- where the line is drawn ----------------------------------------------------------------------------------------------

function drawEdge() {
  const pairs = (from, to) => {
    const made = [];
    for (let i = Math.max(0, from); i < Math.min(to, D.order); i++) made.push(pair(i));
    return made.length ? made : [el("li", { class: "note" }, "none")];
  };
  $("last-taken").replaceChildren(...pairs(state.k - EDGE, state.k));
  $("first-left-out").replaceChildren(...pairs(state.k, state.k + EDGE));
  $("last-taken").scrollLeft = $("last-taken").scrollWidth; // a narrow window shows those at the cut
}

/** Make an image beside its nearest; a click refuses it. */
function pair(i) {
  const shot = el("button", { type: "button", class: "shot", "data-image": i }, picture(i));
  showShot(shot);
  const nearest = D.nearest[i];
  return el(
    "li",
    { class: "pair" },
    el("figure", {}, shot, el("figcaption", { title: D.names[i] }, `${count(i + 1)} · ${digits(D.distance[i], 3)}`)),
    nearest < 0
      ? el("figure", {}, el("span", { class: "box" }, "the first of the pool"))
      : el("figure", { "data-image": nearest }, picture(nearest), el("figcaption", { title: D.names[nearest] }, isPool(nearest) ? fate(nearest).replace("in the pool since ", "") : `number ${count(nearest + 1)}`)),
  );
}

function refuse(i) {
  if (isPool(i)) return;
  if (!state.refused.delete(i)) state.refused.add(i);
  if ($("decision")) drawDecision();
  drawRefused();
  remember();
}

// --- the contact sheet ----------------------------------------------------------------------------------------------------

let shown = []; // the images on the sheet, in its order

function drawSheet() {
  const picks = Array.from({ length: state.k }, (_, i) => i);
  drawLabels(picks);
  shown = picks.filter((i) => (state.label === null || D.label[i] === state.label) && (!state.lasso || state.lasso.has(i)));
  const far = (i) => D.distance[i] ?? Infinity;
  if (state.sort === "distance") shown.sort((a, b) => far(a) - far(b) || a - b);
  if (state.sort === "label") shown.sort((a, b) => D.label[a] - D.label[b] || a - b);
  $("sheet").replaceChildren();
  $("sheet").scrollTop = 0;
  state.current = clamp(state.current, 0, Math.max(0, shown.length - 1));
  addToSheet(Math.max(CHUNK, state.current + 1));
  $("shown").textContent = shown.length === state.k ? "" : `${count(shown.length)} of ${count(state.k)}`;
  $("everything").hidden = !state.lasso;
  markCurrent();
}

/** Add images to the sheet until it has so many. */
function addToSheet(n) {
  const sheet = $("sheet");
  for (let at = sheet.children.length; at < Math.min(n, shown.length); at++) {
    const i = shown[at];
    const option = el(
      "div",
      { role: "option", id: `image-${i}`, "data-image": i, "aria-setsize": shown.length, "aria-posinset": at + 1 },
      picture(i),
      el("span", {}, count(i + 1)),
    );
    sheet.append(option);
    showRefused(option);
  }
}

function showRefused(option) {
  const i = Number(option.dataset.image);
  const refused = state.refused.has(i);
  option.classList.toggle("refused", refused);
  option.setAttribute("aria-selected", !refused);
  option.setAttribute("aria-label", `${D.names[i]}, ${fate(i)}, label ${D.labels[D.label[i]]}`);
}

function drawRefused() {
  for (const option of $("sheet").children) showRefused(option);
  for (const shot of document.querySelectorAll("button.shot")) showShot(shot);
}

/** Show on a picture that is a button whether its image is refused. */
function showShot(shot) {
  const i = Number(shot.dataset.image);
  shot.classList.toggle("refused", state.refused.has(i));
  shot.setAttribute("aria-pressed", state.refused.has(i));
  shot.setAttribute("aria-label", `refuse ${D.names[i]}, ${fate(i)}`);
}

function markCurrent() {
  const sheet = $("sheet");
  for (const option of sheet.querySelectorAll('[aria-current="true"]')) option.removeAttribute("aria-current");
  if (!shown.length) {
    sheet.removeAttribute("aria-activedescendant");
    return;
  }
  addToSheet(state.current + CHUNK / 3);
  const option = sheet.children[state.current];
  option.setAttribute("aria-current", "true");
  sheet.setAttribute("aria-activedescendant", option.id);
}

function moveTo(position) {
  state.current = clamp(position, 0, Math.max(0, shown.length - 1));
  markCurrent();
  $("sheet").children[state.current]?.scrollIntoView({ block: "nearest" });
}

function drawLabels(picks) {
  const tally = new Map();
  for (const i of picks) tally.set(D.label[i], (tally.get(D.label[i]) ?? 0) + 1);
  if (state.label !== null && !tally.has(state.label)) state.label = null;
  const labels = [...tally].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const chips = labels.length > 1 ? labels.slice(0, labels.length > CHIPS + 1 ? CHIPS : labels.length) : [];
  const others = labels.length > 1 ? labels.slice(chips.length).sort((a, b) => a[0] - b[0]) : []; // as D.labels: by name
  $("labels").replaceChildren(
    ...chips.map(([label, n]) =>
      el("button", { type: "button", "aria-pressed": state.label === label, "data-label": label }, D.labels[label], " ", el("span", {}, count(n))),
    ),
  );
  $("other-labels").hidden = !others.length;
  $("other-labels").replaceChildren(
    el("option", { value: "" }, `${count(others.length)} more labels`),
    ...others.map(([label, n]) => el("option", { value: label }, `${D.labels[label]} (${count(n)})`)),
  );
  $("other-labels").value = others.some(([label]) => label === state.label) ? state.label : "";
}

function onSheetKey(event) {
  const columns = getComputedStyle($("sheet")).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity };
  if (event.key in steps) {
    const to = state.current + steps[event.key];
    moveTo(to === Infinity ? shown.length - 1 : to);
  } else if (event.key === "x" && shown.length) refuse(shown[state.current]);
  else if ((event.key === " " || event.key === "Enter") && shown.length) compare();
  else return;
  event.preventDefault();
}

// --- an image beside its nearest ------------------------------------------------------------------------------------------

function compare() {
  const i = shown[state.current];
  const nearest = D.nearest[i];
  const side = (j) => el("figure", {}, picture(j), el("figcaption", {}, el("code", {}, D.names[j]), el("br"), fate(j)));
  const holder = $("compare").querySelector(".pair");
  holder.replaceChildren(side(i), ...(nearest < 0 ? [] : [side(nearest)]));
  holder.firstChild.classList.toggle("refused", state.refused.has(i));
  $("refuse").setAttribute("aria-pressed", state.refused.has(i));
  if (!$("compare").open) $("compare").showModal();
}

function onCompareKey(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key in steps) step(steps[event.key]);
  else if (event.key === "x") refuseCurrent();
  else return;
  event.preventDefault();
}

function step(by) {
  moveTo(state.current + by);
  compare();
}

function refuseCurrent() {
  refuse(shown[state.current]);
  compare();
}

// --- the map --------------------------------------------------------------------------------------------------------------

const map = { side: 0, path: [], isDrawing: false, cells: new Map(), picture: null };
const CELL = 12; // pixels: where the image under the pointer is looked up

const MARGIN = 10; // pixels around the points

/** Return where an image lies on the map, in pixels. */
function at(i) {
  const scale = (map.side - 2 * MARGIN) / SIDE;
  return [MARGIN + D.x[i] * scale, map.side - MARGIN - D.y[i] * scale];
}

/** Draw all points; the lasso and the pointer are drawn over a copy of it. */
function drawMap() {
  const canvas = $("map");
  const ratio = devicePixelRatio || 1;
  const side = canvas.getBoundingClientRect().width;
  if (!side || !D.x.length) return;
  if (side !== map.side) {
    map.side = side;
    map.cells.clear();
    for (let i = 0; i < D.x.length; i++) {
      const [x, y] = at(i);
      const cell = `${Math.floor(x / CELL)},${Math.floor(y / CELL)}`;
      if (!map.cells.has(cell)) map.cells.set(cell, []);
      map.cells.get(cell).push(i);
    }
  }
  canvas.width = canvas.height = Math.round(side * ratio);
  const g = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const groups = pointsToDraw(...["--accent", "--rest"].map((name) => style.getPropertyValue(name).trim()));
  if (D.x.length > FEW) {
    const image = g.createImageData(canvas.width, canvas.width);
    const pixels = new Uint32Array(image.data.buffer);
    for (const group of groups) setPixels(pixels, canvas.width, ratio, group);
    g.putImageData(image, 0, 0);
  }
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (D.x.length <= FEW) for (const group of groups) drawCircles(g, group);
  map.picture = document.createElement("canvas");
  map.picture.width = map.picture.height = canvas.width;
  map.picture.getContext("2d").drawImage(canvas, 0, 0);
  drawLasso();
}

/** Return the images of each kind, those outside of the lasso apart, in the order in which they are drawn. */
function pointsToDraw(accent, rest) {
  const groups = [];
  for (const [from, to, kind, color, alpha] of [
    [D.candidates, D.x.length, "pool", rest, 0.45],
    [state.k, D.candidates, "left", rest, 1],
    [0, state.k, "picked", accent, 1],
  ]) {
    const inside = [];
    const outside = [];
    for (let i = from; i < to; i++) (state.lasso && !state.lasso.has(i) ? outside : inside).push(i);
    groups.push({ which: outside, kind, color, alpha: alpha * 0.2 }, { which: inside, kind, color, alpha });
  }
  return groups;
}

/** Draw points as circles; those left out are rings. */
function drawCircles(g, { which, kind, color, alpha }) {
  const radius = kind === "picked" ? 4 : 3;
  g.fillStyle = g.strokeStyle = color;
  g.lineWidth = 1.5;
  g.globalAlpha = alpha;
  g.beginPath();
  for (const i of which) {
    const [x, y] = at(i);
    g.moveTo(x + radius, y);
    g.arc(x, y, radius, 0, 7);
  }
  if (kind === "left") g.stroke();
  else g.fill();
  g.globalAlpha = 1;
}

/** Set the pixels of points, squares of 3: a hundred thousand take some milliseconds, as circles they take half a second. */
function setPixels(pixels, width, ratio, { which, color, alpha }) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
  const value = ((Math.round(alpha * 255) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const reach = Math.max(1, Math.round(ratio));
  const scale = ((map.side - 2 * MARGIN) / SIDE) * ratio;
  for (const i of which) {
    const x = Math.round(MARGIN * ratio + D.x[i] * scale);
    const y = Math.round(width - MARGIN * ratio - D.y[i] * scale);
    for (let row = y - reach; row <= y + reach; row++) pixels.fill(value, row * width + x - reach, row * width + x + reach + 1);
  }
}

function drawLasso() {
  const g = $("map").getContext("2d");
  g.save();
  g.setTransform(1, 0, 0, 1, 0, 0);
  g.clearRect(0, 0, map.picture.width, map.picture.height);
  g.drawImage(map.picture, 0, 0);
  g.restore();
  if (map.path.length < 2) return;
  g.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  g.lineWidth = 1.5;
  g.beginPath();
  for (const [x, y] of map.path) g.lineTo(x, y);
  g.stroke();
}

/** Return whether a point lies in a polygon. */
function isInside([x, y], polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[x1, y1], [x2, y2]] = [polygon[i], polygon[j]];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}

/** Return the image nearest to a place on the map, picks before others; null if none is near. */
function imageAt([px, py]) {
  let best = null;
  let bestDistance = CELL ** 2;
  for (let column = -1; column <= 1; column++) {
    for (let row = -1; row <= 1; row++) {
      const cell = `${Math.floor(px / CELL) + column},${Math.floor(py / CELL) + row}`;
      for (const i of map.cells.get(cell) ?? []) {
        const [x, y] = at(i);
        const distance = (x - px) ** 2 + (y - py) ** 2;
        if (distance < bestDistance) [best, bestDistance] = [i, distance];
      }
    }
  }
  return best;
}

function onMap(event) {
  const box = $("map").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function endLasso() {
  if (!map.isDrawing) return;
  map.isDrawing = false;
  if (map.path.length > 3) {
    const within = new Set();
    for (let i = 0; i < D.x.length; i++) if (isInside(at(i), map.path)) within.add(i);
    state.lasso = within.size ? within : null;
  }
  map.path = [];
  drawSheet();
  drawMap();
}

/** Forget what was drawn so far: the browser has taken the finger, to zoom. */
function dropLasso() {
  map.isDrawing = false;
  map.path = [];
  drawLasso();
}

function showEverything() {
  state.lasso = null;
  drawSheet();
  drawMap();
}

// --- the picture beside the pointer ---------------------------------------------------------------------------------------

function tip(i, event) {
  const box = $("tip");
  if (i === null) {
    box.style.display = "none";
    return;
  }
  const nearest = isPool(i) ? -1 : D.nearest[i];
  box.replaceChildren(
    el("div", { class: "pair" }, picture(i), ...(nearest < 0 ? [] : [picture(nearest)])),
    el("div", {}, D.names[i]),
    el("div", { class: "note" }, fate(i)),
  );
  box.style.display = "block";
  box.style.left = `${Math.min(innerWidth - 250, event.clientX + 14)}px`;
  box.style.top = `${Math.max(0, Math.min(innerHeight - box.offsetHeight - 8, event.clientY + 14))}px`;
}

const imageOf = (event) => {
  const holder = event.target.closest("[data-image]");
  return holder ? Number(holder.dataset.image) : null;
};

// --- keep and refuse ------------------------------------------------------------------------------------------------------

async function copyCommand() {
  const text = $("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", {}, text); // a browser that allows no clipboard to a file
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  $("said").textContent = "copied";
}

function downloadRefused() {
  const url = URL.createObjectURL(new Blob([refusedLines()], { type: "text/plain" }));
  el("a", { href: url, download: refusedFile() }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// --- everything together --------------------------------------------------------------------------------------------------

function drawAll() {
  if ($("decision")) {
    drawDecision();
    drawEdge();
  }
  if ($("sheet")) {
    drawSheet();
    drawMap();
    drawRefused();
  }
  remember();
}

/** Put on paper what a window scrolls or folds. */
function prepareToPrint() {
  drawAll();
  if ($("sheet")) addToSheet(PRINTED);
  for (const id of ["outcomes", "what-if", "comparison", "certificate", "versions"]) if ($(id)) $(id).open = true;
  drawCoverage();
}

/** Call a function at most once per frame. */
function oncePerFrame(draw) {
  let isWaiting = false;
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      draw();
    });
  };
}

function listen() {
  if ($("decision")) {
    $("slider").max = D.order;
    $("slider").disabled = $("number").disabled = $("distance").disabled = D.isFixed;
    $("distance-label").hidden = !D.byDistance;
    $("slider").addEventListener("input", oncePerFrame(() => setCut(Number($("slider").value))));
    $("number").addEventListener("change", () => setCut(Number($("number").value)));
    $("distance").addEventListener("change", () => setCut(cutAt(Number($("distance").value))));
    $("reset").addEventListener("click", () => setCut(D.taken));
    $("copy").addEventListener("click", copyCommand);
    $("download").addEventListener("click", downloadRefused);
  }
  if ($("sheet")) {
    const sheet = $("sheet");
    sheet.addEventListener("keydown", onSheetKey);
    sheet.addEventListener("click", (event) => {
      const i = imageOf(event);
      if (i === null) return;
      moveTo(shown.indexOf(i));
      refuse(i);
    });
    sheet.addEventListener("scroll", () => {
      if (sheet.scrollTop + 2 * sheet.clientHeight > sheet.scrollHeight) addToSheet(sheet.children.length + CHUNK);
    });
    $("labels").addEventListener("click", (event) => {
      const chip = event.target.closest("button");
      if (!chip) return;
      const label = Number(chip.dataset.label);
      state.label = state.label === label ? null : label;
      drawSheet();
      $("labels").querySelector(`[data-label="${label}"]`)?.focus();
    });
    $("other-labels").addEventListener("change", () => {
      state.label = $("other-labels").value === "" ? null : Number($("other-labels").value);
      drawSheet();
    });
    $("sort").addEventListener("change", () => {
      state.sort = $("sort").value;
      drawSheet();
    });
    $("everything").addEventListener("click", showEverything);
    $("one-by-one").addEventListener("click", () => shown.length && compare());
    const canvas = $("map");
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary) return; // a second finger zooms the page
      map.isDrawing = true;
      map.path = [onMap(event)];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (map.isDrawing) {
        map.path.push(onMap(event));
        drawLasso();
        tip(null);
      } else tip(imageAt(onMap(event)), event);
    });
    canvas.addEventListener("pointerup", (event) => {
      endLasso();
      if (event.pointerType === "touch") tip(imageAt(onMap(event)), event); // what a pointer shows on its way
    });
    canvas.addEventListener("pointercancel", dropLasso);
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || tip(null)); // a finger has just shown it
    document.addEventListener("pointerdown", () => tip(null));
    canvas.addEventListener("dblclick", showEverything);
  }
  document.addEventListener("click", (event) => {
    const shot = event.target.closest("button.shot");
    if (shot) refuse(Number(shot.dataset.image));
  });
  for (const part of ["sheet", "edge", "attention"].filter($)) {
    $(part).addEventListener("pointermove", (event) => tip(event.pointerType === "touch" ? null : imageOf(event), event));
    $(part).addEventListener("pointerleave", () => tip(null));
  }
  $("compare").addEventListener("keydown", onCompareKey);
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("refuse").addEventListener("click", refuseCurrent);
  $("close").addEventListener("click", () => $("compare").close());
  $("comparison")?.addEventListener("toggle", drawCoverage);
  addEventListener("resize", oncePerFrame(drawAll));
  addEventListener("beforeprint", prepareToPrint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

/** Show the pictures of the text. */
function fillPictures() {
  for (const image of document.querySelectorAll("img[data-picture]")) {
    image.src = `data:image/webp;base64,${D.pictures[Number(image.dataset.picture)]}`;
  }
}

restore();
listen();
fillPictures();
drawAll();
