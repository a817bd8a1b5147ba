// Refreshes the parts of a run's page that have changed, shows values under the pointer, and fills in the key of a
// login link. Without it every page still works; it is then refreshed by the browser's own button.
"use strict";

const EVERY_MS = 2000;

async function refresh(page) {
  const query = new URLSearchParams(location.search);
  for (const part of page.querySelectorAll("[data-part]")) query.set(part.dataset.part, part.dataset.version);
  const answer = await fetch(`/live?${query}`, { headers: { accept: "application/json" }, redirect: "error" });
  if (answer.status === 401) return location.reload();
  if (!answer.ok) throw new Error(answer.status);
  const news = await answer.json();
  if (news.reload) return location.reload();
  for (const [name, { version, html }] of Object.entries(news.parts)) {
    const part = page.querySelector(`[data-part="${name}"]`);
    if (!part || isInUse(part)) continue;
    const scrolled = [...part.querySelectorAll(".events")].map((list) => list.scrollTop);
    part.innerHTML = html; // from our own server, which escapes everything
    part.querySelectorAll(".events").forEach((list, i) => { list.scrollTop = scrolled[i] || 0; });
    part.dataset.version = version;
  }
  const look = page.querySelector("h1 .light");
  if (look) document.documentElement.dataset.look = look.className;
}

// What somebody is typing into, or points at, is not replaced under the hand.
function isInUse(part) {
  const focused = document.activeElement;
  return (part.contains(focused) && focused.matches("input, textarea, select")) || part.querySelector("svg.chart:hover, details[open]");
}

// Pages of stores are short: the whole of what may change is fetched again.
async function refetch(page) {
  const answer = await fetch(location.href, { headers: { "fednc-refresh": "1" } });
  if (answer.redirected) return location.reload();
  if (!answer.ok) throw new Error(answer.status);
  const news = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-refetch]");
  if (news && news.innerHTML !== page.dataset.seen && !isInUse(page) && !page.querySelector(":checked")) {
    page.innerHTML = news.innerHTML;
    page.dataset.seen = news.innerHTML;
  }
}

function follow(page, refresh) {
  const lost = document.getElementById("lost");
  let failures = 0;
  const step = async () => {
    if (!document.hidden) {
      try {
        await refresh(page);
        failures = 0;
      } catch {
        failures += 1;
      }
      lost.hidden = failures < 2;
    }
    setTimeout(step, EVERY_MS * Math.min(5, 1 + failures));
  };
  setTimeout(step, EVERY_MS);
}

// data-lines: NAME,X:ROUND:TEXT,...|NAME,...
function readOut(event) {
  const chart = event.target.closest?.("svg.chart[data-lines]");
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
  const texts = [];
  let at = null;
  let round = "";
  for (const line of chart.dataset.lines.split("|")) {
    const [name, ...points] = line.split(",");
    let best = null;
    for (const point of points) {
      const [px, r, text] = point.split(":");
      const far = Math.abs(px - x);
      if (!best || far < best.far) best = { far, px, r, text };
    }
    if (!best) continue;
    if (at === null) [at, round] = [best.px, best.r];
    texts.push(chart.dataset.lines.includes("|") ? `${name} ${best.text}` : best.text);
  }
  const cross = chart.querySelector(".cross");
  cross.removeAttribute("visibility");
  cross.setAttribute("x1", at);
  cross.setAttribute("x2", at);
  const output = chart.closest("figure")?.querySelector("output");
  if (output) output.textContent = `round ${round}: ${texts.join(" · ")}`;
}

function endReadOut(event) {
  const chart = event.target.closest?.("svg.chart[data-lines]");
  if (!chart || chart.contains(event.relatedTarget)) return;
  chart.querySelector(".cross").setAttribute("visibility", "hidden");
  const output = chart.closest("figure")?.querySelector("output");
  if (output) output.textContent = "";
}

// The key of a login link stands behind `#`, which browsers never send, so it is in no log.
const login = document.getElementById("login");
const key = new URLSearchParams(location.hash.slice(1)).get("key");
if (login && key) {
  history.replaceState(null, "", location.pathname + location.search);
  login.elements.secret.value = key;
  login.submit();
}

const page = document.querySelector("[data-live]");
if (page) follow(page, refresh);
const list = document.querySelector("[data-refetch]");
if (list) follow(list, refetch);
document.addEventListener("pointermove", readOut, { passive: true });
document.addEventListener("pointerout", endReadOut, { passive: true });
// A menu that asks before it acts closes when something else is clicked.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.ask[open]")) if (!open.contains(event.target)) open.open = false;
});
