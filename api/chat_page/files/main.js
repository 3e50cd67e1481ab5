// The page: which conversation is shown, and what is asked in it. An answer goes on while another conversation
// is looked at.

import { ask } from "./api.js";
import * as conversations from "./conversations.js";
import { askForKey, chooseDocuments, confirmed, editOptions } from "./dialogs.js";
import { announce, byId, download } from "./dom.js";
import { describe, errorPanel } from "./errors.js";
import { MessageView } from "./message.js";
import { fetchModels, showModels } from "./models.js";
import { isDrawerOpen, setUpSidebar, showConversations, toggleSidebar } from "./sidebar.js";

const NEAR_END_PIXELS = 80;
const CUT_OFF = "Cut off: the answer has reached the limit of tokens.";

const prompt = byId("prompt");
const thread = byId("thread");
const running = new Map(); // conversation id → {controller, conversation, message}

let active = conversations.create();
let views = [];
let models = null;
let staysAtEnd = true;

// --- What is shown --------------------------------------------------------------------------------------

function open(conversation) {
  active = running.get(conversation.id)?.conversation ?? conversation;
  staysAtEnd = true;
  active.model = showModels(models, active.model);
  showThread();
  showList();
  showComposer();
  if (isDrawerOpen()) toggleSidebar(false);
  // A keyboard on the screen would cover half of it before anything was read.
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

function showThread() {
  const isRunning = running.has(active.id);
  const last = active.messages.length - 1;
  views = active.messages.map((message, index) => viewOf(message, isRunning ? null : index, index === last));
  byId("messages").replaceChildren(...views.map(({ node }) => node));
  if (isRunning) views.at(-1).show({ isRunning });
  byId("empty").hidden = views.length > 0;
  document.title = active.title ? `${active.title} · Lathe` : "Lathe";
  scrollToEnd();
}

function viewOf(message, index, isLast) {
  const canAsk = index !== null;
  const view = new MessageView(message, {
    edit: canAsk && message.role === "user" ? () => edit(index) : null,
    again: canAsk && isLast && message.role === "assistant" ? () => answerAgain(index) : null,
    key: () => changeKey(),
  });
  view.onshown = scrollToEnd;
  return view;
}

function showList() {
  showConversations(conversations.all(), active.id, { open, rename, remove, export: (row) => exportAll([row]) });
}

function showComposer() {
  const isRunning = running.has(active.id);
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  byId("messages").setAttribute("aria-busy", String(isRunning));
  byId("show-options").classList.toggle("changed", Boolean(active.system || active.temperature !== null || active.max_tokens !== null));
  const chosen = active.collections.map((id) => String(active.collection_names[id] ?? id));
  if (active.own_documents) chosen.unshift("the model's own");
  byId("chosen-documents").textContent = chosen.length ? chosen.join(", ") : "No documents";
  byId("show-documents").classList.toggle("changed", chosen.length > 0);
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function scrollToEnd() {
  if (staysAtEnd) thread.scrollTop = thread.scrollHeight;
  byId("to-end").hidden = staysAtEnd;
}

/** Say what is wrong with the page as a whole; null takes it away. */
function showBanner(error, actions = []) {
  byId("banner").replaceChildren(...(error ? [errorPanel(error, actions)] : []));
}

// --- Conversations --------------------------------------------------------------------------------------

function save(conversation) {
  conversation.updated_at = Date.now();
  try {
    conversations.save(conversation);
  } catch (error) {
    showBanner(describe(error));
  }
  showList();
}

function rename(conversation, title) {
  const row = conversation.id === active.id ? active : conversation;
  if (title !== row.title) {
    row.title = title;
    conversations.save(row);
  }
  showList();
}

async function remove(conversation) {
  const name = conversation.title || "New conversation";
  if (!(await confirmed(`Delete “${name}”? This cannot be undone.`, "Delete"))) return;
  running.get(conversation.id)?.controller.abort();
  running.delete(conversation.id);
  conversations.remove(conversation.id);
  if (conversation.id === active.id) open(conversations.create());
  else showList();
  announce("Deleted.");
}

function exportAll(rows) {
  const day = new Date().toISOString().slice(0, 10);
  download(`lathe-chat-${day}.json`, conversations.exported(rows));
}

async function importFile(input) {
  const [file] = input.files;
  input.value = "";
  if (!file) return;
  try {
    const rows = conversations.imported(await file.text());
    rows.reverse().forEach(conversations.save);
    open(rows.at(-1));
    announce(`${rows.length} imported.`);
  } catch (error) {
    showBanner({ ...describe(error), headline: "Nothing was imported" });
  }
}

// --- Asking ---------------------------------------------------------------------------------------------

function send() {
  const content = prompt.value.trim();
  if (!content || running.has(active.id)) return;
  if (!active.model) {
    showBanner({ headline: "There is no model to ask", message: "Choose one above, or make one: lathe fine-tune." });
    return;
  }
  prompt.value = "";
  fitPrompt();
  active.messages.push({ role: "user", content });
  answer(active);
}

function edit(index) {
  const conversation = active;
  views[index].startEditing((content) => {
    if (content === null || running.has(conversation.id)) return prompt.focus();
    conversation.messages.splice(index, Infinity, { role: "user", content });
    answer(conversation);
    prompt.focus();
  });
}

function answerAgain(index) {
  active.messages.splice(index);
  answer(active);
  prompt.focus();
}

/** Ask for the next answer, and keep what comes of it. */
async function answer(conversation) {
  const body = conversations.requestOf(conversation);
  const message = { role: "assistant", content: "", model: conversation.model };
  const run = { controller: new AbortController(), conversation, message, began: 0, tokens: 0 };
  conversation.messages.push(message);
  running.set(conversation.id, run);
  staysAtEnd = true;
  save(conversation);
  showBanner(null);
  showThread();
  showComposer();
  announce("Waiting for the answer.");
  try {
    for await (const chunk of ask(body, run.controller.signal)) {
      take(chunk, run);
      if (conversation.id === active.id) views.at(-1).show({ isRunning: true });
    }
    if (!message.content && !message.thought) message.note = "The model had nothing to say.";
  } catch (error) {
    if (run.controller.signal.aborted) message.note = "Stopped.";
    else message.error = describe(error);
  }
  finish(run);
}

function take(chunk, run) {
  const { message } = run;
  if (chunk.citations) {
    message.citations = chunk.citations;
    message.notices = chunk.retrieval?.notices ?? [];
  }
  run.tokens = chunk.usage?.completion_tokens ?? run.tokens;
  const { delta, finish_reason: reason } = chunk.choices?.[0] ?? {};
  if (delta?.reasoning_content) message.thought = (message.thought ?? "") + delta.reasoning_content;
  if (delta?.content) message.content += delta.content;
  if (delta?.content || delta?.reasoning_content) run.began ||= performance.now();
  if (reason === "length") message.note = CUT_OFF;
}

function finish(run) {
  const { conversation, message } = run;
  if (running.get(conversation.id) !== run) return; // it was deleted meanwhile
  running.delete(conversation.id);
  const seconds = (performance.now() - run.began) / 1000;
  if (run.tokens > 1 && seconds > 0) {
    message.figures = `${run.tokens} tokens · ${((run.tokens - 1) / seconds).toFixed(seconds > 1 ? 1 : 0)}/s`;
  }
  save(conversation);
  if (conversation.id !== active.id) return;
  showThread();
  showComposer();
  announce(message.error ? `${message.error.headline}. ${message.error.message}` : (message.note ?? "The answer is complete."));
}

function stop() {
  running.get(active.id)?.controller.abort();
  prompt.focus();
}

// --- The server -----------------------------------------------------------------------------------------

async function refreshModels() {
  try {
    models = await fetchModels();
    showBanner(null);
  } catch (error) {
    const actions = [["Try again", refreshModels]];
    if (error.status === 401) actions.unshift(["Enter a key", () => changeKey()]);
    showBanner(describe(error), actions);
    models ??= { made: [], unmade: [], others: [] };
  }
  active.model = showModels(models, active.model);
  byId("make-one").hidden = models.made.length + models.unmade.length > 0 || byId("banner").hasChildNodes();
}

async function changeKey() {
  if (await askForKey()) await refreshModels();
}

// --- The page's parts -----------------------------------------------------------------------------------

function setUp() {
  setUpSidebar();
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("input", fitPrompt);
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (isDrawerOpen()) toggleSidebar(false);
    else stop();
  });
  thread.addEventListener("scroll", () => {
    staysAtEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < NEAR_END_PIXELS;
    byId("to-end").hidden = staysAtEnd;
  });
  new ResizeObserver(scrollToEnd).observe(byId("messages"));
  onClick({
    stop,
    new: () => open(conversations.create()),
    "to-end": () => {
      staysAtEnd = true;
      scrollToEnd();
      prompt.focus();
    },
    "change-key": () => changeKey(),
    "export-all": () => exportAll(conversations.all()),
    import: () => byId("import-file").click(),
    "show-options": () => change(editOptions),
    "show-documents": () => change(chooseDocuments),
  });
  byId("import-file").addEventListener("change", (event) => importFile(event.target));
  byId("model").addEventListener("change", (event) => {
    active.model = event.target.value;
    if (active.messages.length) save(active);
  });
  addEventListener("storage", (event) => conversations.isOurs(event) && takeOver());
  addEventListener("pagehide", () => running.forEach(({ conversation }) => conversations.save(conversation)));
}

function onClick(actions) {
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
}

async function change(dialog) {
  const conversation = active;
  if (!(await dialog(conversation))) return;
  if (conversation.messages.length) save(conversation);
  showComposer();
}

/** Another tab has changed conversations. */
function takeOver() {
  const stored = conversations.all().find(({ id }) => id === active.id);
  if (stored && !running.has(active.id) && stored.updated_at > active.updated_at) {
    active = stored;
    showThread();
    showComposer();
  }
  showList();
}

setUp();
open(conversations.all()[0] ?? active);
await refreshModels();
