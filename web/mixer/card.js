/** What is known of an atom, beside its strip while the pointer or the focus is there: at its size no picture tells much. */

import { make, showPicture } from "./dom.js";
import { linesOf } from "./list.js";

const GAP = 8;

export class Card {
  constructor() {
    this.picture = make("img", "sa-card-picture", { alt: "" });
    this.texts = make("div");
    this.element = make("div", "sa-tip", { "aria-hidden": "true" }, this.picture, this.texts);
  }

  /** @param atom one of `atomsOf` @param now what the panel knows of the mix @param beside the strip's element */
  show(atom, now, beside) {
    showPicture(this.picture, atom.thumbnail);
    const name = make("strong", "", { textContent: atom.label || "No label" });
    this.texts.replaceChildren(name, ...linesOf(atom, now).map((text) => make("small", "", { textContent: text })));
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
    this.element.style.left = `${Math.max(GAP, Math.min(left, innerWidth - width - GAP))}px`;
    this.element.style.top = `${Math.max(GAP, Math.min(middle, innerHeight - height - GAP))}px`;
  }
}
