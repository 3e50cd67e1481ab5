// Markdown to elements. The parser gives tokens, and each becomes an element of this list or plain text: what a
// model writes is never taken for HTML, no image of another server is loaded (an address can carry a secret
// out), and links lead only to where a browser shows a page.

import { copy, el, icon } from "./dom.js";
import MarkdownIt from "./vendor/markdown-it.js";

const parser = new MarkdownIt({ html: false, linkify: true, breaks: true });
parser.linkify.set({ fuzzyLink: false, fuzzyEmail: false });

const TAGS = new Set(["p", "ul", "ol", "li", "blockquote", "strong", "em", "s", "table", "thead", "tbody", "tr", "th", "td"]);
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const CITED = /\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]/g;
// Each message has an h2 of ours.
const HEADINGS = { h1: "h3", h2: "h3", h3: "h4", h4: "h5", h5: "h6", h6: "h6" };

/**
 * A text that is shown in `container` and may grow: only blocks that have changed are made anew, so that what is
 * read or selected stays where it is.
 */
export class Markdown {
  #container;
  #blocks = [];

  /** @param cite makes the element that stands for a cited number; null for one that is none. */
  constructor(container, cite = () => null) {
    this.#container = container;
    this.cite = cite;
  }

  show(text, { isWhole = true } = {}) {
    const lines = text.split("\n");
    const blocks = blocksOf(parser.parse(text, {}), lines);
    let same = 0;
    // What comes late can change what stood before: a link's address, a number's passage.
    if (!isWhole) while (same < blocks.length && blocks[same].source === this.#blocks[same]?.source) same += 1;
    for (const block of this.#blocks.slice(same)) for (const node of block.nodes) node.remove();
    for (const block of blocks.slice(same)) {
      block.nodes = [...build(block.tokens, this.cite).childNodes];
      this.#container.append(...block.nodes);
    }
    this.#blocks = [...this.#blocks.slice(0, same), ...blocks.slice(same)];
  }
}

/** The tokens of each block of a document, with the lines it was written in. */
function blocksOf(tokens, lines) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0 && token.nesting >= 0) {
      const [from, to] = token.map ?? [0, lines.length];
      blocks.push({ source: `${token.type}\n${lines.slice(from, to).join("\n")}`, tokens: [], nodes: [] });
    }
    blocks.at(-1).tokens.push(token);
    depth += token.nesting;
  }
  return blocks;
}

function build(tokens, cite) {
  const root = document.createDocumentFragment();
  const stack = [root];
  for (const token of tokens) {
    if (token.hidden) continue;
    const parent = stack.at(-1);
    if (token.type === "inline") parent.append(build(token.children, cite));
    else if (token.nesting === 1) stack.push(opened(token, parent));
    else if (token.nesting === -1) stack.pop();
    else parent.append(...leaf(token, cite));
  }
  return root;
}

function opened(token, parent) {
  const node = elementFor(token);
  if (token.tag === "table") {
    // Wide tables scroll by themselves, by keyboard too.
    parent.append(el("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Table" }, node));
  } else {
    parent.append(node);
  }
  return node;
}

function elementFor(token) {
  const { tag } = token;
  if (tag in HEADINGS) return el(HEADINGS[tag]);
  if (tag === "a") return link(token.attrGet("href"));
  if (!TAGS.has(tag)) return el("span");
  const node = el(tag);
  if (tag === "ol" && token.attrGet("start")) node.setAttribute("start", Number(token.attrGet("start")));
  const side = /text-align:(left|center|right)/.exec(token.attrGet("style") ?? "");
  if (side) node.classList.add(side[1]);
  return node;
}

function link(address) {
  let scheme = "";
  try {
    scheme = new URL(address).protocol;
  } catch {
    // An address within a site that is not this one.
  }
  if (!SCHEMES.has(scheme)) return el("span");
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function leaf(token, cite) {
  switch (token.type) {
    case "text":
      return withCitations(token.content, cite);
    case "softbreak":
    case "hardbreak":
      return [el("br")];
    case "hr":
      return [el("hr")];
    case "code_inline":
      return [el("code", {}, token.content)];
    case "fence":
    case "code_block":
      return [codeBlock(token.content.replace(/\n$/, ""), token.info.trim().split(/\s+/)[0])];
    case "image": {
      const node = link(token.attrGet("src"));
      node.append(icon("image"), token.content || "image");
      node.classList.add("image");
      return [node];
    }
    default:
      return [token.content];
  }
}

function codeBlock(code, language) {
  const button = el("button", { type: "button", class: "quiet", "aria-label": "Copy code", title: "Copy code" }, icon("copy"));
  button.addEventListener("click", () => copy(code, button));
  return el(
    "div",
    { class: "code" },
    el("div", { class: "bar" }, el("span", {}, language), button),
    el("pre", { tabindex: 0, role: "region", "aria-label": language ? `Code, ${language}` : "Code" }, el("code", {}, code)),
  );
}

/** A text in which the numbers of `[1]` and `[1, 3]` become what `cite` makes of them; unknown ones stay. */
function withCitations(text, cite) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(CITED)) {
    const numbers = match[1].split(",").map(Number);
    const cited = numbers.map(cite);
    if (cited.every((node) => node === null)) continue;
    nodes.push(text.slice(from, match.index), ...cited.map((node, index) => node ?? ` [${numbers[index]}]`));
    from = match.index + match[0].length;
  }
  nodes.push(text.slice(from));
  return nodes;
}
