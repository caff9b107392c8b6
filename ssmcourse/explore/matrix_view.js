// A matrix as a picture: rows down, columns across. The traits are described in matrix_view.py.

function render({ model, el }) {
  const { root, canvas, readout } = frame(el, "matrix");
  const send = sender(model);
  const get = (name) => model.get(name);
  const rows = () => get("_rows"), cols = () => get("_cols");
  let values = floats(get("_values"));
  let theme, table, image, paintedFor = "";
  let view = null;     // the part in sight, in cells: { r, c, rows, cols }; null is all of it
  let box = null;      // where it lies on the canvas, in CSS pixels: { x, y, width, height, ... }
  let drag = null;     // a zoom box in the making: { from: [r, c], to: [r, c] }, in cells
  let over = null;     // the cell last pointed at or moved to, before Python has heard of it

  const seen = () => view ?? { r: 0, c: 0, rows: rows(), cols: cols() };
  const blank = (i, j) => get("causal") && j > i;
  const valueAt = ([i, j]) => values[i * cols() + j];
  const inside = (at) => at && at[0] < rows() && at[1] < cols();
  const labelOf = (axis, k) => (axis === "row" ? get("_row_labels") : get("_column_labels"))[k] ?? String(k);

  // --- geometry ---

  function layout(ctx) {
    const s = seen(), rowLabels = get("_row_labels"), colLabels = get("_column_labels");
    const widest = (labels, last) =>
      Math.min(96, Math.max(...(labels.length ? labels : [String(last)]).map((t) => ctx.measureText(t).width)));
    const rowText = widest(rowLabels, rows() - 1), colText = widest(colLabels, cols() - 1);
    const x = 28 + rowText + 10, y = get("title") ? 30 : 10, right = 76;
    const space = Math.max(80, (root.clientWidth || 480) - x - right);
    const cell = Math.min(space / cols(), get("size") / Math.max(rows(), cols()));
    const width = Math.max(60, cell * cols()), height = Math.max(60, cell * rows());
    const turned = colLabels.length > 0 && colText + 8 > width / s.cols;
    const below = (turned ? colText : 12) + 12 + 22;
    return { x, y, width, height, turned, full: x + width + right, tall: y + height + below };
  }

  const cellWidth = () => box.width / seen().cols;
  const cellHeight = () => box.height / seen().rows;
  const toX = (c) => box.x + (c - seen().c) * cellWidth();
  const toY = (r) => box.y + (r - seen().r) * cellHeight();

  function cellUnder(event, clamp) {
    const b = canvas.getBoundingClientRect(), s = seen();
    const c = s.c + (event.clientX - b.left - box.x) / cellWidth();
    const r = s.r + (event.clientY - b.top - box.y) / cellHeight();
    const out = c < s.c || r < s.r || c >= s.c + s.cols || r >= s.r + s.rows;
    if (out && !clamp) return null;
    const keep = (v, low, size) => Math.min(low + size - 1e-6, Math.max(low, v));
    return [keep(r, s.r, s.rows), keep(c, s.c, s.cols)];
  }

  // --- drawing ---

  function repaint() {
    theme = themeOf(root);
    const state = [theme.dark, get("scale"), get("_limit"), get("causal")].join();
    if (image && state === paintedFor) return;
    paintedFor = state;
    table = colorTable(theme.diverging, get("scale"));
    image = raster(values, rows(), cols(), table, get("_limit"), get("scale"), blank, false);
  }

  function draw() {
    if (!values.length || values.length !== rows() * cols()) return;
    repaint();
    const measure = canvas.getContext("2d");
    measure.font = `12px ${theme.font}`;
    box = layout(measure);
    const ctx = sharp(canvas, box.full, box.tall);
    ctx.font = `12px ${theme.font}`;
    drawCells(ctx);
    drawAxis(ctx, "row");
    drawAxis(ctx, "column");
    drawNames(ctx);
    const at = cursor();
    drawMarks(ctx, at);
    const bar = { x: box.x + box.width + 20, y: box.y, width: 12, height: box.height };
    colorBar(ctx, theme, table, bar, get("_limit"), get("scale"), at ? valueAt(at) : undefined);
    canvas.setAttribute("aria-label", get("_description"));
    tell(at);
  }

  const cursor = () => (inside(over ?? get("cursor")) ? over ?? get("cursor") : null);

  function drawCells(ctx) {
    const s = seen();
    ctx.save();
    ctx.beginPath(); ctx.rect(box.x, box.y, box.width, box.height); ctx.clip();
    if (get("causal")) hatch(ctx);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(image, s.c, s.r, s.cols, s.rows, box.x, box.y, box.width, box.height);
    if (Math.min(cellWidth(), cellHeight()) >= 9) gaps(ctx, s);
    if (cellWidth() >= 42 && cellHeight() >= 18) numbers(ctx, s);
    ctx.restore();
    ctx.strokeStyle = theme.faint; ctx.lineWidth = 1;
    ctx.strokeRect(box.x - 0.5, box.y - 0.5, box.width + 1, box.height + 1);
  }

  // What is zero by construction is hatched, so that it does not read as a measured zero.
  function hatch(ctx) {
    ctx.strokeStyle = theme.grid; ctx.lineWidth = 1;
    ctx.beginPath();
    for (let k = -box.height; k < box.width; k += 7) {
      ctx.moveTo(box.x + k, box.y); ctx.lineTo(box.x + k + box.height, box.y + box.height);
    }
    ctx.stroke();
  }

  function gaps(ctx, s) {
    ctx.fillStyle = theme.back;
    for (let c = Math.ceil(s.c); c < s.c + s.cols; c++) {
      const top = get("causal") ? toY(Math.max(s.r, c)) : box.y;
      ctx.fillRect(toX(c) - 0.5, top, 1, box.y + box.height - top);
    }
    for (let r = Math.ceil(s.r); r < s.r + s.rows; r++) {
      const end = get("causal") ? Math.min(toX(r + 1), box.x + box.width) : box.x + box.width;
      ctx.fillRect(box.x, toY(r) - 0.5, end - box.x, 1);
    }
  }

  function numbers(ctx, s) {
    ctx.textAlign = "center"; ctx.textBaseline = "middle";
    for (let r = Math.floor(s.r); r < Math.min(rows(), s.r + s.rows); r++)
      for (let c = Math.floor(s.c); c < Math.min(cols(), s.c + s.cols); c++) {
        if (blank(r, c)) continue;
        const value = valueAt([r, c]), paint = table[colorIndex(value, get("_limit"), get("scale"))];
        const light = 0.299 * (paint & 255) + 0.587 * ((paint >> 8) & 255) + 0.114 * ((paint >> 16) & 255);
        ctx.fillStyle = light > 140 ? "#16191d" : "#ffffff";
        const text = short(value), room = cellWidth() - 6;
        ctx.fillText(ctx.measureText(text).width > room ? short(Number(value.toPrecision(1))) : text, toX(c + 0.5), toY(r + 0.5));
      }
  }

  // Which labels fit: every one, or every 2nd, 5th, 10th ...
  function shown(axis) {
    const s = seen(), isRow = axis === "row", count = isRow ? rows() : cols();
    const pitch = isRow ? cellHeight() : cellWidth();
    const need = isRow || box.turned ? 15 : get("_column_labels").length ? 0 : 26;
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => n * pitch >= need) ?? count;
    const first = isRow ? s.r : s.c, size = isRow ? s.rows : s.cols, list = [];
    for (let k = Math.ceil((first - 0.5) / step) * step; k + 0.5 <= first + size; k += step)
      if (k >= 0 && k < count && k + 0.5 >= first) list.push(k);
    return list;
  }

  function drawAxis(ctx, axis) {
    const labels = axis === "row" ? get("_row_labels") : get("_column_labels");
    const marked = cursor()?.[axis === "row" ? 0 : 1], pitch = axis === "row" ? cellHeight() : cellWidth();
    const room = axis === "row" || box.turned ? 15 : 30;
    ctx.textBaseline = "middle";
    for (const k of shown(axis)) {
      if (marked !== undefined && Math.abs(k - marked) * pitch < room) continue; // the mark stands there
      const text = fit(ctx, labels[k] ?? String(k), 96);
      ctx.fillStyle = theme.faint;
      if (axis === "row") {
        ctx.fillRect(box.x - 5, Math.round(toY(k + 0.5)), 4, 1);
        ctx.fillStyle = theme.text; ctx.textAlign = "right";
        ctx.fillText(text, box.x - 9, toY(k + 0.5));
      } else {
        ctx.fillRect(Math.round(toX(k + 0.5)), box.y + box.height + 1, 1, 4);
        ctx.fillStyle = theme.text;
        turnedText(ctx, text, toX(k + 0.5), box.y + box.height + 9);
      }
    }
  }

  function turnedText(ctx, text, x, y) {
    if (!box.turned) { ctx.textAlign = "center"; ctx.fillText(text, x, y + 5); return; }
    ctx.save(); ctx.translate(x, y); ctx.rotate(-Math.PI / 2);
    ctx.textAlign = "right"; ctx.fillText(text, 0, 0); ctx.restore();
  }

  function drawNames(ctx) {
    ctx.fillStyle = theme.quiet; ctx.textAlign = "center"; ctx.textBaseline = "middle";
    ctx.fillText(get("column_name"), box.x + box.width / 2, box.tall - 10);
    ctx.save(); ctx.translate(9, box.y + box.height / 2); ctx.rotate(-Math.PI / 2);
    ctx.fillText(get("row_name"), 0, 0); ctx.restore();
    if (!get("title")) return;
    ctx.fillStyle = theme.text; ctx.textAlign = "left"; ctx.font = `600 13px ${theme.font}`;
    ctx.fillText(fit(ctx, get("title"), box.full - box.x), box.x, 12);
    ctx.font = `12px ${theme.font}`;
  }

  function drawMarks(ctx, at) {
    const chosen = get("selected");
    ctx.save();
    ctx.beginPath(); ctx.rect(box.x - 1, box.y - 1, box.width + 2, box.height + 2); ctx.clip();
    if (at) {
      const [x, y, w, h] = [toX(at[1]), toY(at[0]), cellWidth(), cellHeight()];
      ctx.fillStyle = theme.back; ctx.globalAlpha = 0.45; // everything but the row and the column steps back
      for (const [left, right] of [[box.x, x], [x + w, box.x + box.width]])
        for (const [top, bottom] of [[box.y, y], [y + h, box.y + box.height]])
          ctx.fillRect(left, top, Math.max(0, right - left), Math.max(0, bottom - top));
      ctx.globalAlpha = 1; ctx.strokeStyle = theme.text; ctx.lineWidth = 1;
      ctx.strokeRect(box.x, y, box.width, h); ctx.strokeRect(x, box.y, w, box.height);
      ctx.lineWidth = 2; ctx.strokeRect(x, y, w, h);
    }
    if (inside(chosen)) {
      ctx.strokeStyle = theme.third; ctx.lineWidth = 2.5;
      ctx.strokeRect(toX(chosen[1]), toY(chosen[0]), cellWidth(), cellHeight());
    }
    if (drag?.to) {
      const [[r0, c0], [r1, c1]] = [drag.from, drag.to];
      ctx.strokeStyle = theme.main; ctx.fillStyle = theme.main; ctx.lineWidth = 1.5;
      const area = [toX(Math.min(c0, c1)), toY(Math.min(r0, r1)), Math.abs(c1 - c0) * cellWidth(), Math.abs(r1 - r0) * cellHeight()];
      ctx.globalAlpha = 0.15; ctx.fillRect(...area); ctx.globalAlpha = 1; ctx.strokeRect(...area);
    }
    ctx.restore();
    const s = seen();
    if (!at || at[0] + 1 <= s.r || at[0] >= s.r + s.rows || at[1] + 1 <= s.c || at[1] >= s.c + s.cols) return;
    pill(ctx, theme, fit(ctx, labelOf("row", at[0]), 90), box.x - 4, toY(at[0] + 0.5), "right");
    pill(ctx, theme, fit(ctx, labelOf("column", at[1]), 90), toX(at[1] + 0.5), box.y + box.height + 13, "center");
  }

  function tell(at) {
    const hint = view ? "Double click or Escape: all of it." : "Point at a cell; drag a box to zoom; arrow keys move.";
    const name = (axis, k) => {
      const labels = axis === "row" ? get("_row_labels") : get("_column_labels");
      const text = labels[k] === undefined || labels[k] === String(k) ? "" : ` “${labels[k]}”`;
      return `${get(`${axis}_name`).replace(/ [ij]$/, "")} ${k}${text}`;
    };
    const what = at && get("value_name").replace(/\[i, *j\]/, `[${at[0]}, ${at[1]}]`);
    const html = at
      ? `<b>${escapeHtml(what)} = ${exact(valueAt(at))}</b> &ensp; ${escapeHtml(name("row", at[0]))}, ${escapeHtml(name("column", at[1]))}`
      : hint;
    if (readout.innerHTML !== html) readout.innerHTML = html;
    readout.style.paddingLeft = `${box.x}px`;
  }

  // --- what the reader does ---

  function moveTo(at) {
    const cell = at && at.map(Math.floor);
    if (String(cell) === String(cursor())) return;
    over = cell;
    send("cursor", cell);
    redraw();
  }

  // Keeps the picture's proportions, so cells stay square.
  function zoomTo(r, c, size) {
    const most = { rows: rows(), cols: cols() };
    const share = Math.min(1, Math.max(size, 2 / Math.max(most.rows, most.cols)));
    const s = { rows: most.rows * share, cols: most.cols * share };
    s.r = Math.min(most.rows - s.rows, Math.max(0, r - s.rows / 2));
    s.c = Math.min(most.cols - s.cols, Math.max(0, c - s.cols / 2));
    view = share >= 1 ? null : s;
    redraw();
  }

  function zoomBy(factor, [r, c]) {
    const s = seen(), size = (s.rows / rows()) * factor;
    const stay = (at, low, span) => at + (low + span / 2 - at) * (view || factor < 1 ? factor : 1);
    zoomTo(stay(r, s.r, s.rows), stay(c, s.c, s.cols), size);
  }

  function keepInSight([r, c]) {
    const s = seen();
    if (!view) return;
    s.r = Math.min(Math.floor(r), Math.max(s.r, Math.ceil(r + 1 - s.rows)));
    s.c = Math.min(Math.floor(c), Math.max(s.c, Math.ceil(c + 1 - s.cols)));
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    const from = cellUnder(event);
    if (from && event.button === 0) { drag = { from, x: event.clientX, y: event.clientY }; canvas.setPointerCapture(event.pointerId); }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 6) drag.to = cellUnder(event, true);
    if (drag?.to) redraw();
    else if (event.pointerType !== "touch") moveTo(cellUnder(event));
  });
  canvas.addEventListener("pointerup", (event) => {
    const done = drag;
    drag = null;
    if (done?.to) {
      const [[r0, c0], [r1, c1]] = [done.from, done.to];
      zoomTo((r0 + r1) / 2, (c0 + c1) / 2, Math.max(Math.abs(r1 - r0) / rows(), Math.abs(c1 - c0) / cols()));
    } else if (done) { moveTo(cellUnder(event)); choose(cellUnder(event)); }
    redraw();
  });
  canvas.addEventListener("pointercancel", () => { drag = null; redraw(); });
  canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) moveTo(null); });
  canvas.addEventListener("dblclick", () => { view = null; redraw(); });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas) return; // unfocused, the wheel belongs to the page
    const at = cellUnder(event);
    if (!at) return;
    event.preventDefault();
    zoomBy(Math.exp(Math.sign(event.deltaY) * 0.22), at);
  }, { passive: false });

  function choose(at) {
    if (!at) return;
    send("selected", at.map(Math.floor));
  }

  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const s = seen(), at = cursor() ?? [Math.floor(s.r + s.rows / 2), Math.floor(s.c + s.cols / 2)];
    const far = event.shiftKey ? 8 : 1;
    if (steps[event.key]) {
      const start = cursor() !== null;
      const [dr, dc] = start ? steps[event.key] : [0, 0];
      const next = [at[0] + dr * far, at[1] + dc * far];
      next[0] = Math.min(rows() - 1, Math.max(0, next[0]));
      next[1] = Math.min(cols() - 1, Math.max(0, next[1]));
      keepInSight(next);
      moveTo(next);
    } else if (event.key === "+" || event.key === "=") zoomBy(1 / 1.4, at.map((v) => v + 0.5));
    else if (event.key === "-") zoomBy(1.4, at.map((v) => v + 0.5));
    else if (event.key === "Escape") { if (view) view = null; else moveTo(null); redraw(); }
    else if (event.key === "Enter" || event.key === " ") choose(at);
    else return;
    event.preventDefault(); event.stopPropagation();
  });

  // --- what Python does ---

  const redraw = scheduler(draw);
  const listen = {
    "change:_values": () => {
      values = floats(get("_values"));
      image = null;
      if (view && (view.r + view.rows > rows() || view.c + view.cols > cols())) view = null;
      redraw();
    },
    "change:cursor": () => { over = null; redraw(); },
  };
  for (const name of ["_row_labels", "_column_labels", "_limit", "scale", "causal", "title", "selected", "size", "_description", "row_name", "column_name", "value_name"])
    listen[`change:${name}`] = redraw;
  for (const name of ["_rows", "_cols"]) listen[`change:${name}`] = () => { view = null; image = null; redraw(); };
  for (const [name, act] of Object.entries(listen)) model.on(name, act);
  const stop = keepDrawn(root, redraw);
  return () => { stop(); for (const [name, act] of Object.entries(listen)) model.off(name, act); };
}

export default { render };
