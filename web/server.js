/** What the front end asks the pack's part of the server. */

const ROOT = "/sparse_atoms";

/**
 * What the server says. @param api the front end's @param {string} path behind the root
 * @throws {Error} in words for a person
 */
export async function ask(api, path) {
  let answer;
  try {
    answer = await api.fetchApi(`${ROOT}/${path}`);
  } catch {
    throw new Error("The server does not answer. See that ComfyUI runs.");
  }
  const said = await answer.json().catch(() => null);
  if (answer.ok && said) return said;
  throw new Error(said?.error ?? `The server does not know of dictionaries (${answer.status}). Restart ComfyUI.`);
}

/** The path that asks of one file. A name may hold what no text can, where the file system knows no encoding. */
export function ofFile(what, name) {
  return `${what}?name=${encodeURIComponent(name.toWellFormed())}`;
}

/** Where an `img` finds a file's picture. */
export function thumbnailOf(api, name) {
  return api.apiURL(`${ROOT}/${ofFile("thumbnail", name)}`);
}
