/** The scrolling list: a few strips stand for thousands of rows. */

import { Card } from "./card.js";
import { make } from "./dom.js";
import { inSight, ROW, SPARE } from "./list.js";
import { Strip } from "./strip.js";

export class Rows {
  /** @param on what turning a knob does, see Strip; `leave()` when the focus has left the list */
  constructor(on) {
    this.on = on;
    this.rows = [];
    this.strips = [];
    /** Whether the focus is on a strip, also on its way to another one: a number changes when the focus has left it. */
    this.held = false;
    this.current = 0;
    this.knob = 0;
    this.space = make("div", "sa-space", { role: "list", "aria-label": "Atoms" });
    this.none = make("div", "sa-none", { role: "status" });
    /** Has the focus when its strip has gone out of sight: an input, so that the graph leaves the keys to the panel. */
    this.parked = make("input", "sa-parked", { type: "button", tabIndex: -1, "aria-label": "Atoms" });
    this.element = make("div", "sa-list", { tabIndex: -1 }, this.parked, this.none, this.space);
    this.card = new Card();
    this.element.dataset.captureWheel = "true"; // or the wheel zooms the graph
    this.element.addEventListener("scroll", () => this.draw());
    this.element.addEventListener("pointerover", (event) => this.tell(event.target));
    this.element.addEventListener("pointerleave", () => this.card.hide());
    this.element.addEventListener("focus", () => this.park());
    this.element.addEventListener("focusin", (event) => {
      this.remember(event.target);
      this.tell(event.target);
    });
    this.element.addEventListener("focusout", () => setTimeout(() => this.release()));
    this.element.addEventListener("keydown", (event) => this.press(event));
    this.observer = new ResizeObserver(() => this.draw());
  }

  /** Follows its own size, until `dispose`. */
  watch() {
    this.observer.observe(this.element);
  }

  /** Shows rows. @param now what strips have to know of the mix @param none what to say where there are no rows */
  show(rows, now, none) {
    this.rows = rows;
    this.none.textContent = rows.length ? "" : none;
    this.element.classList.toggle("sa-has-pictures", rows.some((row) => row.atom?.thumbnail));
    this.now = { ...now, rows: rows.length };
    this.current = Math.min(this.current, Math.max(0, rows.length - 1));
    this.space.style.height = `${rows.length * ROW}px`;
    this.draw();
  }

  /** Puts the strips where the rows in sight are. */
  draw() {
    if (!this.now) return;
    this.card.hide();
    const needed = Math.ceil(this.element.clientHeight / ROW) + 2 * SPARE + 2;
    while (this.strips.length < needed) this.add();
    this.letGo();
    const [first, last] = this.drawn();
    const taken = new Set();
    for (let i = first; i < last; i++) {
      const strip = this.stripAt(i);
      taken.add(strip);
      strip.element.hidden = false;
      strip.element.style.transform = `translateY(${i * ROW}px)`;
      strip.show(this.rows[i], i, this.now);
      strip.reachable(i === this.current);
    }
    for (const strip of this.strips) if (!taken.has(strip)) strip.element.hidden = true;
    // Tab has to get into the list even where the row it was in has scrolled away.
    if (!taken.has(this.stripAt(this.current)) && first < last) this.stripAt(first).reachable(true);
    this.tell(document.activeElement);
  }

  /** First and last (excluded) row that has a strip. */
  drawn() {
    return inSight(this.rows.length, this.element.scrollTop, this.element.clientHeight);
  }

  /** Takes the focus from a strip that is about to show something else, or nothing. Its number may change by that. */
  letGo() {
    const strip = this.stripOf(document.activeElement);
    if (!strip) return;
    const [first, last] = this.drawn();
    const stays = strip.index >= first && strip.index < last && this.stripAt(strip.index) === strip;
    if (!stays || !strip.keeps(this.rows[strip.index], this.now)) this.park();
  }

  /** Keeps the focus in the list: elsewhere the wheel would zoom the graph, and keys would act on its nodes. */
  park() {
    this.parked.focus({ preventScroll: true });
  }

  /** Moves the focus to a row, scrolling it into sight. */
  focus(index) {
    if (!this.rows.length) return;
    this.current = Math.max(0, Math.min(this.rows.length - 1, index));
    const [top, height] = [this.current * ROW, this.element.clientHeight];
    const { scrollTop } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + ROW > scrollTop + height) this.element.scrollTop = top + ROW - height;
    this.draw();
    const { knobs } = this.stripAt(this.current);
    knobs[Math.min(this.knob, knobs.length - 1)].focus({ preventScroll: true });
  }

  dispose() {
    this.observer.disconnect();
    this.card.hide();
  }

  add() {
    const strip = new Strip(this.on);
    this.strips.push(strip);
    this.space.append(strip.element);
  }

  stripAt(index) {
    return this.strips[index % this.strips.length];
  }

  stripOf(target) {
    return this.strips.find((one) => one.element.contains(target));
  }

  /** Shows what an atom does while the pointer is on its picture or name, or the keyboard on its knobs. */
  tell(target) {
    const strip = target.closest(".sa-thumbnail, .sa-what, :focus-visible") && this.stripOf(target);
    if (strip?.row.atom && this.isInSight(strip)) this.card.show(strip.row.atom, this.now, strip.element);
    else this.card.hide();
  }

  isInSight({ index }) {
    const top = index * ROW - this.element.scrollTop;
    return top > -ROW && top < this.element.clientHeight;
  }

  remember(target) {
    const strip = this.stripOf(target);
    if (!strip) return;
    this.held = true;
    this.knob = strip.row.head ? this.knob : strip.knobs.indexOf(target);
    this.current = strip.index;
    for (const one of this.strips) one.reachable(one === strip);
  }

  release() {
    if (this.stripOf(document.activeElement)) return;
    this.held = false;
    this.on.leave();
  }

  press(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / ROW) - 1);
    const typing = event.target.type === "number";
    const step = { PageUp: -page, PageDown: page, ...(typing ? {} : { ArrowUp: -1, ArrowDown: 1 }) }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return; // such as Ctrl+Enter, which runs the graph
    if (step) {
      event.preventDefault();
      this.focus(this.current + step);
    } else if (event.key === "Enter" && event.target.type === "checkbox") event.target.click();
    else if ((event.key === "Delete" || event.key === "Backspace") && event.target.type === "range") {
      this.on.weigh(this.stripAt(this.current).address, null);
    }
  }
}
