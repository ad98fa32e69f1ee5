"""Limits and defaults that a user can meet, each with its unit and its reason; docs/limits.md is written from them."""

# ---- Events ----

EVENT_BYTES = 1024 * 1024
"""Bytes of an event as it is stored, with its metadata: one message of NATS, which hundreds of readers may hold."""

EVENT_DEPTH = 64
"""Nested objects and arrays of an event: deeper ones overflow the stacks of those who read them."""

HOPS = 8
"""Events in one chain of effects: an event with this hop count causes nothing more, so that no loop is without end."""

NAME_CHARS = 200
"""Characters of an actor, a correlation or causation id and an idempotency key: each is a header of a message."""

ID_CHARS = 64
"""Characters of the id of a world or room, or of a custom type's version: each is part of paths and subjects."""

SOURCE_CHARS = 2_048
"""Characters of a source's id: a URI is as long in practice."""

ENTITY_CHARS = 4_096
"""Characters of an entity: a file's path is as long at the most."""

EXTENSIONS = 64
"""Extension attributes of one CloudEvent: each is stored with the event."""

EXTENSION_CHARS = 8_192
"""Characters of an extension's text: W3C's `baggage` may be so long."""

REASON_CHARS = 1_000
"""Characters of the reason for a redaction: it stands in each answer that shows the event."""

TIME_AHEAD_S = 86_400
"""Seconds that a time from outside may be ahead of the clock: clocks differ by minutes, time zones by hours."""

# ---- Requests and batches ----

REQUEST_BYTES = 64 * 1024 * 1024
"""Bytes of a request's body: the gateway checks a batch in pieces, and its results are held to the end."""

REQUEST_EVENTS = 100_000
"""Events of one request: each has a result in the answer."""

ATOMIC_EVENTS = 1_000
"""Events that are committed all or none: the NATS server takes no more messages in one atomic batch."""

BATCH_BYTES = 4 * 1024 * 1024
"""Bytes that go to the log at once, so the bytes of an atomic batch: half of what one message between services has."""

BATCH_ERRORS = 100
"""Errors that the answer to a refused atomic batch lists."""

ERRORS = 20
"""Errors that one answer lists: nobody reads more, and a hostile body may have thousands."""

HEAD_BYTES = 64 * 1024
"""Bytes of a request's line and headers, and of the sizes of its chunks and trailers between two pieces of a body."""

REQUEST_HEADERS = 200
"""Headers of one request: each costs time before anybody knows who sent it."""

PARAMETERS = 200
"""Parameters of one query string: repeated types and filters, many times over."""

BODY_BYTES_A_SECOND = 16 * 1024
"""Bytes of a body a second, beside `CRUCIBLE_BODY_TIMEOUT_S`: a slower client holds a connection for nothing."""

KEY_CHARS = 180
"""Characters of an `Idempotency-Key`: with the number of an event behind it, it is a name of 200."""

API_KEY_CHARS = 512
"""Characters of an API key: longer ones are not hashed at all."""

UNSENT_BYTES = 64 * 1024 * 1024
"""Bytes of answers and events that the clients of one process have not taken. Beyond it the connection of the one that
has been behind for longest is closed."""

STALL_S = 30.0
"""Seconds in which a client may take nothing at all of what waits for it; then its connection is closed."""

TURN_S = 0.005
"""Seconds that one request works at a stretch before all others have their turn: a large batch delays nobody by more
than this and the time that one event of it takes, which is some 0.1 s where somebody makes it as costly as he can."""

RETRY_AFTER_LEAST_S = 1
"""Seconds that `Retry-After` asks for at the least: the header has no fractions."""

# ---- Queries ----

PAGE = 1_000
"""Items of one page of any list: what is read and encoded in a few milliseconds."""

EVENTS_PAGE = 100
"""Events of a page where the request has no `limit`, and worlds or rooms."""

HISTORY_PAGE = 50
"""Runs or attempts of a page where the request has no `limit`: each has the output or answer with it."""

PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of one page of events or memories; a page of larger ones is shorter, and its cursor goes on."""

QUERY_TYPES = 100
"""Types of one query: each is a range of the index."""

QUERY_STEPS = 200_000
"""Steps of one query, some 2 s: a row that is looked at is one, a payload that is decoded for the filter is several.
Then the page ends, and its cursor goes on."""

COUNT_S = 2.0
"""Seconds of one count; then it is answered with what was counted, and a cursor."""

COUNT_GROUPS = 2_000
"""Groups of one count: the answer ends there, and a cursor goes on."""

TREE_EVENTS = 1_000
"""Events of one trace: the cause and its effects as a tree."""

TREE_LEVELS = 64
"""Levels of a trace. Deeper effects are shown as effects of their ancestor at this level, so that anybody's JSON reader
takes them."""

# ---- Live subscriptions ----

SUBSCRIPTIONS = 100
"""Subscriptions of one WebSocket: each is matched against every event."""

LIVE_BYTES = 32 * 1024 * 1024
"""Bytes of memory for the latest events that wait for slow subscriptions, over all of a gateway. One that is further
behind gets a `gap` and reads the log instead."""

CATCH_UP_BYTES = 16 * 1024 * 1024
"""Bytes of the past that a gateway holds for its subscriptions; the more of them read it, the fewer each at a time."""

CATCH_UP_PAGES = 8
"""Pages of the past that a gateway reads at once for its subscriptions; others wait for their turn."""

# ---- Filters ----

FILTERS = 1_000
"""Filters that are compiled at once, such as those of one subscription."""

FILTER_DEPTH = 16
"""Nested `$and`, `$or` and `$not` of one filter, and nested values that it compares with."""

FILTER_CONDITIONS = 200
"""Conditions of one filter: each is evaluated for every event of its types."""

FILTER_PATTERNS = 20
"""Patterns of one filter: each takes milliseconds to compile and megabytes to keep."""

FILTER_PATTERN_CHARS = 1_000
"""Characters of a pattern of `matches`: longer ones take megabytes."""

FILTER_OPERANDS = 1_000
"""Values of a list that an operator such as `in` takes."""

FILTER_OPERAND_VALUES = 10_000
"""Values of one operand with all that is nested in it: each is compared."""

FILTER_PATH_CHARS = 256
"""Characters of a field's path in a filter."""

# ---- Event types ----

TYPES = 1_000
"""Registered types: each is a series of the metrics, and every process knows all of them."""

TYPES_BYTES = 8 * 1024 * 1024
"""Bytes of all registered types: every process holds them."""

TYPE_BYTES = 512 * 1024
"""Bytes of all versions of one type: they are one value of a bucket."""

TYPE_ALIASES = 50
"""Other names of one type: each is a name that no other type may have."""

TYPE_ALIAS_CHARS = 200
"""Characters of a type's other name."""

TYPE_NAME_CHARS = 128
"""Characters of a name after `Custom.`: it is part of a subject."""

DESCRIPTION_CHARS = 4_096
"""Characters of the description of a type or hook."""

SCHEMA_BYTES = 256 * 1024
"""Bytes of one schema: it is compiled where it is first used."""

SCHEMA_SUBSCHEMAS = 2_000
"""Subschemas of one schema: comparing two versions asks about each."""

SCHEMA_IN_PLACE = 200
"""Subschemas of one schema that are asked about the same value."""

SCHEMA_VALUES = 1_000
"""Entries of one list or object that a schema's keyword takes, such as `enum`."""

SCHEMA_PATTERNS = 100
"""Patterns of one schema: each takes time to compile and memory to keep."""

SCHEMA_PATTERN_CHARS = 1_000
"""Characters of one pattern of a schema."""

SCHEMA_PATTERNS_CHARS = 10_000
"""Characters of all patterns of a schema: compiling them takes time in which nothing else runs."""

SCHEMA_PATTERN_CLASSES = 20
"""Classes such as `\\d` in one pattern: to compile it takes a time that grows with their square."""

SCHEMA_CLASSES = 400
"""Classes such as `\\d` in all patterns of a schema: with their characters, it bounds compiling them to some 50 ms."""

SCHEMA_STEPS = 2_000_000
"""Steps in which a payload is checked by the schema of its type: some 0.5 s. A step asks one subschema about one value;
where alternatives multiply, there may be many for each."""

BREAKS = 50
"""Incompatible changes that the refusal of a type's new version lists."""

# ---- Worlds and retention ----

WORLDS = 10_000
"""Worlds beside the default one: each gateway and service holds their names."""

ROOMS = 1_000
"""Rooms of one world: they stand in its record."""

WORLD_DESCRIPTION_CHARS = 1_000
"""Characters of the description of a world or room: the rooms of a world are one value of a bucket."""

RETENTION_RULES = 1_000
"""Rules of retention: each append looks its type up in them."""

RETENTION_S = 36_500 * 86_400
"""Seconds that a rule can keep events: a hundred years; beyond it, there is `forever`."""

STREAMS = 64
"""Streams that the log may be spread over: each position of a query names them all."""

# ---- Replays ----

REPLAYS = 100
"""Replays that have not ended: all of them are one list that every replica watches."""

