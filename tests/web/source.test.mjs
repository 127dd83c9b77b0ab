import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { fileOf } from "../../web/mixer/source.js";

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

const load = (link = null) => ({
  comfyClass: "SparseAtoms_Load",
  inputs: [{ name: "name", type: "COMBO", link }],
  widgets: [{ name: "name", value: FILE }],
});
const node = (comfyClass, ...types) => ({ comfyClass, inputs: types.map((type) => ({ type, link: null })) });
const mixer = () => node("SparseAtoms_Mixer", DICTIONARY, "STRING");

test("the file is the Load node's, through whatever passes its dictionary on", () => {
  assert.equal(fileOf(chain(load(), mixer())), FILE);
  const passing = [node("SparseAtoms_Mask", DICTIONARY, "MASK", "STRING"), node("Reroute", "*"), mixer()];
  assert.equal(fileOf(chain(load(), ...passing, mixer())), FILE);
  assert.equal(fileOf(chain(load(7), mixer())), null);
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
