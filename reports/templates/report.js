/* Nothing here is needed to read the report: it draws curves that can be pointed at and zoomed, and sorts tables.
   Names and numbers of the log come as JSON in attributes, and are shown as text alone. */
"use strict";
(() => {
  const written = (value) =>
    value == null ? "" : Number(value).toLocaleString("en-US", { maximumSignificantDigits: 4 }).replace("-", "\u2212");

  /* The color and dash that the page's style gives to a line of this kind. */
  function strokeOf(kind, plot) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", kind);
    plot.querySelector("svg:last-of-type").append(line);
    const style = getComputedStyle(line);
    const dash = style.strokeDasharray;
    const found = { color: style.stroke, dash: dash === "none" ? [] : dash.split(",").map(parseFloat) };
    line.remove();
    return found;
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot");
    const data = JSON.parse(figure.dataset.plot);
    const holder = document.createElement("div");
    holder.className = "live";
    holder.setAttribute("aria-hidden", "true"); /* the still picture beside it is what a screen reader reads */
    const canvas = document.createElement("div");
    const readout = document.createElement("p");
    readout.className = "readout";
    const first = figure.parentElement.querySelector("figure[data-plot]") === figure;
    const hint = first ? "Point at a curve for its numbers; drag to zoom, double-click for all of it." : "";
    readout.textContent = hint;
    holder.append(canvas, readout);
    plot.after(holder);
    figure.classList.add("enhanced");

    const style = getComputedStyle(document.documentElement);
    const [soft, grid] = ["--soft", "--grid"].map((name) => style.getPropertyValue(name).trim());
    const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const say = (chart) => {
      const at = chart.cursor.idx;
      if (at == null) {
        readout.textContent = hint;
        return;
      }
      const values = data.series
        .map((line) => (line.y[at] == null ? null : `${line.name} ${written(line.y[at])}`))
        .filter((text) => text);
      readout.textContent = `${data.x_name} ${written(data.x[at])}: ${values.join("; ")}`;
    };
    const options = {
      width: Math.max(200, holder.clientWidth),
      height: 190,
      legend: { show: false },
      cursor: { y: false, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range: data.y_range ? () => data.y_range : undefined } },
      axes: [
        { ...axis, size: 26, values: (_, ticks) => ticks.map(written) },
        { ...axis, size: 58, values: (_, ticks) => ticks.map(written) },
      ],
      series: [{}].concat(
        data.series.map((line) => {
          const { color, dash } = strokeOf(line.kind, plot);
          if (line.dots) return { stroke: color, paths: () => null, points: { show: true, size: 11, fill: color } };
          return { stroke: color, dash, width: 1.8, spanGaps: true, points: { show: false } };
        }),
      ),
      hooks: { setCursor: [say] },
    };
    const chart = new uPlot(options, [data.x, ...data.series.map((line) => line.y)], canvas);
    return { chart, holder, figure };
  }

  let live = [];
  function drawAll() {
    for (const { chart, holder, figure } of live) {
      chart.destroy();
      holder.remove();
      figure.classList.remove("enhanced");
    }
    live = [...document.querySelectorAll("figure[data-plot]")].map(draw);
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", (event) => {
        if (event.target.closest("a")) return;
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
        const rows = [...body.rows].sort((one, other) => {
          const [a, b] = [key(one), key(other)];
          const order = a === "" || b === "" || isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
          return down ? -order : order;
        });
        body.append(...rows);
      });
    });
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => live.forEach(({ chart, holder }) => chart.setSize({ width: Math.max(200, holder.clientWidth), height: 190 })), 100);
  });
})();
