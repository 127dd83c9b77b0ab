import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { fileOf, isGone, isLinked, locatorOf, nodeAt } from "../../web/mixer/source.js";

const DICTIONARY = "SPARSE_DICTIONARY";
const FILE = "robot.safetensors";

/** The last of some nodes, each linked to the one before by its first input. */
function chain(...nodes) {
  const graph = { getLink: (id) => ({ origin_id: id, origin_slot: 0 }), getNodeById: (id) => nodes[id] };
  nodes.forEach((node, i) => {
    node.graph = graph;
    if (i) node.inputs[0].link = i - 1;
  });
  return nodes.at(-1);
}

const load = () => ({
  comfyClass: "SparseAtoms_Load",
  inputs: [{ name: "name", type: "COMBO", link: null }],
  widgets: [{ name: "name", value: FILE }],
});
const node = (comfyClass, ...types) => ({ comfyClass, inputs: types.map((type) => ({ type, link: null })) });
const mixer = () => node("SparseAtoms_Mixer", DICTIONARY, "STRING");

test("the file is the Load node's, through whatever passes its dictionary on", () => {
  assert.equal(fileOf(chain(load(), mixer())), FILE);
  const passing = [node("SparseAtoms_Mask", DICTIONARY, "MASK", "STRING"), node("Reroute", "*"), mixer()];
  assert.equal(fileOf(chain(load(), ...passing, mixer())), FILE);
  assert.equal(fileOf(chain(node("PrimitiveString"), load(), mixer())), null);
  assert.equal(fileOf(chain(node("SparseAtoms_Train", "MODEL", "LATENT"), mixer())), null);
  assert.equal(fileOf(mixer()), null);
});

test("behind a node that makes another dictionary no file tells the atoms", () => {
  const made = readFileSync(new URL("../../nodes/compose.py", import.meta.url), "utf8");
  const schemas = made.split("io.Schema(").slice(1);
  assert.ok(schemas.length >= 3);
  for (const schema of schemas) {
    const [, kind] = /node_id="(\w+)"/.exec(schema);
    const inputs = schema.match(/dictionary_input\(|SparseDictionaryType\.Input\(/g).map(() => DICTIONARY);
    assert.equal(fileOf(chain(load(), node(kind, ...inputs, "FLOAT"), mixer())), null, kind);
  }
});

test("which way a switch stands only a run tells", () => {
  assert.equal(fileOf(chain(load(), node("Switch", "*", "*"), mixer())), null);
});

/** A workflow with a mixer in a subgraph, whose `mix` is the subgraph's input. */
function nested() {
  const root = { id: "root", nodes: [], getLink: (id) => root.links[id], getNodeById: (id) => root.nodes.find((one) => String(one.id) === String(id)) };
  const inner = { ...root, id: "inner", nodes: [], getLink: () => ({ origin_id: -10, origin_slot: 0 }) };
  inner.getNodeById = (id) => inner.nodes.find((one) => String(one.id) === String(id));
  const strips = { id: 3, graph: inner, inputs: [{ name: "mix", type: "STRING", link: 1 }] };
  const holder = { id: 5, graph: root, subgraph: inner, inputs: [{ name: "mix", type: "STRING", link: null }] };
  inner.nodes.push(strips);
  root.nodes.push(holder, { id: 7, graph: root, inputs: [] });
  root.links = { 2: { origin_id: 7, origin_slot: 0 } };
  root.subgraphs = new Map([["inner", inner]]);
  return { root, inner, strips, holder };
}

test("lines come from a link where a node stands at its end, also outside a subgraph", () => {
  const { root, strips, holder } = nested();
  assert.equal(isLinked(strips, "mix", root), false);
  holder.inputs[0].link = 2;
  assert.equal(isLinked(strips, "mix", root), true);
  assert.equal(isLinked({ ...strips, inputs: [] }, "mix", root), false);
});

test("a node is found by the whole way to it", () => {
  const { root, strips, holder } = nested();
  assert.equal(nodeAt("5:3", root), strips);
  assert.equal(nodeAt("5", root), holder);
  for (const other of ["3", "7:3", "6:3", "5:4"]) assert.equal(nodeAt(other, root), undefined, other);
  assert.deepEqual([locatorOf(strips, root), locatorOf(holder, root)], ["inner:3", "5"]);
});

test("a node is gone when its graph, or the workflow, has another in its place", () => {
  const { root, inner, strips, holder } = nested();
  assert.deepEqual([isGone(strips, root), isGone(holder, root)], [false, false]);
  assert.equal(isGone({ id: 3, graph: inner }, root), true);
  assert.equal(isGone({ id: -1, graph: null }, root), true);
  root.subgraphs.set("inner", { ...inner });
  assert.equal(isGone(strips, root), true);
});

test("a Load node's open input of a subgraph is the widget itself", () => {
  const { root, inner, holder } = nested();
  const file = { ...load(), id: 4, graph: inner };
  file.inputs[0].link = 1;
  assert.equal(fileOf(file, root), FILE);
  holder.inputs[0].link = 2;
  assert.equal(fileOf(file, root), null);
});
