// Draw the charts: the element with the id "charts" holds their traces and layouts as JSON, and the one with the id "plotly"
// the program that draws them, compressed. The policy of the page allows that program, by its hash, and no other.
const config = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

async function drawCharts() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const program = document.createElement("script");
  program.textContent = await new Response(
    new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip")),
  ).text();
  document.body.append(program);
  for (const { id, traces, layout } of JSON.parse(document.getElementById("charts").textContent)) {
    Plotly.newPlot(id, traces, layout, config);
  }
}

if (typeof DecompressionStream === "function") {
  drawCharts();
} else {
  document.getElementById("no-charts").hidden = false;
}
