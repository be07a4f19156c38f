"use strict";
const table = document.getElementById("examples");
if (table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const [filter, show, count] = ["filter", "show", "count"].map((id) => document.getElementById(id));
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent.trim();
  const compare = (a, b) => a - b || String(a).localeCompare(String(b), undefined, { numeric: true });

  function sort(head) {
    const i = heads.indexOf(head);
    const isNumber = "value" in rows[0].cells[i].dataset;
    const was = head.getAttribute("aria-sort");
    const first = isNumber && i > 0 ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const now = was === first ? other : first;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", now);
    const sign = now === "ascending" ? 1 : -1;
    const kept = rows.map((row) => [value(row, i), row]);
    kept.sort(([a], [b]) => sign * compare(a, b));
    body.append(...kept.map(([, row]) => row));
  }

  function narrow() {
    const words = filter.value.toLowerCase().split(/\s+/);
    const fits = (row) =>
      (!show.value || row.dataset.kind.split(" ").includes(show.value)) &&
      words.every((word) => row.textContent.toLowerCase().includes(word));
    rows.forEach((row) => (row.hidden = !fits(row)));
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  }

  heads.forEach((head) => {
    head.firstChild.disabled = false;
    head.firstChild.addEventListener("click", () => sort(head));
  });
  [filter, show].forEach((control) => control.addEventListener("input", narrow));
  document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("tools").hidden = false;
  narrow();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
