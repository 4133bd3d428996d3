// What every page of the console does: live events, relative times, confirmation, theme.
//
// Live: one stream of /api/events a page, closed while nobody sees the page, as a browser opens only six connections to
// a host. Each event is passed on as a `clara:task` event of the document with the event as its detail; and, at most
// twice a second, `clara:changed` on the body, upon which htmx fetches what shows tasks anew
// (hx-trigger="clara:changed from:body"); and every ten seconds, since some things change without a task. A page without parts that change has <body data-still>.
//
// Ready: html[data-ready="true"] once the stream is open and nothing has data-waits any more.
"use strict";

const root = document.documentElement;
const CHANGED_EVERY = 500;
const LOOK_EVERY = 10000;

// Ready

function lookReady(live) {
  if (live) root.dataset.live = "true";
  if (root.dataset.live && !document.querySelector("[data-waits]")) root.dataset.ready = "true";
}

// Live

let stream = null;
let lastId = null;
let changedAt = 0;
let changing = null;

function changed() {
  changing = null;
  changedAt = performance.now();
  htmx.trigger(document.body, "clara:changed");
}

function noteChange() {
  changing ??= setTimeout(changed, Math.max(0, changedAt + CHANGED_EVERY - performance.now()));
}

function showLive(state, words) {
  const shown = document.getElementById("live");
  if (!shown || shown.dataset.state === state) return;
  shown.dataset.state = state;
  shown.querySelector(".words").textContent = words;
}

function open() {
  if (stream || document.hidden) return;
  stream = new EventSource("/api/events" + (lastId === null ? "" : `?lastEventId=${lastId}`));
  stream.onopen = () => {
    showLive("live", "live");
    lookReady(true);
  };
  stream.onerror = () => {
    showLive("lost", "not live: trying again");
    if (stream.readyState === EventSource.CLOSED) {
      // Refused, as with a token that has expired: the next request says why.
      close();
      setTimeout(open, 5000);
      noteChange();
    }
  };
  stream.addEventListener("task", (event) => {
    lastId = event.lastEventId;
    document.dispatchEvent(new CustomEvent("clara:task", { detail: JSON.parse(event.data) }));
    noteChange();
  });
}

function close() {
  stream?.close();
  stream = null;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    close();
  } else if (!("still" in document.body.dataset)) {
    open();
    noteChange();
  }
});

// Times: server and browser may have different clocks, so the server's is what counts.

const PARTS = [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"]];

function ago(seconds) {
  const past = seconds >= 0;
  const whole = Math.abs(seconds);
  if (whole < 1) return "just now";
  const [, unit, name] = PARTS.find(([limit]) => whole < limit) ?? [0, 86400, "days"];
  const count = Math.round(whole / unit);
  const words = `${count} ${name === "days" && count === 1 ? "day" : name}`;
  return past ? `${words} ago` : `in ${words}`;
}

const ahead = Number(root.dataset.now) * 1000 - Date.now();

function tellTimes() {
  for (const shown of document.querySelectorAll("time[datetime]")) {
    const words = ago((Date.now() + ahead - Date.parse(shown.dateTime)) / 1000);
    if (shown.textContent !== words) shown.textContent = words;
  }
}

// Confirmation: an element with hx-confirm="Words?" asks in a dialog; data-confirm-yes is what the button says.

document.addEventListener("htmx:confirm", (event) => {
  const { question, elt, issueRequest } = event.detail;
  if (!question) return;
  event.preventDefault();
  const dialog = document.getElementById("confirm");
  dialog.querySelector("#confirm-words").textContent = question;
  dialog.querySelector("#confirm-yes").textContent = elt.dataset.confirmYes ?? "Go on";
  dialog.returnValue = "no";
  dialog.addEventListener("close", () => dialog.returnValue === "yes" && issueRequest(true), { once: true });
  dialog.showModal();
});

document.addEventListener("htmx:beforeRequest", (event) => {
  // What was wrong before is over once something else is asked for by hand.
  if (event.detail.requestConfig.triggeringEvent?.type !== "clara:changed") {
    document.getElementById("notice")?.replaceChildren();
  }
});

document.addEventListener("htmx:sendError", () => showLive("lost", "not live: trying again"));

// Theme

function toggleTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  localStorage.setItem("clara-theme", root.dataset.theme);
  document.dispatchEvent(new CustomEvent("clara:theme"));
}

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme")?.addEventListener("click", toggleTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    document.dispatchEvent(new CustomEvent("clara:theme")));
  tellTimes();
  setInterval(tellTimes, 1000);
  document.addEventListener("htmx:afterSettle", tellTimes);
  new MutationObserver(() => lookReady(false)).observe(root, { subtree: true, attributeFilter: ["data-waits"], childList: true });
  if ("still" in document.body.dataset) {
    document.getElementById("live")?.remove();
    lookReady(true);
  } else {
    open();
    setInterval(() => document.hidden || noteChange(), LOOK_EVERY);
  }
});
