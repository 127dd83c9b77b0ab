/** One row of the list. Rows are few and are used again for other atoms while the list scrolls. */

import { isTyped, make, setNumber, showPicture } from "./dom.js";
import { linesOf, signs, silence } from "./list.js";
import { numberText } from "./state.js";

const FROM = -1;
const TO = 2;

export class Strip {
  /**
   * @param {{weigh(address, value), preview(), mute(address, on), solo(address, on), fold(head)}} on what turning a knob does
   */
  constructor(on) {
    this.on = on;
    this.address = "";
    this.head = make("input", "sa-head", { type: "button", onclick: () => on.fold(this.row.head) });
    this.thumbnail = make("img", "sa-thumbnail", { alt: "", draggable: false });
    this.name = make("span", "sa-name");
    this.badges = make("span", "sa-badges");
    this.share = make("span", "sa-share");
    this.slider = make("input", "sa-slider", { type: "range", min: FROM, max: TO, step: 0.05 });
    this.number = make("input", "sa-number", { type: "number", step: 0.05 });
    this.solo = make("input", "sa-toggle sa-solo", { type: "checkbox", title: "Solo: only the strips with S sound" });
    this.mute = make("input", "sa-toggle sa-mute", { type: "checkbox", title: "Mute: this strip is silent" });
    this.element = make(
      "div",
      "sa-strip",
      { role: "listitem" },
      this.head,
      this.thumbnail,
      make("span", "sa-what", {}, make("span", "sa-line", {}, this.name, this.badges), make("span", "sa-bar", {}, this.share)),
      this.slider,
      this.number,
      this.solo,
      this.mute,
    );
    this.listen();
  }

  /** The knobs, from left to right. */
  get knobs() {
    return this.row.head ? [this.head] : [this.slider, this.number, this.solo, this.mute];
  }

  /** Shows a row of `arrange`. @param now what the panel knows of the mix */
  show(row, index, now) {
    this.row = row;
    this.index = index;
    this.address = row.atom?.address ?? row.gone ?? "";
    this.element.classList.toggle("sa-is-head", Boolean(row.head));
    this.element.classList.toggle("sa-is-gone", Boolean(row.gone));
    this.element.setAttribute("aria-posinset", index + 1);
    this.element.setAttribute("aria-setsize", now.rows);
    if (row.head) {
      const closed = now.closed.has(row.head);
      this.head.value = `${closed ? "▸" : "▾"} ${row.head} (${row.count})`;
      this.head.setAttribute("aria-expanded", String(!closed));
    } else this.showAtom(row.atom, now);
  }

  /** Whether it goes on showing what it shows, with knobs that can be turned, where it shows a row. */
  keeps(row, { frozen }) {
    return row.head ? row.head === this.row.head : !frozen && row.atom?.address === this.address;
  }

  showAtom(atom, now) {
    const { state, frozen, cut, bar } = now;
    const address = this.address;
    const weight = state.weights.get(address) ?? atom?.weight ?? 1;
    const called = atom?.label ? `${atom.label}, ${address}` : address;
    this.name.textContent = atom?.label || address;
    this.element.title = atom ? "" : `${called} is gone`;
    this.element.classList.toggle("sa-is-silent", Boolean(silence(address, atom, state, cut)));
    this.element.classList.toggle("sa-is-changed", state.weights.has(address));
    this.share.style.width = atom ? `${100 * bar(atom)}%` : "0";
    showPicture(this.thumbnail, atom?.thumbnail ?? "");
    this.badges.replaceChildren(...badgesOf(atom));
    this.setAnew(weight);
    this.solo.checked = state.solo.has(address);
    this.mute.checked = state.muted.has(address);
    const names = ["Weight of", "Weight as a number of", "Solo", "Mute"];
    this.knobs.forEach((knob, i) => {
      knob.disabled = frozen || !atom;
      knob.setAttribute("aria-label", `${names[i]} ${called}`);
    });
    this.slider.setAttribute("aria-description", atom ? linesOf(atom, now).join("; ") : "");
  }

  /** Makes the knobs of this row, and of no other, those that Tab reaches. */
  reachable(yes) {
    for (const knob of [this.head, this.slider, this.number, this.solo, this.mute]) knob.tabIndex = yes ? 0 : -1;
  }

  /** Sets the weight where it is not what it was: a number that is being typed outlives that the list scrolls. */
  setAnew(weight) {
    const shown = `${this.address} ${weight}`;
    if (shown === this.shown) return;
    this.set(weight);
    this.shown = shown;
  }

  set(weight) {
    this.shown = "";
    this.slider.value = weight;
    setNumber(this.number, weight);
    this.slider.setAttribute("aria-valuetext", numberText(weight));
  }

  listen() {
    const { slider, number, solo, mute, on } = this;
    slider.addEventListener("input", () => {
      this.set(Number(slider.value));
      on.preview();
    });
    slider.addEventListener("change", () => on.weigh(this.address, Number(slider.value)));
    slider.addEventListener("dblclick", () => on.weigh(this.address, null));
    number.addEventListener("change", () => {
      if (!isTyped(number)) return;
      this.shown = "";
      on.weigh(this.address, number.value === "" ? null : Number(number.value));
    });
    solo.addEventListener("change", () => on.solo(this.address, solo.checked));
    mute.addEventListener("change", () => on.mute(this.address, mute.checked));
  }
}

function badgesOf(atom) {
  const badges = atom ? signs(atom) : [];
  return badges.map(([sign, title]) => make("span", "sa-badge", { textContent: sign, title, "aria-label": title, role: "img" }));
}
