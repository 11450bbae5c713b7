// Words, the bars of the findings, and the chart by slice.
// --- texts ---
const percent = (p) => (p === null ? "not known" : p >= 0.9995 ? ">99.9 %" : p < 0.0005 ? "<0.1 %" : (100 * p).toFixed(1) + " %");
const words = (name) => name.replaceAll("_", " ");
function node(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
const height = (index) => (data.z && data.z[index] !== null ? "z " + data.z[index].toFixed(1) + " mm" : "");

function tell() {
  const label = data.labels[state.label], p = data.slice_probs[state.label][state.slice];
  const place = `${state.slice + 1} / ${count}`, z = height(state.slice);
  byId("slice").value = state.slice + 1;
  const said = p === null ? "no probability" : `${words(label)} ${percent(p)}`;
  byId("slice").setAttribute("aria-valuetext", [`slice ${place}`, z, said].filter(Boolean).join(", "));
  byId("number").textContent = [place, z].filter(Boolean).join("  ");
  byId("where").textContent = [place, z, said].filter(Boolean).join("  ");
  byId("window").textContent = `C ${Math.round(state.centre)}  W ${Math.round(state.width)}`;
  canvas.setAttribute("aria-label", `Slice ${place}, ${[z, said].filter(Boolean).join(", ")}`);
  byId("previous").disabled = state.slice === 0;
  byId("next").disabled = state.slice === count - 1;
  byId("bar").hidden = !(state.cam && data.cams[label]);
  byId("bar-label").textContent = words(label);
}

// --- findings ---
// Whether the series reaches the finding's operating point; undefined where there is none.
function reached(k) {
  const label = data.labels[k], p = data.series_probs[k];
  if (data.calls[label] !== undefined) return data.calls[label];
  return data.thresholds[label] === undefined || p === null ? undefined : p >= data.thresholds[label];
}
function findings() {
  data.labels.forEach((label, k) => {
    const p = data.series_probs[k], limit = data.thresholds[label];
    const pair = data.intervals ? data.intervals[k] : null;
    const button = node("button");
    button.type = "button";
    const bar = svg("svg", { viewBox: "0 0 100 18", preserveAspectRatio: "none", "aria-hidden": "true" });
    if (p !== null) bar.append(svg("rect", { x: 0, y: 4, width: 100 * p, height: 10, fill: reached(k) ? "#ffb454" : "#7cc4ff" }));
    if (pair && pair[0] !== null && pair[1] !== null) {
      bar.append(svg("rect", { x: 100 * pair[0], y: 8, width: Math.max(100 * (pair[1] - pair[0]), 0.4), height: 2, fill: "#ffffff" }));
      for (const x of pair) bar.append(svg("rect", { x: clamp(100 * x - 0.3, 0, 99.4), y: 2, width: 0.6, height: 14, fill: "#ffffff" }));
    }
    if (limit !== undefined) bar.append(svg("rect", { x: clamp(100 * limit - 0.3, 0, 99.4), y: 0, width: 0.6, height: 18, fill: "#ff5c5c" }));
    const range = pair && pair[0] !== null && pair[1] !== null ? ` (${percent(pair[0])} to ${percent(pair[1])})` : "";
    button.append(node("span", words(label), "name"), node("span", percent(p) + range + (data.triage[label] ? `, ${data.triage[label]}` : ""), "value"), bar);
    button.addEventListener("click", () => setLabel(k));
    const item = node("li");
    item.append(button);
    byId("findings").append(item);
  });
  if (data.score) byId("h-findings").textContent = "Score of this series, no probability";
  const notes = [];
  if (data.labels.some((label, k) => reached(k) !== undefined)) notes.push("Orange: reaches the operating point.");
  if (Object.keys(data.thresholds).length) notes.push("Red line: operating point chosen on validation patients.");
  if (data.triage_note) notes.push(data.triage_note);
  notes.push(data.intervals ? "White: " + (data.interval_note || "interval from the ensemble") + "." : "One model, hence no interval.");
  byId("findings-note").textContent = notes.join(" ");
}

// --- chart ---
let scale = null;
function chart() {
  const box = byId("chart");
  const width = Math.max(box.clientWidth, 260);
  const label = data.labels[state.label], probs = data.slice_probs[state.label];
  const shares = data.attribution[label] || null;
  const left = 40, right = 10, top = 14, tall = 150, gap = 30, low = shares ? 56 : 0;
  const total = top + tall + (shares ? gap + low : 0) + 24;
  const x = (k) => left + (count > 1 ? (k / (count - 1)) * (width - left - right) : (width - left - right) / 2);
  const y = (p) => top + (1 - p) * tall;
  scale = { x, left, right, width, total, top };
  const known = probs.filter((p) => p !== null);
  const best = known.length ? probs.indexOf(Math.max(...known)) : -1;
  const found = best < 0 ? "no probabilities" : `highest ${percent(probs[best])} in slice ${best + 1} of ${count}`;
  const art = svg("svg", { viewBox: `0 0 ${width} ${total}`, height: total, role: "img", "aria-label": `Probability of ${words(label)} by slice: ${found}` });
  for (const p of [0, 0.25, 0.5, 0.75, 1]) {
    art.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(p), y2: y(p) }));
    if (p % 0.5 === 0) art.append(svg("text", { x: left - 5, y: y(p) + 4, "text-anchor": "end" }, 100 * p + " %"));
  }
  if (data.truth) data.truth[state.label].forEach((value, k) => {
    if (value === 1) art.append(svg("rect", { class: "known", x: x(k) - 3, y: 2, width: 6, height: 6 }));
  });
  if (data.slice_thresholds[label] !== undefined) {
    const at = y(data.slice_thresholds[label]);
    art.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: at, y2: at }));
  }
  let path = "";
  probs.forEach((p, k) => {
    if (p === null) return;
    path += (k && probs[k - 1] !== null ? "L" : "M") + x(k).toFixed(1) + " " + y(p).toFixed(1);
    art.append(svg("circle", { class: "dot", cx: x(k), cy: y(p), r: count > 60 ? 1.5 : 2.6 }));
  });
  art.append(svg("path", { class: "curve", d: path }));
  if (shares) {
    const middle = top + tall + gap + low / 2;
    const most = Math.max(...shares.map((v) => Math.abs(v || 0)), 1e-9);
    const wide = Math.max(1.5, Math.min(14, (0.7 * (width - left - right)) / count));
    art.append(svg("text", { x: left, y: top + tall + 18 }, "Share in the series' score"));
    shares.forEach((v, k) => {
      const h = (Math.abs(v || 0) / most) * (low / 2 - 1);
      art.append(svg("rect", { class: v >= 0 ? "for" : "against", x: x(k) - wide / 2, y: v >= 0 ? middle - h : middle, width: wide, height: h }));
    });
    art.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: middle, y2: middle }));
  }
  art.append(svg("text", { x: x(0), y: total - 6, "text-anchor": "start" }, data.upward ? "1 (feet)" : "1"));
  if (count > 1) art.append(svg("text", { x: x(count - 1), y: total - 6, "text-anchor": "end" }, data.upward ? `${count} (head)` : String(count)));
  art.append(svg("line", { class: "here", id: "here" }), svg("circle", { class: "here-dot", id: "here-dot", r: 4.5 }));
  const pick = (event) => {
    const bounds = art.getBoundingClientRect();
    const at = ((event.clientX - bounds.left) * width) / bounds.width;
    go(((at - left) / (width - left - right)) * (count - 1));
  };
  art.addEventListener("pointerdown", (event) => { art.setPointerCapture(event.pointerId); pick(event); });
  art.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
  box.replaceChildren(art);
  byId("chart-label").textContent = words(label);
  const notes = [best < 0 ? "" : found[0].toUpperCase() + found.slice(1) + "."];
  if (data.truth && data.truth[state.label].some((value) => value !== null)) notes.push("Pink squares: slices known to show it.");
  if (data.slice_thresholds[label] !== undefined) notes.push("Dashed: operating point for single slices.");
  if (shares) notes.push("Orange bars speak for it, grey bars against.");
  byId("chart-note").textContent = notes.filter(Boolean).join(" ");
  mark();
}
function mark() {
  const line = byId("here"), dot = byId("here-dot"), p = data.slice_probs[state.label][state.slice];
  if (!line) return;
  const at = scale.x(state.slice);
  for (const [key, value] of Object.entries({ x1: at, x2: at, y1: scale.top, y2: scale.total - 20 })) line.setAttribute(key, value);
  dot.setAttribute("cx", at);
  dot.setAttribute("cy", p === null ? -10 : scale.top + (1 - p) * 150);
}
