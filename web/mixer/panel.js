/** The mixing desk: what stands around the list, and what turning a knob does to the mix. */

import { copyText, pasteText } from "./clipboard.js";
import { Density } from "./density.js";
import { button, isTyped, make, restore } from "./dom.js";
import { arrange, atomsOf, bars, countOf, following, GROUPS, SHOWS, SORTS, whyNone } from "./list.js";
import { Rows } from "./rows.js";
import * as mixes from "./state.js";

const WAITING = "Run once, or connect a Load node, to see the atoms.";
const STALE = "These strips were set on another dictionary. Its atoms draw something else, so nothing runs until you adopt this one.";
const LINKED = "The lines come from a link, so nothing that you set here acts.";
/** In the message of a run that refuses the strips: the dictionary that they were set on. */
const MADE_ON = /set on another dictionary \(([0-9a-f]{16})\)/;
/** With Ctrl, these act on the graph and on the nodes that are selected in it, which nobody means who is in the panel. */
const FOR_NODES = new Set("abcegmvxyz");
let panels = 0;

export class Panel {
  /**
   * @param {{write(text: string): void, showText(): void}} host the node's side: keeps a text; shows or hides its text box
   * @param {string} text the mix as the node has it
   */
  constructor(host, text = "") {
    this.host = host;
    this.view = { query: "", sort: SORTS[0], group: GROUPS[0], show: SHOWS[0], closed: new Set() };
    this.history = new mixes.History(text);
    this.text = text;
    this.mix = mixes.parse(text);
    this.linked = false;
    this.build();
    this.forget();
  }

  // ------------------------------------------------------------------------------------------------ from the node

  /** Takes the text as the node has it now, such as after loading a workflow. */
  read(text) {
    if (text === this.text) return;
    this.take(text);
    this.history.push(text);
    this.refresh();
  }

  /** Takes a text that another workflow brought: there is nothing to undo to. */
  load(text) {
    this.take(text);
    this.history.reset(text);
    this.refresh();
  }

  /** Takes what the server says of the atoms. */
  setAtoms(data) {
    this.hold(atomsOf(data), data.hash);
    this.refresh();
  }

  /** Shows no atoms: which ones come in only a run tells. */
  forget() {
    this.hold([], "");
    this.refresh();
  }

  /** Takes whether the lines come from elsewhere, where nothing of this acts. */
  follow(linked) {
    if (linked === this.linked) return;
    this.linked = linked;
    this.refresh();
  }

  /** Shows why the node could not run, or why there are no atoms; not what is said of strips of another workflow. */
  fail(message) {
    const [, madeOn] = MADE_ON.exec(message) ?? [];
    if (madeOn && madeOn !== this.mix.hash) return;
    this.problem = message;
    this.refresh();
  }

  hold(atoms, hash) {
    this.problem = "";
    this.atoms = atoms;
    this.hash = hash;
    this.known = new Set(atoms.map((atom) => atom.address));
    this.density.setAtoms(atoms);
  }

  /** Takes a number that is being typed as if it had been left: what a run or a saved file gets is what stands there. */
  commit() {
    const field = document.activeElement;
    if (this.element.contains(field) && isTyped(field)) field.dispatchEvent(new Event("change"));
  }

  /** Follows its own size, until `dispose`. */
  watch() {
    this.rows.watch();
  }

  dispose() {
    this.rows.dispose();
  }

  // ---------------------------------------------------------------------------------------------------- the mix

  /** Makes a new mix the node's text. */
  change(mix) {
    this.write(mixes.format({ ...mix, hash: mix.hash || this.hash }));
    this.history.push(this.text);
  }

  write(text) {
    this.take(text);
    this.host.write(text);
    this.refresh();
  }

  take(text) {
    this.problem = ""; // it was of another text
    this.text = text;
    this.mix = mixes.parse(text);
  }

  undo(by) {
    if (this.linked) return this.say(LINKED);
    const text = this.history.step(by);
    if (text === undefined) this.say(by < 0 ? "There is nothing to undo." : "There is nothing to redo.");
    else this.write(text);
  }

  adopt() {
    const before = mixes.named(this.mix).size;
    this.change(mixes.adopt(this.mix, this.hash, this.known));
    const lost = before - mixes.named(this.mix).size;
    this.say(lost ? `${strips(lost)} had no atom here. Undo if in doubt.` : "The strips now belong to this dictionary.");
  }

  async copy() {
    const done = await copyText(mixes.copied(this.mix));
    this.say(done ? `${lines(this.mix.lines.length)} copied.` : "The browser does not allow copying. Use Text.");
  }

