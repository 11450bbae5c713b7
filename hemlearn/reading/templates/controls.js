// What a reader does, and what follows from it.
// --- changes ---
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
function go(index) {
  const wanted = clamp(Math.round(index), 0, count - 1);
  if (wanted === state.slice) return;
  state.slice = wanted;
  tell();
  mark();
  draw();
}
function setWindow(centre, width, preset = -1) {
  if (!Number.isFinite(centre) || !Number.isFinite(width)) return;
  state.centre = clamp(centre, -32768, 32767);
  state.width = clamp(width, 1, 65536);
  state.preset = preset;
  byId("centre").value = Math.round(state.centre);
  byId("width").value = Math.round(state.width);
  byId("windows").querySelectorAll("button").forEach((button, k) => button.setAttribute("aria-pressed", String(k === preset)));
  tell();
  draw();
}
function setCam(on) {
  state.cam = on && Object.keys(data.cams).length > 0;
  byId("cam").checked = state.cam;
  tell();
  draw();
}
function setOpacity(value) {
  state.opacity = clamp(value, 0, 1);
  byId("opacity").value = Math.round(100 * state.opacity);
  byId("opacity-value").textContent = Math.round(100 * state.opacity) + " %";
  draw();
}
function setLabel(index) {
  state.label = (index + data.labels.length) % data.labels.length;
  byId("findings").querySelectorAll("button").forEach((button, k) => button.setAttribute("aria-pressed", String(k === state.label)));
  chart();
  tell();
  draw();
}

// --- controls ---
function controls() {
  data.windows.forEach(([name, centre, width], k) => {
    const button = node("button", name);
    button.type = "button";
    button.title = `centre ${Math.round(centre)}, width ${Math.round(width)} (key ${k + 1})`;
    button.addEventListener("click", () => setWindow(centre, width, k));
    byId("windows").append(button);
  });
  byId("unit").textContent = data.unit === "HU" ? "HU" : "";
  const slider = byId("slice");
  slider.max = count;
  slider.addEventListener("input", () => go(Number(slider.value) - 1));
  byId("previous").addEventListener("click", () => go(state.slice - 1));
  byId("next").addEventListener("click", () => go(state.slice + 1));
  for (const id of ["centre", "width"]) {
    byId(id).addEventListener("change", () => setWindow(byId("centre").valueAsNumber, byId("width").valueAsNumber));
  }
  byId("cam").addEventListener("change", () => setCam(byId("cam").checked));
  byId("opacity").addEventListener("input", () => setOpacity(Number(byId("opacity").value) / 100));
  byId("cam-note").textContent = data.cam_note;
  byId("cam-controls").hidden = Object.keys(data.cams).length === 0;
  const bar = byId("colours").getContext("2d"), strip = bar.createImageData(256, 1);
  for (let k = 0; k < 256; k++) strip.data.set([colours[3 * k], colours[3 * k + 1], colours[3 * k + 2], 255], 4 * k);
  bar.putImageData(strip, 0, 0);
}

