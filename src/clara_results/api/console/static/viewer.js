// The viewer of one dataset, drawn by NiiVue. What it shows is in script#dataset, as GET /api/datasets/{id} answers.
//
// Coordinates are in millimetres and RAS+, as in NIfTI-1; on the screen left is the patient's right (radiological
// convention). html[data-viewer] is "loading", then "ready" once the images are drawn, or "failed"; data-resolution
// says whether the reduced "first-look" or the "full" volume is shown. window.nv is NiiVue's own object.

const { Niivue, NVImage, DRAG_MODE, SLICE_TYPE } = globalThis.niivue;

const dataset = JSON.parse(document.getElementById("dataset").textContent);
const root = document.documentElement;
const place = `/api/datasets/${encodeURIComponent(dataset.datasetId)}`;
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const canvas = find("#viewer");

const LAYOUTS = {
  multi: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
// Where the images are of a layout with all of them, by the shape of the canvas: left, top, width and height as parts of it.
const TILES = {
  wide: { axial: [0, 0, 0.5, 1], coronal: [0.503, 0, 0.247, 0.5], sagittal: [0.753, 0, 0.247, 0.5], render: [0.503, 0.5, 0.497, 0.5] },
  tall: { axial: [0, 0, 0.495, 0.5], coronal: [0.505, 0, 0.495, 0.5], sagittal: [0, 0.5, 0.495, 0.5], render: [0.505, 0.5, 0.495, 0.5] },
};
// Level and width in Hounsfield units.
const CT_PRESETS = [
  ["Soft tissue", 40, 400],
  ["Lung", -600, 1500],
  ["Mediastinum", 50, 350],
  ["Liver", 90, 150],
  ["Bone", 400, 1800],
  ["Brain", 40, 80],
  ["Angiography", 300, 600],
];
const VIEW_VERSION = 1;
const UNCUT = 2; // NiiVue's word for a clip plane that clips nothing
const CUT_REACH = 0.87; // half the diagonal of the cube of which a volume's longest side is one side

let nv = null;

// Words for people

class Failure extends Error {
  constructor(title, words, options) {
    super(words, options);
    this.title = title;
  }
}

function showFailure(error) {
  const known = error instanceof Failure;
  find("#failure-title").textContent = known ? error.title : "The images can't be shown";
  find("#failure-words").textContent = known ? error.message : `The file can't be read (${error.message}). Load the page again; if that changes nothing, look at the task that made it.`;
  find("#failure").hidden = false;
  find("#loading").hidden = true;
  root.dataset.viewer = "failed";
  find(".viewer").removeAttribute("data-waits");
  if (!known) console.error(error);
}

function tell(words) {
  find("#view-words").textContent = words;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 10e6 ? 1 : 0);

// Loading

function refused(status) {
  if (status === 401) return new Failure("You are signed out", "Load the page again to sign in.");
  if (status === 403) return new Failure("You may not see this", "Your token lacks the scope “read”.");
  if (status === 404 || status === 410) {
    return new Failure("The dataset's file is gone", "It was removed, or its time to be kept is over. Deliver the task again to have it made anew.");
  }
  return new Failure("The service can't give the file", `It answered with status ${status}. Try again in a while.`);
}

async function download(uri, progress) {
  const lost = (cause) => new Failure("The service can't be reached", "The connection was lost while the images came. Try again.", { cause });
  const answer = await fetch(`${place}/files/${uri}`).catch((error) => { throw lost(error); });
  if (!answer.ok) throw refused(answer.status);
  const parts = [];
  const size = Number(answer.headers.get("Content-Length"));
  progress.all += size;
  try {
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      progress.done += value.length;
      progress.show();
    }
  } catch (error) {
    throw lost(error);
  }
  return new Blob(parts).arrayBuffer();
}

function newProgress() {
  find("#loading").hidden = false;
  return {
    done: 0,
    all: 0,
    show() {
      const bar = find("#loading-progress");
      bar.max = this.all || 1;
      bar.value = this.done;
      find("#loading-words").textContent = this.done < this.all ? `Loading ${megabytes(this.done)} of ${megabytes(this.all)} MB` : "Drawing";
    },
  };
}

