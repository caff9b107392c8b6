// Shared by matrix_view.js and curve_view.js: theme, colours, ticks, text, a sharp canvas.
// PALETTE comes from palette.py and stands above this file.

// --- theme -----------------------------------------------------------------------------------

// The colours in force around `el`: JupyterLab's own text and page colours where it sets them,
// and the course's inks in the variant that suits the page behind.
function themeOf(el) {
  const style = getComputedStyle(el);
  const get = (name) => style.getPropertyValue(name).trim();
  const back = get("--jp-layout-color0") || pageColor(el);
  const dark = luminance(back) < 0.4;
  const ink = PALETTE.ink[dark ? "dark" : "light"];
  return {
    ...ink, dark, back,
    text: get("--jp-ui-font-color1") || ink.text,
    quiet: get("--jp-ui-font-color2") || ink.quiet,
    font: style.fontFamily || "sans-serif",
    diverging: PALETTE.diverging[dark ? "dark" : "light"],
  };
}

function pageColor(el) {
  for (let at = el; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (color && !/^rgba\(.*, 0\)$|^transparent$/.test(color)) return color;
  }
  return "#ffffff";
}

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

function rgb(color) {
  probe.fillStyle = "#ffffff";
  probe.fillStyle = color;
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function luminance(color) {
  const [r, g, b] = rgb(color);
  return (0.299 * r + 0.587 * g + 0.114 * b) / 255;
}

// Calls back when JupyterLab or the system changes the theme; returns the function that stops it.
// The style sheet may arrive a little after the attribute, hence the second call.
function onTheme(callback) {
  let later = 0;
  const both = () => { callback(); clearTimeout(later); later = setTimeout(callback, 350); };
  const watch = new MutationObserver(both);
  const attributes = { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class"] };
  watch.observe(document.body, attributes);
  watch.observe(document.documentElement, attributes);
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", both);
  return () => { watch.disconnect(); clearTimeout(later); media.removeEventListener("change", both); };
}

// --- colour scale ----------------------------------------------------------------------------

// 513 colours as RGBA bytes, for values from -limit to limit, or from 0 with "sequential".
function colorTable(points, scale) {
  const all = points.map(rgb);
  const use = scale === "sequential" ? all.slice(all.length >> 1) : all;
  const table = new Uint32Array(513);
  for (let k = 0; k < 513; k++) {
    const at = (k / 512) * (use.length - 1), i = Math.min(Math.floor(at), use.length - 2), f = at - i;
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(use[i][c] * (1 - f) + use[i + 1][c] * f));
    table[k] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return table;
}

function colorIndex(value, limit, scale) {
  const unit = scale === "sequential" ? value / limit : (value / limit + 1) / 2;
  return Math.round(512 * Math.min(1, Math.max(0, unit)));
}

// An offscreen canvas of one pixel a value; `blank(i, j)` true leaves a cell transparent.
function raster(values, rows, cols, table, limit, scale, blank, flip) {
  const off = document.createElement("canvas");
  off.width = cols; off.height = rows;
  const context = off.getContext("2d"), image = context.createImageData(cols, rows);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) {
    if (blank && blank(i, j)) continue;
    pixels[(flip ? rows - 1 - i : i) * cols + j] = table[colorIndex(values[i * cols + j], limit, scale)];
  }
  context.putImageData(image, 0, 0);
  return off;
}

function colorBar(ctx, theme, table, box, limit, scale, value) {
  const { x, y, width, height } = box;
  const low = scale === "sequential" ? 0 : -limit;
  for (let k = 0; k < height; k++) {
    const c = table[Math.round(512 * (1 - (k + 0.5) / height))];
    ctx.fillStyle = `rgb(${c & 255},${(c >> 8) & 255},${(c >> 16) & 255})`;
    ctx.fillRect(x, y + k, width, 1.5);
  }
  ctx.strokeStyle = theme.faint; ctx.lineWidth = 1;
  ctx.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
  const place = (v) => y + height * (1 - (v - low) / (limit - low));
  ctx.fillStyle = theme.quiet; ctx.textAlign = "left"; ctx.textBaseline = "middle";
  let marks = ticks(low, limit, height < 120 ? 3 : 5);
  if (marks.length < 3) marks = [low, (low + limit) / 2, limit];
  for (const tick of marks) {
    ctx.fillRect(x + width, Math.round(place(tick)), 4, 1);
    ctx.fillText(short(tick), x + width + 7, Math.min(y + height - 5, Math.max(y + 5, place(tick))));
  }
  if (value === undefined) return;
  const at = place(Math.min(limit, Math.max(low, value)));
  ctx.fillStyle = theme.text;
  ctx.beginPath(); ctx.moveTo(x - 1, at); ctx.lineTo(x - 8, at - 4.5); ctx.lineTo(x - 8, at + 4.5); ctx.fill();
}

// --- numbers and ticks -----------------------------------------------------------------------

const minus = (text) => text.replace("-", "−");

// Six significant digits for reading off, three for ticks.
function exact(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return minus(size >= 1e6 || size < 1e-4 ? value.toExponential(4) : String(Number(value.toPrecision(6))));
}

function short(value) {
  if (Math.abs(value) < 1e-12) return "0";
  const size = Math.abs(value);
  return minus(size >= 1e5 || size < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(3))));
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const list = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) list.push(k * step);
  return list;
}

