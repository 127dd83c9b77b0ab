import assert from "node:assert/strict";
import { test } from "node:test";

import * as mixes from "../../web/mixer/state.js";

const MADE_ON = "1a2b3c4d5e6f7081";
const OTHER = "ffffffffffffffff";
const text = `# dictionary ${MADE_ON}
# preset "soft" ["L3.v[7] = 0.2"] ${MADE_ON}
# by hand
top:8 *= 1.5
L3.v[7] = 0.5
mute L0.q[2]
solo L3.v[7] | L0.q[2]
solo top:25%
`;

test("a text comes back as it was", () => {
  assert.equal(mixes.format(mixes.parse(text)), text);
});

test("strips are what the lines say", () => {
  const found = mixes.strips(mixes.parse(text));
  assert.deepEqual([...found.weights], [["L3.v[7]", 0.5]]);
  assert.deepEqual([...found.muted], ["L0.q[2]"]);
  assert.deepEqual([...found.solo], ["L3.v[7]", "L0.q[2]"]);
  assert.equal(found.percent, 25);
  assert.deepEqual(found.others, ["top:8 *= 1.5"]);
});

test("an address is read in any writing", () => {
  const found = mixes.strips(mixes.parse("l03 . V [ 7 ] = 50% # half\nMUTE l0.q[2]"));
  assert.deepEqual([...found.weights], [["L3.v[7]", 0.5]]);
  assert.deepEqual([...found.muted], ["L0.q[2]"]);
});

test("what is no strip is kept as text", () => {
  for (const line of ["L3.qk[7] = 1", "L3.v[7] *= 2", "L3.v[1-2] = 1", "mute attn2", 'label:"a#b" = 1', "nonsense", "# preset x"]) {
    const mix = mixes.parse(line);
    assert.deepEqual(mix.lines, [{ kind: "other", text: line }]);
    assert.equal(mixes.format(mixes.setWeight(mix, "L0.q[0]", 2)), `${line}\nL0.q[0] = 2\n`);
  }
});

test("new lines stand where later ones don't undo them", () => {
  let mix = mixes.setPercent(mixes.parse(""), 25);
  mix = mixes.setSolo(mix, "L0.q[1]", true);
  mix = mixes.setMuted(mix, "L0.q[1]", true);
  mix = mixes.setWeight(mix, "L0.q[1]", -0.5);
  assert.equal(mixes.format(mix), "L0.q[1] = -0.5\nmute L0.q[1]\nsolo L0.q[1]\nsolo top:25%\n");
});

test("a strip keeps its weight while it is muted, and its line its place", () => {
  let mix = mixes.parse("L0.q[1] = 0.5\nL0.q[2] = 2\n");
  mix = mixes.setMuted(mixes.setMuted(mix, "L0.q[1]", true), "L0.q[1]", false);
  assert.equal(mixes.format(mixes.setWeight(mix, "L0.q[1]", 0.25)), "L0.q[1] = 0.25\nL0.q[2] = 2\n");
  assert.equal(mixes.format(mixes.setWeight(mix, "L0.q[1]", null)), "L0.q[2] = 2\n");
});

test("density 0 is the plain model and 100 no line", () => {
  assert.equal(mixes.format(mixes.setPercent(mixes.parse(""), 0)), "mute *\n");
  assert.equal(mixes.format(mixes.setPercent(mixes.parse("mute *"), 100)), "");
});

test("several solos: the last is the strips', the others stay", () => {
  const mix = mixes.parse("solo L0.q[1]\nsolo L0.q[2]\n");
  assert.deepEqual([...mixes.strips(mix).solo], ["L0.q[2]"]);
  assert.equal(mixes.format(mixes.setSolo(mix, "L0.q[2]", false)), "solo L0.q[1]\n");
});

test("what stands before a weight does not silence it, so it is no strip's", () => {
  for (const line of ["solo L0.q[1]", "solo top:25%", "mute *"]) {
    const before = mixes.strips(mixes.parse(`${line}\nL0.q[2] = 0.5\n`));
    assert.deepEqual([[...before.solo], before.percent, before.others], [[], 100, [line]]);
    const after = mixes.strips(mixes.parse(`L0.q[2] = 0.5\n${line}\n`));
    assert.deepEqual(after.others, []);
  }
  const soloed = mixes.setSolo(mixes.parse("solo L0.q[1]\nL0.q[2] = 0.5\n"), "L0.q[2]", true);
  assert.equal(mixes.format(soloed), "solo L0.q[1]\nL0.q[2] = 0.5\nsolo L0.q[2]\n");
});

test("presets of any name come back, and hostile text stays text", () => {
  const name = 'a "b" ]\n# dictionary 0000000000000000 <img src=x onerror=alert(1)>';
  const mix = mixes.savePreset(mixes.parse("L0.q[1] = 2"), name);
  const again = mixes.parse(mixes.format(mix));
  assert.deepEqual(again.presets, { [name]: { hash: "", lines: ["L0.q[1] = 2"] } });
  assert.equal(again.hash, "");
  assert.equal(mixes.format(mixes.usePreset(mixes.clear(again), name)), mixes.format(mix));
  assert.deepEqual(mixes.dropPreset(again, name).presets, {});
});

