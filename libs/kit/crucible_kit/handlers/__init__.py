"""The work engine: runs the due jobs of handlers (hooks, webhooks), and loses none.

A replica owns some of 64 shards (`shards`), reads the log once for all of them (`dispatch`), and hands each event to
the lanes of its handlers (`lanes`). Nothing is written for it: the progress of a lane is a position in the log, which
the shard's record stores from time to time (`progress`). Only retries and replays are messages of the work queue, which
point at their events (`pointers`).
"""
