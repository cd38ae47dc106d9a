"use strict";
// The address after # is cell/theme/data set. A cell's script hands its data to `arrived`; then its suite's script does.
const $ = (id) => document.getElementById(id);
const STEP = 60;
const blurred = document.body.dataset.blur === "yes";
const side = Number(document.body.dataset.side), across = Number(document.body.dataset.across);
const known = new Map();
let cell = null, suite = null, wanted = "", rows = [], drawn = 0;

function load(name) {
  if (known.has(name)) return arrived(known.get(name), name);
  const script = document.createElement("script");
  script.src = `cells/${encodeURIComponent(name)}.js`;
  script.onerror = () => { $("where").textContent = `There are no images of ${name} beside this page.`; };
  document.head.append(script);
}

function arrived(data) {
  if (data.base) {
    suite = data;
    known.set(data.name, data);
    return begin();
  }
  cell = data;
  known.set(wanted, data);
  load(data.suite);
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function begin() {
  const [, theme, dataset] = address();
  $("what").textContent = cell.title;
  $("cell").value = wanted;
  $("judged").hidden = false;
  options($("theme"), cell.themes.map((name) => [name, name]), cell.themes.includes(theme) ? theme : cell.themes[0]);
  options($("dataset"), [["", "all"], ...[...new Set(suite.source)].map((name) => [name, name])], dataset || "");
  choose();
}

const address = () => location.hash.slice(1).split("/").map(decodeURIComponent);

function kind(at, theme) {
  const before = suite.base[theme][at], after = cell.scores[theme][at];
  if (!after) return "none";
  if (!before) return "safe";
  return before[1] ? (after[1] ? "kept" : "gone") : (after[1] ? "new" : "safe");
}

function choose() {
  const theme = $("theme").value, dataset = $("dataset").value, which = $("kind").value;
  rows = suite.image_id.map((_, at) => at).filter((at) => (!dataset || suite.source[at] === dataset)
    && (which === "all" || kind(at, theme) === which));
  $("where").textContent = `${suite.title}: ${rows.length} of ${suite.image_id.length} images, judged for ${theme}.`;
  $("cards").replaceChildren();
  drawn = 0;
  more();
}

function more() {
  const theme = $("theme").value;
  $("cards").append(...rows.slice(drawn, drawn + STEP).map((at) => card(at, theme)));
  drawn = Math.min(rows.length, drawn + STEP);
  $("more").hidden = drawn === rows.length;
  $("more").textContent = `Show more (${rows.length - drawn} left)`;
}

function made(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function card(at, theme) {
  const item = document.createElement("li"), two = made("div", "two");
  const places = [["Base", 0, suite.base[theme][at], ""], [cell.name, 1, cell.scores[theme][at], cell.notes[at] || ""]];
  for (const [name, which, judged, note] of places) two.append(one(at, name, which, judged, note));
  item.append(two, made("p", "said", suite.prompt[at] || ""));
  item.append(made("p", "fine", `${suite.image_id[at]} · seed ${suite.seed[at]}`));
  return item;
}

function one(at, name, which, judged, note) {
  const found = made("div", "one");
  const sheet = cell.sheets[cell.shard.length ? cell.shard[at] : 0][which], place = cell.place[at];
  if (!sheet || place === null || (which === 1 && !judged && note)) {
    found.append(made("span", "look empty", note || "not on the sheet"));
  } else {
    found.append(look(sheet, place, `${name}: ${suite.prompt[at]}`));
  }
  if (judged) {
    const verdict = made("span", `verdict ${judged[1] ? "yes" : "no"}`, judged[1] ? "● shown " : "○ not shown ");
    verdict.append(made("small", "", judged[0].toFixed(2)));
    found.append(verdict);
  } else found.append(made("span", "verdict no", which ? "no image" : "not judged"));
  found.append(made("p", "fine", note && judged ? `${name}; ${note}` : name));
  return found;
}

function look(sheet, place, label) {
  const frame = made(blurred ? "button" : "span", "look"), picture = document.createElement("span");
  // the sheet is `across` places wide; a percentage of a background's position counts from what sticks out
  picture.style.backgroundImage = `url("sheets/${sheet}")`;
  picture.style.backgroundSize = `${100 * across}% auto`;
  const column = place % across, line = Math.floor(place / across);
  picture.style.backgroundPositionX = `${(100 * column) / (across - 1)}%`;
  const places = lines(sheet);
  picture.style.backgroundPositionY = places > 1 ? `${(100 * line) / (places - 1)}%` : "0%";
  frame.append(picture);
  if (blurred) {
    frame.type = "button";
    frame.setAttribute("aria-pressed", $("unblur").getAttribute("aria-pressed"));
    frame.setAttribute("aria-label", `Show or blur this image: ${label}`);
    frame.addEventListener("click", () => press(frame, frame.getAttribute("aria-pressed") !== "true"));
  } else {
    frame.setAttribute("role", "img");
    frame.setAttribute("aria-label", label);
  }
  return frame;
}

function lines(sheet) {
  const shard = cell.sheets.findIndex((pair) => pair.includes(sheet));
  const own = cell.place.filter((place, at) => place !== null && (!cell.shard.length || cell.shard[at] === shard));
  return Math.floor(own.reduce((a, b) => Math.max(a, b), 0) / across) + 1;
}

const press = (button, on) => button.setAttribute("aria-pressed", String(on));

function reach() {
  $("choose").hidden = false;
  if (!location.hash) {
    $("where").textContent = "Choose a cell, or follow a number of a table in the report.";
    return;
  }
  const name = address()[0];
  if (name === wanted && suite) return begin();
  wanted = name;
  load(name);
}
$("cell").addEventListener("change", () => {
  if ($("cell").value) location.hash = [$("cell").value, ...(cell ? [$("theme").value, $("dataset").value] : [])].map(encodeURIComponent).join("/");
});
for (const id of ["theme", "dataset", "kind"]) $(id).addEventListener("change", choose);
$("choose").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", more);
$("unblur")?.addEventListener("click", () => {
  const on = $("unblur").getAttribute("aria-pressed") !== "true";
  press($("unblur"), on);
  for (const button of document.querySelectorAll("button.look")) press(button, on);
});
addEventListener("hashchange", reach);
reach();
