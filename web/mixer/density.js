/** The density slider; the importance that the best atoms hold is its track. */

import { isTyped, make, setNumber } from "./dom.js";
import { countOf, curve, heldBy } from "./list.js";
import { numberText } from "./state.js";

const SVG = "http://www.w3.org/2000/svg";

export class Density {
  /** @param change called with a percentage */
  constructor(change) {
    this.area = document.createElementNS(SVG, "polygon");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    svg.append(this.area);
    this.slider = make("input", "sa-density-slider", { type: "range", min: 0, max: 100, step: 1, "aria-label": "Density in per cent" });
    this.number = make("input", "sa-number", { type: "number", min: 0, max: 100, "aria-label": "Density in per cent, as a number" });
    this.said = make("span", "sa-said");
    this.element = make(
      "div",
      "sa-row sa-density",
      { title: "The share of atoms that stay, the most important first. The curve is how much of the importance they hold." },
      make("span", "sa-caption", { textContent: "Density" }),
      make("span", "sa-track", {}, svg, this.slider),
      this.number,
      this.said,
    );
    this.slider.addEventListener("input", () => this.say(Number(this.slider.value)));
    this.slider.addEventListener("change", () => change(Number(this.slider.value)));
    this.slider.addEventListener("dblclick", () => change(100));
    this.number.addEventListener("change", () => {
      if (isTyped(this.number)) change(this.number.value === "" ? 100 : Number(this.number.value));
    });
  }

  /** @param atoms the most important first */
  setAtoms(atoms) {
    this.atoms = atoms;
    this.held = heldBy(atoms);
    const heights = curve(this.held);
    const points = heights.map((height, i) => `${i / (heights.length - 1)},${1 - height}`);
    this.area.setAttribute("points", atoms.length ? `0,1 ${points.join(" ")} 1,1` : "");
  }

  show(percent, disabled) {
    this.slider.disabled = this.number.disabled = disabled;
    this.slider.value = percent;
    this.say(percent);
  }

  say(percent) {
    const count = countOf(percent, this.atoms.length);
    setNumber(this.number, percent);
    this.said.textContent = this.atoms.length ? `${count} atoms, ${Math.round(this.held[count] * 100)} %` : "";
    this.slider.setAttribute("aria-valuetext", `${numberText(percent)} per cent, ${this.said.textContent} of the importance`);
  }
}