const KEYS = {
  ArrowUp: () => go(state.slice + 1), ArrowRight: () => go(state.slice + 1),
  ArrowDown: () => go(state.slice - 1), ArrowLeft: () => go(state.slice - 1),
  PageUp: () => go(state.slice + 5), PageDown: () => go(state.slice - 5),
  Home: () => go(0), End: () => go(count - 1),
  m: () => setCam(!state.cam), "[": () => setOpacity(state.opacity - 0.1), "]": () => setOpacity(state.opacity + 0.1),
  l: () => setLabel(state.label + 1),
};
data.windows.forEach(([, centre, width], k) => { KEYS[String(k + 1)] = () => setWindow(centre, width, k); });
document.addEventListener("keydown", (event) => {
  const target = event.target;
  const typed = target instanceof HTMLInputElement && (target.type === "number" || target.id === "opacity");
  if (typed || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

let rolled = 0;
canvas.addEventListener("wheel", (event) => {
  if (event.ctrlKey) return; // zooming belongs to the browser
  event.preventDefault();
  rolled += event.deltaMode === 1 ? event.deltaY * 40 : event.deltaY;
  const steps = Math.trunc(rolled / 40);
  if (!steps) return;
  rolled = Math.abs(event.deltaY) >= 40 ? 0 : rolled - 40 * steps;
  go(state.slice - (Math.abs(event.deltaY) >= 40 ? Math.sign(steps) : steps));
}, { passive: false });

let grip = null;
canvas.addEventListener("pointerdown", (event) => {
  if (event.pointerType === "mouse" && event.button !== 0) return;
  grip = { id: event.pointerId, x: event.clientX, y: event.clientY, slice: state.slice, centre: state.centre, width: state.width };
  canvas.setPointerCapture(event.pointerId);
  canvas.focus({ preventScroll: true });
});
canvas.addEventListener("pointermove", (event) => {
  if (!grip || event.pointerId !== grip.id) return;
  const dx = event.clientX - grip.x, dy = event.clientY - grip.y;
  if (event.pointerType === "mouse") {
    if (Math.abs(dx) + Math.abs(dy) < 4) return;
    const pace = Math.max(grip.width / 300, 0.25);
    setWindow(grip.centre + dy * pace, Math.max(grip.width + dx * pace, 1));
  } else {
    go(grip.slice - dy / Math.max(10, canvas.clientHeight / count));
  }
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { grip = null; });

// --- start ---
function pairs(id, found) {
  const entries = Object.entries(found);
  byId("s-" + id).hidden = entries.length === 0;
  for (const [key, value] of entries) byId(id).append(node("dt", key), node("dd", value));
}
// Which side is which, as far as the files tell: radiological view, the patient's right on the left of the image.
function orientation() {
  const marks = data.sides ? ["R", "L", "A", "P"] : ["", "", "", ""];
  ["side-right", "side-left", "side-top", "side-bottom"].forEach((id, k) => { byId(id).textContent = marks[k]; });
  byId("feet").textContent = data.upward ? "feet" : "";
  byId("head").textContent = data.upward ? "head" : "";
  const unknown = [data.sides ? "" : "right and left", data.upward || count < 2 ? "" : "head and feet"].filter(Boolean);
  byId("orientation").textContent = unknown.length ? `Not known from the files: ${unknown.join("; ")}.` : "";
}
function start() {
  canvas.width = data.width;
  canvas.height = data.height;
  canvas.style.aspectRatio = String(data.ratio);
  canvas.style.maxWidth = `min(100%, ${(72 * data.ratio).toFixed(2)}vh)`;
  byId("series").textContent = data.series;
  byId("summary").textContent = [data.patient.replace(/^(?!patient-)(?=.)/, "Patient "), `${count} slices`].filter(Boolean).join(", ");
  for (const text of data.warnings) byId("alerts").append(node("p", text, "alert"));
  byId("s-calibration").hidden = !data.calibration;
  byId("calibration").textContent = data.calibration;
  pairs("facts", data.facts);
  pairs("card", data.card);
  orientation();
  controls();
  findings();
  // Shown first: of the findings that reach their operating point, else of all, the likeliest.
  const known = data.series_probs.map((p, k) => k).filter((k) => data.series_probs[k] !== null);
  const found = known.filter((k) => reached(k) ?? data.series_probs[k] >= 0.5);
  const top = (found.length ? found : known).reduce((best, k) => (best < 0 || data.series_probs[k] > data.series_probs[best] ? k : best), -1);
  setLabel(Math.max(top, 0));
  const probs = data.slice_probs[state.label].map((p) => (p === null ? -1 : p));
  state.slice = probs.indexOf(Math.max(...probs));
  setCam(found.length > 0);
  if (!found.length && data.cam_note) byId("cam-note").textContent += ". Off at first: no finding reaches its operating point.";
  setOpacity(state.opacity);
  setWindow(data.windows[0][1], data.windows[0][2], 0);
  mark();
  let last = byId("chart").clientWidth;
  new ResizeObserver(() => {
    if (byId("chart").clientWidth === last) return;
    last = byId("chart").clientWidth;
    chart();
  }).observe(byId("chart"));
  // The rest is unpacked while the reader looks, nearest slices first.
  const rest = [...Array(count).keys()].sort((a, b) => Math.abs(a - state.slice) - Math.abs(b - state.slice));
  rest.reduce((before, k) => before.then(() => load(k)), Promise.resolve()).then(
    () => { document.documentElement.dataset.ready = "true"; }, fail);
}
function fail(error) {
  byId("alerts").append(node("p", "This page could not draw its slices: " + error, "alert"));
}
if (typeof DecompressionStream === "undefined") {
  fail("this browser cannot unpack them; use Chromium 80, Firefox 113, Safari 16.4 or newer");
} else {
  window.addEventListener("unhandledrejection", (event) => fail(event.reason));
  start();
}
