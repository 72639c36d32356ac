"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const nodes = new Map(page.programs.flatMap((program) => program.nodes.map((node) => [node.id, node])));
const readers = new Map([...nodes.keys()].map((id) => [id, []]));
for (const node of nodes.values()) for (const source of node.sources) readers.get(source).push(node.id);

const rows = [...document.querySelectorAll(".row[data-row]")];
const boxes = new Map([...document.querySelectorAll(".box")].map((box) => [box.dataset.node, box]));
const search = document.getElementById("search");
const overlay = document.getElementById("overlay");
const facts = document.getElementById("facts");
const hint = [...facts.childNodes];
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const HIDDEN = ["id", "row", "marks", "text", "sources", "name"];
let chosen = null;
let hits = [];

function element(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

/* Graphs: each has the point in its middle and pixels for a unit. */

const views = new Map();
const LEGIBLE = 0.4;
const READ = 0.8;
const LETTER = 6;

function apply(svg) {
  const { x, y, zoom } = views.get(svg);
  const width = svg.clientWidth / zoom;
  const height = svg.clientHeight / zoom;
  svg.setAttribute("viewBox", [x - width / 2, y - height / 2, width, height].join(" "));
  svg.classList.toggle("far", zoom < LEGIBLE);
  if (zoom < LEGIBLE) label(svg, zoom);
}

/* Of a group's name as many parts as it has room for, in letters of one size however far away. */
function label(svg, zoom) {
  svg.style.setProperty("--pixel", 1 / zoom);
  for (const text of svg.querySelectorAll(".brief")) {
    const [width, height] = text.dataset.size.split(" ").map((length) => length * zoom);
    const parts = text.dataset.name.split(".");
    while (parts.length > 1 && LETTER * parts.join(".").length > width) parts.shift();
    text.textContent = height > 12 ? parts.join(".").slice(0, Math.max(2, width / LETTER)) : "";
  }
}

function extent(svg) {
  return [Number(svg.dataset.width), Number(svg.dataset.height)];
}

function whole(svg) {
  const [width, height] = extent(svg);
  const zoom = Math.min(1, 0.96 * Math.min(svg.clientWidth / (width + 1), svg.clientHeight / (height + 1)));
  views.set(svg, { x: width / 2, y: height / 2, zoom: zoom || 1 });
  apply(svg);
}

/* The upper left corner, at a size that can be read. */
function begin(svg) {
  const zoom = READ;
  const half = svg.clientWidth / zoom / 2;
  views.set(svg, { x: Math.min(half - 12, extent(svg)[0] / 2), y: svg.clientHeight / zoom / 2 - 12, zoom });
  apply(svg);
}

function zoomBy(svg, factor, x, y) {
  const view = views.get(svg);
  const zoom = Math.min(4, Math.max(0.01, view.zoom * factor));
  const kept = view.zoom / zoom;
  views.set(svg, { x: x + (view.x - x) * kept, y: y + (view.y - y) * kept, zoom });
  apply(svg);
}

/* Where in the graph the pointer is. */
function place(svg, event) {
  const { x, y, zoom } = views.get(svg);
  const area = svg.getBoundingClientRect();
  return [
    x + (event.clientX - area.left - area.width / 2) / zoom,
    y + (event.clientY - area.top - area.height / 2) / zoom,
  ];
}

function centre(id) {
  const svg = boxes.get(id).ownerSVGElement;
  const corner = boxes.get(id).transform.baseVal.consolidate().matrix;
  const { zoom } = views.get(svg);
  views.set(svg, { x: corner.e + 88, y: corner.f + 19, zoom: zoom < LEGIBLE ? READ : zoom });
  apply(svg);
}

for (const svg of document.querySelectorAll("svg")) {
  let held = null;
  whole(svg);
  new ResizeObserver(() => apply(svg)).observe(svg);
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(svg, Math.exp(-event.deltaY / 400), ...place(svg, event));
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, view: views.get(svg), moved: false };
  });
  svg.addEventListener("pointermove", (event) => {
    if (!held) return;
    const [across, down] = [event.clientX - held.x, event.clientY - held.y];
    if (!held.moved && Math.hypot(across, down) < 4) return;
    if (!held.moved) svg.setPointerCapture(event.pointerId);
    held.moved = true;
    const { x, y, zoom } = held.view;
    views.set(svg, { x: x - across / zoom, y: y - down / zoom, zoom });
    apply(svg);
  });
  svg.addEventListener("pointerup", (event) => {
    const box = event.target.closest(".box");
    const far = views.get(svg).zoom < LEGIBLE;
    if (held && !held.moved && box) choose(box.dataset.node, far);
    else if (held && !held.moved && far) zoomBy(svg, READ / views.get(svg).zoom, ...place(svg, event));
    held = null;
  });
  svg.addEventListener("pointercancel", () => { held = null; });
  for (const button of svg.parentElement.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => turn(svg, button.dataset.zoom));
  }
}

