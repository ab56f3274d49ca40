const LEVEL_COLOURS = [[10, 10, 14], [252, 255, 164], [251, 155, 6], [207, 68, 70], [120, 28, 109], [66, 10, 104], [40, 11, 84], [24, 10, 56]];
const QUERY_COLOUR = "#00d5ff";

const levelOf = (code) => (code === 0 ? 0 : 2 ** (code - 1));

/** What query blocks read: over the frame, as a matrix of blocks, and in every latent frame. */
function makeLevels(view, player) {
  const labels = Object.keys(view.reads).sort((a, b) => (b === view.best) - (a === view.best));
  const levels = { view, player, label: labels[0], layer: 0, head: 0, step: 0, token: null, shownLatent: -1 };
  fillSelect(byId("reads-track"), labels.map((label) => ({ value: label, label })));
  levels.heat = makeHeatmap((layer, head, step) => chooseSite(levels, layer, head, step));
  byId("reads-track").addEventListener("change", (event) => startLevels(levels, event.target.value));
  for (const name of ["layer", "head", "step"]) {
    byId(name).addEventListener("change", () => chooseSite(levels, ...["layer", "head", "step"].map((id) => Number(byId(id).value))));
  }
  byId("strength").addEventListener("input", () => drawLevels(levels));
  connectMap(levels);
  connectBlocks(levels);
  player.onChange(() => followFrame(levels));
  startLevels(levels, labels[0]);
}

function startLevels(levels, label) {
  levels.label = label;
  const read = levels.view.reads[label];
  levels.read = read;
  levels.token = read.layout ? middleToken(levels, read.layout) : null;
  levels.block = read.layout ? blockOfToken(read, levels.token, read.layout.block_m) : 0;
  makeStrip(levels);
  const first = read.maps.index.at(0);
  const last = read.maps.index.findLast((map) => map.layer === first?.layer);
  chooseSite(levels, first?.layer ?? 0, first?.heads[0] ?? 0, last?.step ?? 0);
}

/** The middle of the latent frame that is shown. */
function middleToken(levels, { grid: [t, h, w] }) {
  const latent = latentOf(levels.player.frame, levels.player.count, t);
  return (latent * h + Math.floor(h / 2)) * w + Math.floor(w / 2);
}

/** The map of a place, if it was kept. */
function findMap({ read, layer, head, step }) {
  return read.maps.index.find((map) => map.layer === layer && map.step === step && map.heads.includes(head));
}

function chooseSite(levels, layer, head, step) {
  Object.assign(levels, { layer, head, step });
  const { read } = levels;
  const { heads } = heatSize(read);
  fillSelect(byId("layer"), read.layers.map((_, i) => ({ value: i, label: layerName(read, i) })), layer);
  fillSelect(byId("head"), Array.from({ length: heads }, (_, i) => ({ value: i, label: String(i) })), head);
  fillSelect(byId("step"), Array.from({ length: read.steps }, (_, i) => ({ value: i, label: String(i) })), step);
  levels.map = findMap(levels);
  levels.matrix = levels.map && drawMatrix(levels);
  byId("reads-body").hidden = !levels.map;
  byId("reads-none").hidden = Boolean(levels.map);
  if (!levels.map) byId("reads-none").textContent = whyNoMap(levels);
  levels.heat.show(read, { layer, head, step });
  drawLevels(levels);
}

function whyNoMap({ read, layer, step, head }) {
  const value = read.density[layer][step];
  if (value === null) return "This layer did not run in this step.";
  if (!Array.isArray(value)) return `This layer ran dense in this step (${value}): every key was read.`;
  const kept = read.maps.index.map((map) => `layer ${layerName(read, map.layer)} step ${map.step} heads ${map.heads.join(", ")}`);
  return `The level map of head ${head} was not kept here. Kept: ${kept.slice(0, 12).join("; ")}${kept.length > 12 ? "; ..." : ""}.`;
}

function blockOfToken(read, token, size) {
  const position = read.positionOf ? read.positionOf[token] : token;
  return Math.floor((read.layout.prefix + position) / size);
}

/** Codes of all key blocks for a query block. */
function rowOfCodes({ read, map, head }, block) {
  const { query_blocks: queries, key_blocks: keys } = read.layout;
  const bytes = Math.ceil(keys / 2);
  const start = map.offset + (map.heads.indexOf(head) * queries + block) * bytes;
  return Array.from({ length: keys }, (_, key) => (read.codes[start + (key >> 1)] >> (key & 1 ? 4 : 0)) & 15);
}