test("lines go to another mix and come on top", () => {
  const source = mixes.parse(text);
  const target = mixes.paste(mixes.parse("L3.v[7] = 9\nL9.o[0] = 1"), mixes.copied(source));
  assert.equal(
    mixes.format(target),
    `# dictionary ${MADE_ON}\n` +
      "L3.v[7] = 0.5\nL9.o[0] = 1\n# by hand\ntop:8 *= 1.5\nmute L0.q[2]\nsolo L3.v[7] | L0.q[2]\nsolo top:25%\n",
  );
});

test("only lines with numbers of atoms belong to one dictionary", () => {
  const other = "0000000000000000";
  assert.equal(mixes.isStale(mixes.parse(text), other), true);
  assert.equal(mixes.isStale(mixes.parse(text), MADE_ON), false);
  assert.equal(mixes.isStale(mixes.parse(`# dictionary ${MADE_ON}\nsolo top:25%\nlabel:"x[1]" = 2`), other), false);
  assert.equal(mixes.isStale(mixes.parse("L3.v[7] = 1"), other), false);
});

test("without numbers of atoms a mix belongs to no dictionary", () => {
  assert.equal(mixes.format(mixes.dropPreset(mixes.clear(mixes.parse(text)), "soft")), "");
  const left = mixes.parse(`# dictionary ${MADE_ON}\n# preset "few" ["solo top:25%"]\nsolo top:25%`);
  assert.deepEqual([left.hash, left.presets.few.hash], ["", ""]);
});

test("a preset of another dictionary does not make new lines that one's", () => {
  const left = mixes.parse(mixes.format(mixes.clear(mixes.parse(text))));
  assert.deepEqual([left.hash, left.presets.soft.hash], ["", MADE_ON]);
  const edited = mixes.parse(mixes.format(mixes.setWeight({ ...left, hash: OTHER }, "L3.v[7]", 1)));
  assert.equal(mixes.isStale(edited, OTHER), false);
  assert.equal(mixes.isStale(mixes.usePreset(edited, "soft"), OTHER), true);
  assert.equal(mixes.isStale(mixes.usePreset(edited, "soft"), MADE_ON), false);
});

test("a preset that was kept without a hash has the lines'", () => {
  const old = mixes.parse(`# dictionary ${MADE_ON}\n# preset "soft" ["L3.v[7] = 0.2"]\n`);
  assert.deepEqual(old.presets, { soft: { hash: MADE_ON, lines: ["L3.v[7] = 0.2"] } });
  assert.equal(mixes.format(old), `# preset "soft" ["L3.v[7] = 0.2"] ${MADE_ON}\n`);
});

test("a mix takes the dictionary of pasted lines only where it has none", () => {
  const lines = `# dictionary ${MADE_ON}\nL3.v[7] = 1\n`;
  assert.equal(mixes.format(mixes.paste(mixes.parse(""), lines)), lines);
  assert.equal(mixes.paste(mixes.parse(`# dictionary ${OTHER}\nL3.v[7] = 2`), "L3.v[7] = 1").hash, OTHER);
});

test("adopting takes the new hash and drops the strips that are gone", () => {
  const mix = mixes.adopt(mixes.parse(text), OTHER, new Set(["L3.v[7]"]));
  assert.equal(mix.hash, OTHER);
  assert.deepEqual([...mixes.named(mix)], ["L3.v[7]"]);
  assert.equal(mixes.strips(mix).percent, 25);
});

test("adopting takes presets of the lines' dictionary along, and no others", () => {
  const third = "0000000000000000";
  const kept = `# preset "pair" ["L3.v[7] = 0.2","mute L9.o[1]","solo L3.v[7] | L9.o[1]"]`;
  const mix = mixes.parse(`# dictionary ${MADE_ON}\n${kept}\n# preset "else" ["L9.o[1] = 2"] ${third}\nL3.v[7] = 1\n`);
  assert.deepEqual(mixes.adopt(mix, OTHER, new Set(["L3.v[7]"])).presets, {
    pair: { hash: OTHER, lines: ["L3.v[7] = 0.2", "solo L3.v[7]"] },
    else: { hash: third, lines: ["L9.o[1] = 2"] },
  });
});

test("history goes back, forward, and forgets what was undone", () => {
  const history = new mixes.History("a");
  for (const one of ["b", "b", "c"]) history.push(one);
  assert.deepEqual([history.step(-1), history.step(-1), history.step(-1), history.step(1)], ["b", "a", undefined, "b"]);
  history.push("d");
  assert.equal(history.step(1), undefined);
});

test("lines of a second dictionary stay as they are, for the node to refuse", () => {
  const mixed = `# dictionary ${MADE_ON}\nL3.v[7] = 0.5\n# dictionary ${OTHER}\nL3.v[8] = 0.5\n`;
  const mix = mixes.parse(mixed);
  assert.equal(mix.hash, MADE_ON);
  assert.equal(mixes.format(mix), mixed);
  assert.ok(mixes.format(mixes.setWeight(mix, "L3.v[7]", 1)).includes(`# dictionary ${OTHER}`));
});