/* `whole`, `begin`, or a factor. */
function turn(svg, kind) {
  const { x, y } = views.get(svg);
  if (kind === "whole") whole(svg);
  else if (kind === "begin") begin(svg);
  else zoomBy(svg, Number(kind), x, y);
}

/* What masks and routers choose, frame by frame. */

const choices = new Map(page.programs.flatMap((program) => program.decisions.map((each) => [each.id, each])));

function showFrame(number) {
  for (const image of document.querySelectorAll("[data-frame]")) image.src = page.frames[number];
  for (const image of document.querySelectorAll("[data-choice]")) image.src = choices.get(image.dataset.choice).maps[number];
  for (const text of document.querySelectorAll("[data-density]")) {
    text.textContent = `${(100 * choices.get(text.dataset.density).by_frame[number]).toFixed(1)} %`;
  }
  const output = document.getElementById("shown-frame");
  if (output) output.textContent = `${number + 1} of ${page.frames.length}`;
}

if (page.frames.length) {
  showFrame(0);
  document.getElementById("frame")?.addEventListener("input", (event) => showFrame(Number(event.target.value)));
}

/* The node that is chosen, and its counterparts. */

function together(id) {
  return page.rows[nodes.get(id).row].cells.flat();
}

function mark(id, on) {
  const ids = new Set(together(id));
  for (const each of ids) boxes.get(each).classList.toggle("chosen", on);
  document.querySelector(`.row[data-row="${nodes.get(id).row}"]`).classList.toggle("chosen", on);
  for (const link of document.querySelectorAll(".choice")) {
    if (ids.has(decodeURIComponent(link.hash.slice(1)))) link.classList.toggle("chosen", on);
  }
  for (const edge of document.querySelectorAll(".edge")) {
    if (ids.has(edge.dataset.from) || ids.has(edge.dataset.to)) edge.classList.toggle("chosen", on);
  }
}

function choose(id, move = false) {
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  show(id, move);
}

function show(id, move) {
  if (chosen) mark(chosen, false);
  chosen = id;
  mark(id, true);
  const link = document.getElementById(id);
  for (let above = link.closest("details"); above; above = above.parentElement.closest("details")) above.open = true;
  link.focus({ preventScroll: true });
  link.scrollIntoView({ block: "nearest" });
  showFacts(id);
  if (move) together(id).forEach(centre);
}

function leave() {
  if (!chosen) return;
  mark(chosen, false);
  document.getElementById(chosen).blur();
  chosen = null;
  history.replaceState(null, "", location.pathname + location.search);
  facts.replaceChildren(...hint);
}

function showFacts(id) {
  const columns = element("div", "", "columns");
  const cells = page.rows[nodes.get(id).row].cells;
  const values = (field) => new Set(cells.flat().map((each) => JSON.stringify(nodes.get(each)[field])));
  cells.forEach((cell, version) => {
    const column = columns.appendChild(element("div", ""));
    column.append(element("h2", page.programs[version].label));
    if (!cell.length) column.append(element("p", "no counterpart"));
    for (const each of cell) {
      const node = nodes.get(each);
      column.append(element("code", node.text));
      const list = column.appendChild(element("dl", ""));
      if (node.marks.length) list.append(element("dt", "what became of it"), element("dd", node.marks.join(", ")));
      for (const [field, value] of Object.entries(node)) {
        if (HIDDEN.includes(field) || value === null || value === "" || value === false) continue;
        const text = typeof value === "number" ? value.toLocaleString("en") : String(value);
        list.append(element("dt", field), element("dd", text, values(field).size > 1 ? "differs" : ""));
      }
    }
    showChanges(column, version, cell);
  });
  facts.replaceChildren(columns);
}

function showChanges(column, version, cell) {
  if (!version) return;
  const names = new Set(cell.map((each) => nodes.get(each).name));
  const found = page.differences[version - 1].nodes.filter((each) => each.after.some((name) => names.has(name)));
  const list = element("ul", "");
  for (const { status, maker, changes } of found) {
    list.append(element("li", maker && status !== "changed" ? `${status} by ${maker}` : status));
    for (const { what, before, after, distance } of changes) {
      const apart = distance === null ? "" : ` (${(100 * distance).toFixed(2)} % apart)`;
      list.append(element("li", `${what}: ${before} -> ${after}${apart}`));
    }
  }
  if (found.length) column.append(list);
}

/* Searching, and colours. */