REPLAYS_RUNNING = 16
"""Replays that one replica works on at once; others wait."""

REPLAYS_ENDED = 100
"""Ended replays that are shown: the newest ones."""

REPLAYS_ENDED_MS = 7 * 86_400_000
"""Milliseconds for which an ended replay is shown."""

REPLAY_RATE = 1_000_000
"""Events a second that a replay can be asked for: more than any machine reads."""

REPLAY_WAITING = 1_000
"""Runs or deliveries of one handler, live ones among them, beyond which a replay to it waits."""

# ---- Handlers: hooks and webhooks ----

PARK_AFTER = 10
"""Failures of the service itself, not of the handler, after which a run or delivery is put aside."""

CRASHES = 2
"""Processes that may end while they work on one run, the second time on it alone, before it is put aside."""

HANDLER_FILTERS = 100
"""Filters of one hook, webhook or replay: each is matched, or is a range of the log."""

CONCURRENCY = 64
"""Runs or deliveries of one handler at once that it may ask for."""

LOSSES = 200
"""Records of what a log lost; with more, neighbours are told as one."""

RETRY_AFTER_S = 86_400
"""The longest wait in seconds that another side's Retry-After can ask for."""

URL_LENGTH = 2_048
"""Characters of a URL that Crucible sends requests to: what servers and proxies commonly take."""

ANSWER_BYTES = 64 * 1024
"""Bytes that are read of an answer's body, unpacked: receivers answer with a few words, and nobody reads more."""

ANSWER_HEADER_BYTES = 64 * 1024
"""Bytes of an answer's headers. Browsers allow 256 KiB, most servers send less than 8 KiB."""

# ---- Hooks ----

HOOK_TIMEOUT_MS = 300_000
"""Milliseconds of one attempt of a Post hook that `timeout_ms` can ask for."""

HOOK_PRE_TIMEOUT_MS = 10_000
"""Milliseconds of one attempt of a Pre hook, whatever it asks for: a writer waits for it."""

HOOK_DEFAULT_TIMEOUT_MS = 10_000
"""Milliseconds of one attempt of a Post hook without `timeout_ms`."""

HOOK_DEFAULT_PRE_TIMEOUT_MS = 2_000
"""Milliseconds of one attempt of a Pre hook without `timeout_ms`."""

HOOK_CONCURRENCY = 4
"""Runs of one Post hook at once, where it does not say how many."""

HOOK_PRIORITY = 100
"""Priority of a Pre hook that has none; a lower one runs first."""

HOOK_PRIORITY_MOST = 1_000_000
"""The highest priority, and with a minus sign the lowest."""

HOOK_ATTEMPTS = 20
"""Attempts of one run, the first one included: twenty doubled waits are days."""

HOOK_DELAY_MS = 3_600_000
"""Milliseconds of the longest wait between two attempts of a run."""

HOOK_DEBOUNCE_MS = 86_400_000
"""Milliseconds of the longest `debounce_ms`: a day."""

HOOK_SOURCE_CHARS = 262_144
"""Characters of an expression, script or command of a hook; expressions and scripts have narrower limits."""

HOOK_FILE_BYTES = 512 * 1024
"""Bytes of a hook file or of a script beside it: a script may have 256 KiB, and JSON may write each byte as two."""

HOOK_FILES = 5_000
"""Files of one hooks directory: all of them are looked at every second."""

HOOK_FOLDERS = 1_000
"""Folders of one hooks directory that are watched: the system has a limit for all watchers."""

HOOK_REQUESTS = 128
"""Requests of HTTP hooks at once, for Post hooks and again for Pre hooks; one hook has at most a quarter of them."""

HOOK_COMMANDS = 32
"""Commands of Shell hooks at once, for Post hooks and again for Pre hooks; one hook has at most a quarter of them."""

HOOK_ARGUMENT_BYTES = 120 * 1024
"""Bytes of a value that a template puts into a command: Linux refuses an argument or variable of over 128 KiB."""

HOOK_OUTPUT_BYTES = 64 * 1024
"""Bytes of a run's output that are read and kept with the run."""

HOOK_ERROR_CHARS = 4_000
"""Characters of a run's error that are kept with the run."""

HOOK_REASON_CHARS = 2_000
"""Characters of a Pre hook's reason for a denial: the writer gets it in the answer."""

HOOK_LOG_LINES = 200
"""Lines that one run may log."""

HOOK_LOG_CHARS = 1_000
"""Characters of one line that a run logs."""

HOOK_EFFECTS = 1_000
"""Events and memories that one run may bring about: they are committed all or none."""

