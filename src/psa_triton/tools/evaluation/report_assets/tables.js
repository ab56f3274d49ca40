const cell = (tag, text, scope) => el(tag, scope ? { textContent: text, scope } : { textContent: text });

function showNumbers(data) {
  const head = el("tr", {}, cell("th", ""), ...data.table.header.map((label) => cell("th", label, "col")));
  const rows = data.table.rows.map(([label, ...values]) => el("tr", {}, cell("th", label.trim(), "row"), ...values.map((value) => cell("td", value))));
  byId("table").replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
  byId("table-caption").textContent = data.count > 1 ? `Means over ${data.count} cases (prompts × seeds) ± standard error.` : "One prompt, one seed.";
  byId("notes").replaceChildren(...data.notes.map((note) => cell("li", note)));
}

function showCases(cases) {
  const labels = [...new Set(cases.flatMap((entry) => entry.means.map((mean) => mean.label)))];
  const head = ["Prompt", "Seed", ...labels.map((label) => `${label}, PSNR dB`)].map((label) => cell("th", label, "col"));
  const rows = cases.map((entry) => {
    const psnr = (label) => entry.means.find((mean) => mean.label === label)?.psnr;
    const values = labels.map((label) => cell("td", psnr(label)?.toFixed(1) ?? "-"));
    const link = el("a", { href: entry.href, textContent: entry.prompt });
    return el("tr", {}, el("td", {}, link), cell("td", String(entry.seed)), ...values);
  });
  byId("case-table").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

/** Nested settings as lines of a table, by dotted names. */
function flatten(value, name = "") {
  if (value === null || typeof value !== "object") return [[name, value === null ? "none" : String(value)]];
  if (Array.isArray(value)) return [[name, value.map(String).join(", ")]];
  return Object.entries(value).flatMap(([key, inner]) => flatten(inner, name ? `${name}.${key}` : key));
}

function showSettings(data) {
  const { settings, versions, hardware, date } = data;
  const lines = flatten({ ...settings, versions, hardware, date });
  byId("settings").replaceChildren(el("tbody", {}, ...lines.map(([name, value]) => el("tr", {}, cell("th", name, "row"), cell("td", value)))));
  byId("command").textContent = data.command;
  byId("copy").addEventListener("click", copyCommand);
}

async function copyCommand() {
  const selection = window.getSelection();
  selection.selectAllChildren(byId("command"));
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("copied").textContent = "Copied.";
  } catch {
    byId("copied").textContent = "Selected: copy it with the keys of your system.";
  }
}

function showFailures(data) {
  const lines = [
    ...data.missing.map(({ label, error }) => `${label}: ${error}`),
    ...(data.failed ?? []).map(({ name, error }) => `${name}: ${error}`),
  ];
  byId("failures").hidden = lines.length === 0;
  byId("failure-list").replaceChildren(...lines.map((line) => cell("li", line)));
}
