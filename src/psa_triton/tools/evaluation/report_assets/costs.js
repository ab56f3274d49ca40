const PART_COLOURS = {
  "choosing levels": "var(--c-choice)",
  "sparse attention": "var(--c-sparse)",
  "dense attention": "var(--c-dense)",
  "rest of the transformer": "var(--c-rest)",
  "outside the transformer": "var(--c-outside)",
};

function showCosts(costs) {
  byId("time-bars").replaceChildren(...bars(costs, "seconds", (value) => `${value.toFixed(value < 10 ? 2 : 1)} s`));
  byId("work-bars").replaceChildren(...bars(costs, "work", (value) => percent(value)));
  byId("cost-legend").replaceChildren(...Object.entries(PART_COLOURS).map(([name, colour]) => key(colour, name)));
}

/** A bar a video, in parts, all to one scale. */
function bars(costs, kind, format) {
  const sum = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);
  const most = Math.max(...costs.map((cost) => sum(cost[kind])));
  return costs.map((cost) => {
    const parts = Object.entries(cost[kind]).filter(([, value]) => value > 0);
    const text = parts.map(([name, value]) => `${name} ${format(value)}`).join(", ");
    const track = el("div", { className: "track", role: "img", "aria-label": text }, ...parts.map(([name, value]) => {
      const part = el("i", { title: `${name}: ${format(value)}` });
      Object.assign(part.style, { width: percent(value / most, 3), background: PART_COLOURS[name] });
      return part;
    }));
    const name = el("span", { className: "name", textContent: cost.label });
    return el("div", { className: "cost" }, name, track, el("span", { className: "total", textContent: format(sum(cost[kind])) }));
  });
}
