function showHeader(data) {
  const { model, width, height, num_frames: frames, num_inference_steps: steps, seed, device, dtype } = data.settings;
  const facts = [model, `${width}×${height}`, `${frames} frames`, `${steps} steps`, device, dtype];
  if (seed !== undefined) facts.push(`seed ${seed}`);
  byId("facts").textContent = [...facts, data.date].join(" · ");
}

async function showCase(packed, best) {
  const view = { ...(await decodeCase(packed)), best };
  showCosts(view.costs);
  byId("costs").hidden = false;
  if (Object.keys(view.frames).length < 2) return;
  const player = makePlayer(view.video.count, view.video.fps);
  byId("frames").hidden = false;
  byId("exactness").textContent = view.video.exact
    ? "Pixels are those that were made, in 8 bits."
    : "Frames are compressed here (WebP): small differences are partly its own.";
  connectTransport(player);
  makeStage(view, player);
  makeChart(view, player);
  const goToWorst = () => player.pauseAt(worstFrame(view));
  byId("worst").addEventListener("click", goToWorst);
  goToWorst();
  if (Object.keys(view.reads).length > 0) {
    byId("reads").hidden = false;
    makeLevels(view, player);
  }
  player.go(player.frame);
}

async function main() {
  const data = JSON.parse(byId("data").textContent);
  showHeader(data);
  showFailures(data);
  showNumbers(data);
  showSettings(data);
  if (data.cases) {
    byId("cases").hidden = false;
    showCases(data.cases);
  }
  if (data.case) await showCase(data.case, data.verdicts[0]?.label);
  document.body.dataset.ready = "yes";
}

main();
