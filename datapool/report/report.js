// Draw the charts: the element with the id "charts" holds their traces and layouts as JSON.
const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};
for (const { id, traces, layout } of JSON.parse(document.getElementById("charts").textContent)) {
  Plotly.newPlot(id, traces, layout, config);
}
