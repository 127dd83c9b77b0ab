/** Which rows a panel shows, in which order, and which of them are in sight. Pure. */

export const ROW = 40;
/** Rows drawn above and below those in sight, so that scrolling shows no gaps. */
export const SPARE = 4;
export const SORTS = ["importance", "effect", "address", "label", "weight"];
export const GROUPS = ["none", "layer", "label"];
export const SHOWS = ["all", "changed", "top 25", "top 100"];
const GONE = "Not in this dictionary";
/** When an atom acts that does not act on both prompts. */
const PROMPTS = { positive: "positive prompt", negative: "negative prompt", named: "waits for a word", none: "acts on no prompt" };
const SITES = { q: "query", k: "key", v: "value", o: "output" };

/** The atoms of a server's answer as objects. */
export function atomsOf(data) {
  const noted = (address) => data.notes?.[address] ?? "";
  return data.atoms.map(([address, share, label, weight, masks, schedules, prompt, kept], rank) => ({
    address,
    share,
    label,
    weight,
    masks,
    schedules,
    prompt,
    kept,
    rank,
    layer: Number(/^L(\d+)/.exec(address)?.[1] ?? -1),
    effect: data.effects?.[address] ?? null,
    thumbnail: data.thumbnails?.[address] ?? "",
    note: noted(address),
    searched: `${address} ${label} ${noted(address)}`.toLowerCase(),
  }));
}

/** How many of `total` atoms a share keeps: rounded up, as the address `top:25%` does. */
export function countOf(percent, total) {
  return Math.ceil(Math.round(percent * total * 1e6) / 1e8);
}

/** How long each atom's bar is, 0..1: by its effect where the list is sorted by that, else by its importance. */
export function bars(atoms, sort) {
  const size = (atom) => (sort === "effect" ? (atom.effect ?? 0) : atom.share);
  const longest = atoms.reduce((most, atom) => Math.max(most, size(atom)), 0) || 1;
  return (atom) => size(atom) / longest;
}

/** How much of the importance the best 0, 1, 2 ... atoms hold, 0..1. */
export function heldBy(atoms) {
  const whole = atoms.reduce((sum, atom) => sum + atom.share, 0) || 1;
  const held = [0];
  for (const atom of atoms) held.push(held.at(-1) + atom.share / whole);
  return held;
}

/** What `heldBy` gives, at `points` equal distances: as many as a picture of it needs. */
export function curve(held, points = 48) {
  return Array.from({ length: points + 1 }, (_, i) => held[Math.round((i / points) * (held.length - 1))]);
}

/**
 * Rows from top to bottom: `{head, count}` or `{atom}`; `{gone}` for a strip that the dictionary has no atom for.
 * @param view `{query, sort, group, show, closed: Set<string>}`
 * @param state what `strips` gives
 * @param gone addresses that have no atom
 */
export function arrange(atoms, view, state, gone = []) {
  const lost = gone.length ? rowsOf(GONE, gone.map((address) => ({ gone: address })), view.closed) : [];
  const sorted = atoms.filter(matching(view, state)).sort(order(view.sort, state));
  if (view.group === "none") return [...lost, ...sorted.map((atom) => ({ atom }))];
  const groups = new Map();
  for (const atom of sorted) {
    const head = view.group === "layer" ? `Layer L${atom.layer}` : atom.label || "No label";
    if (!groups.has(head)) groups.set(head, []);
    groups.get(head).push({ atom });
  }
  const heads = [...groups.keys()].sort(natural);
  return [...lost, ...heads.flatMap((head) => rowsOf(head, groups.get(head), view.closed))];
}

/** Why a strip does not act, or nothing. @param atom undefined where it is gone @param cut how many atoms the density keeps */
export function silence(address, atom, { muted, solo }, cut) {
  if (atom && !atom.kept) return "Silent: dropped by a node before this one.";
  if (muted.has(address)) return "Muted.";
  if (solo.size && !solo.has(address)) return "Silent: others are on solo.";
  return atom?.rank >= cut ? "Silent: the density leaves it out." : "";
}

/** What there is to say of an atom beside its name. @param now what the panel knows of the mix */
export function linesOf(atom, { state, cut, total }) {
  const [, layer, site] = /^L(\d+)\.(\w)/.exec(atom.address) ?? [];
  return [
    `${atom.address}: layer ${layer}, ${SITES[site] ?? site}`,
    `${(100 * atom.share).toFixed(2)} % of the importance, number ${atom.rank + 1} of ${total}`,
    atom.effect === null ? "" : `without it a picture moves by ${atom.effect.toFixed(1)} of 255 grey levels`,
    atom.note && `✎ ${atom.note}`,
    confined(atom).map(([sign, words]) => `${sign} ${words}`).join(", "),
    silence(atom.address, atom, state, cut),
  ].filter(Boolean);
}

/** What confines an atom, as pairs of a sign and words. */
export function confined({ masks, schedules, prompt }) {
  const counted = (count, word) => `${count} ${word}${count > 1 ? "s" : ""}`;
  return [
    masks ? ["◩", counted(masks, "mask")] : null,
    schedules ? ["◷", counted(schedules, "schedule")] : null,
    prompt === "both" ? null : ["±", PROMPTS[prompt]],
  ].filter(Boolean);
}

/** The signs beside an atom's name, as pairs of a sign and words: what confines it, and that somebody noted something. */
export function signs(atom) {
  return atom.note ? [...confined(atom), ["✎", atom.note]] : confined(atom);
}

/** Why no atom is shown although there are some. */
export function whyNone(atoms, { query, show }) {
  if (!query.trim()) return "No strip is changed.";
  const named = atoms.some((atom) => atom.label || atom.note);
  if (named) return `No label, note or address has “${query.trim()}” in it${show === "all" ? "" : `, of those that “Show: ${show}” leaves`}.`;
  return `No address has “${query.trim()}” in it, and no atom here has a label yet. Atom Gallery finds labels, Label Atoms takes your own.`;
}

/** First and last (excluded) row in sight, with some to spare. */
export function inSight(rows, scrollTop, height) {
  const first = Math.max(0, Math.floor(scrollTop / ROW) - SPARE);
  return [first, Math.min(rows, Math.ceil((scrollTop + height) / ROW) + SPARE)];
}

/** The next of a list of choices, around the end. */
export function following(choices, current) {
  return choices[(choices.indexOf(current) + 1) % choices.length];
}

function rowsOf(head, rows, closed) {
  const heading = { head, count: rows.length };
  return closed.has(head) ? [heading] : [heading, ...rows];
}

function matching({ query, show }, state) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const most = show.startsWith("top ") ? Number(show.slice(4)) : Infinity;
  const changed = ({ address }) => state.weights.has(address) || state.muted.has(address) || state.solo.has(address);
  return (atom) => {
    return atom.rank < most && words.every((word) => atom.searched.includes(word)) && (show !== "changed" || changed(atom));
  };
}

function order(sort, state) {
  const weight = (atom) => state.weights.get(atom.address) ?? atom.weight;
  if (sort === "effect") return (a, b) => (b.effect ?? -1) - (a.effect ?? -1) || a.rank - b.rank;
  if (sort === "address") return (a, b) => natural(a.address, b.address);
  if (sort === "label") return (a, b) => !a.label - !b.label || natural(a.label, b.label) || a.rank - b.rank;
  if (sort === "weight") return (a, b) => weight(b) - weight(a) || a.rank - b.rank;
  return (a, b) => a.rank - b.rank;
}

const { compare: natural } = new Intl.Collator("en", { numeric: true });
