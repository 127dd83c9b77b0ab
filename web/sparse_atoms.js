/** The pack's front-end extension. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { browse } from "./browse.js";
import { attach, recordChange, showError } from "./mixer/node.js";

const MIXER = "SparseAtoms_Mixer";
const LOAD = "SparseAtoms_Load";

app.registerExtension({
  name: "SparseAtoms",

  setup() {
    const href = new URL("./style.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    api.addEventListener("execution_error", ({ detail }) => showError(detail, app));
  },

  nodeCreated(node) {
    if (node.comfyClass === MIXER) attach(node, app, api);
    if (node.comfyClass === LOAD) addBrowse(node);
    if (node.comfyClass?.startsWith("SparseAtoms_") && !node.outputs?.some((output) => output.type === "STRING")) showText(node);
  },
});

function addBrowse(node) {
  const name = node.widgets.find((widget) => widget.name === "name");
  const pick = (value) => {
    name.value = value;
    name.callback?.(value);
    node.setDirtyCanvas?.(true, true);
    recordChange(app);
  };
  const widget = node.addWidget("button", "browse", null, () => browse(api, name.value, pick), { serialize: false });
  widget.label = "Pick by picture";
  widget.serialize = false;
}

/** Shows on a node what a run said of it, where no output hands that on. The front end does so for what is said during a run. */
function showText(node) {
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.call(this, output);
    const text = output?.text?.join("\n");
    if (text) api.dispatchEvent(new CustomEvent("progress_text", { detail: { nodeId: String(node.id), text } }));
  };
}
