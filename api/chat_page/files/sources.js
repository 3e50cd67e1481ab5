// What an answer rests on: the passages that the model was given, and where they stand.

import { el } from "./dom.js";

/** The numbers that a text cites, of those it was given. */
export function citedIn(text, citations) {
  const cited = new Set();
  for (const match of text.matchAll(/\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]/g)) {
    for (const number of match[1].split(",").map(Number)) cited.add(number);
  }
  return citations.filter((citation) => cited.has(citation.number));
}

/** The list below an answer: what it cites, and then the rest; all, while it cites nothing. */
export function sourcesOf(message) {
  const citations = message.citations ?? [];
  const notices = message.notices ?? [];
  if (!citations.length && !notices.length) return null;
  const cited = citedIn(message.content, citations);
  const first = cited.length ? cited : citations;
  const rest = citations.filter((citation) => !first.includes(citation));
  return el(
    "section",
    { class: "sources", "aria-label": "Sources" },
    citations.length > 0 && el("h3", {}, cited.length ? "Sources" : "Passages that were given"),
    first.map(passage),
    rest.length > 0 &&
      el("details", { class: "rest" }, el("summary", {}, `${rest.length} more that it was given`), rest.map(passage)),
    notices.map((notice) => el("p", { class: "notice" }, notice)),
  );
}

/** A number in an answer that opens its passage below. */
export function citationButton(citation, find) {
  const onclick = () => {
    const details = find(citation.number);
    if (!details) return;
    for (let node = details; node; node = node.parentElement.closest("details")) node.open = true;
    details.querySelector("summary").focus();
    details.scrollIntoView({ block: "nearest" });
  };
  const name = `Source ${citation.number}: ${placeOf(citation)}`;
  return el("button", { type: "button", class: "citation", "aria-label": name, title: placeOf(citation), onclick }, String(citation.number));
}

function passage(citation) {
  return el(
    "details",
    { class: "passage", "data-number": citation.number },
    el("summary", {}, el("span", { class: "number" }, String(citation.number)), el("span", {}, placeOf(citation))),
    el("blockquote", {}, citation.text),
  );
}

/** Document, page and section, as they are cited. */
export function placeOf({ filename, first_page: first, last_page: last, page_label: label, section }) {
  const parts = [filename];
  if (first) parts.push(last && last !== first ? `pp. ${first}–${last}` : `p. ${first}${label ? ` (printed: ${label})` : ""}`);
  if (section) parts.push(section);
  return parts.join(" · ");
}
