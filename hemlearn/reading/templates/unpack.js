// What hemlearn.reading.case packs, unpacked.
const byId = (id) => document.getElementById(id);

async function inflate(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function restore(planes, width, height) {
  const size = width * height;
  const out = new Int16Array(size);
  for (let row = 0, k = 0; row < height; row++) {
    for (let column = 0; column < width; column++, k++) {
      const a = column ? out[k - 1] : row ? out[k - width] : 0;
      const b = row ? out[k - width] : a;
      const c = row && column ? out[k - width - 1] : b;
      const high = a > b ? a : b;
      const low = a > b ? b : a;
      const guess = c >= high ? low : c <= low ? high : a + b - c;
      const folded = planes[k] | (planes[size + k] << 8);
      out[k] = guess + ((folded >> 1) ^ -(folded & 1)); // stored in 16 bits: the sum wraps as the difference did
    }
  }
  return out;
}
