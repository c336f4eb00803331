// The page is read and started; what a program can ask of it stands in `window.circuitgraph`.

import { App } from "./app.js";
import { systemTheme } from "./controls.js";
import { readData } from "./data.js";
import { byId } from "./dom.js";
import { graphText, pictureText, pythonText } from "./exports.js";
import { GUTTER } from "./paint.js";
import { saveState } from "./state.js";

document.documentElement.dataset.theme = systemTheme(); // before anything is painted
readData(byId("data")).then(
  (graph) => {
    const app = new App(graph);
    app.start();
    window.circuitgraph = {
      state: () => saveState(app.graph, app.state),
      load: (saved) => app.load(saved),
      shown: () => ({
        nodes: app.view.nodes.map((node) => graph.id[node]),
        edges: [...app.view.edges].map((e) => [graph.id[graph.source[e]], graph.id[graph.target[e]], graph.kinds[graph.kind[e]][0]]),
        focus: app.focus && [...app.focus.nodes].map((node) => graph.id[node]),
      }),
      place: (id) => {
        const node = graph.number.get(id);
        const box = app.stage.getBoundingClientRect();
        return [app.layout.x[node] * app.transform.k + app.transform.x + GUTTER + box.left, app.layout.y[node] * app.transform.k + app.transform.y + box.top];
      },
      python: () => pythonText(app),
      svg: () => pictureText(app),
      json: () => graphText(app),
    };
    document.documentElement.dataset.ready = "";
  },
  (error) => {
    byId("status").textContent = `This page cannot be drawn: ${error.message}`;
    throw error;
  },
);