// A byte of the label map's table for each value: its colour; nothing where it is hidden.
function colours(number) {
  const values = dataset.labels[number].values;
  const part = (value, from) => parseInt(value.color.slice(from, from + 2), 16);
  return {
    R: [0, ...values.map((value) => part(value, 1))],
    G: [0, ...values.map((value) => part(value, 3))],
    B: [0, ...values.map((value) => part(value, 5))],
    A: [0, ...values.map((value) => (isShown(number, value.value) ? 255 : 0))],
    I: [0, ...values.map((value) => value.value)],
    labels: ["", ...values.map((value) => value.name)],
  };
}

async function load(full) {
  const progress = newProgress();
  const reduced = !full && Boolean(dataset.firstLook);
  const uris = [
    reduced ? dataset.firstLook.uri : dataset.volume.uri,
    ...dataset.labels.map((label) => (reduced ? label.firstLookUri : label.uri)),
  ];
  const buffers = await Promise.all(uris.map((uri) => download(uri, progress)));
  progress.show();
  await painted(); // "Drawing" is seen before the page is busy with it
  const images = [];
  for (const [number, buffer] of buffers.entries()) {
    images.push(await NVImage.loadFromUrl({
      url: buffer,
      name: uris[number].split("/").at(-1),
      colormap: "gray",
      ignoreZeroVoxels: false,
      colorbarVisible: false,
    }));
  }
  images.slice(1).forEach((image, number) => image.setColormapLabel(colours(number)));
  return { images, reduced };
}

const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

// Put images in the place of those that are shown.
function put({ images, reduced }) {
  nv.volumes = images;
  nv.back = images[0];
  nv.overlays = images.slice(1);
  root.dataset.resolution = reduced ? "first-look" : "full";
  if (find("#reduced")) find("#reduced").hidden = !reduced;
}

// The crosshair, in millimetres

const crosshair = () => [...nv.frac2mm(nv.scene.crosshairPos, 0, true)].slice(0, 3);

function moveTo(mm) {
  const frac = nv.mm2frac(mm, 0, true);
  nv.scene.crosshairPos = frac.map((part) => Math.min(1, Math.max(0, part)));
  nv.createOnLocationChange();
}

function step(axis, count) {
  const mm = crosshair();
  mm[axis] += count * nv.back.pixDimsRAS[axis + 1];
  moveTo(mm);
  nv.drawScene();
}

function opening() {
  const largest = dataset.largestLabel;
  if (largest) {
    return dataset.labels[largest.label].values.find((value) => value.value === largest.value).centre;
  }
  const { affine, dims } = nv.back.hdr;
  return affine.slice(0, 3).map((row) => row[3] + [0, 1, 2].reduce((sum, axis) => sum + (row[axis] * (dims[axis + 1] - 1)) / 2, 0));
}

// The voxel's place in the stored volume: the inverse of its affine, whose rows are x, y and z, applied to millimetres.
function voxelAt(image, mm) {
  const [a, b, c] = image.hdr.affine;
  const from = [mm[0] - a[3], mm[1] - b[3], mm[2] - c[3]];
  const det = (x, y, z) => x[0] * (y[1] * z[2] - y[2] * z[1]) - x[1] * (y[0] * z[2] - y[2] * z[0]) + x[2] * (y[0] * z[1] - y[1] * z[0]);
  const matrix = det(a, b, c);
  return [0, 1, 2].map((axis) => {
    const [x, y, z] = [a, b, c].map((row, number) => row.slice(0, 3).with(axis, from[number]));
    return det(x, y, z) / matrix;
  });
}

function valueAt(image, mm) {
  const at = image.mm2vox(mm);
  const inside = [...at].every((index, axis) => index >= 0 && index < image.dimsRAS[axis + 1]);
  return inside ? image.getValue(...at, 0) : null;
}

