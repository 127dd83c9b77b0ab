/** How the panel makes elements. Texts are set as text: labels come from strangers' files. */

import { numberText } from "./state.js";

const PICTURE = /^data:image\/(jpeg|png);base64,[A-Za-z0-9+/]+={0,2}$/;

/** An element with a class, properties and children. */
export function make(tag, className = "", properties = {}, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "list") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/**
 * A button. An input, as all that takes the focus here: the front end leaves the keys of its own undo to inputs alone.
 */
export function button(text, title, press) {
  return make("input", "sa-button", { type: "button", value: text, title, onclick: press });
}

/** Sets what a field for a number shows. What is typed over it differs from its default. */
export function setNumber(field, value) {
  field.value = numberText(value);
  field.defaultValue = field.value;
}

/** Whether a number is being typed that nobody has taken yet. */
export function isTyped(field) {
  return field.type === "number" && field.value !== field.defaultValue;
}

/** Puts back what was there before it was typed over. */
export function restore(field) {
  field.value = field.defaultValue;
}

/** Shows a picture if it is one, else nothing. */
export function showPicture(image, source) {
  const safe = PICTURE.test(source);
  image.hidden = !safe;
  if (safe) image.src = source;
  else image.removeAttribute("src");
}
