/** Pick a dictionary by its picture. */

import { button, make } from "./mixer/dom.js";
import { ask, thumbnailOf } from "./server.js";

/**
 * Opens the dialog.
 * @param api the front end's
 * @param {string} current the name that is picked now
 * @param {(name: string) => void} pick called with a file's name
 */
export async function browse(api, current, pick) {
  const search = make("input", "sa-search", { type: "search", placeholder: "Search", "aria-label": "Search dictionaries" });
  const grid = make("div", "sa-cards");
  const status = make("div", "sa-none", { role: "status" }, "Reading the files …");
  const close = button("Close", "Close without picking", () => dialog.close());
  const dialog = make("dialog", "sa-browse", { "aria-label": "Pick a dictionary" }, make("div", "sa-row", {}, search, close), status, grid);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  document.body.append(dialog);
  dialog.showModal();
  const cards = await ask(api, "dictionaries").catch((error) => void (status.textContent = `${error.message} Then open this anew.`));
  const show = () => {
    const chosen = cards.filter((card) => matches(card, search.value));
    grid.replaceChildren(...chosen.map((card) => cardOf(api, card, card.name === current, () => (pick(card.name), dialog.close()))));
    status.textContent = chosen.length ? "" : "No dictionary is called so.";
  };
  if (cards) {
    search.addEventListener("input", show);
    show();
  }
  search.focus();
}

/** Whether every word of a query is in what a card says. */
export function matches(card, query) {
  const text = `${card.name} ${card.title} ${card.trigger} ${card.description}`.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

function cardOf(api, card, current, press) {
  const title = card.title || card.name;
  const picture = card.thumbnail
    ? make("img", "sa-picture", { alt: "", loading: "lazy", src: thumbnailOf(api, card.name) })
    : make("span", "sa-picture sa-no-picture", { "aria-hidden": "true", textContent: title.slice(0, 1).toUpperCase() });
  const texts = [make("strong", "", { textContent: title }), make("small", "", { textContent: card.name })];
  const properties = { type: "button", title: card.description, onclick: press, "aria-pressed": String(current) };
  return make("button", "sa-card", properties, picture, ...texts);
}
