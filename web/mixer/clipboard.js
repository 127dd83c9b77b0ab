/** Texts to and from the clipboard, also where the browser grants no access to it. */

/** @returns {Promise<boolean>} whether it is in the clipboard */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyThroughSelection(text);
  }
}

/** @returns {Promise<string | null>} null where the browser does not allow it */
export async function pasteText() {
  try {
    return await navigator.clipboard.readText();
  } catch {
    return null;
  }
}

/** Pages that aren't served by this machine or over https have no clipboard of their own. */
function copyThroughSelection(text) {
  const held = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  held.focus({ preventScroll: true }); // or the graph has it, and the next key
  return done;
}
