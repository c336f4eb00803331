// What the buttons, the menu, zooming, the window and the system's theme do.

import { byId } from "./dom.js";
import * as exports from "./exports.js";
import { listenToKeys } from "./keys.js";
import { GUTTER } from "./paint.js";
import { listenToPointer } from "./pointer.js";
import { showTray } from "./tray.js";
import { Zoom } from "./zoom.js";

const darkSystem = matchMedia("(prefers-color-scheme: dark)");
export const systemTheme = () => (darkSystem.matches ? "dark" : "light");

export function listenToControls(app) {
  const moved = (byHand) => {
    app.hovered = null;
    byId("tooltip").hidden = true;
    app.draw(byHand);
  };
  app.zoom = new Zoom(app.stage, GUTTER, moved, () => app.draw());
  const on = (id, action) => byId(id).addEventListener("click", action);
  on("tray-toggle", () => {
    app.state.tray = !app.state.tray;
    showTray(app);
    app.pack();
    app.refocus();
    app.remember();
  });
  on("theme", () => app.toggleTheme());
  on("help-open", () => byId("help").showModal());
  on("zoom-in", () => app.zoomBy(1.3));
  on("zoom-out", () => app.zoomBy(1 / 1.3));
  on("zoom-fit", () => app.fit());
  const actions = { "save-svg": exports.saveSvg, "save-png": exports.savePng, "save-graph": exports.saveGraph, "save-state": exports.saveStateFile, "copy-state": exports.copyState, "copy-python": exports.copyPython };
  for (const [id, action] of Object.entries(actions))
    on(id, () => {
      action(app);
      byId("export").open = false;
    });
  byId("load-state").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    try {
      app.load(JSON.parse(await file.text()));
      app.say("state loaded");
    } catch {
      app.say("this file is no saved state: expected the JSON that “Save state” writes");
    }
    event.target.value = ""; // so that the same file can be loaded again
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#export")) byId("export").open = false;
  });
  darkSystem.addEventListener("change", () => {
    app.applyTheme();
    app.draw();
  });
  new ResizeObserver(() => app.settle()).observe(app.stage);
  listenToKeys(app);
  listenToPointer(app);
}
