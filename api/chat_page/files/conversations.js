// The conversations, one entry each of this browser's localStorage; nobody else has them.

const PREFIX = "lathe.chat.conversation.";
const LAST = "lathe.chat.last";
const TITLE_LENGTH = 60;
const OPTIONS = ["model", "system", "temperature", "max_tokens", "collections", "collection_names", "own_documents"];
const ROLES = new Set(["user", "assistant"]);

/** A new conversation, with the model and the options that were used last. */
export function create() {
  let last = {};
  try {
    last = JSON.parse(localStorage.getItem(LAST)) ?? {};
  } catch {
    // Not ours; it is written anew.
  }
  return { ...blank(), model: typeof last.model === "string" ? last.model : "" };
}

function blank() {
  const now = Date.now();
  return {
    id: `${now.toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`,
    title: "", model: "", system: "", temperature: null, max_tokens: null,
    collections: [], collection_names: {}, own_documents: false, created_at: now, updated_at: now, messages: [],
  };
}

/** All conversations, the one that was used last first. */
export function all() {
  const found = [];
  for (const name of Object.keys(localStorage)) {
    if (!name.startsWith(PREFIX)) continue;
    try {
      found.push(JSON.parse(localStorage.getItem(name)));
    } catch {
      // Somebody else's; leave it alone.
    }
  }
  return found.sort((a, b) => b.updated_at - a.updated_at);
}

/** Throws an Error in words when the browser has no room. */
export function save(conversation) {
  conversation.title ||= titleOf(conversation);
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    localStorage.setItem(LAST, JSON.stringify({ model: conversation.model }));
  } catch {
    throw new Error("This browser's storage is full, and the conversation is not saved: export and delete some.");
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

/** Whether a change of the storage is one of conversations; made in another tab. */
export const isOurs = (event) => event.key === null || event.key.startsWith(PREFIX);

function titleOf({ messages }) {
  const text = (messages.find(({ role }) => role === "user")?.content ?? "").trim().replace(/\s+/g, " ");
  return text.length > TITLE_LENGTH ? `${text.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : text;
}

/** Conversations as a file: each has OpenAI's `messages`, as `lathe chat` saves and loads them. */
export function exported(conversations) {
  const rows = conversations.map((conversation) => {
    const { id, messages, system, ...row } = conversation;
    const turns = messages.map(({ error, ...message }) => message);
    return { ...row, messages: system ? [{ role: "system", content: system }, ...turns] : turns };
  });
  return JSON.stringify(rows.length === 1 ? rows[0] : { conversations: rows }, null, 2);
}

/**
 * Read what was exported, here or by `lathe chat`: conversations, one of them, or messages alone.
 * Throws an Error in words when it is none of these.
 */
export function imported(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON.");
  }
  const rows = Array.isArray(data) ? [{ messages: data }] : (data?.conversations ?? [data]);
  if (!Array.isArray(rows) || !rows.length) throw new Error("This file has no conversations.");
  return rows.map(conversationFrom);
}

function conversationFrom(row) {
  if (!Array.isArray(row?.messages)) throw new Error("This file has no messages.");
  const conversation = blank();
  for (const name of ["title", ...OPTIONS]) {
    if (typeof row[name] === typeof (conversation[name] ?? 0) && row[name] !== null) conversation[name] = row[name];
  }
  conversation.collections = [conversation.collections].flat().filter((id) => typeof id === "string");
  for (const message of row.messages) {
    const content = textOf(message?.content);
    if (message?.role === "system" || message?.role === "developer") conversation.system = content;
    else if (ROLES.has(message?.role)) conversation.messages.push(messageFrom(message, content));
    else throw new Error(`This file has a message of the role ${String(message?.role)}, which cannot be shown.`);
  }
  conversation.title ||= titleOf(conversation) || "Imported";
  return conversation;
}

function messageFrom({ role, model, thought, citations, notices }, content) {
  const message = { role, content };
  if (typeof model === "string") message.model = model;
  if (typeof thought === "string") message.thought = thought;
  if (Array.isArray(notices)) message.notices = notices.map(String);
  if (Array.isArray(citations)) {
    message.citations = citations.filter(
      (citation) => Number.isInteger(citation?.number) && typeof citation.text === "string" && typeof citation.filename === "string",
    );
  }
  return message;
}

/** OpenAI's content is a text, or parts of which some are texts. */
function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((part) => (typeof part?.text === "string" ? part.text : "")).join("\n");
}

/** The request that asks for the next answer of a conversation. */
export function requestOf({ model, system, messages, temperature, max_tokens, collections, own_documents }) {
  const body = { model, messages: turnsOf(messages), stream: true, stream_options: { include_usage: true } };
  if (system.trim()) body.messages.unshift({ role: "system", content: system });
  if (temperature !== null) body.temperature = temperature;
  if (max_tokens !== null) body.max_tokens = max_tokens;
  if (collections.length) body.collections = collections;
  if (own_documents) body.documents = true;
  return body;
}

/** What was said, in turns: templates of models refuse two of one side in a row, which failures leave. */
function turnsOf(messages) {
  const turns = [];
  for (const { role, content } of messages) {
    if (!content) continue;
    if (turns.at(-1)?.role === role) turns.at(-1).content += `\n\n${content}`;
    else turns.push({ role, content });
  }
  return turns;
}
