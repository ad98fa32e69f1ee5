"""The streams and buckets of an installation, with their options. Every service declares them when it starts."""

from crucible_core.errors import InvalidError
from crucible_core.limits import HISTORY_S, STREAMS
from crucible_core.position import in_stream
from crucible_core.subjects import DLV, RUN, Names, kv_stream, kv_subject
from crucible_kit.nats.bus import Bus
from crucible_kit.settings import KitSettings

DUPLICATE_WINDOW_S = 120.0
"""Deduplication window of the work queues and the history."""
DAY_S = 86_400.0
_STREAMS = "crucible.streams"
"""Metadata of the log's streams: their number, where there are several."""
BUCKETS = {
    "hooks": "a record for each hook",
    "webhooks": "a record for each webhook, secrets included",
    "keys": "hashes of API keys",
    "event_types": "types that users registered",
    "worlds": "worlds and their rooms",
    "retention": "how long which events are kept",
    "replays": "what replays are about, and how far they are",
    "marks": "a mark that is stored to probe for free storage",
    "shards": "who serves which handlers, and how far they have come in the log",
    "losses": "sequences that the log has lost",
}


async def declare_streams(bus: Bus, settings: KitSettings, service: str = "events") -> None:
    """Creates the streams of the log, HOOK_RUNS, DELIVERIES and ATTEMPTS where they are missing. Idempotent.

    An existing one is changed by its `service` alone: another that has other settings must not shorten the log. Raises
    InvalidError where the log is in another number of streams than the settings say.
    """
    names = bus.names
    replicas = settings.stream_replicas
    retention_s = settings.retention_days * DAY_S
    window_s = min(DUPLICATE_WINDOW_S, retention_s)
    await _check_streams(bus)
    some = "every committed event" if names.streams == 1 else "the committed events of some worlds"
    for stream in reversed(names.log_streams):  # where the first one is, all of them are
        await bus.ensure_stream(
            stream,
            update=service == "events",
            description=f"Crucible: {some}, the source of all else",
            subjects=names.subjects_in(stream, [names.all_events]),
            num_replicas=replicas,
            max_age=retention_s,
            duplicate_window=min(settings.duplicate_window_s, retention_s),
            allow_direct=True,
            allow_atomic=True,
            allow_msg_ttl=True,
            metadata={_STREAMS: str(names.streams)} if names.streams > 1 else None,
        )
    for owner, stream, kind, what in (
        ("hooks", names.hook_runs, RUN, "runs of Post hooks"),
        ("webhooks", names.deliveries, DLV, "deliveries of webhooks"),
    ):
        await bus.ensure_stream(
            stream,
            update=service == owner,
            description=f"Crucible: {what} that wait, now or for their time",
            subjects=[names.all_work(kind), names.all_schedules(kind), names.all_held(kind)],
            retention="workqueue",
            num_replicas=replicas,
            # A job waits no longer than the log keeps its event: a handler that is off for ever must not fill the disk.
            max_age=retention_s,
            duplicate_window=window_s,
            allow_direct=True,
            allow_msg_ttl=True,
            allow_msg_schedules=True,
        )
    await bus.ensure_stream(
        names.attempts,
        update=service == "events",
        description="Crucible: every attempt at a run or a delivery, and messages that were parked",
        subjects=[names.all_attempts],
        num_replicas=replicas,
        max_age=HISTORY_S,
        duplicate_window=DUPLICATE_WINDOW_S,
        allow_direct=True,
        allow_atomic=True,
    )


async def _check_streams(bus: Bus) -> None:
    """Raises InvalidError where the log has another number of streams than the settings: a world's stream depends on
    it, and its events would not be found. A lost stream is created anew, and reported as a loss."""
    names = bus.names
    possible = Names(names.prefix, STREAMS).log_streams
    there = [stream for stream in await bus.stream_names() if stream in possible]
    options = [await bus.stream_options(stream) for stream in there]
    number = max((int(found.get("metadata", {}).get(_STREAMS, "1")) for found in options), default=names.streams)
    if number == names.streams:
        return
    if not any([in_stream(await bus.last_sequence(stream)) for stream in there]):
        for stream in set(there).difference(names.log_streams):
            await bus.delete_stream(stream)
        return
    message = (
        f"is {names.streams}, and the events of this NATS are in {number} stream{'' if number == 1 else 's'}: set it to"
        f" {number}. To spread them over {names.streams}, `crucible events export` them, and import them where NATS has"
        " an empty data directory"
    )
    raise InvalidError.field("CRUCIBLE_STREAMS", message, detail=f"CRUCIBLE_STREAMS {message}")


async def declare_bucket(bus: Bus, name: str, replicas: int = 1) -> str:
    """Creates or updates the stream behind a key-value bucket (ADR-8) and returns the bucket's full name."""
    bucket = bus.names.bucket(name)
    await bus.ensure_stream(
        kv_stream(bucket),
        description=f"Crucible: the bucket {name}: {BUCKETS.get(name, 'configuration')}",
        subjects=[kv_subject(bucket, ">")],
        num_replicas=replicas,
        max_msgs_per_subject=1,
        discard="new",
        allow_rollup_hdrs=True,
        allow_direct=True,
        allow_msg_ttl=True,
        deny_delete=True,
        max_msg_size=1024 * 1024,
    )
    return bucket