function find() {
  const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (node) => {
    const text = [node.name, node.op, node.region, node.scope, node.maker, page.rows[node.row].path, ...node.marks];
    return words.every((word) => text.join(" ").toLowerCase().includes(word));
  };
  hits = words.length ? [...nodes.values()].filter(matches).map((node) => node.id) : [];
  const order = new Map(rows.map((row, place) => [Number(row.dataset.row), place]));
  hits.sort((a, b) => order.get(nodes.get(a).row) - order.get(nodes.get(b).row));
  const found = new Set(hits);
  const lines = new Set(hits.map((id) => String(nodes.get(id).row)));
  document.body.classList.toggle("searching", words.length > 0);
  for (const [id, box] of boxes) box.classList.toggle("hit", found.has(id));
  for (const row of rows) row.classList.toggle("missed", words.length > 0 && !lines.has(row.dataset.row));
  for (const branch of document.querySelectorAll("#list details")) {
    const any = branch.querySelector(".row:not(.missed)") !== null;
    branch.classList.toggle("missed", !any);
    if (words.length && any) branch.open = true;
  }
  document.getElementById("hits").textContent = words.length ? `${hits.length} nodes` : "";
}

function paint() {
  const field = overlay.value;
  const known = field ? [...nodes.values()].map((node) => node[field]).filter((value) => value != null) : [];
  const [least, most] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const inverse = overlay.selectedOptions[0].dataset.worst === "small";
  document.body.classList.toggle("heated", field !== "");
  document.getElementById("scale").hidden = !field;
  document.getElementById("least").textContent = field && compact.format(inverse ? most : least);
  document.getElementById("most").textContent = field && compact.format(inverse ? least : most);
  for (const [id, box] of boxes) {
    const node = nodes.get(id);
    const value = field ? node[field] : null;
    const part = most > least ? (value - least) / (most - least) : 1;
    const share = value == null ? 0 : inverse ? 1 - part : Math.sqrt(part);
    box.style.setProperty("--share", `${(85 * share).toFixed(1)}%`);
    const plain = node.op.length > 22 ? `${node.op.slice(0, 21)}…` : node.op;
    box.querySelector(".what").textContent = value == null ? plain : `${compact.format(value)} · ${plain.slice(0, 16)}`;
  }
}

/* Keys. */

function step(by) {
  const links = [...document.querySelectorAll(".row:not(.missed) a")].filter((link) => link.offsetParent);
  const place = links.findIndex((link) => link.id === chosen);
  const next = links[place < 0 ? (by > 0 ? 0 : links.length - 1) : place + by];
  if (next) choose(next.id);
}

const ZOOMS = { "+": "1.5", "-": "0.667", 0: "whole" };

function nextHit() {
  if (!hits.length) return;
  const id = hits[(hits.indexOf(chosen) + 1) % hits.length];
  choose(id);
  together(id).forEach(centre);
  search.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === search;
  if (event.key === "Escape") {
    if (search.value) { search.value = ""; find(); } else leave();
    search.blur();
  } else if (typing && event.key === "Enter") {
    nextHit();
  } else if (!typing && event.key === "/") {
    search.focus();
    search.select();
  } else if (event.target.matches("select, summary, button, #frame") || (typing && !["ArrowUp", "ArrowDown"].includes(event.key))) {
    return;
  } else if (!typing && event.key in ZOOMS) {
    for (const svg of views.keys()) turn(svg, ZOOMS[event.key]);
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    step(event.key === "ArrowDown" ? 1 : -1);
  } else if (chosen && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const [next] = event.key === "ArrowLeft" ? nodes.get(chosen).sources : readers.get(chosen);
    if (next) show(next, true);
  } else if (chosen && event.key === "Enter") {
    show(chosen, true);
  } else {
    return;
  }
  event.preventDefault();
});

document.getElementById("list").addEventListener("click", (event) => {
  const link = event.target.closest("a.node");
  if (!link) return;
  event.preventDefault();
  choose(link.id);
  together(link.id).forEach(centre);
});

document.getElementById("unfold").addEventListener("click", (event) => {
  const shut = [...document.querySelectorAll("#list details")];
  const open = shut.some((each) => !each.open);
  for (const each of shut) each.open = open;
  event.target.textContent = open ? "Close all" : "Open all";
});

/* `#v2-conv2d`, or the name alone: of the last version that has it. */

function follow() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const id = nodes.has(wanted) ? wanted : [...nodes.values()].findLast((node) => node.name === wanted)?.id;
  if (id) show(id, true);
}

search.addEventListener("input", find);
overlay.addEventListener("change", paint);
window.addEventListener("hashchange", follow);
paint();
follow();
