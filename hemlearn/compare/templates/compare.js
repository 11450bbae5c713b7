"use strict";
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
for (const tools of all(".tools")) tools.hidden = false;

// Tables: a click on a title, or Enter on it, sorts by that column; numbers by their value, the largest first.
const value = cell => {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  const found = /^<?[-+]?\d+(\.\d+)?(e[-+]?\d+)?/.exec(text);
  return found && cell.classList.contains("n") ? Number(found[0].replace("<", "")) : text.toLowerCase();
};
const sortBy = (table, place, header) => {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row, i) => ({ row, i, key: row.cells[place] ? value(row.cells[place]) : "" }));
  const numbers = rows.some(one => typeof one.key === "number");
  const now = header.getAttribute("aria-sort");
  const up = now ? now === "descending" : !numbers;
  rows.sort((a, b) => {
    const odd = one => one.key === "" || (numbers && typeof one.key !== "number");
    if (odd(a) || odd(b)) return odd(a) - odd(b) || a.i - b.i;  // what has no value stays below
    const by = numbers ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
    return (up ? by : -by) || a.i - b.i;
  });
  for (const one of rows) body.append(one.row);
  for (const other of all("th", table.tHead)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
};
for (const table of all("table.sortable")) {
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const title = header.textContent.trim();
    if (!title) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    header.replaceChildren(button);
    header.addEventListener("click", () => sortBy(table, place, header));
  });
}

// The table of results: words that a row must hold, one level, and the columns that are wanted.
for (const tools of all("div.tools")) {
  const table = tools.nextElementSibling.querySelector("table");
  const filter = tools.querySelector(".filter");
  const levels = tools.querySelector(".levels");
  const count = tools.querySelector(".count");
  const rows = [...table.tBodies[0].rows];
  const texts = new Map(rows.map(row => [row, `${row.textContent} ${row.dataset.name}`.toLowerCase().replace(/\s+/g, " ")]));
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = texts.get(row);
      const fits = words.every(word => word.length > 1 && word[0] === "-" && !/\d/.test(word[1])
        ? !text.includes(word.slice(1)) : text.includes(word));
      const here = !levels || !levels.value || levels.value === row.dataset.level;
      row.hidden = !(fits && here);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  filter.addEventListener("input", show);
  if (levels) {
    const first = levels.querySelector("[data-start]");
    levels.value = first ? first.value : "";
    levels.addEventListener("change", show);
  }
  for (const box of all("[data-column]", tools)) {
    box.addEventListener("change", () => {
      for (const row of [table.tHead.rows[0], ...rows]) row.cells[Number(box.dataset.column)].hidden = !box.checked;
    });
  }
  show();
}

// Groups: hidden in every plot and its legend at once.
const boxes = all("[data-layer]");
const draw = () => {
  for (const box of boxes) {
    for (const part of all(`.plot .${box.dataset.layer}, .curves .${box.dataset.layer}`)) {
      part.classList.toggle("off", !box.checked);
    }
  }
};
for (const box of boxes) {
  box.disabled = false;
  box.checked = box.dataset.start !== "off";
  box.addEventListener("change", draw);
}
for (const button of all("[data-show]")) {
  button.addEventListener("click", () => {
    const most = { all: boxes.length, none: 0 }[button.dataset.show] ?? Number(button.dataset.show);
    boxes.forEach((box, i) => { box.checked = i < most; });
    draw();
  });
}
draw();

// Heat maps: one pair of settings at a time.
for (const pairs of all(".pairs")) {
  const which = pairs.querySelector(".which");
  if (!which) continue;
  const choose = () => {
    for (const grid of all("[data-pair]", pairs)) grid.hidden = grid.dataset.pair !== which.value;
  };
  which.addEventListener("change", choose);
  choose();
}
})();
