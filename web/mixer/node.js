/** Ties a panel to its node: the node's text widget keeps the mix, so that the workflow does. */

import { Panel } from "./panel.js";
import { fetchAtoms, fileOf, isGone, isLinked, locatorOf, nodeAt } from "./source.js";

const NAME = "mix";
const HEIGHT = 360;
const WIDTH = 380;
/** Milliseconds between looks at which file stands upstream: no event tells it for every node in between. */
const LOOK = 700;
/** Milliseconds until a file that could not be read is asked for again: it may have come, or the server may be back. */
const AGAIN = 5000;
/** @type {Map<object, Panel>} those of the nodes that are in the workflow */
const panels = new Map();

/** @param app the front end's @param api likewise */
export function attach(node, app, api) {
  const text = node.widgets.find((widget) => widget.name === NAME);
  const panel = new Panel(
    {
      write: (value) => {
        text.value = value;
        recordChange(app);
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
  after(node, "onConfigure", () => panel.load(text.value));
  after(text, "callback", () => panel.read(text.value));
  watch(node, text, panel, app, api);
}

/** Has the front end notice what a program changed, for its undo and its drafts: of itself it sees what a hand does. */
export function recordChange(app) {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}

/** Shows on its panel why a mixer could not run. @param error the server's message */
export function showError({ node_id: path, exception_message: message }, app) {
  panels.get(nodeAt(path, rootOf(app)))?.fail(message);
}

function watch(node, text, panel, app, api) {
  let [shown, again, ran, timer] = [null, Infinity, null, 0];
  const take = (said) => {
    ran = said;
    panel.setAtoms(said);
  };
  const isOfChain = (said) => shown === null || said.hash === panel.hash;
  /** What the last run said: the front end keeps it where it makes the node anew, as after its own undo. */
  const kept = () => app.nodeOutputs?.[locatorOf(node, rootOf(app))]?.sparse_atoms?.[0];
  const recall = () => {
    const said = kept();
    if (said && said !== ran && isOfChain(said)) take(said);
  };
  const show = async (file) => {
    try {
      const data = await fetchAtoms(api, file);
      if (shown !== file) return;
      take(data);
      recall(); // it knows what the nodes in between added
    } catch (error) {
      if (shown !== file) return;
      again = Date.now() + AGAIN;
      panel.fail(error.message);
    }
  };
  const look = () => {
    if (isGone(node, rootOf(app))) return stop();
    panel.read(text.value);
    panel.follow(isLinked(node, NAME, rootOf(app)));
    if (!document.hidden) lookUpstream();
  };
  const lookUpstream = () => {
    const file = fileOf(node, rootOf(app));
    if (file === shown && Date.now() < again) return recall();
    [shown, again] = [file, Infinity];
    if (file !== null) return show(file);
    ran = kept(); // which was another chain's
    panel.forget();
  };
  const start = () => {
    panels.set(node, panel);
    panel.watch();
    timer = setInterval(look, LOOK);
  };
  const stop = () => {
    clearInterval(timer);
    panels.delete(node);
    panel.dispose();
  };
  after(node, "onExecuted", (output) => {
    const said = output?.sparse_atoms?.[0];
    if (!said) return;
    lookUpstream();
    if (isOfChain(said)) take(said);
    else again = 0; // the file has changed, or it was a node of another workflow that ran: the file tells
  });
  // Nodes that are made to be copied, and then thrown away, come into no graph.
  after(node, "onAdded", start);
  after(node, "onRemoved", stop);
}

function rootOf(app) {
  return app.rootGraph ?? app.graph;
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
