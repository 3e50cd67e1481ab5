// What went wrong, in words for a person, and what can be done about it.

import { el } from "./dom.js";

const HEADLINES = {
  401: "This server wants an API key",
  403: "This key does not allow that",
  404: "That is not there any more",
  413: "That is too long",
  429: "Too many requests at once",
  503: "The model cannot answer now",
};
const BY_CODE = {
  unreachable: "Lathe cannot be reached",
  stream_error: "The answer broke off",
  context_length_exceeded: "The conversation is too long for this model",
  exceed_context_size_error: "The conversation is too long for this model",
};

/** An error as it is kept with a message: plain data, with the moment from which on it may be asked again. */
export function describe(error) {
  const { status = 0, code = null, retryAfter = null, message } = error;
  const headline = BY_CODE[code] ?? HEADLINES[status] ?? "This did not work";
  return { headline, message, status, again_at: retryAfter === null ? null : Date.now() + retryAfter * 1000 };
}

/**
 * A panel that tells an error.
 * @param actions buttons, as [label, what to do]
 */
export function errorPanel(error, actions) {
  const panel = el(
    "div",
    { class: "error" },
    el("strong", {}, error.headline),
    el("p", {}, error.message),
    error.again_at > Date.now() && countdown(error.again_at),
    el("div", { class: "buttons" }, actions.map(([label, onclick]) => el("button", { type: "button", onclick }, label))),
  );
  return panel;
}

/** How long the server asks to be left alone; told once, and not second by second, to those who listen. */
function countdown(until) {
  const line = el("p", { class: "countdown", "aria-live": "off" });
  const show = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    line.textContent = seconds > 0 ? `It asks to be tried again in ${seconds} s.` : "It can be tried again now.";
    if (seconds <= 0) clearInterval(timer);
  };
  const timer = setInterval(() => (line.isConnected ? show() : clearInterval(timer)), 1000);
  show();
  return line;
}
