const byId = (id) => document.getElementById(id);

/** An element with properties and children; text is never read as HTML. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(({ value, label }) => el("option", { value: String(value), textContent: label })));
  if (chosen !== undefined) select.value = String(chosen);
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;

/** Column and row of the cell of a canvas that a pointer is on. */
function cellAt(canvas, event, columns, rows) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
  return [clamp(column, 0, columns - 1), clamp(row, 0, rows - 1)];
}

/** Steps of the arrow keys, as [right, down]; undefined for other keys. */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A colour between those of a ramp, `share` from 0 to 1, as [r, g, b]. */
function ramp(colours, share) {
  const place = clamp(share, 0, 1) * (colours.length - 1);
  const low = Math.min(Math.floor(place), colours.length - 2);
  return colours[low].map((value, i) => Math.round(value + (colours[low + 1][i] - value) * (place - low)));
}

function drawRamp(canvas, colours) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${ramp(colours, x / (canvas.width - 1))})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
