// Tables: sorted by the column whose heading is pressed, filtered by method, and their shared costs for as many students as chosen.
const rowsOf = new Map(all("main table").map((table) => [table, [...table.tBodies[0].rows]])); // as written
const nameOf = new Map([...rowsOf.keys()].map((table, index) => [table, table.id.replace("table-", "") || `table-${index}`]));
const kindOf = new Map(data.pairs.flatMap((pair) => pair.methods.map((method) => [method.label, method.needs])));

function sorting() {
  const pieces = state.sort.split(";").map((piece) => piece.match(/^(.*):(\d+)([ad])$/)).filter(Boolean);
  return new Map(pieces.map(([, name, column, way]) => [name, { column: Number(column), way }]));
}

function press(table, column) {
  const sorts = sorting();
  const now = sorts.get(nameOf.get(table));
  sorts.set(nameOf.get(table), { column, way: now?.column === column && now.way === "a" ? "d" : "a" });
  change({ sort: [...sorts].map(([name, { column, way }]) => `${name}:${column}${way}`).join(";") });
}

// Empty cells stay last.
function sortTables() {
  const sorts = sorting();
  for (const [table, rows] of rowsOf) {
    const heads = [...table.tHead.rows[0].cells];
    const { column, way } = sorts.get(nameOf.get(table)) ?? {};
    const head = heads[column];
    for (const other of heads) other.removeAttribute("aria-sort");
    if (!head) {
      table.tBodies[0].append(...rows);
      continue;
    }
    head.setAttribute("aria-sort", way === "a" ? "ascending" : "descending");
    const direction = way === "a" ? 1 : -1;
    const numeric = head.classList.contains("num");
    const key = (row) => row.cells[column].dataset.key;
    const number = (text) => (text === "inf" ? Infinity : Number(text));
    const sorted = [...rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      if (!numeric) return direction * x.localeCompare(y, "en", { numeric: true });
      return number(x) === number(y) ? 0 : direction * (number(x) < number(y) ? -1 : 1);
    });
    table.tBodies[0].append(...sorted);
  }
}

// A method is shown where its kind is ticked and its name holds one of the words between commas.
function shown(label) {
  if (state.hide.split(",").includes(kindOf.get(label))) return false;
  const words = state.q.toLowerCase().split(",").map((word) => word.trim()).filter(Boolean);
  return !words.length || words.some((word) => label.toLowerCase().includes(word));
}

function filterTables() {
  for (const [table, rows] of rowsOf) {
    let hidden = 0;
    for (const row of rows) {
      if (!row.dataset.about) continue;
      row.hidden = !row.dataset.about.split("\n").some(shown);
      hidden += row.hidden;
    }
    const box = table.closest(".scroll");
    let note = box.nextElementSibling?.matches(".left-out") ? box.nextElementSibling : null;
    if (hidden && !note) {
      note = document.createElement("p");
      note.className = "note left-out";
      box.after(note);
    }
    if (note) note.textContent = hidden ? `The filter hides ${hidden} of ${rows.length} rows.` : "";
  }
  const labels = [...kindOf.keys()];
  const left = labels.filter(shown).length;
  const some = left < labels.length;
  one("count").textContent = `${left} of ${labels.length} methods`;
  one("filtered").hidden = !some;
  one("filtered").textContent = some ? `The filter shows ${left} of ${labels.length} methods, here and in every table.` : "";
}

// With c the training's own cost and w that with all of the teacher's, a share among n students makes c + (w - c) / n.
const SHARES = {
  shared_teacher_s: ["train_s", "with_teacher_s"],
  shared_teacher_ratio: ["ratio", "with_teacher_ratio"],
  with_search_s: ["train_s", "with_teacher_s", "shared_teacher_s"],
  with_search_ratio: ["ratio", "with_teacher_ratio", "shared_teacher_ratio"],
};
const STUDENTS = /(shared by|divided by) \d+/gi;
const written = new Map(); // texts and keys for the number of students that the files have

function seconds(value) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (value >= 2 * size) return `${(value / size).toFixed(1)} ${unit}`;
  }
  return `${value.toFixed(value < 2 ? 2 : value < 10 ? 1 : 0)} s`;
}
const times = (value) => `${value.toFixed(value < 10 ? 2 : 1)}×`;

function keep(element, text, key) {
  if (!written.has(element)) written.set(element, [element.textContent, element.dataset.key]);
  const same = state.share === START.share;
  const [oldText, oldKey] = written.get(element);
  element.textContent = same ? oldText : text(oldText);
  if (key !== undefined) element.dataset.key = same ? oldKey : key;
}

function shareCosts() {
  for (const table of all("[data-pair] table")) {
    const columns = new Map([...table.tHead.rows[0].cells].map((cell, index) => [cell.dataset.key, index]));
    for (const key of Object.keys(SHARES).filter((name) => columns.has(name))) {
      const renumbered = (text) => text.replace(STUDENTS, `$1 ${state.share}`);
      keep(table.tHead.rows[0].cells[columns.get(key)].firstElementChild, renumbered);
      for (const help of all(`dd[data-key="${key}"]`, table.closest("section.table"))) keep(help, renumbered);
      const [own, whole, third] = SHARES[key].map((name) => columns.get(name));
      if (own === undefined || whole === undefined) continue;
      for (const row of rowsOf.get(table)) {
        const cell = row.cells[columns.get(key)];
        const number = (index) => Number((written.get(row.cells[index]) ?? [0, row.cells[index].dataset.key])[1] || NaN);
        const students = kindOf.get(row.dataset.about) === "teacher" ? Number(state.share) : 1;
        let value = number(own) + (number(whole) - number(own)) / students;
        if (third !== undefined) value += number(columns.get(key)) - number(third); // the search
        if (Number.isFinite(value)) keep(cell, () => (key.endsWith("_s") ? seconds : times)(value), String(value));
      }
    }
  }
}

// On a narrow screen a row becomes a card, in which each value stands below its column's title.
function titleCells() {
  for (const [table, rows] of rowsOf) {
    const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    for (const row of rows) [...row.cells].forEach((cell, index) => (cell.dataset.title = titles[index]));
  }
}

for (const table of rowsOf.keys()) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => press(table, head.cellIndex));
  }
}
