// Every chart of the page by uPlot: hover reads values off, dragging zooms, a double click shows all again.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawChart = box => {
  const data = JSON.parse(box.nextElementSibling.textContent);
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const number = value => value === null || value === undefined ? "–" : +value.toPrecision(4);
  box.replaceChildren();
  new uPlot({
    width: box.clientWidth, height: 260,
    scales: { x: { time: false }, y: { distr: data.log ? 3 : 1 } },
    axes: [{ ...axis }, { ...axis, size: 58, label: data.unit, labelSize: 20, values: (_, ticks) => ticks.map(number) }],
    series: [{ label: "step" }, ...data.lines.map((line, index) => ({
      label: line.label, stroke: colour(`--line-${index % 6 + 1}`), width: 2, spanGaps: true,
      points: { show: line.dots }, value: (_, value) => number(value),
    }))],
  }, [data.x, ...data.values], box);
};
const drawCharts = () => document.querySelectorAll(".plot").forEach(drawChart);
drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
let resized;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(drawCharts, 150); });
