// What a client in TypeScript does with generated types: node client.js URL KEY.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [url, key] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

function got<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

const event: components["schemas"]["SentEvent"] = { type: "Custom.TypeScript", payload: { n: 1 } };
const appended = got(await client.POST("/api/v1/events", { body: event }));
const batch = got(await client.POST("/api/v1/events/batch", { body: [event, event] }));
const last = batch.results[1].sequence ?? undefined;
const page = got(
  await client.GET("/api/v1/events", { params: { query: { type: ["Custom.TypeScript"], min_sequence: last } } }),
);
const written = got(
  await client.POST("/api/v1/memory", {
    params: { header: { "Idempotency-Key": "typescript" } },
    body: {
      content: "The TypeScript client remembers",
      tags: ["#typescript"],
      links: ["mem_other", { to: "On logs" }],
    },
  }),
);
const view = got(await client.GET("/api/v1/memory/{id}", { params: { path: { id: written.id } } }));
const found = got(
  await client.POST("/api/v1/memory/query", {
    body: { text: "remembers", tags: ["#typescript"], min_sequence: written.sequence },
  }),
);
const webhook = got(
  await client.POST("/api/v1/webhooks", {
    body: { name: "typescript", url: "http://127.0.0.1:9/", event_filters: [{ event_type: "Custom.TypeScript" }] },
  }),
);
const webhooks = got(await client.GET("/api/v1/webhooks"));
const refused = await client.POST("/api/v1/events", { body: { type: "Memory.Creatd" } });
console.log(
  JSON.stringify({
    appended: [appended.id, appended.type],
    committed: batch.committed,
    listed: page.events.map((each) => each.data.payload.n),
    first: [page.events[0].metadata.id, new Date(page.events[0].metadata.timestamp).getUTCFullYear()],
    links: view.links.map((link) => link.target),
    found: found.memories.map((each) => each.content),
    webhook: [webhook.name, webhooks.webhooks.some((each) => each.id === webhook.id)],
    refused: [refused.error?.status, refused.error?.errors[0].suggestion],
  }),
);
