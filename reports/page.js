"use strict";
// Sort a table by the column whose heading is pressed; empty cells stay last, a second press reverses.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = head.cellIndex;
    const body = head.closest("table").tBodies[0];
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const numeric = head.classList.contains("num");
    const key = (row) => row.cells[column].dataset.key;
    const number = (text) => (text === "inf" ? Infinity : Number(text));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      if (!numeric) return direction * x.localeCompare(y, "en", { numeric: true });
      return number(x) === number(y) ? 0 : direction * (number(x) < number(y) ? -1 : 1);
    });
    body.append(...rows);
  });
}
// A link into a folded section unfolds it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target && target.querySelector("details");
  if (folded) folded.open = true;
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => document.querySelectorAll("section details").forEach((one) => (one.open = true)));