FAILING_AFTER = 10
"""Runs in a row that fail the same way, after which their hook is shown as failing."""

# ---- Scripts and expressions ----

EXPRESSION_CHARACTERS = 4_096
"""Characters of one CEL expression: its parser takes milliseconds for each thousand."""

EXPRESSION_CPU_MS = 1_000
"""Milliseconds of processor time of one evaluation, or of one check of a hook: then its worker process is ended."""

RENDERED_BYTES = 4 * 1024 * 1024
"""Bytes of all that the templates of one action come to: an event of 1 MiB a few times over."""

TEMPLATES = 200
"""Templates (`{{ … }}`) of one hook: each is compiled when the hook is registered."""

SCRIPT_BYTES = 64 * 1024
"""Bytes of one script: to check it takes about 0.1 s."""

SCRIPT_DEPTH = 100
"""Nested blocks, brackets and operators of a script; CPython's own parser gives up at 100 blocks and 200 brackets."""

SCRIPT_RESULT_BYTES = 8 * 1024 * 1024
"""Bytes of the result of a script or expression, as it leaves its worker process."""

YAML_BYTES = 64 * 1024
"""Bytes of one YAML document, such as the front matter of a hook or a note: read in about 50 ms at the worst."""

YAML_DEPTH = 64
"""Nested collections of a YAML document, as deep as JSON may be: libyaml overflows the stack at some ten thousand."""

YAML_VALUES = 10_000
"""Keys and values of a YAML document, with each alias counted as what it stands for."""

# ---- Webhooks ----

WEBHOOK_NAME_CHARS = 200
"""Characters of a webhook's name."""

WEBHOOK_ATTEMPTS = 20
"""Attempts of one delivery, the first one included."""

WEBHOOK_DELAY_S = 86_400.0
"""Seconds of the longest wait between two attempts of a delivery: a day."""

WEBHOOK_RETRY_DELAYS_S = (2.0, 4.0, 8.0, 16.0)
"""Seconds between the attempts of a delivery, where the webhook has no `retry_delays_s` of its own."""

WEBHOOK_TIMEOUT_LEAST_MS = 100
"""Milliseconds that a webhook's `timeout_ms` has at the least: a TLS handshake takes as long."""

WEBHOOK_TIMEOUT_MS = 60_000
"""Milliseconds that a webhook's `timeout_ms` has at the most, for the whole exchange."""

WEBHOOK_CONCURRENCY = 8
"""Deliveries to one webhook at once, where it does not say how many."""

WEBHOOK_ANSWER_BYTES = 2_048
"""Bytes of a receiver's answer that are kept with the attempt."""

WEBHOOK_TRACED = 1_000
"""Deliveries of one correlation id that a trace shows."""

SECRET_BYTES = 12
"""The least bytes of a webhook's secret that is a text: shorter ones are found by trying them all."""

SECRET_MOST = 1_024
"""The most characters of a webhook's secret, token, user name or password: far more than any system makes."""

SECRET_KEY_BYTES = 24
"""The least bytes of a key that is written as base64 after `whsec_`: that of Standard Webhooks."""

SECRET_KEY_MOST = 64
"""The most bytes of a key that is written as base64 after `whsec_`: that of Standard Webhooks."""

SECRET_GRACE_DEFAULT_S = 86_400
"""Seconds for which the old secret goes on signing after a rotation that does not say how long: a day."""

SECRET_GRACE_S = 30 * 86_400
"""The longest time in seconds for which a webhook's secret goes on signing beside the new one."""

SECRETS_KEPT = 4
"""Secrets before the present one that still sign: each makes the headers of each request longer."""

SIGNATURE_TOLERANCE_S = 300.0
"""Seconds that a signature's time may differ from the receiver's clock in `verify_webhook`: Standard Webhooks' five
minutes, so that an old request cannot be sent again."""

# ---- Memory ----

MEMORY_QUERY_CHARS = 20_000
"""Characters of a query's text that are read; of a longer one, the beginning."""

MEMORY_QUERY_TERMS = 20
"""Words of a query. Of a longer text, such as another memory's content, the most telling ones are taken."""

MEMORY_QUERY_LIMIT = 100
"""Memories of one answer: each is scored and has its links with it."""

MEMORY_QUERY_DEFAULT = 10
"""Memories of one answer where the query has no `limit`."""

MEMORY_PATHS = frozenset({"query", "status"})
"""Ids that no memory may have: below `/api/v1/memory/` they are something else."""

MEMORY_ID_CHARS = 200
"""Characters of a memory's id."""

