(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within) => [...(within || document).querySelectorAll(selector)];

  // Sorting: figures by value, words by letter; cells without either stay last.
  const key = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    if (text === "" || text === "-") return null;
    return /^[-+]?[\d.]/.test(text) ? parseFloat(text) : text;
  };
  const sort = (table, column, up) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, i) => [key(row.cells[column]), i, row]);
    rows.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
      return (up ? order : -order) || i - j;
    });
    body.append(...rows.map((row) => row[2]));
  };
  for (const table of all("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = header.getAttribute("aria-sort") !== "ascending";
        headers.forEach((other) => other.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(table, column, up);
      });
    });
  }

  const trials = document.getElementById("trials-table");
  if (trials) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    label.className = "filter";
    label.append("Rows that contain ", input);
    input.type = "search";
    input.placeholder = "front, oom, sampler ...";
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of trials.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    trials.parentElement.before(label);
  }

  // Copying works from file:// too: where the clipboard is closed, the text is selected.
  for (const block of all(".command")) {
    const button = document.createElement("button");
    const code = block.querySelector("code");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.classList.add("copies");
    block.append(button);
  }

  const data = document.getElementById("charts");
  if (!data || typeof Plotly === "undefined") return;
  const { lists, charts } = JSON.parse(data.textContent);

  // The text of a point: its row in the table of all trials.
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const names = trials ? [...trials.tHead.rows[0].cells].map((cell) => cell.textContent) : [];
  const texts = new Map();
  for (const row of trials ? trials.tBodies[0].rows : []) {
    const parts = [...row.cells].map((cell, i) => [names[i], cell.textContent]).filter(([, text]) => text && text !== "-");
    const [[, trial], [, standing]] = parts;
    const lines = parts.slice(2).map(([name, text]) => `${escape(name)} ${escape(text.slice(0, 90))}`);
    texts.set(Number(trial), `<b>trial ${escape(trial)}</b>: ${escape(standing)}<br>${lines.join("<br>")}`);
  }

  const colors = (value, style) => {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return typeof value[0] === "object" ? value.map((v) => colors(v, style)) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, colors(v, style)]));
  };
  const unpack = (value) => {
    if (value === null || typeof value !== "object") return value;
    if (Array.isArray(value)) return value.map(unpack);
    if ("$" in value) return lists[value.$];
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
  };
  const draw = (figure) => {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(name).trim();
    const spec = unpack(charts[figure.dataset.section][figure.dataset.index]);
    const traces = spec.traces.map(({ hover, ...trace }) => {
      const drawn = colors(trace, style);
      if (hover) {
        drawn.text = trace.customdata.map((trial) => texts.get(trial) ?? `trial ${trial}`);
        drawn.hovertemplate = "%{text}<extra></extra>";
      }
      return drawn;
    });
    const narrow = figure.clientWidth < 560;
    const axis = (given) => ({
      gridcolor: color("--grid"), linecolor: color("--rule"), zerolinecolor: color("--rule"), automargin: true,
      ...(given.type === "category" ? {} : { nticks: narrow ? 5 : 9 }), ...given, title: { text: given.title, standoff: 8, font: { size: 12 } },
    });
    const { legend, height, ...given } = spec.layout;
    const layout = Object.fromEntries(Object.entries(given).map(([k, v]) => [k, /^[xy]axis/.test(k) ? axis(v) : v]));
    const bottom = legend ? 70 + (narrow ? 60 : 0) : 45;
    Plotly.react(figure.querySelector(".plot"), traces, {
      ...layout, height, showlegend: Boolean(legend), hovermode: "closest", dragmode: narrow ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("--ink"), family: "system-ui, sans-serif", size: 12 },
      margin: { l: 50, r: 12, t: 12, b: bottom }, legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, font: { size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--faint"), activecolor: color("--ink") },
      hoverlabel: { bgcolor: color("--panel"), bordercolor: color("--rule"), align: "left", font: { color: color("--ink"), size: 12 } },
    }, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover", scrollZoom: false,
      modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "sendChartToCloud"], toImageButtonOptions: { format: "svg" } });
  };
  const figures = all(".chart");
  const redraw = () => figures.forEach(draw);
  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", redraw);
  addEventListener("afterprint", redraw);
})();