const latentOf = (frame, count, latents) => (count < 2 ? 0 : Math.ceil((frame * (latents - 1)) / (count - 1)));

function frameOf(latent, count, latents) {
  return latent === 0 || latents < 2 ? 0 : Math.round(((latent - 0.5) * (count - 1)) / (latents - 1));
}

function followFrame(levels) {
  if (!levels.map || !levels.read.layout.in_place) return;
  drawMap(levels, byId("map"), levels.player.frame, levels.codes, mapCell(levels));
  const latent = latentOf(levels.player.frame, levels.player.count, levels.read.layout.grid[0]);
  for (const button of byId("strip").children) button.setAttribute("aria-pressed", String(Number(button.dataset.latent) === latent));
}

function drawLevels(levels) {
  if (!levels.map) return;
  levels.codes = rowOfCodes(levels, levels.block);
  const inPlace = levels.read.layout.in_place;
  byId("place").hidden = byId("strip-part").hidden = !inPlace;
  drawBlocks(levels);
  tellLevels(levels);
  if (!inPlace) return;
  followFrame(levels);
  for (const button of byId("strip").children) {
    const frame = frameOf(Number(button.dataset.latent), levels.player.count, levels.read.layout.grid[0]);
    drawMap(levels, button.firstChild, frame, levels.codes, 8);
  }
}

const mapCell = ({ read }) => clamp(Math.floor(480 / read.layout.grid[2]), 4, 40);

/** A frame with each token's place in the colour of the level at which it was read. */
function drawMap(levels, canvas, frame, codes, cell) {
  const { read, view } = levels;
  const [latents, rows, columns] = read.layout.grid;
  if (canvas.width !== columns * cell) Object.assign(canvas, { width: columns * cell, height: rows * cell });
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = false;
  context.drawImage(view.frames[levels.label][frame], 0, 0, canvas.width, canvas.height);
  removeColours(context, canvas);
  const latent = latentOf(frame, view.video.count, latents);
  const strength = Number(byId("strength").value) / 100;
  for (let i = 0; i < rows * columns; i++) {
    const token = latent * rows * columns + i;
    const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell];
    context.globalAlpha = strength;
    fillCell(context, [x, y, cell, cell], `rgb(${LEVEL_COLOURS[codes[blockOfToken(read, token, read.layout.block_n)]]})`);
    if (blockOfToken(read, token, read.layout.block_m) !== levels.block) continue;
    context.globalAlpha = 1;
    const line = Math.max(2, Math.round(cell / 10));
    Object.assign(context, { strokeStyle: QUERY_COLOUR, lineWidth: line });
    context.strokeRect(x + line / 2, y + line / 2, cell - line, cell - line);
  }
}

/** In grey, so that all colours are those of levels. */
function removeColours(context, canvas) {
  context.globalCompositeOperation = "saturation";
  fillCell(context, [0, 0, canvas.width, canvas.height], "#000");
  context.globalCompositeOperation = "source-over";
}

function drawBlocks(levels) {
  const { query_blocks: queries, key_blocks: keys } = levels.read.layout;
  const canvas = byId("blocks");
  const cell = Math.max(1, Math.floor(480 / Math.max(queries, keys)));
  Object.assign(canvas, { width: keys * cell, height: queries * cell });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(levels.matrix, 0, 0, canvas.width, canvas.height);
  const line = Math.max(1, Math.round(cell / 5));
  Object.assign(context, { strokeStyle: QUERY_COLOUR, lineWidth: line });
  context.strokeRect(line / 2, levels.block * cell - line / 2, keys * cell - line, cell + line);
}

/** The levels of all blocks, a pixel each. */
function drawMatrix(levels) {
  const { query_blocks: queries, key_blocks: keys } = levels.read.layout;
  const matrix = el("canvas", { width: keys, height: queries });
  const image = new ImageData(keys, queries);
  for (let query = 0; query < queries; query++) {
    rowOfCodes(levels, query).forEach((code, block) => image.data.set([...LEVEL_COLOURS[code], 255], 4 * (query * keys + block)));
  }
  matrix.getContext("2d").putImageData(image, 0, 0);
  return matrix;
}