function showLocation() {
  const mm = crosshair();
  const words = mm.map((value, axis) => `${["RL", "AP", "SI"][axis][value < 0 ? 1 : 0]} ${Math.abs(value).toFixed(1)}`);
  find("#at-mm").textContent = `${words.join("  ")} mm`;
  const reduced = root.dataset.resolution === "first-look";
  find("#at-voxel").textContent = reduced ? "with all voxels" : voxelAt(nv.back, mm).map((index) => Math.round(index)).join(", ");
  const value = valueAt(nv.back, mm);
  find("#at-value").textContent = value === null ? "outside" : `${reduced ? "about " : ""}${Number(value.toFixed(2))}${dataset.unit ? ` ${dataset.unit}` : ""}`.replace("-", "−");
  const names = nv.overlays.map((image, number) => {
    const at = valueAt(image, mm);
    return dataset.labels[number].values.find((label) => label.value === at)?.name;
  });
  find("#at-label").textContent = names.filter(Boolean).join(", ") || "none";
}

// Window

function presets() {
  const { robust_min: low, robust_max: high } = nv.back;
  const [least, greatest] = dataset.volume.valueRange;
  const ranges = [
    ["Automatic (2–98 %)", ...(high > low ? [low, high] : [least, greatest])],
    ["All values", least, greatest],
  ];
  const own = dataset.modality === "CT" ? CT_PRESETS.map(([name, level, width]) => [name, level - width / 2, level + width / 2]) : [];
  return [...own, ...ranges].map(([name, from, to]) => [name, from, to > from ? to : from + 1]);
}

const close = (one, other, width) => Math.abs(one - other) < width * 1e-3;

function showWindow() {
  const { cal_min: low, cal_max: high } = nv.back;
  const digits = high - low < 10 ? 3 : 0;
  find("#level").value = ((low + high) / 2).toFixed(digits);
  find("#width").value = (high - low).toFixed(digits);
  const at = presets().findIndex(([, from, to]) => close(from, low, to - from) && close(to, high, to - from));
  find("#preset").value = String(at);
}

function setWindow(low, high) {
  if (!Number.isFinite(low) || !Number.isFinite(high) || high <= low) {
    showWindow();
    return;
  }
  nv.back.cal_min = low;
  nv.back.cal_max = high;
  nv.refreshLayers(nv.back, 0);
  nv.drawScene();
  showWindow();
}

// Right drag: the width by going right or left, the level by going up or down; 500 pixels are all of the values.
function dragWindow(event) {
  if (event.button !== 2 || root.dataset.viewer !== "ready") return;
  event.stopPropagation();
  const [least, greatest] = dataset.volume.valueRange;
  const step = (greatest - least) / 500 || 1;
  const { cal_min: low, cal_max: high } = nv.back;
  const moved = (now) => {
    const level = (low + high) / 2 + (event.clientY - now.clientY) * step;
    const width = Math.max(step, high - low + (now.clientX - event.clientX) * step);
    setWindow(level - width / 2, level + width / 2);
  };
  const ended = new AbortController();
  document.addEventListener("mousemove", moved, { signal: ended.signal });
  document.addEventListener("mouseup", () => ended.abort(), { signal: ended.signal });
}

function fillPresets() {
  const select = find("#preset");
  const options = presets().map(([name], number) => new Option(`${name} (${number + 1})`, String(number)));
  const own = new Option("Own", "-1");
  own.disabled = true;
  select.replaceChildren(...options, own);
}

function choosePreset(number) {
  const chosen = presets()[number];
  if (chosen) setWindow(chosen[1], chosen[2]);
}

// Labels

const boxes = all("input[data-label]");
const isShown = (label, value) => boxes.find((box) => Number(box.dataset.label) === label && Number(box.dataset.value) === value)?.checked ?? true;

function drawLabels() {
  const opacity = Number(find("#opacity").value);
  find("#opacity-words").textContent = `${opacity} %`;
  nv.overlays.forEach((image, number) => {
    image.setColormapLabel(colours(number));
    image.opacity = opacity / 100;
  });
  nv.updateGLVolume();
}