MEMORY_TITLE_CHARS = 1_000
"""Characters of a title; of a note with a longer one, the first."""

MEMORY_TAGS = 100
"""Tags of one memory; of a note with more, the first."""

MEMORY_TAG_CHARS = 100
"""Characters of a tag, with its `#`."""

MEMORY_ENTITIES = 1_000
"""Entities of one memory."""

MEMORY_LINKS = 1_000
"""Links of one memory; of a note with more, the first."""

MEMORY_WORD_CHARS = 200
"""Characters of an entity, a link's target or a link's type."""

MEMORY_FORMER_PATHS = 16
"""Paths that a note had before, under which it is still found."""

# ---- Notes ----

NOTE_READ_CHARS = 128 * 1024
"""Characters of a note in which tags and links are looked for: a Markdown parser is slow, and hostile texts make it
slower. The whole note is found by its words."""

NOTE_CONTENT_BYTES = 900 * 1024
"""Bytes of a note's text that a File event carries, as UTF-8 and as JSON: an event may have 1 MiB."""

NOTE_HASHED_BYTES = 64 * 1024 * 1024
"""Bytes of a note that are read for its hash; a longer one is told apart by its size and time alone."""

NOTE_LINK_CHARS = 500
"""Characters between `[[` and `]]`; a longer text is no link."""

NOTE_KEYS = 500
"""Keys of a front matter that does not parse as a whole, which are read one by one."""

WATCHED_FOLDERS = 10_000
"""Folders that `crucible watch` watches; what happens in others is found by looking at everything, twice a minute."""

# ---- Storage ----

STORAGE_RESERVE_BYTES = 256 * 1024 * 1024
"""Bytes that are kept free on the disk where NATS keeps its streams, where `CRUCIBLE_STORAGE_RESERVE_MIB` says nothing:
for what must be stored when no more events are taken (runs, deliveries and their attempts, deletions), for the
indexes, and for those who free disk space. On a small disk it is a tenth, at least 32 MiB or a quarter."""

_SMALL_RESERVE_BYTES = 32 * 1024 * 1024


def storage_reserve(total: int) -> int:
    """`STORAGE_RESERVE_BYTES`, or what suits a small disk of `total` bytes: a tenth, at least 32 MiB or a quarter."""
    return min(STORAGE_RESERVE_BYTES, max(total // 10, min(_SMALL_RESERVE_BYTES, total // 4)))


HISTORY_S = 30 * 86_400.0
"""Seconds for which runs and the attempts of deliveries are kept: a month."""

# ---- Between the services ----

IN_HAND_BYTES = 32 * 1024 * 1024
"""Bytes of the events in all lanes of a process, as many of the messages that its consumers work on, and as many of the
large requests. Each lane and each consumer may hold one message in any case; other requests wait at their senders."""

INFLOW_BYTES = 16 * 1024 * 1024
"""Bytes of large messages on their way to a connection, and as much again of small ones: a server cuts off a client
with 64 MiB to read."""

OUTFLOW_BYTES = 8 * 1024 * 1024
"""Bytes of large requests on their way from one process to each service; other processes send, too."""

# ---- The CLI and the SDK ----

GIVEN_BYTES = 64 * 1024 * 1024
"""Bytes of a file or of stdin that an argument of the CLI names (`@FILE`, `-`): what one request may have."""

FIRST_PORT = 8080
"""The port of the gateway that `crucible up` starts; those of the services follow it."""

READY_S = 60.0
"""Seconds until `crucible up` says what it waits for: a large index takes longer to be ready."""

LOG_FILE_BYTES = 8 * 1024 * 1024
"""Bytes of a log file of `crucible up`; then the next one begins."""

LOG_FILES = 3
"""Log files of each program that `crucible up` keeps beside the one it writes."""

RECEIVED_BYTES = 4 * 1024 * 1024
"""Bytes of a delivery that `crucible listen` takes: the largest event as JSON, a few times over."""

LOOKED_UP_EVENTS = 5_000
"""Events that the CLI looks through for the beginning of an id."""

SDK_TIMEOUT_S = 30.0
"""Seconds that an answer may take before the SDK gives up, or tries again."""

SDK_AWAY_S = 60.0
"""Seconds for which the SDK tries again where the other side is away in the middle of a subscription, an export or an
upload: a restart takes less."""

SDK_IDLE_S = 60.0
"""Seconds of silence, keep-alives included, after which the SDK takes a subscription's connection for dead."""

SDK_CONNECT_RETRIES = 2
"""Times that the SDK tries again to connect before a request fails."""
