/** Where the atoms of a mixer come from: the file that the Load node at the head of its chain names. */

import { ask, ofFile } from "../server.js";

const TYPE = "SPARSE_DICTIONARY";
/** Makes another dictionary of a part of one: its atoms have other numbers. */
const EXTRACT = "SparseAtoms_Extract";
const INSIDE = -10; // origin of links that enter a subgraph
const LONGEST_CHAIN = 100;

/**
 * The file's name, or null where the chain doesn't begin at a Load node, or where another dictionary than the file's comes
 * out of it. @param root the whole workflow's graph
 */
export function fileOf(node, root) {
  for (let step = 0; node && step < LONGEST_CHAIN; step++) {
    if (node.comfyClass === "SparseAtoms_Load") {
      return isLinked(node, "name", root) ? null : (node.widgets?.find((widget) => widget.name === "name")?.value ?? null);
    }
    const inputs = node.inputs?.filter((one) => one.type === TYPE || one.type === "*") ?? [];
    // Of two, a node makes a third, or lets one through: which one only a run tells.
    if (inputs.length !== 1 || node.comfyClass === EXTRACT) return null;
    node = originOf(node.graph, inputs[0].link, root);
  }
  return null;
}

/** Whether what a widget says comes from a node elsewhere. The open input of a subgraph is the widget itself. */
export function isLinked(node, name, root) {
  const link = node.inputs?.find((input) => input.name === name)?.link;
  return Boolean(originOf(node.graph, link, root));
}

/** Under what the front end keeps what a run said of a node. */
export function locatorOf({ id, graph }, root) {
  return graph === root ? String(id) : `${graph.id}:${id}`;
}

/** The node that the server names by the way to it, as in 5:3. */
export function nodeAt(path, root) {
  const ids = String(path).split(":");
  const graph = ids.slice(0, -1).reduce((outer, id) => outer?.getNodeById(id)?.subgraph, root);
  return graph?.getNodeById(ids.at(-1));
}

/** Whether a node is in no graph of the workflow any more: the front end drops those inside subgraphs without a word. */
export function isGone(node, root) {
  const { graph } = node;
  return graph?.getNodeById(node.id) !== node || (graph !== root && root.subgraphs?.get(graph.id) !== graph);
}

/** What the server says of a file's atoms. @param api the front end's */
export function fetchAtoms(api, name) {
  return ask(api, ofFile("atoms", name));
}

function originOf(graph, link, root) {
  const found = link == null ? null : graph?.getLink?.(link);
  if (!found) return null;
  if (found.origin_id === INSIDE) {
    const holder = holderOf(graph, root);
    return originOf(holder?.graph, holder?.inputs[found.origin_slot]?.link, root);
  }
  const origin = graph.getNodeById(found.origin_id);
  if (!origin?.subgraph) return origin;
  const inner = origin.subgraph.outputs[found.origin_slot]?.linkIds?.[0];
  return originOf(origin.subgraph, inner, root);
}

/** The node that stands for a subgraph. */
function holderOf(subgraph, graph) {
  for (const node of graph?.nodes ?? []) {
    if (node.subgraph === subgraph) return node;
    const inside = node.subgraph && holderOf(subgraph, node.subgraph);
    if (inside) return inside;
  }
  return null;
}
