// The models that can be asked, by all of their names, in the list at the top.

import { list } from "./api.js";
import { byId, el } from "./dom.js";

/** What answers chat: names first, then versions, quantizations and aliases, checkpoints among them. */
export async function fetchModels() {
  const rows = (await list("v1/models")).filter(
    ({ type, status }) => (type === undefined || type === "chat") && status !== "not served",
  );
  const others = new Set();
  for (const { id, versions = [] } of rows) {
    for (const version of versions) {
      if (versions.length > 1) others.add(version.name);
      if (version.quantizations.length > 1) for (const { name } of version.quantizations) others.add(name);
      for (const alias of version.aliases ?? []) others.add(alias);
    }
    others.delete(id);
  }
  const made = rows.filter(({ status }) => status !== "not made yet");
  return {
    made: made.map(({ id }) => id),
    newest: made.reduce((newest, row) => (newest && publishedAt(newest) >= publishedAt(row) ? newest : row), null)?.id,
    unmade: rows.filter(({ status }) => status === "not made yet").map(({ id }) => id),
    others: [...others],
  };
}

/** When its newest version was published; 0 for what a backend has by itself. */
function publishedAt({ versions = [] }) {
  return Math.max(0, ...versions.map(({ created_at }) => created_at));
}

/** Fill the list, which is null until they are known, and choose `chosen` in it, which may be gone by now; without one, the newest. */
export function showModels(models, chosen) {
  const { made, unmade, others, newest } = models ?? { made: [], unmade: [], others: [] };
  const known = [...made, ...others, ...unmade];
  const gone = chosen && !known.includes(chosen) ? [chosen] : [];
  const without = models ? "No model" : "Looking for models …";
  byId("model").replaceChildren(
    ...made.map((id) => option(id)),
    ...group("Versions, quantizations and aliases", others.map((id) => option(id))),
    ...group("Not made yet", unmade.map((id) => option(id))),
    ...group(models ? "No longer listed" : "", gone.map((id) => option(id))),
  );
  if (known.length + gone.length === 0) byId("model").append(el("option", { value: "" }, without));
  byId("model").value = chosen || newest || others[0] || unmade[0] || "";
  return byId("model").value;
}

function option(id) {
  return el("option", { value: id }, id);
}

function group(label, options) {
  return options.length ? [el("optgroup", { label }, options)] : [];
}
