// What is asked for beside the conversation: options, documents, the key, and whether something is really meant.

import { key, list } from "./api.js";
import { byId, el } from "./dom.js";
import { describe } from "./errors.js";

/** Show a dialog; resolves with the value of the button that closed it, "" for Escape. Enter in a field submits, which is
 *  the first button without a type: the others have one. */
function opened(dialog) {
  for (const button of dialog.querySelectorAll("button[type=button]")) button.onclick = () => dialog.close(button.value);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Ask whether something is meant that cannot be undone. */
export async function confirmed(question, verb) {
  byId("confirm-question").textContent = question;
  byId("confirm-yes").textContent = verb;
  return (await opened(byId("confirm"))) === "yes";
}

/** The key for the API; resolves with whether it was changed. `reason` says why it is asked for. */
export async function askForKey(reason = "") {
  byId("key-reason").textContent = reason;
  byId("key-reason").hidden = !reason;
  byId("key").value = key.get();
  byId("keep-key").checked = key.isKept();
  const answer = await opened(byId("key-dialog"));
  if (answer === "save") key.set(byId("key").value.trim(), byId("keep-key").checked);
  if (answer === "forget") key.set("", false);
  byId("key").value = "";
  return answer !== "";
}

/** System prompt, temperature and length of one conversation; resolves with whether they were changed. */
export async function editOptions(conversation) {
  byId("system").value = conversation.system;
  byId("temperature").value = conversation.temperature ?? "";
  byId("max-tokens").value = conversation.max_tokens ?? "";
  if ((await opened(byId("options"))) !== "save") return false;
  conversation.system = byId("system").value;
  conversation.temperature = numberIn(byId("temperature"));
  conversation.max_tokens = numberIn(byId("max-tokens"));
  return true;
}

function numberIn(input) {
  return input.value.trim() === "" || Number.isNaN(input.valueAsNumber) ? null : input.valueAsNumber;
}

/** The collections that answers rest on; resolves with whether they were changed. */
export async function chooseDocuments(conversation) {
  const choice = opened(byId("documents"));
  byId("own-documents").checked = conversation.own_documents;
  byId("collections").replaceChildren(el("p", { class: "hint" }, "Looking …"));
  let boxes = null;
  list("v1/vector_stores?limit=100").then(
    (collections) => {
      boxes = collections.map(({ id, name }) => box(id, name || id, conversation.collections.includes(id)));
      byId("collections").replaceChildren(
        ...(boxes.length ? boxes.map(({ node }) => node) : [el("p", { class: "hint" }, "There are none yet: lathe ingest FILES --collection NAME makes one.")]),
      );
    },
    (error) => {
      const { headline, message } = describe(error);
      byId("collections").replaceChildren(el("p", { class: "hint" }, `${headline}: ${message}`));
    },
  );
  if ((await choice) !== "save") return false;
  conversation.own_documents = byId("own-documents").checked;
  if (boxes) {
    const chosen = boxes.filter(({ input }) => input.checked);
    conversation.collections = chosen.map(({ id }) => id);
    conversation.collection_names = Object.fromEntries(chosen.map(({ id, name }) => [id, name]));
  }
  return true;
}

function box(id, name, isChecked) {
  const input = el("input", { type: "checkbox", value: id });
  input.checked = isChecked;
  return { id, name, input, node: el("label", { class: "check" }, input, el("span", {}, name)) };
}
