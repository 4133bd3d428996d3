// The overview's charts: drawn by uPlot from what #course holds, anew whenever that changes.
"use strict";

const HEIGHT = 170;
const charts = [];

function colour(name) {
  // What the page's theme makes of it: a canvas knows neither properties nor light-dark().
  const probe = document.getElementById("course").parentElement;
  const before = probe.style.color;
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = before;
  return found;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function clock(seconds) {
  return seconds == null ? "" : CLOCK.format(seconds * 1000);
}

function duration(value) {
  if (value == null) return "";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${+value.toPrecision(2)} s`;
  if (value < 3600) return `${+(value / 60).toPrecision(2)} min`;
  return `${+(value / 3600).toPrecision(2)} h`;
}

const STEPS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

function axis(values) {
  return {
    stroke: colour("dim"),
    font: "12px system-ui, sans-serif",
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    values: (_, splits) => splits.map(values),
    size: values === clock ? 28 : 58,
    ...(values === duration && { incrs: STEPS }),
  };
}

function frame(step) {
  return {
    height: HEIGHT,
    cursor: { sync: { key: "overview" }, points: { size: 6 }, drag: { x: false, y: false } },
    legend: { live: true },
    scales: { x: { range: (_, least, most) => [least - step / 2, most + step / 2] } },
  };
}

function upTo(least) {
  return { range: (_, __, most) => [0, Math.max(least, (most ?? 0) * 1.1)] };
}

const TIME = { label: "At", value: (_, value) => clock(value) };

function ended(step) {
  const paths = uPlot.paths.bars({ size: [0.75, 24] });
  const bars = (label, name) => ({ label, paths, points: { show: false }, fill: colour(name), stroke: colour(name), width: 0 });
  const options = frame(step);
  options.scales.y = upTo(4);
  // Failed ones stand before all that ended.
  const whole = bars("Delivered", "accent");
  whole.value = (chart, _, __, place) => (place == null ? "" : chart.data[1][place] - chart.data[2][place]);
  return {
    ...options,
    axes: [axis(clock), axis((value) => (Number.isInteger(value) ? value.toLocaleString("en").replaceAll(",", "\u202f") : ""))],
    series: [TIME, whole, { ...bars("Failed", "bad"), value: (_, value) => value ?? "" }],
  };
}

function took(step) {
  const line = (label, name, dash) => ({
    label, dash, stroke: colour(name), width: 2, spanGaps: false, points: { show: true, size: 4, fill: colour(name) },
    value: (_, value) => duration(value),
  });
  const options = frame(step);
  options.scales.y = upTo(0.1);
  return {
    ...options,
    axes: [axis(clock), axis(duration)],
    series: [TIME, line("Half within", "accent"), line("95 of 100 within", "wait", [5, 4])],
  };
}

function draw() {
  const { step, data } = JSON.parse(document.getElementById("course").dataset.course);
  const [times, delivered, failed, median, slowest] = data;
  const parts = [
    ["ended", ended, [times, delivered.map((number, place) => number + failed[place]), failed]],
    ["took", took, [times, median, slowest]],
  ];
  parts.forEach(([id, make, shown], place) => {
    const box = document.getElementById(id);
    if (charts[place]) {
      charts[place].setData(shown);
    } else {
      charts[place] = new uPlot({ ...make(step), width: box.clientWidth }, shown, box);
      box.removeAttribute("data-waits");
    }
  });
}

function drawAnew() {
  for (const chart of charts.splice(0)) chart.destroy();
  draw();
}

document.addEventListener("DOMContentLoaded", () => {
  draw();
  const course = document.getElementById("course").parentElement;
  let known = document.getElementById("course").dataset.course;
  new MutationObserver(() => {
    const now = document.getElementById("course").dataset.course;
    if (now !== known) {
      known = now;
      draw();
    }
  }).observe(course, { subtree: true, childList: true, attributeFilter: ["data-course"] });
  new ResizeObserver(() => {
    for (const [place, id] of ["ended", "took"].entries()) {
      const width = document.getElementById(id).clientWidth;
      if (charts[place] && charts[place].width !== width) charts[place].setSize({ width, height: HEIGHT });
    }
  }).observe(document.getElementById("ended"));
  document.addEventListener("clara:theme", drawAnew);
});
