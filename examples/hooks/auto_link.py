"""Links a memory to those that are most like it. Runs in the sandbox: it sees `event`, `inputs` and the functions
that hooks are given (memory_query, memory_link, log), and nothing else of the machine."""

memory_id = inputs["memory_id"]
payload = event["payload"]
linked = {link if isinstance(link, str) else link.get("to") for link in payload.get("links", [])}

added = []
for other in memory_query(text=payload["content"], limit=inputs["limit"] + 1 + len(linked)):
    if other["id"] == memory_id or other["id"] in linked or len(added) == inputs["limit"]:
        continue
    if other["score"] < inputs["similarity_threshold"]:
        break  # the best come first
    if memory_link(memory_id, other["id"], type="related", weight=round(other["score"], 3))["changed"]:
        added.append(other["id"])

log("linked", memory_id, "to", len(added), "related notes")
{"linked": added}
