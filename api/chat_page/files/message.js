// One message as it is shown; an answer is shown while it comes.

import { copy, el, icon, iconButton } from "./dom.js";
import { errorPanel } from "./errors.js";
import { Markdown } from "./markdown.js";
import { citationButton, sourcesOf } from "./sources.js";

/**
 * @param message {role, content, model?, thought?, citations?, notices?, note?, error?, figures?}
 * @param actions {edit, again, key}: what can be done with it; those that are null cannot
 */
export class MessageView {
  #message;
  #actions;
  #isRunning = false;
  #frame = null;

  constructor(message, actions) {
    this.#message = message;
    this.#actions = actions;
    const isUser = message.role === "user";
    const name = isUser ? "You" : message.model || "Answer";
    this.thought = el("div", { class: "thought-text" });
    this.details = el("details", { class: "thought", hidden: true }, el("summary", {}, "Thoughts"), this.thought);
    this.body = el("div", { class: "body" });
    this.after = el("div", { class: "after" });
    this.node = el(
      "article",
      { class: `message ${message.role}`, "aria-label": name },
      el("h2", { class: isUser ? "hidden" : "who" }, name),
      this.details,
      this.body,
      this.after,
    );
    this.markdown = new Markdown(this.body, (number) => this.#cite(number));
    this.show();
  }

  /** Show the message as it is now; while it is still coming, at most once a frame. */
  show({ isRunning = false } = {}) {
    this.#isRunning = isRunning;
    if (!isRunning) {
      cancelAnimationFrame(this.#frame);
      this.#frame = null;
      this.#draw();
    } else if (this.#frame === null) {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = null;
        this.#draw();
      });
    }
  }

  #draw() {
    const { role, content, thought } = this.#message;
    if (role === "user") this.body.textContent = content;
    else this.markdown.show(content, { isWhole: !this.#isRunning });
    this.details.hidden = !thought;
    this.thought.textContent = thought ?? "";
    this.node.classList.toggle("running", this.#isRunning);
    this.node.classList.toggle("waiting", this.#isRunning && !content);
    if (this.#isRunning) this.after.replaceChildren();
    else this.#drawAfter();
    this.onshown?.();
  }

  #drawAfter() {
    const { content, note, error, figures } = this.#message;
    const { again, edit, key } = this.#actions;
    const buttons = [again && ["Try again", again], error?.status === 401 && key && ["Enter a key", key]].filter(Boolean);
    const sources = sourcesOf(this.#message);
    const copyButton = iconButton("copy", "Copy message", (event) => copy(content, event.currentTarget));
    this.after.replaceChildren(
      ...[
        note && el("p", { class: "note" }, note),
        error && errorPanel(error, buttons),
        sources,
        el(
          "div",
          { class: "actions" },
          content && copyButton,
          edit && iconButton("edit", "Edit message", edit),
          again && !error && iconButton("again", "Answer again", again),
          figures && el("span", { class: "figures" }, figures),
        ),
      ].filter(Boolean),
    );
  }

  #cite(number) {
    const citation = this.#message.citations?.find((row) => row.number === number);
    if (!citation) return null;
    return citationButton(citation, (wanted) => this.after.querySelector(`[data-number="${wanted}"]`));
  }

  /** Let the message be written anew in its place; `done` gets the new text, or null. */
  startEditing(done) {
    const area = el("textarea", { "aria-label": "Edit message", rows: Math.min(12, this.#message.content.split("\n").length + 1) });
    area.value = this.#message.content;
    const finish = (text) => {
      this.show();
      done(text);
    };
    const send = () => finish(area.value.trim() || null);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(null);
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    });
    this.body.replaceChildren(area);
    this.after.replaceChildren(
      el(
        "div",
        { class: "buttons" },
        el("button", { type: "button", onclick: () => finish(null) }, "Cancel"),
        el("button", { type: "button", class: "primary", onclick: send }, icon("send"), "Send"),
      ),
    );
    area.focus();
  }
}
