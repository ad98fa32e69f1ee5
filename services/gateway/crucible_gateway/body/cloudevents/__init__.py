"""CloudEvents 1.0 as an adapter: `reader` reads theirs, `writer` writes ours; docs/cloudevents.md has the table."""
