"use strict";
// Sorting: a click sorts ascending, the next descending; unknown values stay last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = button.closest("table").tBodies[0], at = th.cellIndex;
    const up = th.getAttribute("aria-sort") !== "ascending", number = th.classList.contains("number");
    for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => [row.cells[at].dataset.order, row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = number ? a - b : a.localeCompare(b, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
  });
}
// Filtering: every word has to occur somewhere in the row.
for (const input of document.querySelectorAll("[data-filter]")) {
  const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
  const status = input.closest(".filter").querySelector("[role=status]");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      left += !row.hidden;
    }
    status.textContent = words.length ? `${left} of ${rows.length} rows` : "";
  });
}
// Blurred images: a press shows one, another press hides it.
for (const button of document.querySelectorAll(".reveal")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  });
}
document.getElementById("hide-all")?.addEventListener("click", () => {
  for (const button of document.querySelectorAll(".reveal")) button.setAttribute("aria-pressed", "false");
});
// A link to a row inside a folded table, or one that a filter hides, opens its way there.
function reach() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  target.hidden = false;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", reach);
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details")) fold.open = true; });
reach();
