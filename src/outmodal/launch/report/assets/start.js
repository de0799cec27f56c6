"use strict";
// Draws every figure, and lets people choose light or dark.

const KINDS = { lines: Lines, map: ScatterMap };

for (const figure of document.querySelectorAll("figure[data-kind]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  new KINDS[figure.dataset.kind](figure, data);
}

const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");

// A page from a file may have no storage: the choice then lasts as long as the page.
function remembered() {
  try { return localStorage.getItem("outmodal-theme"); } catch { return null; }
}

function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  themeButton.textContent = `Theme: ${name}`;
  try { localStorage.setItem("outmodal-theme", name); } catch { /* see above */ }
}

setTheme(THEMES.includes(remembered()) ? remembered() : "system");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
});
