// Lathe's API, asked from its own page: relative addresses, so that it works below a proxy's prefix too.

const ROOT = new URL(".", document.baseURI);
const KEY = "lathe.chat.key";

/** What the server, or the way to it, has refused. `code` and `status` are for programs. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The API key, in this tab's memory or in this browser's, as its owner chose. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "",
  isKept: () => localStorage.getItem(KEY) !== null,
  set(value, keep) {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (value) (keep ? localStorage : sessionStorage).setItem(KEY, value);
  },
};

/** The rows of a list, all of its pages. */
export async function list(path) {
  const rows = [];
  let after = null;
  for (;;) {
    const query = after ? `${path.includes("?") ? "&" : "?"}after=${encodeURIComponent(after)}` : "";
    const page = await (await request(path + query)).json();
    rows.push(...page.data);
    if (!page.has_more || !page.last_id) return rows;
    after = page.last_id;
  }
}

/**
 * Ask a model; yields the chunks of its answer as they come.
 * Throws ApiError when it is refused, breaks off, or ends before its end.
 */
export async function* ask(body, signal) {
  const response = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ApiError(String(chunk.error.message ?? chunk.error), { code: "stream_error" });
    yield chunk;
  }
  throw new ApiError("The answer ended before its end.", { code: "stream_error" });
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is no answer.", { code: "stream_error" });
  }
}

async function request(path, options = {}) {
  const headers = {};
  if (options.body) headers["content-type"] = "application/json";
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached.", { code: "unreachable" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const wait = Number.parseFloat(response.headers.get("retry-after"));
  const told = { status: response.status, retryAfter: Number.isFinite(wait) ? wait : null };
  try {
    const { error } = await response.json();
    return new ApiError(String(error.message), { ...told, code: error.code });
  } catch {
    return new ApiError(`The server answered ${response.status} without saying why.`, told);
  }
}

/** The data of server-sent events; OpenAI's have one line each. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke in the middle of the answer.", { code: "stream_error" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
