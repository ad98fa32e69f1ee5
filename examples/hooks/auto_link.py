# Links the memory that was written to those most like it. Its last expression is the run's output.
found = memory_query(text=event["payload"]["content"], limit=6)
linked = []
for memory in found:
    if memory["id"] == inputs["memory_id"] or memory["score"] < inputs["similarity_threshold"]:
        continue
    answer = memory_link(inputs["memory_id"], memory["id"], type="related", weight=memory["score"])
    if answer["changed"]:
        linked.append(memory["id"])
log("linked", len(linked), "of", len(found), "found")
{"linked": linked}
