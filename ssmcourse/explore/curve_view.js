// Curves and heat strips over one axis, in stacked panels. The traits are described in curve_view.py.

function render({ model, el }) {
  const { root, canvas, readout } = frame(el, "plot");
  const send = sender(model);
  const get = (name) => model.get(name);
  let theme, data = floats(get("_lines")), heat = floats(get("_strips"));
  let strips = new Map();   // panel index -> { image, table }, made again when the values change
  let stripsFor = "";
  let panels = [];          // where each panel lies: { y, height } in CSS pixels
  let area = null;          // what they share: { x, width, full, tall }
  let over = null;          // x of the cross-hair, in the units of the axis
  let marker = get("marker");
  let doing = null;         // "draw" or "drag" while the pointer is down
  let pen = null;           // the drawn samples, and the last one touched: { samples, last }

  const spec = () => get("_spec");
  const series = (line) => [data.subarray(line.at, line.at + line.size), data.subarray(line.at + line.size, line.at + 2 * line.size)];
  const toX = (x) => area.x + ((x - spec().x_range[0]) / (spec().x_range[1] - spec().x_range[0])) * area.width;
  const fromX = (px) => spec().x_range[0] + ((px - area.x) / area.width) * (spec().x_range[1] - spec().x_range[0]);
  const toY = (k, y) => { const [low, high] = spec().panels[k].span; return panels[k].y + panels[k].height * (1 - (y - low) / (high - low)); };
  const fromY = (k, py) => { const [low, high] = spec().panels[k].span; return low + (1 - (py - panels[k].y) / panels[k].height) * (high - low); };

  // --- drawing ---

  function layout() {
    const list = spec().panels, head = 24, gap = 12, top = spec().title ? 26 : 2, bottom = 40;
    const full = root.clientWidth || 480, x = 46, right = list.some((p) => p.strip) ? 64 : 14;
    area = { x, width: Math.max(80, full - x - right), full, tall: get("height") };
    const free = area.tall - top - bottom - list.length * head - (list.length - 1) * gap;
    const total = list.reduce((sum, p) => sum + p.weight, 0);
    let y = top;
    panels = list.map((p) => {
      const height = Math.max(24, (free * p.weight) / total), at = { y: y + head, height };
      y += head + height + gap;
      return at;
    });
  }

  function draw() {
    if (!spec().panels) return;
    theme = themeOf(root);
    layout();
    const ctx = sharp(canvas, area.full, area.tall);
    ctx.font = `12px ${theme.font}`;
    drawTitle(ctx);
    spec().panels.forEach((panel, k) => {
      drawHeading(ctx, panel, k);
      drawGrid(ctx, panel, k);
      ctx.save();
      ctx.beginPath(); ctx.rect(area.x - 3, panels[k].y - 4, area.width + 6, panels[k].height + 8); ctx.clip();
      drawBands(ctx, k);
      if (panel.strip) drawStrip(ctx, panel, k);
      for (const line of panel.lines) drawLine(ctx, line, k);
      if (k === 0 && get("draw_samples")) drawPen(ctx);
      ctx.restore();
      if (panel.strip) bar(ctx, panel, k);
    });
    drawTime(ctx);
    drawCross(ctx);
    canvas.setAttribute("aria-label", spec().description);
    tell();
  }

  function drawTitle(ctx) {
    if (!spec().title) return;
    ctx.font = `600 13px ${theme.font}`; ctx.fillStyle = theme.text; ctx.textAlign = "left"; ctx.textBaseline = "middle";
    ctx.fillText(fit(ctx, spec().title, area.width), area.x, 12);
    ctx.font = `12px ${theme.font}`;
  }

  // The name of the vertical axis on the left, the legend on the right of the same line.
  function drawHeading(ctx, panel, k) {
    const y = panels[k].y - 13, named = panel.lines.filter((line) => line.name);
    const legend = named.length > 1 ? named : [];
    const wide = legend.reduce((sum, line) => sum + ctx.measureText(line.name).width + 36, 0);
    ctx.textBaseline = "middle"; ctx.textAlign = "left"; ctx.fillStyle = theme.quiet;
    ctx.fillText(fit(ctx, panel.heading, Math.max(40, area.width - wide - 8)), area.x, y);
    let x = area.x + area.width - wide + 36;
    for (const line of legend) {
      swatch(ctx, line, x - 24, y);
      ctx.fillStyle = theme.text; ctx.fillText(line.name, x, y);
      x += ctx.measureText(line.name).width + 36;
    }
  }

  function swatch(ctx, line, x, y) {
    ctx.strokeStyle = ctx.fillStyle = theme[line.role];
    if (line.style === "area") { ctx.globalAlpha = 0.35; ctx.fillRect(x, y - 5, 18, 10); ctx.globalAlpha = 1; return; }
    if (line.style === "stems" || line.style === "dots") { ctx.beginPath(); ctx.arc(x + 12, y, 4, 0, 7); ctx.fill(); return; }
    ctx.lineWidth = 2.5; ctx.setLineDash(line.style === "dashes" ? [5, 3] : []);
    ctx.beginPath(); ctx.moveTo(x, y); ctx.lineTo(x + 18, y); ctx.stroke(); ctx.setLineDash([]);
  }

  function drawGrid(ctx, panel, k) {
    const { y, height } = panels[k], [low, high] = panel.span;
    ctx.textAlign = "right"; ctx.textBaseline = "middle";
    for (const tick of ticks(low, high, Math.max(2, Math.min(5, height / 34)))) {
      const at = Math.round(toY(k, tick));
      ctx.fillStyle = tick === 0 && !panel.strip ? theme.faint : theme.grid;
      if (!panel.strip) ctx.fillRect(area.x, at, area.width, 1);
      ctx.fillStyle = theme.quiet;
      ctx.fillText(short(tick), area.x - 8, Math.min(y + height, Math.max(y, at)));
    }
    if (panel.strip) { ctx.strokeStyle = theme.faint; ctx.lineWidth = 1; ctx.strokeRect(area.x - 0.5, y - 0.5, area.width + 1, height + 1); }
  }

  function drawBands(ctx, k) {
    if (spec().panels[k].strip) return;
    ctx.fillStyle = theme.main;
    for (const band of spec().bands) {
      const [a, b] = [toX(Math.max(band.start, spec().x_range[0])), toX(Math.min(band.stop, spec().x_range[1]))];
      ctx.globalAlpha = theme.dark ? 0.16 : 0.09;
      ctx.fillRect(a, panels[k].y, b - a, panels[k].height);
      ctx.globalAlpha = 1;
      if (k === 0 && band.name && ctx.measureText(band.name).width + 12 < b - a) {
        ctx.textAlign = "left"; ctx.textBaseline = "top"; ctx.fillText(band.name, a + 6, panels[k].y + 4);
      }
    }
  }

  function drawLine(ctx, line, k) {
    const [x, y] = series(line), zero = toY(k, Math.min(Math.max(0, spec().panels[k].span[0]), spec().panels[k].span[1]));
    if (!x.length) return;
    ctx.strokeStyle = ctx.fillStyle = theme[line.role];
    ctx.lineWidth = line.role === "faint" || line.role === "signal" ? 1.75 : 2.25; ctx.lineJoin = "round";
    if (line.style === "stems" || line.style === "dots") {
      const radius = Math.min(4.5, Math.max(2, (area.width / x.length) * 0.3));
      x.forEach((v, n) => {
        const [px, py] = [toX(v), toY(k, y[n])];
        if (line.style === "stems" && Math.abs(py - zero) > 0.5) { ctx.beginPath(); ctx.moveTo(px, zero); ctx.lineTo(px, py); ctx.stroke(); }
        if (line.style === "dots" || y[n] !== 0 || line.role === "signal") { ctx.beginPath(); ctx.arc(px, py, y[n] === 0 ? 1.75 : radius, 0, 7); ctx.fill(); }
      });
      return;
    }
    ctx.beginPath();
    x.forEach((v, n) => (n ? ctx.lineTo(toX(v), toY(k, y[n])) : ctx.moveTo(toX(v), toY(k, y[n]))));
    ctx.setLineDash(line.style === "dashes" ? [6, 4] : []);
    ctx.stroke();
    ctx.setLineDash([]);
    if (line.style !== "area") return;
    ctx.lineTo(toX(x[x.length - 1]), zero); ctx.lineTo(toX(x[0]), zero);
    ctx.globalAlpha = 0.28; ctx.fill(); ctx.globalAlpha = 1;
  }

  function drawStrip(ctx, panel, k) {
    const state = `${theme.dark}`;
    if (state !== stripsFor) { strips = new Map(); stripsFor = state; }
    if (!strips.has(k)) {
      const { at, rows, cols, limit } = panel.strip, table = colorTable(theme.diverging, "diverging");
      const values = heat.subarray(at, at + rows * cols);
      strips.set(k, { table, image: raster(values, rows, cols, table, limit, "diverging", null, true) });
    }
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(strips.get(k).image, area.x, panels[k].y, area.width, panels[k].height);
  }

  function bar(ctx, panel, k) {
    const box = { x: area.x + area.width + 14, y: panels[k].y, width: 10, height: panels[k].height };
    colorBar(ctx, theme, strips.get(k).table, box, panel.strip.limit, "diverging");
  }

  function drawTime(ctx) {
    const last = panels[panels.length - 1], y = last.y + last.height;
    ctx.textAlign = "center"; ctx.textBaseline = "middle";
    for (const tick of ticks(...spec().x_range, Math.max(3, area.width / 64))) {
      ctx.fillStyle = theme.faint; ctx.fillRect(Math.round(toX(tick)), y + 3, 1, 4);
      ctx.fillStyle = theme.quiet; ctx.fillText(short(tick), toX(tick), y + 14);
    }
    ctx.fillStyle = theme.quiet;
    ctx.fillText(spec().x_heading, area.x + area.width / 2, area.tall - 9);
  }

  function drawCross(ctx) {
    const first = panels[0], last = panels[panels.length - 1];
    const upright = (x, width, dash) => {
      ctx.lineWidth = width; ctx.setLineDash(dash);
      ctx.beginPath(); ctx.moveTo(toX(x), first.y); ctx.lineTo(toX(x), last.y + last.height); ctx.stroke(); ctx.setLineDash([]);
    };
    ctx.strokeStyle = theme.text;
    if (marker !== null && marker !== undefined) {
      upright(marker, 1.5, []);
      pill(ctx, theme, `${get("marker_name")}${short(Math.round(marker * 1000) / 1000)}`, toX(marker), last.y + last.height + 14, "center");
    }
    if (over === null) return;
    ctx.strokeStyle = theme.quiet;
    upright(over, 1, [2, 3]);
    for (const { line, k, x, y } of under()) {
      ctx.fillStyle = theme[line.role]; ctx.strokeStyle = theme.back; ctx.lineWidth = 2;
      ctx.beginPath(); ctx.arc(toX(x), toY(k, y), 4.5, 0, 7); ctx.stroke(); ctx.fill();
    }
  }

  // The point of every named line next to the cross-hair.
  function under() {
    const found = [];
    spec().panels.forEach((panel, k) => panel.lines.forEach((line) => {
      const [x, y] = series(line);
      if (!line.name || !x.length || over < x[0] - 1e-6 || over > x[x.length - 1] + 1e-6) return;
      let low = 0, high = x.length - 1;
      while (high - low > 1) { const mid = (low + high) >> 1; if (x[mid] <= over) low = mid; else high = mid; }
      const n = over - x[low] <= x[high] - over ? low : high;
      found.push({ line, k, x: x[n], y: y[n] });
    }));
    return found;
  }

  function tell() {
    let html = escapeHtml(get("hint"));
    if (over !== null) {
      const values = under().map(({ line, y }) => `${escapeHtml(line.name)} <b>${exact(y)}</b>`);
      html = [`${escapeHtml(spec().x_name)} <b>${short(Math.round(over * 100) / 100)}</b>`, ...values].join(" &ensp; ");
    }
    if (readout.innerHTML !== html) readout.innerHTML = html;
    readout.style.paddingLeft = `${area.x}px`;
  }

  // --- drawing a signal by hand ---

  function drawPen(ctx) {
    if (!pen) return;
    ctx.strokeStyle = theme.accent; ctx.lineWidth = 2;
    ctx.beginPath();
    const [low, high] = spec().x_range, n = pen.samples.length;
    pen.samples.forEach((y, i) => ctx.lineTo(toX(n > 1 ? low + ((high - low) * i) / (n - 1) : low), toY(0, y)));
    ctx.stroke();
  }

  // The samples as they are now: what was drawn before, or else the first line of the first panel.
  function startPen() {
    const n = get("draw_samples"), line = spec().panels[0].lines[0], samples = new Float32Array(n);
    const y = line ? series(line)[1] : [];
    for (let i = 0; i < n; i++) samples[i] = y.length ? y[Math.round((i * (y.length - 1)) / Math.max(1, n - 1))] : 0;
    pen = { samples, last: null };
  }

  function penTo(index, value) {
    const n = pen.samples.length, [low, high] = spec().panels[0].span;
    const at = Math.min(n - 1, Math.max(0, index)), y = Math.min(high, Math.max(low, value));
    const from = get("join") && pen.last ? pen.last : { at, y }, step = at < from.at ? -1 : 1;
    for (let i = from.at; i !== at + step; i += step) {
      const f = at === from.at ? 1 : (i - from.at) / (at - from.at);
      pen.samples[i] = from.y * (1 - f) + y * f;
    }
    pen.last = { at, y };
    send("_drawn", new DataView(pen.samples.slice().buffer));
    redraw();
  }

  const indexAt = (x) => {
    const [low, high] = spec().x_range;
    return Math.round(((x - low) / (high - low)) * (get("draw_samples") - 1));
  };

  // --- what the reader does ---

  function place(event) {
    const b = canvas.getBoundingClientRect(), px = event.clientX - b.left, py = event.clientY - b.top;
    const x = snapped(fromX(px));
    const inFirst = py > panels[0].y - 6 && py < panels[0].y + panels[0].height + 6;
    return { px, py, x, inFirst, inside: px > area.x - 8 && px < area.x + area.width + 8 };
  }

  function snapped(x) {
    const [low, high] = spec().x_range, step = spec().x_step;
    const keep = step ? [Math.ceil(low / step) * step, Math.floor(high / step) * step] : [low, high];
    return Math.min(keep[1], Math.max(keep[0], step ? Math.round(x / step) * step : x));
  }

  function moveMarker(x) {
    marker = snapped(x);
    send("marker", marker);
    redraw();
  }

  function hover(x) {
    if (x === over) return;
    over = x;
    send("cursor", x);
    redraw();
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    const at = place(event);
    if (event.button !== 0 || !at.inside) return;
    const near = marker !== null && Math.abs(toX(marker) - at.px) < 8;
    if (get("draw_samples") && at.inFirst && !near) { startPen(); doing = "draw"; penTo(indexAt(at.x), fromY(0, at.py)); }
    else if (get("draggable")) { doing = "drag"; moveMarker(at.x); }
    if (doing) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (doing === "draw") penTo(indexAt(at.x), fromY(0, at.py));
    else if (doing === "drag") moveMarker(at.x);
    else if (event.pointerType !== "touch") hover(at.inside ? at.x : null);
    canvas.style.cursor = get("draw_samples") && at.inFirst ? "crosshair" : get("draggable") ? "ew-resize" : "default";
  });
  const release = () => { if (doing === "draw") pen = null; doing = null; redraw(); };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { if (!doing) hover(null); });

  canvas.addEventListener("keydown", (event) => {
    const [low, high] = spec().x_range, way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const upward = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const step = (spec().x_step || (high - low) / 100) * (event.shiftKey ? 10 : 1);
    if (way && get("draggable")) moveMarker((marker ?? low) + way * step);
    else if (way) hover(snapped((over ?? low - way * step) + way * step));
    else if (upward && get("draw_samples")) nudge(upward);
    else if (event.key === "Escape") hover(null);
    else return;
    event.preventDefault(); event.stopPropagation();
  });

  // Up and down change the sample under the cross-hair (or the marker) by a twentieth of the axis.
  function nudge(upward) {
    const [low, high] = spec().panels[0].span, at = indexAt(over ?? marker ?? spec().x_range[0]);
    startPen();
    const value = pen.samples[at] + (upward * (high - low)) / 20;
    penTo(at, value);
    pen = null;
  }

  // --- what Python does ---

  const redraw = scheduler(draw);
  const listen = {
    "change:_lines": () => { data = floats(get("_lines")); redraw(); },
    "change:_strips": () => { heat = floats(get("_strips")); strips = new Map(); redraw(); },
    "change:_spec": () => { strips = new Map(); redraw(); },
    "change:marker": () => { if (doing !== "drag") marker = get("marker"); redraw(); },
    "change:draw_samples": () => { canvas.style.touchAction = get("draw_samples") ? "none" : "pan-y"; redraw(); },
  };
  for (const name of ["height", "hint", "draggable"]) listen[`change:${name}`] = redraw;
  for (const [name, act] of Object.entries(listen)) model.on(name, act);
  listen["change:draw_samples"]();
  const stop = keepDrawn(root, redraw);
  return () => { stop(); for (const [name, act] of Object.entries(listen)) model.off(name, act); };
}

export default { render };
