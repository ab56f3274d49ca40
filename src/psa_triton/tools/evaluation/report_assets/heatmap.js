const DENSITY = [[240, 249, 232], [186, 228, 188], [123, 204, 196], [67, 162, 202], [8, 88, 158]];
const HEAT_GUTTER = { left: 58, top: 20 };

/** Rows are the heads of all layers, columns the denoising steps; `onChoose(layer, head, step)` is told of a choice. */
function makeHeatmap(onChoose) {
  const canvas = byId("heat");
  const heat = { read: null, at: { layer: 0, head: 0, step: 0 } };
  heat.show = (read, at) => {
    heat.read = read;
    heat.at = at;
    drawHeatmap(heat);
  };
  canvas.addEventListener("click", (event) => {
    const { rows, steps } = heatSize(heat.read);
    const box = canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - HEAT_GUTTER.left) / (box.width - HEAT_GUTTER.left)) * steps);
    const row = Math.floor(((event.clientY - box.top - HEAT_GUTTER.top) / (box.height - HEAT_GUTTER.top)) * rows);
    choose(clamp(row, 0, rows - 1), clamp(column, 0, steps - 1));
  });
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const { heads, rows, steps } = heatSize(heat.read);
    const row = heat.at.layer * heads + heat.at.head + arrow[1];
    choose(clamp(row, 0, rows - 1), clamp(heat.at.step + arrow[0], 0, steps - 1));
  });
  const choose = (row, step) => {
    const { heads } = heatSize(heat.read);
    onChoose(Math.floor(row / heads), row % heads, step);
  };
  window.addEventListener("resize", () => heat.read && drawHeatmap(heat));
  drawRamp(byId("heat-ramp"), DENSITY);
  return heat;
}

/** Heads are as many as in any sparse call; a run without one shows a row a layer. */
function heatSize(read) {
  const heads = read.density.flat().find(Array.isArray)?.length ?? 1;
  return { heads, rows: heads * read.layers.length, steps: read.steps };
}

function drawHeatmap({ read, at }) {
  const canvas = byId("heat");
  const { heads, rows, steps } = heatSize(read);
  const { left, top } = HEAT_GUTTER;
  const width = Math.min(canvas.parentElement.clientWidth - 36, left + steps * 56);
  const cell = { width: (width - left) / steps, height: clamp(Math.floor(420 / rows), 1, 18) };
  const gap = cell.height < 4 ? 0 : 1;
  const height = top + rows * cell.height;
  const scale = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: width * scale, height: height * scale });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const { color } = getComputedStyle(canvas);
  labelHeatmap(context, read, heads, steps, cell, color);
  for (let row = 0; row < rows; row++) {
    for (let step = 0; step < steps; step++) {
      const value = read.density[Math.floor(row / heads)][step];
      const box = [left + step * cell.width, top + row * cell.height, cell.width - gap, cell.height - gap];
      if (Array.isArray(value)) fillCell(context, box, `rgb(${ramp(DENSITY, value[row % heads])})`);
      else if (value !== null) hatchCell(context, box);
    }
  }
  context.strokeStyle = "#d9480f";
  context.lineWidth = 2.5;
  const row = at.layer * heads + at.head;
  context.strokeRect(left + at.step * cell.width, top + row * cell.height, cell.width - 1, cell.height - 1);
  byId("heat-value").textContent = densityText(read, at);
}

function labelHeatmap(context, read, heads, steps, cell, color) {
  const { left, top } = HEAT_GUTTER;
  Object.assign(context, { fillStyle: color, font: "11px system-ui, sans-serif", textBaseline: "middle" });
  const everyLayer = Math.ceil(13 / (heads * cell.height));
  read.layers.forEach(({ transformer, layer }, index) => {
    const name = `${transformer === "transformer" ? "" : "2nd "}layer ${layer}`;
    const middle = top + (index + 0.5) * heads * cell.height;
    if (index % everyLayer === 0) context.fillText(name, 0, middle, left - 4);
  });
  const everyStep = Math.ceil(24 / cell.width);
  context.textAlign = "center";
  for (let step = 0; step < steps; step += everyStep) context.fillText(String(step), left + (step + 0.5) * cell.width, 9);
  context.textAlign = "left";
  context.fillText("step", 0, 9);
}

function fillCell(context, box, colour) {
  context.fillStyle = colour;
  context.fillRect(...box);
}

function hatchCell(context, [x, y, width, height]) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  fillCell(context, [x, y, width, height], "#c6cad0");
  context.strokeStyle = "#8a8f96";
  context.lineWidth = 1.5;
  context.beginPath();
  for (let at = -height; at < width; at += 6) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
  }
  context.stroke();
  context.restore();
}

function densityText(read, { layer, head, step }) {
  const value = read.density[layer][step];
  const place = `Layer ${layerName(read, layer)}, head ${head}, step ${step}`;
  if (Array.isArray(value)) return `${place}: density ${percent(value[head])}`;
  return value === null ? `${place}: did not run` : `${place}: dense (${value})`;
}

function layerName(read, index) {
  const { transformer, layer } = read.layers[index];
  return transformer === "transformer" ? String(layer) : `${layer} of ${transformer}`;
}
