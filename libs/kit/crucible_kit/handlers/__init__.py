"""The work engine: what handlers (hooks, webhooks) are due, by whom it is done, and that none of it is lost.

A replica owns some of 64 shards (`shards`), reads the log once for all of them (`reader`), and hands each event that a
handler wants to that handler's lane (`lanes`). Nothing is written for it: how far a lane has come is a place in the
log, which the shard's record tells from time to time (`progress`). Only what must wait for its time, or comes from
elsewhere (retries, replays), is a message of the work queue, which points at its event (`pointers`).
"""