  async paste() {
    const text = await pasteText();
    if (text === null) this.say("The browser does not allow pasting by a button. Press Ctrl+V here.");
    else this.pasteLines(text);
  }

  pasteLines(text) {
    const pasted = mixes.parse(text);
    if (this.linked) this.say(LINKED);
    else if (!pasted.lines.length) this.say("The clipboard holds no lines such as L3.v[7] = 0.5.");
    else if (this.stale()) this.say("Adopt the dictionary before you change its strips.");
    else if (mixes.isStale(pasted, this.hash || this.mix.hash)) this.say("These lines were copied from another dictionary, whose atoms draw something else.");
    else {
      this.change(mixes.paste(this.mix, text));
      this.say(`${lines(pasted.lines.length)} pasted.`);
    }
  }

  preset(verb) {
    const name = this.name.value.trim();
    const exists = Object.hasOwn(this.mix.presets, name);
    if (!name) this.say("Write the preset's name first.");
    else if (verb !== "savePreset" && !exists) this.say(`There is no preset “${name}”.`);
    else if (verb === "usePreset" && mixes.isStale(mixes.usePreset(this.mix, name), this.hash)) {
      this.say(`“${name}” was kept on another dictionary, whose atoms draw something else.`);
    } else {
      this.change(mixes[verb](this.mix, name));
      this.say({ savePreset: "Kept in the workflow", usePreset: "In use", dropPreset: "Forgotten" }[verb] + `: ${name}.`);
    }
  }

  // ---------------------------------------------------------------------------------------------------- showing

  stale() {
    return mixes.isStale(this.mix, this.hash);
  }

  refresh() {
    const [state, gone] = [mixes.strips(this.mix), this.gone()];
    const frozen = this.linked || this.stale();
    // While a strip is held, none moves: the next key would turn what took its place.
    if (!this.rows.held) this.placed = state;
    const now = {
      state,
      frozen,
      cut: countOf(state.percent, this.atoms.length),
      bar: bars(this.atoms, this.view.sort),
      total: this.atoms.length,
      closed: this.view.closed,
    };
    this.rows.show(arrange(this.atoms, this.view, this.placed, gone), now, this.atoms.length ? whyNone(this.atoms, this.view) : "");
    this.density.show(state.percent, frozen);
    this.names.replaceChildren(...Object.keys(this.mix.presets).map((name) => make("option", "", { value: name })));
    this.warn(state.others, gone.length);
    for (const one of this.writers) one.disabled = this.linked;
    this.clear.disabled = frozen;
    this.sort.value = `Sort: ${this.view.sort}`;
    this.group.value = `Group: ${this.view.group}`;
    this.only.value = `Show: ${this.view.show}`;
  }

  gone() {
    return this.known.size ? [...mixes.named(this.mix)].filter((address) => !this.known.has(address)) : [];
  }

  warn(others, gone) {
    const stale = this.stale();
    const bad = Boolean(this.problem || (!this.linked && (stale || gone)));
    const message = this.linked ? this.problem || LINKED : stale ? STALE : this.problem || this.remark(others, gone);
    this.banner.hidden = !message;
    this.banner.classList.toggle("sa-is-bad", bad);
    this.banner.setAttribute("role", bad ? "alert" : "status");
    // Set anew, it would be read out anew, and a selection in it would be lost.
    if (message !== this.message.textContent) this.message.textContent = message;
    this.adopts.hidden = this.linked || !(stale || gone);
  }

  /** What there is to know of a mix that may run. */
  remark(others, gone) {
    if (!this.atoms.length) return WAITING;
    if (gone) return `No atom in this dictionary for ${strips(gone)}. Adopt takes away what has none.`;
    const own = others.length === 1 ? "1 line of your own acts too" : `${others.length} lines of your own act too`;
    return others.length ? `${own}: ${others.join("; ")}` : "";
  }

  say(text) {
    this.status.textContent = text;
  }

  turn(key, choices) {
    this.view[key] = following(choices, this.view[key]);
    this.rows.element.scrollTop = 0;
    this.refresh();
  }

  // --------------------------------------------------------------------------------------------------- building