let drawing = false;
function drawLabelsSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawLabels();
  });
}

function toggleLabels() {
  const shown = boxes.some((box) => box.checked);
  for (const box of boxes) box.checked = !shown;
  drawLabels();
}

// Layout, zoom, 3D

let layout = "multi";

function tiles() {
  const shape = canvas.clientWidth > 1.3 * canvas.clientHeight ? TILES.wide : TILES.tall;
  return Object.entries(shape).map(([name, position]) => ({ sliceType: LAYOUTS[name], position }));
}

function setLayout(name) {
  layout = name;
  nv.customLayout = name === "multi" ? tiles() : null;
  nv.setSliceType(LAYOUTS[name]);
  for (const button of all("[data-layout]")) button.setAttribute("aria-pressed", String(button.dataset.layout === name));
}

function zoom(factor) {
  const [x, y, z, now] = nv.scene.pan2Dxyzmm;
  const next = Math.min(20, Math.max(0.2, now * factor));
  const mm = crosshair();
  nv.setPan2Dxyzmm([x, y, z].map((pan, axis) => pan + (now - next) * mm[axis]).concat(next));
  nv.setScale(nv.scene.volScaleMultiplier * factor);
}

function fit() {
  nv.setPan2Dxyzmm([0, 0, 0, 1]);
  nv.setScale(1);
}

// How deep the cut is, from 0 to 100, as against what NiiVue knows: the plane's distance from the middle and its angles.
const cutDepth = (percent) => (percent > 0 ? CUT_REACH * (1 - percent / 50) : UNCUT);
const cutPercent = (depth) => (depth >= UNCUT ? 0 : Math.round(Math.min(100, Math.max(1, 50 * (1 - depth / CUT_REACH)))));

function setCut(percent, azimuth = nv.scene.renderAzimuth, elevation = nv.scene.renderElevation) {
  nv.setClipPlane([cutDepth(percent), azimuth, elevation]);
  showCut();
}

function showCut() {
  const percent = cutPercent(nv.scene.clipPlaneDepthAziElevs[0][0]);
  find("#cut").value = percent;
  find("#cut-words").textContent = `${percent} %`;
}

// The view as it is kept with the dataset

function currentView() {
  const { renderAzimuth, renderElevation, pan2Dxyzmm, volScaleMultiplier, clipPlaneDepthAziElevs } = nv.scene;
  return {
    version: VIEW_VERSION,
    layout,
    crosshair: crosshair(),
    window: [nv.back.cal_min, nv.back.cal_max],
    pan: [...pan2Dxyzmm],
    camera: [renderAzimuth, renderElevation, volScaleMultiplier],
    cut: [cutPercent(clipPlaneDepthAziElevs[0][0]), ...clipPlaneDepthAziElevs[0].slice(1)],
    opacity: Number(find("#opacity")?.value ?? 50),
    hidden: boxes.filter((box) => !box.checked).map((box) => [Number(box.dataset.label), Number(box.dataset.value)]),
  };
}

function defaultView() {
  const [, low, high] = presets()[0];
  return {
    layout: "multi",
    crosshair: opening(),
    window: [low, high],
    pan: [0, 0, 0, 1],
    camera: [160, 15, 1],
    cut: [0, 160, 15],
    opacity: 50,
    hidden: [],
  };
}

// A view that somebody else wrote through the API may lack parts, or have them in another shape: those stay as they open.
function readView(saved) {
  const view = defaultView();
  if (saved?.version !== VIEW_VERSION) return view;
  for (const [name, usual] of Object.entries(view)) {
    const part = saved[name];
    if (Array.isArray(usual) && name !== "hidden") {
      if (Array.isArray(part) && part.length === usual.length && part.every(Number.isFinite)) view[name] = part;
    } else if (name === "hidden") {
      if (Array.isArray(part)) view.hidden = part.filter(Array.isArray);
    } else if (typeof part === typeof usual) {
      view[name] = part;
    }
  }
  if (!(view.layout in LAYOUTS)) view.layout = "multi";
  return view;
}

