"use strict";
const $ = (id) => document.getElementById(id);
const CYCLE = { no: "yes", yes: "unsure", unsure: "no" };
const WORDS = { no: "not shown", yes: "shown", unsure: "unsure" };
let state = null;     // what the server said last
let rater = null;
let view = "label";   // or "decide"
let disputes = [];
let at = null;        // digest of the image on the stage
let seen = false;     // whether it has been shown clear
let toggled = false, held = false, busy = false;

// --- talking to the server ---
async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ rater, ...body }),
  };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}
function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}
// One thing at a time: a key held down must not answer for images that nobody saw.
async function act(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer; nothing was saved. Start it again, then reload." : error.message, true);
  } finally {
    busy = false;
  }
}
const query = () => `?rater=${encodeURIComponent(rater)}`;

// --- the image ---
function veil() {
  const clear = toggled || held || $("clear").checked;
  $("picture").classList.toggle("blurred", !clear);
  $("frame").setAttribute("aria-pressed", String(clear));
  if (clear && $("picture").complete && $("picture").naturalWidth) seen = true;
}
function show(image) {
  at = image;
  seen = toggled = held = false;
  const picture = $("picture");
  picture.classList.add("blurred");
  picture.onload = () => { picture.classList.toggle("small", picture.naturalWidth <= 160); veil(); };
  picture.onerror = () => say("This image could not be loaded.", true);
  picture.src = `image/${image}`;
}

// --- answers ---
function fields(themes, notes) {
  const box = $("themes");
  box.replaceChildren();
  themes.forEach((theme, index) => {
    const set = document.createElement("fieldset"), legend = document.createElement("legend");
    const key = document.createElement("kbd"), words = document.createElement("p"), row = document.createElement("div");
    key.textContent = String(index + 1);
    legend.append(key, ` ${theme.name}`);
    words.className = "words";
    words.textContent = notes[theme.name] ?? theme.keywords.join(", ");
    row.className = "answers";
    for (const [value, text] of Object.entries(WORDS)) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: `theme-${index}`, value, checked: value === "no" });
      input.dataset.theme = theme.name;
      label.append(input, text);
      row.append(label);
    }
    set.append(legend, words, row);
    box.append(set);
  });
  $("last-key").textContent = String(themes.length);
}
function set(theme, value) {
  for (const input of $("themes").querySelectorAll("input")) {
    if (input.dataset.theme === theme) input.checked = input.value === value;
  }
}
function answers() {
  const checked = [...$("themes").querySelectorAll("input:checked")];
  return Object.fromEntries(checked.map((input) => [input.dataset.theme, input.value]));
}
function cycle(index) {
  const now = $("themes").querySelector(`input[name=theme-${index}]:checked`);
  if (!now) return;
  const next = CYCLE[now.value];
  set(now.dataset.theme, next);
  say(`${now.dataset.theme}: ${WORDS[next]}`);
}
function all(value) {
  for (const theme of state.themes) set(theme.name, value);
}

// --- what is on the page ---
function header() {
  $("who").hidden = $("progress").hidden = $("views").hidden = rater === null;
  if (rater === null) return;
  $("who").textContent = rater;
  const shown = view === "label" ? [state.done, state.total] : [disputes.filter(decided).length, disputes.length];
  $("bar").max = Math.max(1, shown[1]);
  $("bar").value = shown[0];
  const more = view === "label" ? [[state.skipped, "skipped"], [state.unsure, "unsure"]] : [];
  $("counts").textContent = [`${shown[0]} of ${shown[1]}${view === "label" ? "" : " decided"}`, ...more.filter(([n]) => n).map(([n, what]) => `${n} ${what}`)].join(" · ");
  $("disputes").textContent = String(view === "decide" ? disputes.length : state.disputes);
  for (const button of $("views").children) button.setAttribute("aria-pressed", String(button.dataset.view === view));
}
function sections(name) {
  for (const id of ["start", "work", "end"]) $(id).hidden = id !== name;
  const deciding = view === "decide";
  for (const id of ["none", "unsure", "skip"]) $(id).hidden = deciding;
  $("crowd").hidden = !deciding;
}
function label(found, message = "") {
  state = found;
  view = "label";
  say(message);
  header();
  $("undo").disabled = $("end-undo").disabled = !state.undo;
  if (state.image === null) {
    sections("end");
    $("end-text").textContent = state.total === 0 ? "There are no images in this store." :
      state.skipped ? `You have labelled ${state.done} of ${state.total} images and skipped ${state.skipped}.` :
      `You have labelled all ${state.done} images. Thank you.`;
    $("again").hidden = !state.skipped;
    at = null;
    return;
  }
  sections("work");
  fields(state.themes, {});
  for (const [theme, value] of Object.entries(state.before ?? {})) set(theme, value);
  show(state.image);
}
const decided = (item) => Object.keys(item.themes).every((theme) => theme in item.decided);
function decide(found, wanted) {
  disputes = found.disputes;
  view = "decide";
  header();
  $("undo").disabled = $("end-undo").disabled = !found.undo;
  $("again").hidden = true;
  const open = disputes.find((item) => !decided(item));
  const item = disputes.find((one) => one.image === wanted) ?? open;
  if (!item) {
    sections("end");
    $("end-text").textContent = disputes.length ? `All ${disputes.length} disagreements are decided.` : "Raters do not disagree about any image.";
    at = null;
    return;
  }
  sections("work");
  $("crowd").replaceChildren(...disputes.map((one, index) => {
    const line = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = `${index + 1}${decided(one) ? " ✓" : ""}`;
    button.setAttribute("aria-label", `Disagreement ${index + 1} about ${Object.keys(one.themes).join(", ")}${decided(one) ? ", decided" : ""}`);
    button.setAttribute("aria-current", String(one === item));
    button.addEventListener("click", () => { decide({ ...found, disputes }, one.image); home(); });
    line.append(button);
    return line;
  }));
  const themes = state.themes.filter((theme) => theme.name in item.themes);
  const notes = Object.fromEntries(Object.entries(item.themes).map(([name, counts]) => [name,
    `Raters said: shown ${counts.yes}, not shown ${counts.no}, unsure ${counts.unsure}`]));
  fields(themes, notes);
  for (const [theme, value] of Object.entries(item.decided)) set(theme, value);
  show(item.image);
}

