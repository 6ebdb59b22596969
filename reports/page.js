// The controls, and what follows from them.
function hint(target, lines) {
  const box = one("hint");
  const [name, ...rest] = lines;
  box.replaceChildren(Object.assign(document.createElement("strong"), { textContent: name }), ...rest.flatMap((line) => [document.createElement("br"), line]));
  box.hidden = false;
  const [at, own] = [(target.querySelector(".mark") ?? target).getBoundingClientRect(), box.getBoundingClientRect()];
  const left = Math.max(8, Math.min(at.left + at.width / 2 - own.width / 2, document.documentElement.clientWidth - own.width - 8));
  const above = at.top - own.height - 10;
  box.style.left = `${left + scrollX}px`;
  box.style.top = `${(above > 60 ? above : at.bottom + 10) + scrollY}px`;
  mark(target.dataset.label);
}

function unhint() {
  one("hint").hidden = true;
  mark();
}

// The same method in the figure and in the table beside it.
function mark(label) {
  for (const each of all("#plot .dot, .short tbody tr")) each.classList.toggle("same", label !== undefined && (each.dataset.label ?? each.dataset.about) === label);
}

function overviewFacts(cell) {
  const row = cell.closest("tr");
  const [, what, index] = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].dataset.key.match(/^(gain|over)_(\d+)$/) ?? [];
  const found = what === "gain" && data.pairs[index - 1].methods.find((method) => method.label === row.dataset.about);
  if (found && found.gain !== null) return [`${found.label}, ${data.pairs[index - 1].title}`, gainText(found, `n = ${found.n_paired}`), facts(found)[1]];
  const over = what === "over" && data.over[index - 1][row.dataset.about];
  return over ? [row.dataset.about, gainText(over, `${over.pairs} pairs`)] : null;
}

// Work on tables, of which there may be hundreds, is left out where what was chosen leaves them as they are.
const applied = {};
function apply() {
  const changed = (...keys) => keys.some((key) => applied[key] !== state[key]);
  if (changed("share")) {
    shareCosts();
    titleCells();
  }
  if (changed("sort", "share")) sortTables();
  if (data.pairs.length && changed("q", "hide")) filterTables();
  Object.assign(applied, state);
  if (!data.pairs.length) return;
  const find = one("find");
  if (find.value !== state.q) find.value = state.q;
  const hidden = state.hide.split(",");
  for (const box of all("input[name=kind]")) box.checked = !hidden.includes(box.value);
  one("reset").hidden = !state.q && !state.hide;
  for (const short of all(".short")) short.hidden = short.dataset.pair !== state.pair;
  if (one("pair")) one("pair").value = state.pair;
  if (!state.x) return;
  one("x").value = state.x;
  for (const choice of all("input[name=price]")) choice.checked = choice.value === state.price;
  one("price").disabled = !adds();
  if (document.activeElement !== one("share")) one("share").value = state.share;
  one("slide").value = Math.round(100 * Math.log10(state.share));
  one("slide").setAttribute("aria-valuetext", `${state.share} students`);
  plot();
}

function change(chosen) {
  Object.assign(state, chosen);
  apply();
  writeHash();
}

// A link into a folded section unfolds it.
function go(behavior = "auto") {
  const target = section && one(section);
  if (!target) return;
  const folded = target.querySelector("details:not(.help)");
  if (folded) folded.open = true;
  target.scrollIntoView({ behavior });
}

function listen() {
  document.querySelector(".bar").hidden = false;
  one("find").addEventListener("input", () => change({ q: one("find").value }));
  for (const box of all("input[name=kind]")) {
    box.addEventListener("change", () => change({ hide: all("input[name=kind]").filter((each) => !each.checked).map((each) => each.value).join(",") }));
  }
  one("reset").addEventListener("click", () => change({ q: "", hide: "" }));
  one("pair")?.addEventListener("change", () => change({ pair: one("pair").value }));
  for (const choose of all(".choose")) choose.hidden = false;
  for (const row of all(".short tbody tr")) {
    row.addEventListener("pointerenter", () => mark(row.dataset.about));
    row.addEventListener("pointerleave", () => mark());
  }
  for (const cell of all("#table-matrix td.num")) {
    cell.addEventListener("pointerenter", () => {
      const lines = overviewFacts(cell);
      if (lines) hint(cell, lines);
    });
    cell.addEventListener("pointerleave", unhint);
  }
  if (!state.x) return;
  one("play").hidden = false;
  one("price").hidden = ![...kindOf.values()].some((kind) => kind !== "none");
  one("x").addEventListener("change", () => change({ x: one("x").value }));
  for (const choice of all("input[name=price]")) choice.addEventListener("change", () => change({ price: choice.value }));
  one("slide").addEventListener("input", () => change({ price: "shared", share: String(Math.round(10 ** (one("slide").value / 100))) }));
  one("share").addEventListener("input", () => {
    if (ALLOWED.share(one("share").value)) change({ price: "shared", share: String(Number(one("share").value)) });
  });
  one("share").addEventListener("change", () => (one("share").value = state.share));
  let width = one("plot").clientWidth;
  new ResizeObserver(() => {
    if (one("plot").clientWidth === width) return;
    width = one("plot").clientWidth;
    plot();
  }).observe(one("plot"));
}

for (const link of all('a[href^="#"]')) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    clearTimeout(writing);
    section = decoded(link.getAttribute("href").slice(1));
    if (location.hash === hash()) go();
    else location.hash = hash(); // one step of the history
  });
}
addEventListener("hashchange", () => {
  readHash();
  apply();
  go();
});
addEventListener("beforeprint", () => all("section details").forEach((each) => (each.open = true)));
readHash();
if (data.pairs.length > 1 && matchMedia("(max-width: 40rem)").matches) for (const each of all(".pair > details")) each.open = false;
if (data.pairs.length) listen();
apply();
go("instant");
