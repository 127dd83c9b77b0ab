/**
 * A mix as the text that the node stores, and as strips. Pure: every change gives a new mix, and the text is the whole
 * state. The grammar is that of docs/addresses.md; lines that are no strip's are kept as they are.
 */

/**
 * @typedef {{kind: "weight", address: string, value: number, text: string}
 *   | {kind: "mute", address: string, text: string}
 *   | {kind: "solo", addresses: string[], text: string}
 *   | {kind: "keep", percent: number, text: string}
 *   | {kind: "other", text: string}} Line
 * @typedef {{hash: string, lines: string[]}} Preset
 * @typedef {{hash: string, presets: Object<string, Preset>, lines: Line[]}} Mix where a hash is that of the dictionary whose
 *   atoms the lines name by number, empty where they name none or where they hold for any
 */

const HASH = /^\s*#\s*dictionary\s+([0-9a-f]{16})\s*$/;
const PRESET = /^\s*#\s*preset\s+("(?:[^"\\]|\\.)*")\s*(\[.*\])\s*([0-9a-f]{16})?\s*$/;
const ATOM = /^L(\d+)\.([qkvo])\[(\d+)\]$/i;
const WEIGHT = /^(L\d+\.[qkvo]\[\d+\])=([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(%?)$/i;
const LAST = { weight: 0, other: 0, mute: 1, solo: 2, keep: 3 };
const MOST_UNDOS = 200;

/** The mix that a text describes. @returns {Mix} */
export function parse(text) {
  const [found, lines] = [[], []];
  let hash = "";
  for (const line of text.split(/\r\n|\r|\n/)) {
    const madeOn = HASH.exec(line);
    const preset = readPreset(line);
    // Lines of a second dictionary stay as text: the node refuses them, and says so.
    if (madeOn && (!hash || hash === madeOn[1])) hash = madeOn[1];
    else if (preset) found.push(preset);
    else if (line.trim()) lines.push(parseLine(line));
  }
  // A preset without a hash was kept when those above the lines were all that there were.
  const presets = found.map((one) => [one.name, { hash: isNumbered(one.lines) ? one.hash || hash : "", lines: one.lines }]);
  return {
    hash: lines.some(byNumber) ? hash : "",
    presets: Object.fromEntries(presets),
    lines: onlyLastOfTheWhole(lines),
  };
}

/** The text that `parse` reads as this mix. */
export function format(mix) {
  const head = mix.hash && mix.lines.some(byNumber) ? [`# dictionary ${mix.hash}`] : [];
  const presets = Object.entries(mix.presets).map(
    ([name, { hash, lines }]) => `# preset ${JSON.stringify(name)} ${JSON.stringify(lines)} ${hash}`.trimEnd(),
  );
  return [...head, ...presets, ...mix.lines.map((line) => line.text)].map((line) => `${line}\n`).join("");
}

/** What the lines say of each strip, the last that names one deciding. */
export function strips(mix) {
  const found = { weights: new Map(), muted: new Set(), solo: new Set(), percent: 100, others: [] };
  for (const line of mix.lines) {
    if (line.kind === "weight") {
      found.weights.set(line.address, line.value);
      found.muted.delete(line.address);
    } else if (line.kind === "mute") found.muted.add(line.address);
    else if (line.kind === "solo") found.solo = new Set(line.addresses);
    else if (line.kind === "keep") found.percent = line.percent;
    else if (!line.text.trim().startsWith("#")) found.others.push(line.text);
  }
  return found;
}

/** Every atom that a strip's line names. */
export function named(mix) {
  return new Set(mix.lines.flatMap((line) => line.addresses ?? (line.address ? [line.address] : [])));
}

/** A strip's weight; null takes its line away. */
export function setWeight(mix, address, value) {
  const line = { kind: "weight", address, value, text: `${address} = ${numberText(value)}` };
  const at = mix.lines.findLastIndex((old) => old.kind === "weight" && old.address === address);
  if (value !== null && at >= 0) return { ...mix, lines: mix.lines.with(at, line) };
  const lines = mix.lines.filter((old) => old.kind !== "weight" || old.address !== address);
  return { ...mix, lines: value === null ? lines : insert(lines, line) };
}

/** Silences a strip, or lets it sound again. */
export function setMuted(mix, address, muted) {
  const lines = mix.lines.filter((line) => line.kind !== "mute" || line.address !== address);
  return { ...mix, lines: muted ? insert(lines, { kind: "mute", address, text: `mute ${address}` }) : lines };
}

/** Adds a strip to those that alone sound, or takes it from them. */
export function setSolo(mix, address, solo) {
  const addresses = [...strips(mix).solo].filter((other) => other !== address);
  if (solo) addresses.push(address);
  return withSolo(mix, addresses);
}

/** Keeps the most important share of all atoms. */
export function setPercent(mix, percent) {
  const lines = mix.lines.filter((line) => line.kind !== "keep");
  if (percent >= 100) return { ...mix, lines };
  const kept = Math.max(0, percent);
  const text = kept ? `solo top:${numberText(kept)}%` : "mute *";
  return { ...mix, lines: insert(lines, { kind: "keep", percent: kept, text }) };
}

/** Without any line; presets stay. */
export function clear(mix) {
  return { ...mix, lines: [] };
}

/** The lines for another mix, with the dictionary they hold for. */
export function copied(mix) {
  return format({ ...mix, presets: {} });
}

/** The mix with pasted lines on top of its own; without a dictionary of its own it takes theirs. */
export function paste(mix, text) {
  const pasted = parse(text);
  let result = { ...mix, hash: mix.hash || pasted.hash };
  for (const line of pasted.lines) {
    if (line.kind === "weight") result = setWeight(result, line.address, line.value);
    else if (line.kind === "mute") result = setMuted(result, line.address, true);
    else if (line.kind === "solo") result = withSolo(result, line.addresses);
    else if (line.kind === "keep") result = setPercent(result, line.percent);
    else result = { ...result, lines: insert(result.lines, line) };
  }
  return result;
}

/** Keeps the lines of now under a name. */
export function savePreset(mix, name) {
  const preset = { hash: mix.hash, lines: mix.lines.map((line) => line.text) };
  return { ...mix, presets: { ...mix.presets, [name]: preset } };
}

/** Takes a preset's lines, and the dictionary they hold for, in place of those of now. */
export function usePreset(mix, name) {
  const { hash, lines } = mix.presets[name];
  return { ...mix, hash, lines: parse(lines.join("\n")).lines };
}

/** Forgets a preset. */
export function dropPreset(mix, name) {
  return { ...mix, presets: Object.fromEntries(Object.entries(mix.presets).filter(([other]) => other !== name)) };
}

/** Whether lines name atoms of another dictionary than the one whose hash is given. */
export function isStale(mix, hash) {
  return Boolean(mix.hash && hash && mix.hash !== hash && mix.lines.some(byNumber));
}

/**
 * The mix for another dictionary, without the strips that it doesn't have. Presets of the same dictionary as the lines come
 * along; others stay what they are. @param {Set<string>} known its addresses
 */
export function adopt(mix, hash, known) {
  const presets = Object.entries(mix.presets).map(([name, preset]) => {
    if (!preset.hash || preset.hash !== mix.hash) return [name, preset];
    const { lines } = onlyKnown(parse(preset.lines.join("\n")), known);
    return [name, { hash, lines: lines.map((line) => line.text) }];
  });
  return { ...onlyKnown(mix, known), hash, presets: Object.fromEntries(presets) };
}

/** Texts that were, for undo and redo. */
export class History {
  constructor(text) {
    this.reset(text);
  }

  /** Starts anew: what came before belongs to another workflow. */
  reset(text) {
    this.texts = [text];
    this.at = 0;
  }

  push(text) {
    if (text === this.texts[this.at]) return;
    this.texts = [...this.texts.slice(0, this.at + 1), text].slice(-MOST_UNDOS);
    this.at = this.texts.length - 1;
  }

  /** @returns {string | undefined} the text to go back (-1) or forward (1) to */
  step(by) {
    const text = this.texts[this.at + by];
    if (text !== undefined) this.at += by;
    return text;
  }
}

/** A number as short as it can be read back. */
export function numberText(value) {
  return String(Math.round(value * 1e6) / 1e6);
}

function parseLine(text) {
  const bare = text.replace(/#.*/, "").replace(/\s+/g, "");
  const weight = WEIGHT.exec(bare);
  if (weight) {
    const value = Number(weight[2]) / (weight[3] ? 100 : 1);
    return { kind: "weight", address: canonical(weight[1]), value, text };
  }
  const [verb, ...rest] = text.replace(/#.*/, "").trim().split(/\s+/);
  const operand = rest.join("");
  if (/^mute$/i.test(verb)) {
    if (ATOM.test(operand)) return { kind: "mute", address: canonical(operand), text };
    if (operand === "*") return { kind: "keep", percent: 0, text };
  }
  if (/^solo$/i.test(verb)) {
    const addresses = operand.split("|");
    if (addresses.every((one) => ATOM.test(one))) return { kind: "solo", addresses: addresses.map(canonical), text };
    const top = /^top:(\d+(?:\.\d+)?)%$/i.exec(operand);
    if (top) return { kind: "keep", percent: Number(top[1]), text };
  }
  return { kind: "other", text };
}

function readPreset(line) {
  const found = PRESET.exec(line);
  if (!found) return null;
  try {
    const [name, lines, hash] = [JSON.parse(found[1]), JSON.parse(found[2]), found[3] ?? ""];
    return lines.every((one) => typeof one === "string") ? { name, lines, hash } : null;
  } catch {
    return null; // written by hand: stays a comment
  }
}

/** Whether numbers of atoms stand in texts: only those belong to one dictionary. */
function isNumbered(texts) {
  return texts.some((text) => byNumber({ text }));
}

function byNumber({ text }) {
  return /\[\s*\d/.test(text.replace(/#.*|"(?:[^"\\]|\\.)*"/g, ""));
}

/**
 * Several lines of these kinds narrow one another down, which one slider can't show, and a weight after one brings an atom
 * back: all but the last of each, and those before a weight, are kept as text.
 */
function onlyLastOfTheWhole(lines) {
  const last = (kind) => lines.findLastIndex((line) => line.kind === kind);
  const final = (kind) => (last(kind) > last("weight") ? last(kind) : -1);
  const shown = { solo: final("solo"), keep: final("keep") };
  return lines.map((line, i) => (line.kind in shown && shown[line.kind] !== i ? { kind: "other", text: line.text } : line));
}

/** Weights come before mutes, and what mutes all others last, so that a later line doesn't undo an earlier one. */
function insert(lines, line) {
  const before = lines.findIndex((old) => LAST[old.kind] > LAST[line.kind]);
  return before < 0 ? [...lines, line] : [...lines.slice(0, before), line, ...lines.slice(before)];
}

function onlyKnown(mix, known) {
  const lines = mix.lines.filter((line) => !line.address || known.has(line.address));
  const solo = [...strips(mix).solo].filter((address) => known.has(address));
  return withSolo({ ...mix, lines }, solo);
}

function withSolo(mix, addresses) {
  const lines = mix.lines.filter((line) => line.kind !== "solo");
  if (!addresses.length) return { ...mix, lines };
  return { ...mix, lines: insert(lines, { kind: "solo", addresses, text: `solo ${addresses.join(" | ")}` }) };
}

function canonical(address) {
  const [, layer, site, atom] = ATOM.exec(address);
  return `L${Number(layer)}.${site.toLowerCase()}[${Number(atom)}]`;
}
