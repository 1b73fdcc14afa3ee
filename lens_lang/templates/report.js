"use strict";

// --- figures ---

const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

// Colours that are too dark on a dark page, and what stands in for them there.
const LIGHTER = {
  "#0072b2": "#3fa7e0", "#d55e00": "#f08a3c", "#009e73": "#2fc79a", "#cc79a7": "#e39cc4",
  "#882255": "#d56a9e", "#332288": "#9a8bf0", "#aa4499": "#d57fc8", "#117733": "#4cba70",
};
const NIGHT_BLUES = [[0, "#1c2127"], [0.25, "#1d3d5f"], [0.5, "#2a659f"], [0.75, "#5397d6"], [1, "#b4d8fb"]];
const NIGHT_DIVERGING = [[0, "#a5d3ff"], [0.25, "#3b7ebd"], [0.5, "#22272d"], [0.75, "#c2523f"], [1, "#ffc0a8"]];

function lighter(colour) {
  const hex = LIGHTER[colour.toLowerCase()];
  if (hex) return hex;
  const parts = colour.match(/^rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)$/);
  if (!parts) return colour;
  const own = "#" + parts.slice(1, 4).map(x => (+x).toString(16).padStart(2, "0")).join("");
  const other = LIGHTER[own];
  if (!other) return colour;
  return `rgba(${[1, 3, 5].map(i => parseInt(other.slice(i, i + 2), 16)).join(",")},${parts[4]})`;
}

function atNight(part) {
  for (const [name, value] of Object.entries(part)) {
    if (typeof value === "string" && /color$/i.test(name)) part[name] = lighter(value);
    else if (value && typeof value === "object" && !Array.isArray(value)) atNight(value);
  }
}

function nightScale(scale) {
  if (!Array.isArray(scale) || scale.length < 3) return scale;
  const light = colour => {
    const rgb = (colour.match(/\d+/g) || []).slice(0, 3).map(Number);
    return colour.startsWith("rgb") && rgb.every(x => x > 240);
  };
  if (light(scale[0][1])) return NIGHT_BLUES;
  return light(scale[scale.length >> 1][1]) ? NIGHT_DIVERGING : scale;
}

