/** The frame that everything on the page shows, and whether it runs. */
function makePlayer(count, fps) {
  const listeners = [];
  let timer = null;
  const player = {
    count,
    frame: 0,
    get playing() { return timer !== null; },
    onChange(listener) { listeners.push(listener); },
    go(frame) {
      player.frame = ((frame % count) + count) % count;
      listeners.forEach((listener) => listener(player));
    },
    toggle() {
      if (timer === null) {
        timer = setInterval(() => player.go(player.frame + 1), 1000 / fps);
      } else {
        clearInterval(timer);
        timer = null;
      }
      player.go(player.frame);
    },
    pauseAt(frame) {
      if (timer !== null) player.toggle();
      player.go(frame);
    },
  };
  return player;
}

function connectTransport(player) {
  const slider = byId("frame");
  slider.max = player.count - 1;
  slider.addEventListener("input", () => player.pauseAt(Number(slider.value)));
  byId("play").addEventListener("click", () => player.toggle());
  byId("back").addEventListener("click", () => player.pauseAt(player.frame - 1));
  byId("forward").addEventListener("click", () => player.pauseAt(player.frame + 1));
  document.addEventListener("keydown", (event) => playerKey(player, event));
  player.onChange(() => {
    slider.value = player.frame;
    slider.setAttribute("aria-valuetext", `frame ${player.frame + 1} of ${player.count}`);
    byId("play").textContent = player.playing ? "Pause" : "Play";
    byId("play").setAttribute("aria-pressed", String(player.playing));
  });
}

/** Space, comma and full stop, wherever they have no meaning of their own. */
function playerKey(player, event) {
  const busy = event.target.closest("button, select, summary, a, input[type=radio]") !== null;
  if (event.ctrlKey || event.metaKey || event.altKey || busy) return;
  if (event.key === " ") player.toggle();
  else if (event.key === ",") player.pauseAt(player.frame - 1);
  else if (event.key === ".") player.pauseAt(player.frame + 1);
  else return;
  event.preventDefault();
}
