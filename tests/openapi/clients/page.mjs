// Tries the page at /docs as its reader would: node page.mjs URL KEY.
import { createRequire } from "node:module";
import { join } from "node:path";

const [url, key, tools] = process.argv.slice(2);
const { JSDOM, VirtualConsole } = createRequire(join(tools, "node_modules/"))("jsdom");
const broken = [];
const virtualConsole = new VirtualConsole().on("jsdomError", (error) => broken.push(String(error)));
const dom = await JSDOM.fromURL(`${url}/docs`, {
  runScripts: "dangerously",
  virtualConsole,
  beforeParse(window) {
    window.fetch = (path, options) => fetch(new URL(path, url), options && { ...options, signal: undefined });
  },
});
const { document, Event } = dom.window;

async function until(condition) {
  for (let tries = 0; tries < 1000; tries++) {
    const found = condition();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`not seen: ${condition}`);
}

function open(details) {
  details.open = true;
  details.dispatchEvent(new Event("toggle"));
  return details;
}

async function tried(operation, fill) {
  const article = await until(() => document.getElementById(operation));
  const box = open([...article.querySelectorAll(":scope > details")].pop());
  const form = box.querySelector("form");
  fill(form);
  form.dispatchEvent(new Event("submit", { cancelable: true }));
  const answer = await until(() => form.querySelector("div pre:last-child")?.textContent);
  return [form.querySelector("div .call").textContent.split(" ")[0], JSON.parse(answer)];
}

const refused = await tried("query_events", () => {});
document.querySelector("#key").value = key;
const appended = await tried("append_event", (form) => {
  form.querySelector("textarea").value = '{"type": "Custom.Page", "payload": {"n": 1}}';
});
const listed = await tried("query_events", (form) => {
  form.querySelector('[name="type"]').value = "Custom.Page";
  form.querySelector('[name="min_sequence"]').value = appended[1].sequence;
});
const one = await tried("get_event", (form) => {
  form.querySelector('[name="id"]').value = appended[1].id;
});
for (let closed; (closed = document.querySelector("details:not([open])")); ) {
  // Fields of fields without end: a trace's node holds nodes.
  if (closed.parentElement.closest("details details")) closed.remove();
  else open(closed);
}
console.log(
  JSON.stringify({
    refused: refused[0],
    appended: appended[0],
    listed: listed[1].events.map((each) => each.metadata.id),
    one: one[1].data.payload,
    id: appended[1].id,
    operations: document.querySelectorAll("article").length,
    markdown: [...document.querySelectorAll("p, td, h3, h4, summary")]
      .map((each) => [...each.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join(""))
      .filter((text) => text.includes("`") || text.includes("**")),
    broken,
  }),
);
dom.window.close();