// --- canvas ----------------------------------------------------------------------------------

// Resizes to `width` by `height` CSS pixels at the screen's own resolution and clears.
function sharp(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  const ctx = canvas.getContext("2d");
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return ctx;
}

function fit(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let keep = text.length;
  while (keep > 1 && ctx.measureText(text.slice(0, keep) + "…").width > width) keep--;
  return text.slice(0, keep) + "…";
}

// A label in the colours turned round, to mark a place on an axis. `align` is left, center or right.
function pill(ctx, theme, text, x, y, align) {
  const width = ctx.measureText(text).width + 10;
  const left = align === "right" ? x - width : align === "left" ? x : x - width / 2;
  ctx.fillStyle = theme.text;
  ctx.beginPath(); ctx.roundRect(left, y - 8, width, 16, 3); ctx.fill();
  ctx.fillStyle = theme.back; ctx.textAlign = "center"; ctx.textBaseline = "middle";
  ctx.fillText(text, left + width / 2, y + 0.5);
}

function floats(view) {
  if (!view || !view.byteLength) return new Float32Array(0);
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// --- the frame that both widgets share -------------------------------------------------------

// A focusable canvas with a line of text below that shows, and speaks, what is under the cursor.
function frame(el, kind) {
  const root = document.createElement("div");
  root.className = "ssm-view";
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-roledescription", kind);
  canvas.setAttribute("data-lm-suppress-shortcuts", "true"); // else the notebook takes the arrow keys
  const readout = document.createElement("div");
  readout.className = "ssm-readout";
  readout.setAttribute("aria-live", "polite");
  root.append(canvas, readout);
  el.append(root);
  return { root, canvas, readout };
}

// Draws once per animation frame however often it is asked to.
function scheduler(draw) {
  let asked = 0;
  return () => { if (!asked) asked = requestAnimationFrame(() => { asked = 0; draw(); }); };
}

// Sets a trait at once, then at most every `wait` ms; the last value always arrives.
function sender(model, wait = 40) {
  const waiting = new Map();
  let timer = 0;
  const flush = () => {
    timer = 0;
    if (!waiting.size) return;
    for (const [name, value] of waiting) model.set(name, value);
    waiting.clear();
    model.save_changes();
    timer = setTimeout(flush, wait);
  };
  return (name, value) => { waiting.set(name, value); if (!timer) flush(); };
}

function escapeHtml(text) {
  return String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
}

// Redraws on resize and on a change of theme; returns the clean-up for when the view goes away.
function keepDrawn(root, draw) {
  const resize = new ResizeObserver(draw);
  resize.observe(root);
  const stopTheme = onTheme(draw);
  draw();
  return () => { resize.disconnect(); stopTheme(); };
}
