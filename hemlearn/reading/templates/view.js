// Slices and maps, drawn on the canvas.
const data = JSON.parse(byId("case").textContent);
const canvas = byId("canvas");
const context = canvas.getContext("2d", { alpha: false });
const count = data.slices;
const size = data.width * data.height;
const SIDE = 192; // maps are enlarged to this, then drawn on the slice
const slices = new Array(count).fill(null);
const maps = {};
const state = { slice: 0, label: 0, centre: 40, width: 80, preset: 0, cam: false, opacity: 0.55 };

function load(index) {
  if (!slices[index]) {
    slices[index] = inflate(byId("pixels" + index).textContent).then((planes) => {
      byId("pixels" + index).remove();
      return restore(planes, data.width, data.height);
    });
  }
  return slices[index];
}

function enlarge(values, offset, h, w) {
  const image = new ImageData(SIDE, SIDE);
  for (let y = 0; y < SIDE; y++) {
    const fy = Math.min(Math.max(((y + 0.5) * h) / SIDE - 0.5, 0), h - 1);
    const y0 = Math.floor(fy), y1 = Math.min(y0 + 1, h - 1), dy = fy - y0;
    for (let x = 0; x < SIDE; x++) {
      const fx = Math.min(Math.max(((x + 0.5) * w) / SIDE - 0.5, 0), w - 1);
      const x0 = Math.floor(fx), x1 = Math.min(x0 + 1, w - 1), dx = fx - x0;
      const top = values[offset + y0 * w + x0] * (1 - dx) + values[offset + y0 * w + x1] * dx;
      const bottom = values[offset + y1 * w + x0] * (1 - dx) + values[offset + y1 * w + x1] * dx;
      const value = top * (1 - dy) + bottom * dy;
      const at = 4 * (y * SIDE + x), colour = 3 * Math.round(value);
      image.data[at] = colours[colour];
      image.data[at + 1] = colours[colour + 1];
      image.data[at + 2] = colours[colour + 2];
      image.data[at + 3] = 255 * Math.sqrt(value / 255);
    }
  }
  const made = document.createElement("canvas");
  made.width = made.height = SIDE;
  made.getContext("2d").putImageData(image, 0, 0);
  return made;
}

async function camOf(label, index) {
  const cam = data.cams[label];
  maps[label] = maps[label] || { values: inflate(cam.data), made: new Map() };
  const values = await maps[label].values;
  if (!maps[label].made.has(index)) maps[label].made.set(index, enlarge(values, index * cam.h * cam.w, cam.h, cam.w));
  return maps[label].made.get(index);
}

// --- drawing ---
const colours = new Uint8Array(data.colours.match(/../g).map((pair) => parseInt(pair, 16)));
const picture = context.createImageData(data.width, data.height);
picture.data.fill(255);
const grey = new Uint8ClampedArray(65536);
let greyKey = "";
let turn = 0;

function fillGrey() {
  const key = state.centre + "/" + state.width;
  if (key === greyKey) return;
  greyKey = key;
  const low = state.centre - state.width / 2;
  for (let v = -32768; v < 32768; v++) grey[v & 65535] = Math.round((255 * (v - low)) / state.width);
}

async function draw() {
  const mine = ++turn;
  const index = state.slice, label = data.labels[state.label];
  const pixels = await load(index);
  const overlay = state.cam && data.cams[label] ? await camOf(label, index) : null;
  if (mine !== turn) return; // a newer request has overtaken this one
  fillGrey();
  const target = picture.data;
  for (let k = 0, at = 0; k < size; k++, at += 4) {
    target[at] = target[at + 1] = target[at + 2] = grey[pixels[k] & 65535];
  }
  context.putImageData(picture, 0, 0);
  if (overlay) {
    const [top, left, height, width] = data.boxes[index];
    context.save();
    context.globalAlpha = state.opacity;
    context.imageSmoothingEnabled = true;
    context.drawImage(overlay, left, top, width, height);
    context.restore();
  }
  canvas.dataset.drawn = [index, state.centre, state.width, overlay ? label : "", state.opacity].join("|");
}
