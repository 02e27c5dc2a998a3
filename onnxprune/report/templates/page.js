"use strict";
document.documentElement.classList.add("js");

// Layers: point at a column, or walk with the arrow keys; the row of the table is read out.
const rows = [...document.querySelectorAll("table.layers tbody tr")];
const ties = [...document.querySelectorAll("[data-tie]")];
const readout = document.querySelector(".readout");
let chosen = -1;

function choose(index) {
  chosen = Math.max(0, Math.min(rows.length - 1, index));
  const row = rows[chosen];
  document.querySelectorAll(".cursor").forEach((c) => {
    c.style.left = (100 * chosen) / rows.length + "%";
    c.style.width = 100 / rows.length + "%";
    c.classList.add("on");
  });
  const mine = new Set(row.dataset.ties.split(" "));
  ties.forEach((t) => t.classList.toggle("on", mine.has(t.dataset.tie)));
  const text = [...row.cells].map((c) => c.textContent.trim().replace(/\s+/g, " "));
  const name = document.createElement("b");
  name.textContent = text[1];
  const more = [text[2], text[3], text[5] + " MACs", text[6]].filter(Boolean).join(" · ");
  readout.replaceChildren(name, " " + more);
}

function leave() {
  document.querySelectorAll(".cursor").forEach((c) => c.classList.remove("on"));
  ties.forEach((t) => t.classList.remove("on"));
}

document.querySelectorAll(".network .plot, .ties .plot").forEach((plot) => {
  plot.addEventListener("pointermove", (e) => {
    const box = plot.getBoundingClientRect();
    choose(Math.floor(((e.clientX - box.left) / box.width) * rows.length));
  });
  plot.addEventListener("pointerleave", leave);
});

document.querySelector(".network")?.addEventListener("keydown", (e) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -rows.length, End: rows.length }[e.key];
  if (!step) return;
  e.preventDefault();
  choose(chosen + step);
});

// Groups: find one by any of its weights.
const groups = [...document.querySelectorAll(".group")];
document.querySelector("#filter")?.addEventListener("input", (e) => {
  const wanted = e.target.value.trim().toLowerCase();
  const found = groups.filter((g) => {
    g.hidden = !g.textContent.toLowerCase().includes(wanted);
    return !g.hidden;
  });
  const more = document.querySelector(".list > .more");
  if (more && wanted) more.open = true;
  document.querySelector("#found").textContent = wanted ? found.length + " found" : "";
});

// On paper nothing folds out: what is not too long is open.
addEventListener("beforeprint", () => {
  document.querySelectorAll(".reason, details.table").forEach((d) => {
    if (d.querySelectorAll("tr").length <= 60) d.open = true;
  });
});
