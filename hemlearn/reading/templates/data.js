// Thumbnails of a data set: unpacked when they come into view, drawn through the chosen window.
const thumbs = JSON.parse(byId("thumbs").textContent);
const made = new Map();
const state = { low: 0, high: 80 };

function pixelsOf(number) {
  if (!made.has(number)) {
    const [packed, height, width] = thumbs[number];
    made.set(number, inflate(packed).then((planes) => restore(planes, width, height)));
  }
  return made.get(number);
}

async function paint(canvas) {
  const number = Number(canvas.dataset.thumb);
  const [, height, width, ownLow, ownHigh] = thumbs[number];
  const pixels = await pixelsOf(number);
  const low = ownLow === null ? state.low : ownLow;
  const high = ownLow === null ? state.high : ownHigh;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { alpha: false });
  const picture = context.createImageData(width, height);
  for (let k = 0, at = 0; k < pixels.length; k++, at += 4) {
    picture.data[at] = picture.data[at + 1] = picture.data[at + 2] = (255 * (pixels[k] - low)) / (high - low);
    picture.data[at + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
  canvas.dataset.drawn = low + "|" + high;
}

const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || seen.has(entry.target)) continue;
    seen.add(entry.target);
    paint(entry.target).catch(fail);
  }
}, { rootMargin: "400px" });

function fail(error) {
  const said = document.createElement("p");
  said.className = "alert";
  said.textContent = "This page could not draw its pictures: " + error;
  byId("alerts").append(said);
}

function start() {
  for (const button of document.querySelectorAll("#windows button")) {
    button.addEventListener("click", () => {
      const centre = Number(button.dataset.centre), width = Number(button.dataset.width);
      state.low = centre - width / 2;
      state.high = centre + width / 2;
      for (const other of document.querySelectorAll("#windows button")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      for (const canvas of seen) paint(canvas).catch(fail);
    });
  }
  // A picture that is chosen is shown large.
  const large = byId("large"), picture = byId("large-picture"), caption = byId("large-text");
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest ? event.target.closest("button.pick") : null;
    if (!chosen) return;
    picture.dataset.thumb = chosen.querySelector("canvas").dataset.thumb;
    seen.add(picture);
    caption.textContent = chosen.title;
    paint(picture).catch(fail);
    large.showModal();
  });
  large.addEventListener("click", () => large.close());
  for (const canvas of document.querySelectorAll("canvas[data-thumb]")) {
    if (canvas !== picture) watcher.observe(canvas);
  }
  document.documentElement.dataset.ready = "true";
}

if (typeof DecompressionStream === "undefined") {
  fail("this browser cannot unpack them; use Chromium 80, Firefox 113, Safari 16.4 or newer");
} else {
  start();
}
