// The list of conversations, which is a drawer where the screen is narrow.

import { byId, el, iconButton } from "./dom.js";

const narrow = matchMedia("(max-width: 800px)");

/** Show the conversations; `actions` are {open, rename, remove, export}, each called with one of them. */
export function showConversations(conversations, activeId, actions) {
  byId("conversations").replaceChildren(...conversations.map((conversation) => row(conversation, activeId, actions)));
  byId("no-conversations").hidden = conversations.length > 0;
}

function row(conversation, activeId, actions) {
  const { id, title } = conversation;
  const name = title || "New conversation";
  const item = el("li", { "data-id": id });
  const open = el(
    "button",
    { type: "button", class: "open", "aria-current": id === activeId && "true", title: name, onclick: () => actions.open(conversation) },
    name,
  );
  item.append(
    open,
    el(
      "span",
      { class: "row-actions" },
      iconButton("edit", `Rename “${name}”`, () => rename(item, conversation, actions)),
      iconButton("export", `Export “${name}”`, () => actions.export(conversation)),
      iconButton("remove", `Delete “${name}”`, () => actions.remove(conversation)),
    ),
  );
  return item;
}

function rename(item, conversation, actions) {
  const input = el("input", { type: "text", "aria-label": "New title", maxlength: 200 });
  let isDone = false;
  input.value = conversation.title;
  const finish = (title) => {
    if (isDone) return;
    isDone = true;
    actions.rename(conversation, title);
    byId("conversations").querySelector(`[data-id="${conversation.id}"] .open`)?.focus();
  };
  input.addEventListener("blur", () => finish(input.value.trim() || conversation.title));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) finish(input.value.trim() || conversation.title);
    if (event.key !== "Escape") return;
    event.stopPropagation();
    finish(conversation.title);
  });
  item.replaceChildren(input);
  input.focus();
  input.select();
}

/** Open or close the drawer; on a wide screen the list is always there. */
export function toggleSidebar(isOpen) {
  document.body.classList.toggle("sidebar-open", isOpen);
  byId("show-sidebar").setAttribute("aria-expanded", String(isOpen));
  adapt();
  if (!narrow.matches) return;
  if (isOpen) byId("new").focus();
  else byId("show-sidebar").focus();
}

export const isDrawerOpen = () => narrow.matches && document.body.classList.contains("sidebar-open");

/** What lies beneath a drawer, and a drawer that is shut, are out of reach of keyboard and readers. */
function adapt() {
  byId("sidebar").inert = narrow.matches && !isDrawerOpen();
  byId("main").inert = isDrawerOpen();
}

export function setUpSidebar() {
  narrow.addEventListener("change", adapt);
  byId("show-sidebar").addEventListener("click", () => toggleSidebar(true));
  byId("hide-sidebar").addEventListener("click", () => toggleSidebar(false));
  byId("backdrop").addEventListener("click", () => toggleSidebar(false));
  adapt();
}