  build() {
    const list = `sa-presets-${panels++}`;
    this.rows = new Rows({
      weigh: (address, value) => this.change(mixes.setWeight(this.mix, address, value)),
      preview: () => this.say(""),
      mute: (address, on) => this.change(mixes.setMuted(this.mix, address, on)),
      solo: (address, on) => this.change(mixes.setSolo(this.mix, address, on)),
      fold: (head) => this.fold(head),
      leave: () => this.refresh(),
    });
    this.density = new Density((percent) => this.change(mixes.setPercent(this.mix, Math.min(100, Math.max(0, percent)))));
    this.search = make("input", "sa-search", { type: "search", placeholder: "Label, note or address", "aria-label": "Search atoms" });
    this.search.addEventListener("input", () => this.find());
    this.sort = button("", "Another order", () => this.turn("sort", SORTS));
    this.group = button("", "Together by layer or by label", () => this.turn("group", GROUPS));
    this.only = button("", "All strips, those you changed, or the most important", () => this.turn("show", SHOWS));
    this.message = make("span");
    this.adopts = button("Adopt", "Use the strips on this dictionary all the same", () => this.adopt());
    this.banner = make("div", "sa-banner", {}, this.message, this.adopts);
    this.clear = button("Reset", "All strips as they come in; presets stay", () => this.change(mixes.clear(this.mix)));
    this.names = make("datalist", "", { id: list });
    this.name = make("input", "sa-search", { type: "text", placeholder: "Preset", list, "aria-label": "Name of a preset" });
    this.status = make("span", "sa-status", { role: "status" });
    this.writers = [
      button("Undo", "Undo (Ctrl+Z in the panel)", () => this.undo(-1)),
      button("Redo", "Redo (Ctrl+Y in the panel)", () => this.undo(1)),
      button("Paste", "Paste lines on top (Ctrl+V)", () => this.paste()),
      button("Use", "Use this preset", () => this.preset("usePreset")),
      button("Keep", "Keep the strips as they are under this name, in the workflow", () => this.preset("savePreset")),
      button("Forget", "Forget this preset", () => this.preset("dropPreset")),
    ];
    this.element = make("div", "sa-mixer", { role: "group", "aria-label": "Atom Mixer" }, ...this.layout());
    this.listen();
  }

  layout() {
    const [undo, redo, paste, ...presets] = this.writers;
    return [
      make("div", "sa-row", {}, this.search, this.sort, this.group, this.only),
      this.density.element,
      this.banner,
      this.rows.element,
      make(
        "div",
        "sa-row",
        {},
        undo,
        redo,
        button("Copy", "Copy the strips as lines (Ctrl+C)", () => this.copy()),
        paste,
        this.clear,
        button("Text", "Show or hide the lines that the strips write", () => this.host.showText()),
      ),
      make(
        "div",
        "sa-row",
        {},
        this.name,
        this.names,
        ...presets,
      ),
      this.status,
    ];
  }

  find() {
    this.view.query = this.search.value;
    this.rows.element.scrollTop = 0;
    this.refresh();
  }

  fold(head) {
    if (!this.view.closed.delete(head)) this.view.closed.add(head);
    this.refresh();
  }

  listen() {
    const writes = (target) => ["search", "text", "number"].includes(target.type);
    this.element.addEventListener("keydown", (event) => this.press(event, writes(event.target)));
    // The graph would move, be selected or be pasted into.
    for (const type of ["keyup", "pointerdown", "mousedown", "dblclick", "contextmenu"]) {
      this.element.addEventListener(type, (event) => event.stopPropagation());
    }
    for (const type of ["copy", "cut", "paste"]) {
      this.element.addEventListener(type, (event) => this.useClipboard(event, writes(event.target)));
    }
  }

  press(event, writing) {
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if ((!control && key !== "escape") || FOR_NODES.has(key)) event.stopPropagation();
    if (!control || event.altKey) return;
    if (key === "s" || key === "enter") this.commit();
    const step = key === "y" || (key === "z" && event.shiftKey) ? 1 : key === "z" ? -1 : 0;
    if (!step || (writing && event.target.type !== "number")) return;
    event.preventDefault();
    if (isTyped(event.target)) restore(event.target);
    else this.undo(step);
  }

  useClipboard(event, writing) {
    event.stopPropagation();
    const selection = document.getSelection();
    const selected = event.type === "copy" && !selection.isCollapsed && this.element.contains(selection.anchorNode);
    if (writing || selected || event.type === "cut") return;
    event.preventDefault();
    if (event.type === "paste") this.pasteLines(event.clipboardData.getData("text/plain"));
    else {
      event.clipboardData.setData("text/plain", mixes.copied(this.mix));
      this.say(`${lines(this.mix.lines.length)} copied.`);
    }
  }
}

function lines(count) {
  return count === 1 ? "1 line" : `${count} lines`;
}

function strips(count) {
  return count === 1 ? "1 strip" : `${count} strips`;
}
