// A table whose columns sort by a click on their heading; a second click turns the order round.
document.addEventListener("click", (event) => {
  const button = event.target.closest ? event.target.closest("th button") : null;
  if (!button) return;
  const heading = button.closest("th"), body = heading.closest("table").tBodies[0];
  const column = [...heading.parentNode.children].indexOf(heading);
  const down = heading.getAttribute("aria-sort") !== "descending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }));
  body.append(...(down ? rows.reverse() : rows));
});
