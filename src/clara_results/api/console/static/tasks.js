// Pages of tasks: selecting and acting on many, confirming with the number that is really concerned, what is live.
"use strict";

const results = () => document.getElementById("results");
const summary = () => document.getElementById("summary");
const number = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
const tasks = (count) => `${number(count)} task${count === 1 ? "" : "s"}`;

// The API

async function call(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(body ?? {}),
  }).catch(() => {
    throw new Error("The service can't be reached. Nothing may have been done; look again in a moment.");
  });
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail ?? `The service answered ${answer.status}`);
  return said;
}

function tell(words) {
  document.getElementById("told").textContent = words;
}

function refresh() {
  for (const part of document.querySelectorAll("[hx-trigger]")) {
    htmx.trigger(part, part.getAttribute("hx-trigger").includes("clara:mine") ? "clara:mine" : "clara:refresh");
  }
}

// Selection: tasks by id, or all that match the filter, whatever page they are on

const chosen = new Set();
let all = false;
let last = null;

const boxes = () => [...document.querySelectorAll("#results tbody input[type=checkbox]")];
const filter = () => JSON.parse(results().dataset.filter);
const wanted = () => (all ? bounded(filter()) : { taskIds: [...chosen] });

// A filter that says nothing would be refused: all tasks are those up to now.
function bounded(which) {
  return Object.keys(which).length ? which : { until: new Date().toISOString() };
}

function showSelection() {
  const selected = document.getElementById("selected");
  const here = boxes();
  for (const box of here) {
    box.checked = all || chosen.has(box.value);
    box.closest("tr").toggleAttribute("data-selected", box.checked);
  }
  const whole = document.getElementById("select-page");
  const ticked = here.filter((box) => box.checked).length;
  if (whole) {
    whole.checked = here.length > 0 && ticked === here.length;
    whole.indeterminate = ticked > 0 && ticked < here.length;
  }
  if (!selected) return;
  const words = all ? "All that match are selected" : chosen.size ? `${tasks(chosen.size)} selected` : "No task selected";
  if (selected.textContent !== words) selected.textContent = words;
  const some = all || chosen.size > 0;
  document.getElementById("select-none").hidden = !some;
  document.getElementById("select-all").hidden = all;
  for (const button of document.querySelectorAll("#selection [data-act]")) button.disabled = !some;
}

function choose(box, wants) {
  all = false;
  if (wants) chosen.add(box.value);
  else chosen.delete(box.value);
}

document.addEventListener("click", (event) => {
  const box = event.target.closest("#results tbody input[type=checkbox]");
  if (box) {
    if (all) boxes().forEach((other) => chosen.add(other.value));
    const here = boxes();
    const from = event.shiftKey ? here.findIndex((other) => other.value === last) : -1;
    const to = here.indexOf(box);
    const range = from < 0 ? [box] : here.slice(Math.min(from, to), Math.max(from, to) + 1);
    range.forEach((other) => choose(other, box.checked));
    last = box.value;
    showSelection();
  } else if (event.target.id === "select-page") {
    boxes().forEach((other) => choose(other, event.target.checked));
    showSelection();
  } else if (event.target.id === "select-all") {
    all = true;
    chosen.clear();
    showSelection();
    document.getElementById("select-none").focus();
  } else if (event.target.id === "select-none") {
    all = false;
    chosen.clear();
    showSelection();
    document.getElementById("select-all").focus();
  }
});

// A click anywhere on a row opens its task, unless it is to select text

document.addEventListener("click", (event) => {
  const row = event.target.closest("#results tbody tr");
  if (!row || event.target.closest("a, input, button, td.check") || String(getSelection())) return;
  row.querySelector("a.row").click();
});

// Arrow keys go from row to row

document.addEventListener("keydown", (event) => {
  const row = event.target.closest?.("#results tbody tr");
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const next = event.key === "ArrowDown" ? row.nextElementSibling : event.key === "ArrowUp" ? row.previousElementSibling : null;
  if (!next) return;
  event.preventDefault();
  const same = event.target.matches("input") ? "input[type=checkbox]" : "a.row";
  next.querySelector(same)?.focus();
});

// Acts: what is asked says how many tasks are really concerned

const ACTS = {
  retry: {
    title: (count) => `Retry ${tasks(count)}?`,
    words: "Each goes back to Pending with its retries at 0. Files that were delivered stay delivered and are not sent again.",
    none: "None of them is Failed, so none can be retried.",
    rest: (count) => `${tasks(count)} of the selection ${count === 1 ? "is" : "are"} not Failed, or superseded, and stay${count === 1 ? "s" : ""} as ${count === 1 ? "it is" : "they are"}.`,
    yes: "Retry",
    done: (count) => `${tasks(count)} put back to Pending.`,
  },
  cancel: {
    title: (count) => `Cancel ${tasks(count)}?`,
    words: "What is not yet delivered will not be. An agent that holds one stops at once. What was delivered stays at the receiver.",
    none: "All of them are finished, so none can be canceled.",
    rest: (count) => `${tasks(count)} of the selection ${count === 1 ? "is" : "are"} finished and stay${count === 1 ? "s" : ""} as ${count === 1 ? "it is" : "they are"}.`,
    yes: "Cancel the delivery",
    done: (count) => `${tasks(count)} canceled.`,
  },
};

