const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

/** The big picture: dense and another video with a divider, beside each other, or their difference. */
function makeStage(view, player) {
  const { width, height } = view.video;
  const stage = { view, width, height, mode: "divider", track: null, split: 0.5, gain: 8 };
  const small = width < 320;
  byId("stage-canvas").classList.toggle("pixels", small);
  stage.draw = () => drawStage(stage, player.frame);
  connectDivider(stage);
  connectModes(stage);
  connectTracks(stage, player);
  player.onChange(stage.draw);
  return stage;
}

function drawStage(stage, frame) {
  const { width, height, mode } = stage;
  const beside = mode === "beside";
  const gap = beside ? Math.max(2, Math.round(width / 60)) : 0;
  const canvas = byId("stage-canvas");
  const wide = beside ? 2 * width + gap : width;
  if (canvas.width !== wide || canvas.height !== height) Object.assign(canvas, { width: wide, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const dense = stage.view.frames.dense[frame];
  const other = stage.view.frames[stage.track][frame];
  if (mode === "divider") drawSplit(context, dense, other, stage.split, width, height);
  if (mode === "difference") drawDifference(context, dense, other, stage.gain, width, height);
  if (beside) {
    context.drawImage(dense, 0, 0);
    context.drawImage(other, width + gap, 0);
  }
  labelStage(stage, frame);
}

function drawSplit(context, dense, other, split, width, height) {
  context.drawImage(other, 0, 0);
  const edge = Math.round(split * width);
  if (edge > 0) context.drawImage(dense, 0, 0, edge, height, 0, 0, edge, height);
}

/** The largest difference of a pixel's channels, amplified, as a colour. */
function drawDifference(context, dense, other, gain, width, height) {
  context.drawImage(dense, 0, 0);
  const a = context.getImageData(0, 0, width, height).data;
  context.drawImage(other, 0, 0);
  const image = context.getImageData(0, 0, width, height);
  const b = image.data;
  for (let i = 0; i < b.length; i += 4) {
    const apart = Math.max(Math.abs(a[i] - b[i]), Math.abs(a[i + 1] - b[i + 1]), Math.abs(a[i + 2] - b[i + 2]));
    const colour = ramp(HEAT, (apart * gain) / 255);
    [b[i], b[i + 1], b[i + 2]] = colour;
  }
  context.putImageData(image, 0, 0);
}

function labelStage(stage, frame) {
  const difference = stage.mode === "difference";
  byId("stage-left").textContent = difference ? `difference of dense and ${stage.track}` : "dense";
  byId("stage-right").textContent = difference ? "" : stage.track;
  byId("stage-right").hidden = difference;
  const divider = byId("divider");
  divider.hidden = stage.mode !== "divider";
  divider.style.left = `${100 * stage.split}%`;
  divider.setAttribute("aria-valuenow", String(Math.round(100 * stage.split)));
  const shown = { divider: "dense on the left", beside: "dense beside it", difference: "difference to dense" };
  byId("stage-canvas").setAttribute("aria-label", `Frame ${frame + 1}, ${stage.track}, ${shown[stage.mode]}`);
}

function connectDivider(stage) {
  const area = byId("stage");
  const move = (split) => {
    stage.split = clamp(split, 0, 1);
    stage.draw();
  };
  const follow = (event) => {
    const box = area.getBoundingClientRect();
    move((event.clientX - box.left) / box.width);
  };
  area.addEventListener("pointerdown", (event) => {
    if (stage.mode !== "divider") return;
    area.setPointerCapture(event.pointerId);
    follow(event);
  });
  area.addEventListener("pointermove", (event) => {
    if (area.hasPointerCapture(event.pointerId)) follow(event);
  });
  byId("divider").addEventListener("keydown", (event) => {
    const ends = { Home: 0, End: 1, PageDown: stage.split - 0.1, PageUp: stage.split + 0.1 };
    const arrow = ARROWS[event.key];
    if (arrow) move(stage.split + 0.02 * (arrow[0] - arrow[1]));
    else if (event.key in ends) move(ends[event.key]);
    else return;
    event.preventDefault();
  });
}

function connectModes(stage) {
  byId("modes").addEventListener("change", (event) => {
    stage.mode = event.target.value;
    byId("gain-row").hidden = stage.mode !== "difference";
    sizeStage(stage);
    stage.draw();
  });
  const gain = byId("gain");
  const amplify = () => {
    stage.gain = 2 ** Number(gain.value);
    byId("gain-value").textContent = `×${stage.gain}`;
    byId("ramp-high").textContent = `${Math.round(255 / stage.gain)} of 255`;
  };
  gain.addEventListener("input", () => { amplify(); stage.draw(); });
  amplify();
  drawRamp(byId("ramp"), HEAT);
  sizeStage(stage);
}

/** Small videos are magnified to some 400 pixels, and none is higher than most of a window. */
function sizeStage(stage) {
  const across = stage.mode === "beside" ? 2 : 1;
  const least = Math.max(stage.width, 420) * across;
  byId("stage").style.width = `min(100%, ${least}px, ${Math.round((stage.width * across * 70) / stage.height)}vh)`;
}

function connectTracks(stage, player) {
  const tracks = Object.keys(stage.view.frames).filter((label) => label !== "dense");
  stage.track = tracks.includes(stage.view.best) ? stage.view.best : tracks[0];
  fillSelect(byId("track"), tracks.map((label) => ({ value: label, label })), stage.track);
  byId("track").addEventListener("change", (event) => {
    stage.track = event.target.value;
    player.go(player.frame);
  });
}
