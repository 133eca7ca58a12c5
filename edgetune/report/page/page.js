/* The page's own script: draws the charts, in the colours of the theme; axes, sorting and theme by hand. */
"use strict";
(() => {
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const drawn = new Map();
  const system = matchMedia("(prefers-color-scheme: dark)");

  const isNarrow = () => innerWidth < 640;
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const STAGES = {
    light: { "base": "#8b929b", "fine-tuned": "#2b6fd4", "merged": "#7c5cd6", "float32 ONNX": "#c48a12",
      "exact activations": "#cf4f8a", "bundle": "#0a9070" },
    dark: { "base": "#8f99a3", "fine-tuned": "#6ca8ff", "merged": "#a78bfa", "float32 ONNX": "#eab54a",
      "exact activations": "#f27cb0", "bundle": "#3fd0a4" },
  };
  const CATEGORY = {
    light: ["#2b6fd4", "#e07a1f", "#0a9070", "#cf4f8a", "#7c5cd6", "#8b929b", "#b8860b", "#1b9aaa", "#a23b3b", "#5a8f29"],
    dark: ["#6ca8ff", "#ffa55c", "#3fd0a4", "#f27cb0", "#a78bfa", "#9aa4ae", "#eab54a", "#5fd3e0", "#ff8f8f", "#a3d977"],
  };

  function config() {
    const ink = colour("--ink"), soft = colour("--soft"), line = colour("--line");
    const font = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
    return {
      background: null, font, view: { stroke: null }, padding: 2,
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domain: false, tickColor: line, titleFontWeight: 500,
        labelFontSize: 12, titleFontSize: 12, titlePadding: 10, labelPadding: 6, labelOverlap: true },
      axisY: { labelLimit: isNarrow() ? 110 : 260 },
      legend: { labelColor: ink, titleColor: soft, labelFontSize: 12, symbolType: "circle", orient: "top", title: null,
        symbolOpacity: 1, symbolBaseFillColor: soft, symbolBaseStrokeColor: soft, labelLimit: 220, columns: isNarrow() ? 2 : 0 },
      range: { category: CATEGORY[isDark() ? "dark" : "light"] },
      tick: { color: ink }, rule: { color: soft }, text: { color: ink, font },
      point: { stroke: colour("--card"), strokeWidth: 1.5 },
    };
  }

  /* Colours by what the names mean, where that is known. */
  function dyed(spec) {
    const theme = isDark() ? "dark" : "light", other = CATEGORY[theme];
    const meanings = { stage: STAGES[theme],
      is: { candidate: other[5], front: other[0], chosen: other[1], right: STAGES[theme].bundle, wrong: other[1] } };
    const dye = ({ names, ...colour }) => {
      if (isNarrow() && colour.legend && colour.legend.columns) colour.legend = { ...colour.legend, columns: colour.legend.orient === "bottom" ? 1 : 2, labelLimit: 130 };
      const known = meanings[colour.field];
      if (!known) return colour;
      const domain = names || (colour.scale && colour.scale.domain) || Object.keys(known);
      return { ...colour, scale: { ...colour.scale, domain, range: domain.map((name, i) => known[name] || other[i % other.length]) } };
    };
    const walk = (value, key) => {
      if (Array.isArray(value)) return value.map((item) => walk(item));
      if (value === null || typeof value !== "object" || key === "data") return value;
      const copy = Object.fromEntries(Object.entries(value).map(([name, item]) => [name, walk(item, name)]));
      return key === "color" && copy.field ? dye(copy) : copy;
    };
    return walk(spec);
  }

  async function draw(name) {
    const place = document.querySelector(`[data-chart="${name}"]`);
    const spec = name === "frontier" ? frontier() : specs[name];
    if (!place || !spec) return;
    const before = drawn.get(name);
    const shown = await vegaEmbed(place, dyed(spec), {
      actions: false, renderer: "svg", mode: "vega-lite", config: config(), ast: false,
      tooltip: { theme: "custom", offsetX: 12, offsetY: 12 },
    });
    if (before) before.finalize();
    drawn.set(name, shown);
    place.dataset.drawn = "true";
  }

  /* The frontier over the axes that were chosen. */
  function frontier() {
    const { points, columns } = specs.frontier;
    const key = (axis) => document.getElementById(`axis-${axis}`).value;
    const [x, y] = ["x", "y"].map((axis) => columns.find((column) => column.key === key(axis)));
    const has = points.filter((point) => x.key in point.values && y.key in point.values);
    const rows = has.map((point) => ({
      model: point.model, run: point.run, stage: point.stage, x: point.values[x.key], y: point.values[y.key],
      low: (point.lows[y.key] || [])[0], high: (point.lows[y.key] || [])[1],
      x_text: point.texts[x.key], y_text: point.texts[y.key],
    }));
    const missing = points.length - has.length;
    const front = x.key !== y.key && x.better && y.better ? undominated(rows, x.better, y.better) : [];
    const told = front.filter((row, i) => !i || row.x !== front[i - 1].x || row.y !== front[i - 1].y);
    const best = told.map((row) => `${row.model} of ${row.run} (${row.x_text}, ${row.y_text})`);
    document.getElementById("frontier-said").textContent =
      (front.length ? `On the line, beaten by none: ${best.slice(0, 4).join("; ")}${best.length > 4 ? " and others" : ""}. ` : "") +
      (missing ? `${missing} of ${points.length} models have no such numbers and are not drawn.` : "");
    const sources = [...new Set(rows.map((row) => row.run))];
    const stages = [...new Set(rows.map((row) => row.stage))];
    const marks = isNarrow() ? { orient: "bottom", columns: 2, labelLimit: 130 } : {};
    const scale = (name) => {
      const found = rows.flatMap((row) => [row[name], ...(name === "y" ? [row.low, row.high] : [])]).filter((value) => value !== undefined);
      const least = Math.min(...found), most = Math.max(...found);
      return least > 0 && most > 20 * least ? { type: "log", nice: false, padding: 18 } : { zero: false, nice: true, padding: 18 };
    };
    const axes = {
      x: { field: "x", type: "quantitative", title: x.axis + arrow(x.better, "←", "→"), scale: scale("x"), axis: { grid: true, tickCount: 6 } },
      y: { field: "y", type: "quantitative", title: y.axis + arrow(y.better, "↓", "↑"), scale: scale("y"), axis: { tickCount: 6 } },
    };
    return {
      $schema: "https://vega.github.io/schema/vega-lite/v6.json",
      width: "container", autosize: { type: "fit-x", contains: "padding" }, height: isNarrow() ? 330 : 420,
      layer: [
        { data: { values: front.map((row, order) => ({ ...row, order })) }, encoding: { ...axes, order: { field: "order" } },
          mark: { type: "line", interpolate: x.better === "less" ? "step-after" : "step-before", strokeWidth: 2, strokeDash: [5, 4], color: colour("--accent"), opacity: 0.7 } },
        { data: { values: rows.filter((row) => row.low !== undefined) }, encoding: { x: axes.x, y: { ...axes.y, field: "low" }, y2: { field: "high" } },
          mark: { type: "rule", strokeWidth: 2, opacity: 0.25 } },
        { data: { values: rows }, params: [{ name: "picked", select: { type: "point", fields: ["stage"] }, bind: "legend" }],
          mark: { type: "point", filled: true, size: 150, opacity: 1 },
          encoding: { ...axes,
            color: { field: "stage", type: "nominal", title: null, names: stages },
            ...(sources.length > 1 && sources.length <= 6 ? { shape: { field: "run", type: "nominal", title: null, legend: marks } } : {}),
            opacity: { condition: { param: "picked", value: 0.95 }, value: 0.12 },
            tooltip: [{ field: "model" }, { field: "run", title: "from" }, { field: "x_text", title: x.title }, { field: "y_text", title: y.title }] } },
      ],
    };
  }

  const arrow = (better, less, more) => (better ? `  ${better === "less" ? less : more} better` : "");

  /* Points that no other equals or beats in both, from left to right. */
  function undominated(rows, x, y) {
    const cost = (row) => [x === "less" ? row.x : -row.x, y === "less" ? row.y : -row.y];
    return rows.filter((row) => {
      const [a, b] = cost(row);
      return !rows.some((other) => {
        const [c, d] = cost(other);
        return c <= a && d <= b && (c < a || d < b);
      });
    }).sort((one, other) => one.x - other.x);
  }

  function sortable(table) {
    table.querySelectorAll("thead th").forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((item) => item.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.children[place].dataset.value;
        const compare = (one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
          const found = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
          return down ? -found : found;
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  /* Charts are drawn when they come near the window, so that many runs open as fast as one. */
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !entry.target.dataset.drawn) {
        entry.target.dataset.drawn = "soon";
        draw(entry.target.dataset.chart);
      }
    }
  }, { rootMargin: "400px" });

  const redraw = () => drawn.forEach((_, name) => draw(name));
  root.classList.remove("no-script");
  document.querySelectorAll("[data-chart]").forEach((place) => watcher.observe(place));
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("select[id^='axis-']").forEach((select) => select.addEventListener("change", () => draw("frontier")));
  system.addEventListener("change", redraw);
  const theme = document.getElementById("theme");
  const say = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; say(); redraw(); });
  say();
})();
