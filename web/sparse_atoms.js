/** The pack's front-end extension. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { browse } from "./browse.js";
import { attach } from "./mixer/node.js";

const MIXER = "SparseAtoms_Mixer";
const LOAD = "SparseAtoms_Load";
/** @type {Map<object, import("./mixer/panel.js").Panel>} */
const panels = new Map();

app.registerExtension({
  name: "SparseAtoms",

  setup() {
    const href = new URL("./style.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    api.addEventListener("execution_error", ({ detail }) => showError(detail));
  },

  nodeCreated(node) {
    if (node.comfyClass === MIXER) addMixer(node);
    if (node.comfyClass === LOAD) addBrowse(node);
  },
});

function addMixer(node) {
  panels.set(node, attach(node, app, api));
  const before = node.onRemoved;
  node.onRemoved = function (...given) {
    panels.delete(node);
    return before?.apply(this, given);
  };
}

function addBrowse(node) {
  const name = node.widgets.find((widget) => widget.name === "name");
  const pick = (value) => {
    name.value = value;
    name.callback?.(value);
    node.setDirtyCanvas?.(true, true);
  };
  const widget = node.addWidget("button", "browse", null, () => browse(api, name.value, pick), { serialize: false });
  widget.label = "Pick by picture";
  widget.serialize = false;
}

/** Nodes inside subgraphs are named by the way to them, as in 5:3. */
function showError({ node_type: type, node_id: id, exception_message: message }) {
  if (type !== MIXER) return;
  for (const [node, panel] of panels) if (String(node.id) === String(id).split(":").at(-1)) panel.fail(message);
}