function tellLevels(levels) {
  const { query_blocks: queries, key_blocks: keys, block_m: size, prefix } = levels.read.layout;
  const counts = new Map();
  levels.codes.forEach((code) => counts.set(code, (counts.get(code) ?? 0) + 1));
  const shown = [...counts.keys()].sort((a, b) => (a || 99) - (b || 99));
  const parts = shown.map((code) => `${counts.get(code)} ${code ? `at level ${levelOf(code)}` : "not at all"}`);
  const text = prefix > 0 ? ` The first ${prefix} tokens are text.` : "";
  const place = levels.read.layout.in_place ? "" : " Tokens stand by clusters that each layer finds anew, so they have no fixed place on the frame.";
  byId("reads-value").textContent = `Query block ${levels.block + 1} of ${queries} (${size} tokens${levels.read.layout.in_place ? ", outlined" : ""}) reads of ${keys} key blocks: ${parts.join(", ")}.${text}${place}`;
  byId("level-bar").replaceChildren(...shown.map((code) => {
    const part = el("i", { title: `level ${levelOf(code)}: ${percent(counts.get(code) / keys)}` });
    Object.assign(part.style, { width: percent(counts.get(code) / keys, 3), background: `rgb(${LEVEL_COLOURS[code]})` });
    return part;
  }));
  byId("level-legend").replaceChildren(...shown.map((code) => key(`rgb(${LEVEL_COLOURS[code]})`, levelName(code))), key(QUERY_COLOUR, "the query block itself"));
}

function levelName(code) {
  if (code === 0) return "0: nothing";
  return code === 1 ? "1: every key" : `${levelOf(code)}: means of ${levelOf(code)} keys`;
}

function makeStrip(levels) {
  const { layout } = levels.read;
  if (!layout?.in_place) return;
  const [latents] = layout.grid;
  byId("strip").replaceChildren(...Array.from({ length: latents }, (_, latent) => {
    const frame = frameOf(latent, levels.player.count, latents);
    const button = el("button", { type: "button", "aria-label": `Latent frame ${latent + 1}, frame ${frame + 1}` }, el("canvas"), `frame ${frame + 1}`);
    button.dataset.latent = latent;
    button.addEventListener("click", () => levels.player.pauseAt(frame));
    return button;
  }));
}

function chooseToken(levels, token) {
  levels.token = token;
  levels.block = blockOfToken(levels.read, token, levels.read.layout.block_m);
  drawLevels(levels);
}

function connectMap(levels) {
  const canvas = byId("map");
  const place = () => {
    const [latents, rows, columns] = levels.read.layout.grid;
    return { latents, rows, columns, latent: latentOf(levels.player.frame, levels.player.count, latents) };
  };
  canvas.addEventListener("click", (event) => {
    const { rows, columns, latent } = place();
    const [x, y] = cellAt(canvas, event, columns, rows);
    levels.player.pauseAt(levels.player.frame);
    chooseToken(levels, (latent * rows + y) * columns + x);
  });
  canvas.addEventListener("keydown", (event) => {
    const { latents, rows, columns, latent } = place();
    const turn = { PageUp: -1, PageDown: 1 }[event.key] ?? 0;
    const arrow = ARROWS[event.key] ?? (turn ? [0, 0] : null);
    if (!arrow) return;
    event.preventDefault();
    const next = clamp(latent + turn, 0, latents - 1);
    if (turn) levels.player.pauseAt(frameOf(next, levels.player.count, latents));
    const within = levels.token % (rows * columns);
    const x = clamp((within % columns) + arrow[0], 0, columns - 1);
    const y = clamp(Math.floor(within / columns) + arrow[1], 0, rows - 1);
    chooseToken(levels, (next * rows + y) * columns + x);
  });
}

function connectBlocks(levels) {
  const canvas = byId("blocks");
  const choose = (block) => {
    const { query_blocks: queries, block_m: size, prefix } = levels.read.layout;
    levels.block = clamp(block, 0, queries - 1);
    const position = Math.max(0, levels.block * size - prefix);
    levels.token = levels.read.tokenAt ? levels.read.tokenAt[position] : position;
    drawLevels(levels);
  };
  canvas.addEventListener("click", (event) => choose(cellAt(canvas, event, 1, levels.read.layout.query_blocks)[1]));
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    choose(levels.block + arrow[0] + arrow[1]);
  });
}
