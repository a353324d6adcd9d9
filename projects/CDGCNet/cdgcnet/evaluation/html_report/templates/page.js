
"use strict";
// Sorts a table by a column: numbers by their full value, undefined scores last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = column === 0 ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const x = a.cells[column], y = b.cells[column];
      if (column === 0) return sign * x.textContent.localeCompare(y.textContent);
      const p = parseFloat(x.dataset.value), q = parseFloat(y.dataset.value);
      if (isNaN(p) || isNaN(q)) return isNaN(p) - isNaN(q);
      return sign * (p - q);
    };
    for (const body of table.querySelectorAll("tbody[data-sorted]")) {
      body.append(...[...body.rows].sort(compare));
    }
  }));
}
for (const picture of document.querySelectorAll(".picture")) {
  const image = picture.querySelector(".stage img");
  for (const below of picture.querySelectorAll(".below")) below.src = image.src;
  const cut = picture.querySelector(".cut");
  if (cut) {
    const stage = picture.querySelector(".stage");
    cut.addEventListener("input", () => stage.style.setProperty("--cut", cut.value + "%"));
    stage.addEventListener("pointermove", (event) => {
      if (!event.buttons && event.pointerType === "mouse") return;
      const box = stage.getBoundingClientRect();
      cut.value = 100 * (event.clientX - box.left) / box.width;
      cut.dispatchEvent(new Event("input"));
    });
  }
}
const opacity = document.getElementById("opacity");
if (opacity) {
  opacity.addEventListener("input", () =>
    document.documentElement.style.setProperty("--opacity", opacity.value / 100));
}
