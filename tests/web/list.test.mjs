import assert from "node:assert/strict";
import { test } from "node:test";

import { arrange, atomsOf, bars, confined, countOf, curve, following, heldBy, inSight, linesOf, ROW, signs, silence, SPARE, whyNone } from "../../web/mixer/list.js";
import { parse, strips } from "../../web/mixer/state.js";

const atoms = atomsOf({
  atoms: [
    ["L10.v[0]", 0.6, "red roof", 1, 1, 0, "both", true],
    ["L2.q[3]", 0.3, "", 1, 0, 0, "both", true],
    ["L2.q[12]", 0.1, "wheel", 0.5, 0, 2, "positive", true],
  ],
  effects: { "L2.q[12]": 2.5, "L10.v[0]": 0.5 },
  notes: { "L2.q[3]": "darkens the Door" },
});
const view = { query: "", sort: "importance", group: "none", show: "all", closed: new Set() };
const shown = (changes, text = "", gone = []) =>
  arrange(atoms, { ...view, ...changes }, strips(parse(text)), gone).map((row) => row.head ?? row.gone ?? row.atom.address);

test("atoms are sorted as asked", () => {
  assert.deepEqual(shown({}), ["L10.v[0]", "L2.q[3]", "L2.q[12]"]);
  assert.deepEqual(shown({ sort: "address" }), ["L2.q[3]", "L2.q[12]", "L10.v[0]"]);
  assert.deepEqual(shown({ sort: "effect" }), ["L2.q[12]", "L10.v[0]", "L2.q[3]"]);
  assert.deepEqual(shown({ sort: "label" }), ["L10.v[0]", "L2.q[12]", "L2.q[3]"]);
  assert.deepEqual(shown({ sort: "weight" }, "L2.q[12] = 2"), ["L2.q[12]", "L10.v[0]", "L2.q[3]"]);
});

test("atoms are found by every word of label, note and address", () => {
  assert.deepEqual(shown({ query: "door" }), ["L2.q[3]"]);
  assert.deepEqual(shown({ query: "ROOF l10" }), ["L10.v[0]"]);
  assert.deepEqual(shown({ show: "changed" }, "mute L2.q[3]"), ["L2.q[3]"]);
  assert.deepEqual(shown({ show: "top 25" }), shown({}));
});

test("atoms are grouped, and groups fold", () => {
  assert.deepEqual(shown({ group: "layer" }), ["Layer L2", "L2.q[3]", "L2.q[12]", "Layer L10", "L10.v[0]"]);
  assert.deepEqual(shown({ group: "layer", closed: new Set(["Layer L2"]) }), ["Layer L2", "Layer L10", "L10.v[0]"]);
  assert.deepEqual(shown({ group: "label" }), ["No label", "L2.q[3]", "red roof", "L10.v[0]", "wheel", "L2.q[12]"]);
});

test("strips without an atom come first", () => {
  const head = "Not in this dictionary";
  assert.deepEqual(shown({ query: "roof" }, "", ["L9.o[1]"]), [head, "L9.o[1]", "L10.v[0]"]);
  assert.deepEqual(shown({ query: "roof", closed: new Set([head]) }, "", ["L9.o[1]"]), [head, "L10.v[0]"]);
});

test("only rows in sight are drawn", () => {
  assert.deepEqual(inSight(2000, 100 * ROW, 5 * ROW), [100 - SPARE, 105 + SPARE]);
  assert.deepEqual(inSight(3, 0, 5 * ROW), [0, 3]);
});

test("a share keeps as many atoms as its address does", () => {
  assert.deepEqual([countOf(25, 16), countOf(28, 25), countOf(0, 16), countOf(100, 16), countOf(0.1, 16)], [4, 7, 0, 16, 1]);
});

test("a bar is as long as what the list is sorted by", () => {
  const lengths = (sort) => atoms.map(bars(atoms, sort)).map((length) => Math.round(length * 100));
  assert.deepEqual([lengths("address"), lengths("effect")], [[100, 50, 17], [20, 0, 100]]);
  assert.deepEqual(atomsOf({ atoms: [["L0.q[0]", 0, "", 1, 0, 0, "both", true]] }).map(bars([], "effect")), [0]);
});

test("the curve is what the best atoms hold", () => {
  assert.deepEqual(curve(heldBy(atoms), 3).map((height) => Math.round(height * 10)), [0, 6, 9, 10]);
  assert.deepEqual(curve(heldBy([]), 2), [0, 0, 0]);
});

test("what few of many atoms hold is told of them, not of the curve's nearest point", () => {
  const many = Array.from({ length: 1000 }, (_, i) => ({ share: i < 10 ? 0.05 : 0.5 / 990 }));
  assert.equal(Math.round(heldBy(many)[countOf(1, 1000)] * 100), 50);
  assert.equal(curve(heldBy(many)).length, 49);
});

test("choices go round", () => {
  assert.equal(following(["a", "b"], "b"), "a");
});

test("a list without rows says why, and what to do where nothing has a label", () => {
  const bare = atoms.map((atom) => ({ ...atom, label: "", note: "" }));
  assert.match(whyNone(atoms, { query: " blue ", show: "all" }), /^No label, note or address has “blue” in it\.$/);
  assert.match(whyNone(atoms, { query: "blue", show: "top 25" }), /Show: top 25/);
  assert.match(whyNone(bare, { query: "blue", show: "all" }), /Atom Gallery/);
  assert.equal(whyNone(bare, { query: "", show: "changed" }), "No strip is changed.");
});

test("why an atom is silent is told: muted, not on solo, or dropped by the density", () => {
  const why = (atom, text, cut = 3) => silence(atom.address, atom, strips(parse(text)), cut);
  const [, second, third] = atoms;
  assert.equal(why(second, ""), "");
  assert.match(why(second, "mute L2.q[3]\nsolo L2.q[3]"), /^Muted/);
  assert.match(why(second, "solo L10.v[0]"), /solo/);
  assert.equal(why(second, "solo L2.q[3]"), "");
  assert.match(why(third, "", 2), /density/);
  assert.match(silence("L9.o[1]", undefined, strips(parse("mute L9.o[1]")), 3), /^Muted/);
});

test("an atom that a node before dropped is silent whatever its weight", () => {
  const dropped = { ...atoms[0], kept: false };
  assert.match(silence(dropped.address, dropped, strips(parse("L10.v[0] = 1")), 3), /a node before this one/);
});

test("what there is to say of an atom is said in words", () => {
  const now = { state: strips(parse("mute L2.q[12]")), cut: 3, total: 3 };
  assert.deepEqual(linesOf(atoms[2], now), [
    "L2.q[12]: layer 2, query",
    "10.00 % of the importance, number 3 of 3",
    "without it a picture moves by 2.5 of 255 grey levels",
    "◷ 2 schedules, ± positive prompt",
    "Muted.",
  ]);
});

test("what confines an atom is counted in words", () => {
  assert.deepEqual(atoms.map(confined), [[["◩", "1 mask"]], [], [["◷", "2 schedules"], ["±", "positive prompt"]]]);
  const says = (prompt) => confined({ masks: 0, schedules: 0, prompt }).map(([, words]) => words);
  assert.deepEqual(["both", "negative", "named", "none"].flatMap(says), ["negative prompt", "waits for a word", "acts on no prompt"]);
});

test("a note is a sign beside what confines an atom", () => {
  const badges = atoms.map((atom) => signs(atom).map(([sign]) => sign).join(""));
  assert.deepEqual(badges, ["◩", "✎", "◷±"]);
  assert.deepEqual(signs(atoms[1]), [["✎", "darkens the Door"]]);
});
