/** What is known of an atom, beside its strip while the pointer is there: at the strip's size no picture tells much. */

import { make, showPicture } from "./dom.js";
import { confined, silence } from "./list.js";

const SITES = { q: "query", k: "key", v: "value", o: "output" };
const GAP = 8;

export class Card {
  constructor() {
    this.picture = make("img", "sa-card-picture", { alt: "" });
    this.texts = make("div");
    this.element = make("div", "sa-tip", { "aria-hidden": "true" }, this.picture, this.texts);
  }

  /** @param atom one of `atomsOf` @param now what the panel knows of the mix @param beside the strip's element */
  show(atom, { state, cut, total }, beside) {
    showPicture(this.picture, atom.thumbnail);
    const [, layer, site] = /^L(\d+)\.(\w)/.exec(atom.address) ?? [];
    const lines = [
      `${atom.address}: layer ${layer}, ${SITES[site] ?? site}`,
      `${(100 * atom.share).toFixed(2)} % of the importance, number ${atom.rank + 1} of ${total}`,
      atom.effect === null ? "" : `without it a picture moves by ${atom.effect.toFixed(1)} of 255 grey levels`,
      atom.note && `✎ ${atom.note}`,
      confined(atom).map(([sign, words]) => `${sign} ${words}`).join(", "),
      silence(atom.address, atom.rank, state, cut),
    ];
    const name = make("strong", "", { textContent: atom.label || "No label" });
    this.texts.replaceChildren(name, ...lines.filter(Boolean).map((text) => make("small", "", { textContent: text })));
    document.body.append(this.element);
    this.place(beside.getBoundingClientRect());
  }

  hide() {
    this.element.remove();
  }

  place(strip) {
    const { width, height } = this.element.getBoundingClientRect();
    const left = strip.left > width + GAP ? strip.left - width - GAP : strip.right + GAP;
    const middle = strip.top + (strip.height - height) / 2;
    this.element.style.left = `${left}px`;
    this.element.style.top = `${Math.max(GAP, Math.min(middle, innerHeight - height - GAP))}px`;
  }
}
