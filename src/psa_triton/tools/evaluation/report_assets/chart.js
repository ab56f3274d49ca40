const LINE_COLOURS = ["#0b8f8c", "#d9822b", "#7a5cc2", "#c2437a", "#4c8f2f", "#8a95a3"];
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** One line a video: a measure of every frame; a click goes to the frame. */
function makeChart(view, player) {
  const names = Object.keys(view.measures).filter((name) => Object.values(view.scores).some((scores) => name in scores));
  fillSelect(byId("measure"), names.map((name) => ({ value: name, label: view.measures[name].label })));
  const draw = () => drawChart(view, byId("measure").value, player.frame);
  byId("measure").addEventListener("change", draw);
  window.addEventListener("resize", draw);
  player.onChange(() => {
    moveCursor(view, player.frame);
    byId("frame-value").textContent = frameText(view, player);
  });
  byId("chart").addEventListener("click", (event) => {
    const box = byId("chart").getBoundingClientRect();
    const { left, right } = chartFrame(box.width);
    const share = (event.clientX - box.left - left) / (right - left);
    player.pauseAt(clamp(Math.round(share * (player.count - 1)), 0, player.count - 1));
  });
  draw();
}

/** The frame of the shown video that is furthest from dense, by the measure that the curve shows. */
function worstFrame(view) {
  const name = byId("measure").value;
  const scores = view.scores[byId("track").value]?.[name] ?? [];
  const worst = view.measures[name]?.closer === "higher" ? Math.min(...scores) : Math.max(...scores);
  return Math.max(0, scores.indexOf(worst));
}

const chartFrame = (width) => ({ left: 46, right: width - 10, top: 8, bottom: 128 });

function frameText(view, player) {
  const scores = view.scores[byId("track").value];
  const psnr = scores?.psnr ? ` · ${scores.psnr[player.frame].toFixed(1)} dB` : "";
  return `${player.frame + 1} / ${player.count}${psnr}`;
}

function drawChart(view, name, frame) {
  const lines = Object.entries(view.scores).filter(([, scores]) => name in scores);
  const values = lines.flatMap(([, scores]) => scores[name]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * 0.08 || Math.abs(high) * 0.05 || 1;
  const width = byId("chart").clientWidth || 600;
  const { left, right, top, bottom } = chartFrame(width);
  const y = (value) => bottom - ((value - low + room) / (high - low + 2 * room)) * (bottom - top);
  const picture = svg("svg", { viewBox: `0 0 ${width} 150`, role: "img", "aria-label": chartText(view, name, lines) });
  for (const value of [low, (low + high) / 2, high]) {
    picture.append(
      svg("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(view.measures[name].digits)),
    );
  }
  lines.forEach(([, scores], i) => {
    const x = (at) => left + (at / Math.max(1, scores[name].length - 1)) * (right - left);
    const points = scores[name].map((value, at) => `${x(at)},${y(value)}`).join(" ");
    picture.append(svg("polyline", { points, stroke: LINE_COLOURS[i % LINE_COLOURS.length] }));
  });
  picture.append(
    svg("text", { x: left, y: 146 }, "frame 1"),
    svg("text", { x: right, y: 146, "text-anchor": "end" }, `frame ${view.video.count}`),
    svg("line", { class: "cursor", id: "cursor", y1: top, y2: bottom, x1: 0, x2: 0 }),
  );
  byId("chart").replaceChildren(picture);
  byId("score-legend").replaceChildren(...lines.map(([label], i) => key(LINE_COLOURS[i % LINE_COLOURS.length], label)));
  moveCursor(view, frame);
}

function chartText(view, name, lines) {
  const ranges = lines.map(([label, scores]) => {
    const shown = [Math.min(...scores[name]), Math.max(...scores[name])].map((v) => v.toFixed(view.measures[name].digits));
    return `${label} from ${shown[0]} to ${shown[1]}`;
  });
  return `${view.measures[name].label} of each frame: ${ranges.join("; ")}`;
}

function moveCursor(view, frame) {
  const { left, right } = chartFrame(byId("chart").clientWidth || 600);
  const x = left + (frame / Math.max(1, view.video.count - 1)) * (right - left);
  for (const end of ["x1", "x2"]) byId("cursor")?.setAttribute(end, x);
}

/** An entry of a legend. */
function key(colour, label) {
  const swatch = el("i", { className: "swatch" });
  swatch.style.background = colour;
  return el("span", { className: "key" }, swatch, label);
}
