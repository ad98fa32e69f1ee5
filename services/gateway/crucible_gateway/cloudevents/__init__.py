"""CloudEvents 1.0 as an adapter: `incoming` reads theirs, `outgoing` writes ours; docs/cloudevents.md has the table."""
