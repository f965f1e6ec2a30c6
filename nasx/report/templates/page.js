"use strict";
// what points of the figures say when a reader points at them
const tips = JSON.parse(document.getElementById("tips").textContent);
for (const [group, texts] of Object.entries(tips)) {
  const drawn = document.getElementById(group);
  if (!drawn) continue;
  // few points are drawn as paths, many as uses of one
  const found = ["use", ":scope > path"].map(kind => drawn.querySelectorAll(kind));
  const targets = found.find(points => points.length === texts.length) ?? [drawn];
  targets.forEach((target, at) => { target.dataset.tip = texts[at]; });
}
const tip = document.getElementById("tip");
function show(event) {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect(), gap = 12;
  const left = Math.min(event.clientX + gap, document.documentElement.clientWidth - box.width - gap);
  const above = event.clientY - box.height - gap;
  tip.style.left = `${Math.max(gap / 2, left)}px`;
  tip.style.top = `${above > 0 ? above : event.clientY + gap}px`;
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);

// tables that are sorted by the heading clicked
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falling = heading.getAttribute("aria-sort") !== "descending";
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (one, other) => {
        const a = key(one), b = key(other), difference = Number(a) - Number(b);
        return a === "" || b === "" ? (a === "") - (b === "")  // what has no value stays last
          : (falling ? -1 : 1) * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