function apply(view) {
  for (const box of boxes) {
    const hidden = view.hidden.some(([label, value]) => label === Number(box.dataset.label) && value === Number(box.dataset.value));
    box.checked = !hidden;
  }
  if (find("#opacity")) find("#opacity").value = view.opacity;
  nv.back.cal_min = view.window[0];
  nv.back.cal_max = view.window[1];
  nv.scene.pan2Dxyzmm = view.pan;
  nv.scene.volScaleMultiplier = view.camera[2];
  nv.scene.renderAzimuth = view.camera[0];
  nv.scene.renderElevation = view.camera[1];
  if (find("#opacity")) drawLabels();
  else nv.updateGLVolume();
  moveTo(view.crosshair);
  setCut(...view.cut);
  setLayout(view.layout);
  showWindow();
}

async function save() {
  tell("Saving…");
  try {
    const answer = await fetch(`${place}/view`, {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(currentView()),
    });
    const problem = answer.ok ? null : await answer.json();
    tell(problem ? `Not saved: ${problem.detail}` : "Saved. The dataset opens like this from now on.");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    tell("Not saved: the service can't be reached. Try again.");
  }
}

function takePicture() {
  nv.drawScene(); // what is drawn is kept until the browser shows it, so the image is taken at once
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${dataset.name.replace(/[^\w.-]+/g, "-")}-${layout}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
}

async function loadFull(button) {
  button.disabled = true;
  const view = currentView();
  try {
    put(await load(true));
    apply(readView(view));
  } catch (error) {
    const words = error instanceof Failure ? `${error.title}. ${error.message}` : `The full volume can't be shown (${error.message}).`;
    tell(words);
  } finally {
    find("#loading").hidden = true;
    button.disabled = false;
  }
}

function toggleWhole() {
  if (document.fullscreenElement) document.exitFullscreen();
  else find("#stage").requestFullscreen().catch((error) => tell(`The browser refuses the whole screen: ${error.message}`));
}

// What people do

const ACTS = {
  "zoom-in": () => zoom(1.25),
  "zoom-out": () => zoom(0.8),
  fit,
  picture: takePicture,
  whole: toggleWhole,
  help: () => find("#help").showModal(),
  again: () => location.reload(),
  full: loadFull,
  save,
  reset: () => { apply(defaultView()); tell("As it opens without a saved view."); },
};

const KEYS = {
  m: () => setLayout("multi"),
  a: () => setLayout("axial"),
  c: () => setLayout("coronal"),
  s: () => setLayout("sagittal"),
  d: () => setLayout("render"),
  l: toggleLabels,
  "+": ACTS["zoom-in"],
  "=": ACTS["zoom-in"],
  "-": ACTS["zoom-out"],
  0: fit,
  r: ACTS.reset,
  p: takePicture,
  f: toggleWhole,
  "?": ACTS.help,
};
const STEPS = { arrowleft: [0, 1], arrowright: [0, -1], arrowup: [2, 1], arrowdown: [2, -1], pageup: [1, 1], pagedown: [1, -1] };

function pressed(event) {
  const types = event.target.closest?.("input:not([type=checkbox], [type=range]), select, textarea, dialog");
  if (types || event.ctrlKey || event.altKey || event.metaKey || root.dataset.viewer !== "ready") return;
  const key = event.key.toLowerCase();
  if (key in STEPS) {
    if (event.target.closest?.("input, .panel")) return; // they move a slider, or scroll
    const [axis, direction] = STEPS[key];
    step(axis, direction * (event.shiftKey ? 10 : 1));
  } else if (key in KEYS) {
    KEYS[key]();
  } else if (/^[1-9]$/.test(key)) {
    choosePreset(Number(key) - 1);
  } else {
    return;
  }
  event.preventDefault();
}

// One plane alone by a double click on it, and back.
function alone(event) {
  event.stopPropagation(); // NiiVue would change the window
  if (layout !== "multi") return setLayout("multi");
  const ratio = nv.uiData.dpr;
  const tile = nv.screenSlices[nv.tileIndex(event.offsetX * ratio, event.offsetY * ratio)];
  if (tile) setLayout(Object.keys(LAYOUTS).find((name) => LAYOUTS[name] === tile.axCorSag));
}