function fault(id, words) {
  const shown = document.getElementById(id);
  shown.textContent = words;
  shown.hidden = !words;
}

async function ask(name, which, picked) {
  const act = ACTS[name];
  const dialog = document.getElementById("act");
  const title = document.getElementById("act-title");
  const words = document.getElementById("act-words");
  const yes = document.getElementById("act-yes");
  fault("act-fault", "");
  title.textContent = "Counting …";
  words.textContent = "";
  yes.hidden = true;
  yes.textContent = act.yes;
  yes.className = name === "cancel" ? "danger" : "primary";
  dialog.showModal();
  let concerned;
  try {
    concerned = (await call("/api/tasks/concerned", which))[name];
  } catch (error) {
    title.textContent = "They can't be counted";
    fault("act-fault", error.message);
    return;
  }
  const rest = picked === null ? 0 : picked - concerned;
  title.textContent = concerned ? act.title(concerned) : "Nothing to do";
  words.textContent = concerned ? [act.words, rest > 0 ? act.rest(rest) : ""].join(" ").trim() : act.none;
  yes.hidden = !concerned;
  yes.disabled = false;
  yes.onclick = async () => {
    yes.disabled = true;
    try {
      const { changed } = await call(`/api/tasks/${name}`, which);
      dialog.close();
      const left = concerned - changed;
      tell(act.done(changed) + (left > 0 ? ` ${tasks(left)} had changed meanwhile, or the files are no more.` : ""));
      all = false;
      chosen.clear();
      refresh();
    } catch (error) {
      fault("act-fault", error.message);
      yes.disabled = false;
    }
  };
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  if (button.dataset.act === "redeliver") {
    fault("redeliver-fault", "");
    document.getElementById("redeliver").showModal();
  } else if ("one" in button.dataset) {
    ask(button.dataset.act, { taskIds: [summary().dataset.task] }, null);
  } else if ("all" in button.dataset) {
    ask(button.dataset.act, filter(), null);
  } else {
    ask(button.dataset.act, wanted(), all ? null : chosen.size);
  }
});

document.getElementById("redeliver-yes")?.addEventListener("click", async (event) => {
  const to = document.getElementById("redeliver-to").value;
  event.target.disabled = true;
  try {
    const made = await call(`/api/tasks/${summary().dataset.task}/redeliver`, to ? { destination: to } : {});
    location.assign(`/tasks/${made.taskId}`);
  } catch (error) {
    fault("redeliver-fault", error.message);
    event.target.disabled = false;
  }
});

// Live: the page of a task, or of a job, is fetched anew when something happens to it; while it runs, each second

let due = null;
let askedAt = 0;

function mine() {
  due = null;
  askedAt = performance.now();
  for (const part of document.querySelectorAll("[hx-trigger*='clara:mine']")) htmx.trigger(part, "clara:mine");
}

function soon(wait) {
  due ??= setTimeout(mine, Math.max(wait, askedAt + 500 - performance.now()));
}

document.addEventListener("clara:task", ({ detail }) => {
  const job = results()?.dataset.job;
  if (detail.taskId === summary()?.dataset.task || (job !== undefined && detail.jobId === job)) soon(0);
});

setInterval(() => {
  if (!document.hidden && summary()?.dataset.running === "true") soon(0);
}, 1000);

document.addEventListener("htmx:afterSettle", showSelection);

// What a person has opened stays open when it is fetched anew
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.tagName === "DETAILS");

// The raw record, fetched when it is looked at

document.getElementById("raw")?.addEventListener("toggle", async ({ target }) => {
  if (!target.open) return;
  const shown = target.querySelector("code");
  try {
    const answer = await fetch(target.dataset.url, { headers: { Accept: "application/json" } });
    shown.textContent = JSON.stringify(await answer.json(), null, 2);
  } catch {
    shown.textContent = "The service can't be reached; close this and open it again.";
  }
});

// The times of the filter: people give theirs, the address has UTC

const within = document.getElementById("within");
const between = document.getElementById("between");
const two = (value) => String(value).padStart(2, "0");

function here(moment) {
  const date = `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
  return `${date}T${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
}

if (within) {
  for (const field of between.querySelectorAll("input")) {
    const given = new Date(field.dataset.value);
    if (!Number.isNaN(given.getTime())) field.value = here(given);
  }
  within.addEventListener("change", () => {
    between.hidden = within.value !== "between";
  });
  within.form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
    if (formData.get("within") !== "between") return;
    formData.delete("within");
    for (const field of between.querySelectorAll("input")) {
      if (field.value) formData.set(field.dataset.field, new Date(field.value).toISOString());
    }
  });
}

document.querySelector("#states [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
showSelection();
