"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider");
const search = document.getElementById("search");
const shown = document.getElementById("shown");
const play = document.getElementById("play");
const links = [...document.querySelectorAll("#steps a")];
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const MARKS = {
  k: ["kept", ""], n: ["noted", ""], c: ["changed", "~"], r: ["replaced", ">"], a: ["added", "+"], x: ["removed", "-"],
};
const PAUSE = 1500;
let timer = null;

function element(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function show(number) {
  const step = page.steps[number];
  slider.value = number;
  for (const [place, link] of links.entries()) {
    if (place === number) link.setAttribute("aria-current", "step");
    else link.removeAttribute("aria-current");
  }
  links[number].scrollIntoView({ block: "nearest" });
  document.querySelector("#step h2").textContent = step.pass || "as given";
  const did = !number ? `${page.program}, as the pipeline got it` : step.notes;
  const took = number ? ` · ${step.seconds.toFixed(3)} s` : "";
  document.getElementById("notes").textContent = `${did}${took} · ${step.level}, ${step.nodes} nodes`;
  showCosts(number ? page.steps[number - 1].totals : null, step.totals);
  showRegions(step.regions);
  showText(step);
}

function showCosts(before, after) {
  document.getElementById("costs").hidden = !after;
  if (!after) return;
  for (const row of document.querySelectorAll("[data-total]")) {
    const [, old, now, change] = row.cells;
    const values = [before?.[row.dataset.total], after[row.dataset.total]];
    [old.textContent, now.textContent] = values.map((value) => (value == null ? "" : compact.format(value)));
    const ratio = values[0] ? 100 * (values[1] / values[0] - 1) : 0;
    change.textContent = ratio ? `${ratio > 0 ? "+" : "−"}${Math.abs(ratio).toFixed(1)} %` : "";
    row.hidden = !values[0] && !values[1];
  }
}

function showRegions(regions) {
  const body = document.querySelector("#regions tbody");
  document.getElementById("regions").hidden = !regions.length;
  body.replaceChildren(...regions.map((each) => {
    const row = element("tr", "");
    row.append(element("td", each.region || "(elsewhere)"));
    for (const status of ["changed", "replaced", "added", "removed"]) row.append(element("td", each[status] || ""));
    for (const [key, unit] of [["macs", 1e6], ["binary_macs", 1e6], ["weight_bits", 8192]]) {
      const [before, after] = [each.before, each.after].map((costs) => costs && (costs[key] / unit).toFixed(1));
      row.append(element("td", before === null || after === null ? "" : before === after ? after : `${before} → ${after}`));
    }
    return row;
  }));
}

function details(step) {
  const found = new Map();
  for (const { status, maker, before, after, changes } of step.differences) {
    const said = changes.map(({ what, before: old, after: now, distance }) =>
      `${what}: ${old} -> ${now}${distance === null ? "" : ` (${(100 * distance).toFixed(2)} % apart)`}`);
    if (status === "replaced") said.unshift(`was ${before.map((name) => `%${name}`).join(", ")}, replaced by ${maker}`);
    if (said.length && after.length) found.set(`%${after.at(-1)}`, said.join("; "));
  }
  return found;
}

function shows(kind, text, same) {
  return kind === "all" || ((kind === "lines" || text.startsWith("%")) && !same);
}

function showText(step) {
  const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const said = details(step);
  const lines = [];
  for (const [place, number] of step.lines.entries()) {
    const letter = step.marks[place];
    const gone = letter !== letter.toLowerCase();
    const text = page.texts[number];
    const known = gone ? undefined : said.get(text.match(/^%\S+/)?.[0]);
    const plain = `${text} ${known ?? ""}`.toLowerCase();
    const [mark, sign] = MARKS[letter.toLowerCase()];
    const same = step.number && ["kept", "noted"].includes(mark);
    if (!shows(shown.value, text, same) || !words.every((word) => plain.includes(word))) continue;
    const line = element("li", text, gone ? `${mark} gone` : mark);
    line.dataset.sign = sign;
    if (known) line.append(element("small", known));
    lines.push(line);
  }
  document.getElementById("text").replaceChildren(...lines);
  document.getElementById("hits").textContent = `${lines.length} of ${step.lines.length} lines`;
}

/* Which pass is shown stands in the address: `#3`. */

function here() {
  return Number(slider.value);
}

function go(number) {
  const wanted = Math.min(page.steps.length - 1, Math.max(0, number));
  history.replaceState(null, "", `#${wanted}`);
  show(wanted);
}

function follow() {
  const wanted = Number(location.hash.slice(1));
  go(Number.isInteger(wanted) ? wanted : 0);
}

function toggle() {
  if (timer) {
    clearInterval(timer);
    timer = null;
  } else {
    if (here() === page.steps.length - 1) go(0);
    timer = setInterval(() => {
      go(here() + 1);
      if (here() === page.steps.length - 1) toggle();
    }, PAUSE);
  }
  play.textContent = timer ? "Pause" : "Play";
  play.setAttribute("aria-pressed", String(timer !== null));
}

const keys = {
  ArrowLeft: () => go(here() - 1),
  ArrowRight: () => go(here() + 1),
  Home: () => go(0),
  End: () => go(page.steps.length - 1),
  " ": toggle,
  "/": () => { search.focus(); search.select(); },
  d: () => { shown.selectedIndex = (shown.selectedIndex + 1) % shown.length; show(here()); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    search.value = "";
    search.blur();
    show(here());
  } else if (event.target === search || event.target === shown || (event.key === " " && event.target.matches("button, summary"))) {
    return;
  } else if (event.key in keys) {
    keys[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});

for (const button of document.querySelectorAll("[data-by]")) {
  button.addEventListener("click", () => go(here() + Number(button.dataset.by)));
}
document.getElementById("steps").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link) return;
  event.preventDefault();
  go(Number(link.dataset.step));
});
play.addEventListener("click", toggle);
slider.addEventListener("input", () => go(here()));
search.addEventListener("input", () => show(here()));
shown.addEventListener("change", () => show(here()));
window.addEventListener("hashchange", follow);
follow();