function listen() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do], [data-layout], [data-goto]");
    if (!button) return;
    if (button.dataset.do === "again" || button.dataset.do === "help") ACTS[button.dataset.do]();
    else if (root.dataset.viewer !== "ready") return;
    else if (button.dataset.do) ACTS[button.dataset.do](button);
    else if (button.dataset.layout) setLayout(button.dataset.layout);
    else {
      moveTo(button.dataset.goto.split(",").map(Number));
      nv.drawScene();
    }
  });
  document.addEventListener("keydown", pressed);
}

function listenToControls() {
  const images = find("#images");
  // NiiVue has keys of its own, which the page doesn't offer.
  for (const kind of ["keydown", "keyup"]) images.addEventListener(kind, (event) => event.stopPropagation(), true);
  images.addEventListener("keydown", pressed, true);
  images.addEventListener("dblclick", alone, true);
  images.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    event.stopPropagation();
    zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
  }, { capture: true, passive: false });
  images.addEventListener("mousedown", dragWindow, true);
  canvas.addEventListener("wheel", showCut); // over the 3D image it moves the cut
  new ResizeObserver(() => {
    if (root.dataset.viewer === "ready") setLayout(layout);
  }).observe(canvas);
  find("#preset").addEventListener("change", (event) => choosePreset(Number(event.target.value)));
  const typed = () => {
    const [level, width] = [find("#level").valueAsNumber, find("#width").valueAsNumber];
    setWindow(level - width / 2, level + width / 2);
  };
  find("#level").addEventListener("change", typed);
  find("#width").addEventListener("change", typed);
  find("#cut").addEventListener("input", (event) => setCut(Number(event.target.value)));
  for (const box of boxes) box.addEventListener("change", drawLabels);
  find("#opacity")?.addEventListener("input", drawLabelsSoon);
  canvas.addEventListener("webglcontextlost", () => showFailure(new Failure("The graphics card was lost", "The browser has taken the images from it, for want of memory or after sleep. Load them again.")));
}

// Start

function checkBrowser() {
  const context = document.createElement("canvas").getContext("webgl2");
  if (context === null) {
    throw new Failure("This browser can't draw volumes", "It has no WebGL 2. Turn on hardware acceleration in its settings, or use a newer one. The preview behind this stays, and the files can be downloaded.");
  }
  context.getExtension("WEBGL_lose_context")?.loseContext();
}

async function attach() {
  nv = new Niivue({
    isRadiologicalConvention: true,
    isSliceMM: true,
    sagittalNoseLeft: true,
    showAllOrientationMarkers: true,
    fontColor: [0.86, 0.9, 0.94, 1],
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.31, 0.77, 0.73, 0.9],
    crosshairWidthUnit: "percent",
    crosshairWidth: 0.5,
    clipPlaneColor: [0, 0, 0, 0],
    show3Dcrosshair: true,
    dragAndDropEnabled: false,
    isColorbar: false,
    showLegend: false,
    loadingText: "",
    logLevel: "error",
  });
  nv.setMouseEventConfig({
    leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan },
    rightButton: DRAG_MODE.none,
    centerButton: DRAG_MODE.pan,
  });
  nv.onLocationChange = showLocation;
  globalThis.nv = nv;
  listenToControls();
  await nv.attachToCanvas(canvas);
}

async function start() {
  for (const swatch of all("[data-color]")) swatch.style.backgroundColor = swatch.dataset.color;
  listen();
  try {
    checkBrowser();
    const coming = load(false);
    coming.catch(() => {}); // looked at below; the browser must not call it unhandled in the meantime
    await attach();
    put(await coming);
    fillPresets();
    apply(readView(dataset.view));
    await painted();
    find("#loading").hidden = true;
    root.dataset.viewer = "ready";
    find(".viewer").removeAttribute("data-waits");
  } catch (error) {
    showFailure(error);
  }
}

start();
