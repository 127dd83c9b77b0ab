/** Ties a panel to its node: the node's text widget keeps the mix, so that the workflow does. */

import { Panel } from "./panel.js";
import { fetchAtoms, fileOf } from "./source.js";

const NAME = "mix";
const HEIGHT = 360;
const WIDTH = 380;
/** Milliseconds between looks at which file stands upstream: no event tells it for every node in between. */
const LOOK = 700;
/** Milliseconds until a file that could not be read is asked for again: it may have come, or the server may be back. */
const AGAIN = 5000;

/** @param app the front end's @param api likewise */
export function attach(node, app, api) {
  const text = node.widgets.find((widget) => widget.name === NAME);
  const panel = new Panel(
    {
      write: (value) => {
        text.value = value;
        app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
      },
      showText: () => hide(node, text, !text.hidden),
    },
    text.value,
  );
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getHeight: () => "100%" };
  const widget = node.addDOMWidget("panel", "sparse_atoms_mixer", panel.element, options);
  widget.serialize = false;
  hide(node, text, true);
  node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], HEIGHT + 80)]);
  listen(node, text, panel);
  watch(node, text, panel, app, api);
  return panel;
}

function listen(node, text, panel) {
  after(node, "onConfigure", () => panel.load(text.value));
  after(node, "onExecuted", (output) => output?.sparse_atoms?.[0] && panel.setAtoms(output.sparse_atoms[0]));
  after(text, "callback", () => panel.read(text.value));
}

function watch(node, text, panel, app, api) {
  let [shown, again] = [null, Infinity];
  const show = async (file) => {
    try {
      const data = await fetchAtoms(api, file);
      if (shown === file) panel.setAtoms(data);
    } catch (error) {
      if (shown !== file) return;
      again = Date.now() + AGAIN;
      panel.fail(error.message);
    }
  };
  const look = () => {
    panel.read(text.value);
    if (document.hidden) return;
    const file = fileOf(node, app.rootGraph ?? app.graph);
    if (file === shown && Date.now() < again) return;
    [shown, again] = [file, Infinity];
    if (file === null) panel.forget();
    else show(file);
  };
  const timer = setInterval(look, LOOK);
  after(node, "onRemoved", () => {
    clearInterval(timer);
    panel.dispose();
  });
}

function hide(node, widget, hidden) {
  widget.hidden = hidden;
  widget.options.hidden = hidden; // the other renderer reads it here
  node.widgets.splice(0, node.widgets.length, ...node.widgets);
  node.setDirtyCanvas?.(true, true);
}

function after(object, name, call) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    call(...given);
    return result;
  };
}