// --- what a person does ---
function save(given, needed = true) {
  if (at === null) return;
  if (needed && !seen) return say("Look at the image first: hold Space, or press V.", true);
  const path = view === "label" ? "answer" : "decide";
  act(async () => {
    const found = await ask(path, { image: at, answers: given });
    if (path === "answer") label(found, "Saved.");
    else { decide(found); say("Saved."); }
    home();
  });
}
const none = () => { if (seen) all("no"); save(answers()); };
const unsure = () => save(Object.fromEntries(state.themes.map((theme) => [theme.name, "unsure"])), false);
const skip = () => at !== null && act(async () => { label(await ask("skip", { image: at }), "Skipped; it comes back at the end."); home(); });
const undo = () => act(async () => {
  if (view === "label") label(await ask("undo", {}), "Taken back.");
  else { decide(await ask("undecide", {}), at); say("Taken back."); }
  home();
});
const again = () => act(async () => { label(await ask("again", {})); home(); });
// The keys work on the image; a button that keeps the focus would take Enter for itself.
const home = () => { if (at !== null) $("frame").focus({ preventScroll: true }); };
const look = () => { toggled = !toggled; veil(); };
const begin = (name) => act(async () => {
  rater = name;
  try {
    const found = await ask(`state${query()}`);
    rater = found.rater;
    label(found);
  } catch (error) {
    rater = null;
    throw error;
  }
  home();
});

$("name-form").addEventListener("submit", (event) => { event.preventDefault(); begin($("name").value); });
$("frame").addEventListener("click", look);
$("clear").addEventListener("change", veil);
$("save").addEventListener("click", () => save(answers()));
$("none").addEventListener("click", none);
$("unsure").addEventListener("click", unsure);
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("end-undo").addEventListener("click", undo);
$("again").addEventListener("click", again);
for (const button of $("views").children) {
  button.addEventListener("click", () => act(async () => {
    if (button.dataset.view === "label") label(await ask(`state${query()}`));
    else { decide(await ask(`disputes${query()}`)); say("Only images about which raters disagree, and only the themes in question."); }
    home();
  }));
}
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || rater === null || event.target.id === "name") return;
  // a focused button or answer keeps its own Space and Enter; the image is where the focus usually is
  const own = event.target.closest("button:not(#frame), input, label");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const labelling = view === "label" && at !== null;
  if (key === " " && !own) { held = true; veil(); }
  else if (event.repeat) return;
  else if (key === "Enter" && (!own || own.matches("input"))) save(answers());
  else if (key >= "1" && key <= "9") cycle(Number(key) - 1);
  else if (key === "0" && labelling) none();
  else if (key === "u" && labelling) unsure();
  else if (key === "s" && labelling) skip();
  else if (key === "z") undo();
  else if (key === "v" && at !== null) look();
  else if (key === "c") { $("clear").checked = !$("clear").checked; veil(); }
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => {
  if (event.key !== " ") return;
  if (held) event.preventDefault();
  held = false;
  if (at !== null) veil();
});
addEventListener("blur", () => { held = false; if (at !== null) veil(); });

act(async () => {
  state = await ask("state");
  $("name-form").hidden = !state.open;
  $("names").replaceChildren(...state.raters.map((name) => Object.assign(document.createElement("option"), { value: name })));
  $("known").replaceChildren(...state.raters.map((name) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => begin(name));
    return button;
  }));
  ($("name-form").hidden ? $("known").firstElementChild : $("name"))?.focus();
});