function dressed(place) {
  const figure = JSON.parse(place.dataset.figure);
  const night = dark.matches && !printing;
  const style = getComputedStyle(document.documentElement);
  const colour = name => printing ? { ink: "#1b1f24", paper: "#fff", line: "#dde2e8" }[name] : style.getPropertyValue(`--${name}`).trim();
  const layout = figure.layout;
  const small = { title: { font: { size: 13 } } };
  layout.template = {
    layout: { xaxis: small, yaxis: small },
    data: { heatmap: [{ colorbar: { ...small, thickness: 12, outlinewidth: 0 } }] },
  };
  layout.font = { ...layout.font, color: colour("ink") };
  layout.hoverlabel = { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink"), size: 13 }, align: "left", namelength: -1 };
  if (layout.title?.text) {  // it stands above the figure, where it can wrap
    const top = layout.margin?.t ?? 60;
    layout.margin = { ...layout.margin, t: Math.max(28, top - 38) };
    layout.height -= top - layout.margin.t;
    delete layout.title;
  }
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
  layout.width = printing ? Math.min(660, layout.width ?? 660) : layout.width ?? place.clientWidth;
  if (night) {
    for (const trace of figure.data) {
      atNight(trace);
      if (trace.colorscale) trace.colorscale = nightScale(trace.colorscale);
    }
  }
  for (const trace of figure.data) {
    if (trace.text) trace.text = minus(trace.text);
    if (trace.customdata) trace.customdata = minus(trace.customdata);
  }
  return figure;
}

// Axes have the sign for minus; what is written in a figure has it, too.
function minus(said) {
  if (Array.isArray(said)) return said.map(minus);
  return typeof said === "string" ? said.replace(/(^|[\s([,])-(?=\.?\d)/g, "$1\u2212") : said;
}

function channels(colour) {
  const hex = colour.match(/^#(..)(..)(..)$/);
  return hex ? hex.slice(1).map(x => parseInt(x, 16)) : colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// What is written in a cell is black or white, whichever can be read there.
function ink(place) {
  for (const group of place.querySelectorAll(".heatmaplayer .hm")) {
    const { colorscale: scale, zmin, zmax } = group.__data__?.[0]?.trace ?? {};
    if (!Array.isArray(scale) || !(zmax > zmin)) continue;
    for (const text of group.querySelectorAll("text")) {
      const z = text.__data__?.z;
      if (typeof z !== "number") continue;
      const at = Math.min(1, Math.max(0, (z - zmin) / (zmax - zmin)));
      const next = Math.max(1, scale.findIndex(([edge]) => edge >= at));
      const [[low, from], [high, to]] = [scale[next - 1], scale[next]];
      const [a, b] = [channels(from), channels(to)];
      const share = high > low ? (at - low) / (high - low) : 0;
      const light = luminance(a.map((x, i) => x + share * (b[i] - x)));
      text.style.fill = (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) ? "#000" : "#fff";
    }
  }
}

const waiting = new Set(document.querySelectorAll("[data-figure]"));
const places = [...waiting];
const CONFIG = {
  displaylogo: false,
  displayModeBar: matchMedia("(pointer: coarse)").matches ? false : "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};

function draw(place) {
  waiting.delete(place);
  const figure = dressed(place);
  place.style.minHeight = "";
  const name = place.closest("figure")?.dataset.name ?? "figure";
  const done = Plotly.react(place, figure.data, figure.layout, { ...CONFIG, toImageButtonOptions: { filename: name } });
  if (!place.dataset.inked) {
    place.dataset.inked = "yes";
    place.on("plotly_afterplot", () => ink(place));
  }
  ink(place);
  // The caption, the table and the values say what the picture shows.
  for (const picture of place.querySelectorAll(".main-svg")) picture.setAttribute("aria-hidden", "true");
  return done;
}

function drawTheRest() {
  const next = waiting.values().next().value;
  if (next) draw(next);
  if (waiting.size) later(drawTheRest);
  else document.documentElement.dataset.drawn = "all";
}
const later = window.requestIdleCallback ?? (task => setTimeout(task, 30));

// Those in sight first, the rest when there is time.
const near = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    if (waiting.has(target)) draw(target);
  }
}, { rootMargin: "400px" });
for (const place of places) near.observe(place);
later(drawTheRest);

function redraw() {
  delete document.documentElement.dataset.drawn;
  for (const place of places) {
    waiting.add(place);
    near.unobserve(place);
    near.observe(place);  // says again whether it is in sight
  }
  later(drawTheRest);
}
dark.addEventListener("change", redraw);

let width = innerWidth, soon;
addEventListener("resize", () => {
  if (printing || innerWidth === width) return;  // a phone's address bar comes and goes
  width = innerWidth;
  clearTimeout(soon);
  soon = setTimeout(redraw, 100);
});

let shut = [];
addEventListener("beforeprint", () => {
  printing = true;
  shut = [...document.querySelectorAll("details:not([open], .raw)")];
  for (const each of shut) each.open = true;
  for (const place of places) draw(place);
});
addEventListener("afterprint", () => {
  printing = false;
  for (const each of shut) each.open = false;
  redraw();
});

// --- tables ---

const SHOWN = 20;
const said = document.querySelector(".said");

function showFirst(table) {
  [...table.tBodies[0].rows].forEach((row, place) => row.classList.toggle("rest", place >= SHOWN));
}

function compare(a, b, sign) {
  // Numbers by value, then words, what is empty last whichever way.
  const rank = cell => cell.dataset.value !== undefined ? 0 : cell.textContent.trim() ? 1 : 2;
  const [x, y] = [rank(a), rank(b)];
  if (x === 2 || y === 2) return x - y;
  if (x !== y) return sign * (x - y);
  if (x === 0) return sign * (Number(a.dataset.value) - Number(b.dataset.value));
  return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

function sort(table, head) {
  const before = head.getAttribute("aria-sort");
  const after = before === "ascending" ? "descending" : before === "descending" ? null : "ascending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  const rows = [...table.tBodies[0].rows];
  if (after) {
    head.setAttribute("aria-sort", after);
    const sign = after === "ascending" ? 1 : -1;
    rows.sort((a, b) => compare(a.cells[head.cellIndex], b.cells[head.cellIndex], sign));
  } else {
    rows.sort((a, b) => a.dataset.place - b.dataset.place);
  }
  table.tBodies[0].append(...rows);
  showFirst(table);
  said.textContent = after ? `Sorted by ${head.textContent}, ${after}` : "In the order of the report";
}

function save(name, rows) {
  const quoted = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const text = "\ufeff" + rows.map(row => row.map(cell => quoted(String(cell ?? ""))).join(",") + "\r\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table"), more = box.querySelector(".more");
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row, place) => { row.dataset.place = place; });
  if (rows.length > SHOWN + 5) {  // hiding a handful is not worth a button
    showFirst(table);
    table.classList.add("short");
    more.hidden = false;
    more.setAttribute("aria-expanded", "false");
    const all = more.textContent;
    more.addEventListener("click", () => {
      const short = table.classList.toggle("short");
      more.textContent = short ? all : `Show the first ${SHOWN} rows`;
      more.setAttribute("aria-expanded", String(!short));
    });
  }
  for (const head of table.tHead.rows[0].cells) {
    head.firstElementChild.addEventListener("click", () => sort(table, head));
  }
  box.querySelector(".csv").addEventListener("click", () => {
    const heads = [...table.tHead.rows[0].cells];
    const line = row => [...row.cells].flatMap((cell, place) => {
      const said = cell.dataset.number ?? cell.textContent;
      return "ends" in heads[place].dataset ? [said, cell.dataset.low, cell.dataset.high] : [said];
    });
    const names = heads.flatMap(({ textContent: name, dataset: { unit = "", ends } }) =>
      ["", ...ends === undefined ? [] : [" low", " high"]].map(end => `${name}${end}${unit}`));
    save(box.dataset.name, [names, ...[...table.tBodies[0].rows].map(line)]);
  });
}

function values(figure) {
  const plain = text => String(text ?? "").replaceAll("<br>", " ");
  const written = figure.layout.meta?.values === "text";
  const rows = [["series", "y", "x", "value", "low", "high", "note"]];
  for (const trace of figure.data) {
    if (trace.type === "heatmap") {
      trace.z.forEach((line, i) => line.forEach((value, j) => {
        // what is written in a cell, where colours are of something else
        const shown = written ? trace.text?.[i]?.[j] : "";
        rows.push([trace.name, trace.y[i], trace.x[j], shown || value, "", "", plain(trace.customdata?.[i]?.[j])]);
      }));
    } else if (trace.hoverinfo !== "skip") {
      const lying = trace.orientation === "h";
      (trace.y ?? []).forEach((y, i) => {
        const x = trace.x?.[i] ?? i;
        const error = trace[lying ? "error_x" : "error_y"], value = lying ? x : y;
        const [less, more] = [error?.arrayminus?.[i], error?.array?.[i]];
        const ends = [less == null ? "" : value - less, more == null ? "" : value + more];
        rows.push([plain(trace.name), y, x, value, ...ends, plain(trace.customdata?.[i])]);
      });
    }
  }
  return rows;
}

for (const figure of document.querySelectorAll("figure[data-name]")) {
  figure.querySelector(".csv").addEventListener("click", () => {
    save(figure.dataset.name, values(JSON.parse(figure.querySelector("[data-figure]").dataset.figure)));
  });
}

// --- finding the way ---

// What does not scroll is no stop for the keyboard.
const SCROLLS = ".wide, .fragment [style*=overflow]";
const sizes = new ResizeObserver(entries => {
  for (const { target } of entries) {
    const box = target.closest(SCROLLS);
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
});
for (const box of document.querySelectorAll(SCROLLS)) {
  sizes.observe(box);
  if (box.firstElementChild) sizes.observe(box.firstElementChild);
}

const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
const inSight = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.querySelector("h2").id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -80%" });
for (const section of document.querySelectorAll("main > section")) inSight.observe(section);

const contents = document.querySelector("nav details");
if (!matchMedia("(min-width: 70rem)").matches && links.size > 6) contents.open = false;
