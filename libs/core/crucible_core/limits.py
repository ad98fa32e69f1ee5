"""Limits and defaults that a user can meet, each with its unit and its reason."""

TIME_AHEAD_S = 86_400
"""Seconds that a time from outside may be ahead of the clock: clocks differ by minutes, time zones by hours."""

STORAGE_RESERVE_BYTES = 256 * 1024 * 1024
"""Bytes that are kept free on the disk where NATS keeps its streams: room for what must be stored when no more events
are taken (runs, deliveries and their attempts, deletions), for the indexes, and for those who make room."""

_SMALL_RESERVE_BYTES = 32 * 1024 * 1024


def storage_reserve(total: int) -> int:
    """`STORAGE_RESERVE_BYTES`, or what suits a small disk of `total` bytes: a tenth, at least 32 MiB or a quarter."""
    return min(STORAGE_RESERVE_BYTES, max(total // 10, min(_SMALL_RESERVE_BYTES, total // 4)))


YAML_BYTES = 64 * 1024
"""Bytes of one YAML document, such as the front matter of a hook or a note: read in about 50 ms at the worst."""

YAML_DEPTH = 64
"""Nested collections of a YAML document, as deep as JSON may be: libyaml overflows the stack at some ten thousand."""

YAML_VALUES = 10_000
"""Keys and values of a YAML document, with each alias counted as what it stands for."""

HOOK_FILE_BYTES = 512 * 1024
"""Bytes of a hook file or of a script beside it: a script may have 256 KiB, and JSON may write each byte as two."""

HOOK_FILES = 5000
"""Files of one hooks directory: all of them are looked at every second."""

GIVEN_BYTES = 64 * 1024 * 1024
"""Bytes of a file or of stdin that an argument of the CLI names (`@FILE`, `-`): what one request may have."""

URL_LENGTH = 2_048
"""Characters of a URL that Crucible sends requests to: what servers and proxies commonly take."""

ANSWER_BYTES = 64 * 1024
"""Bytes that are read of an answer's body, unpacked: receivers answer with a few words, and nobody reads more."""

ANSWER_HEADER_BYTES = 64 * 1024
"""Bytes of an answer's headers. Browsers allow 256 KiB, most servers send less than 8 KiB."""

SECRET_BYTES = 12
"""The least bytes of a webhook's secret that is a text: shorter ones are found by trying them all."""

SECRET_MOST = 1_024
"""The most characters of a webhook's secret, token, user name or password: far more than any system makes."""

SECRET_KEY_BYTES = 24
SECRET_KEY_MOST = 64
"""Bytes of a key that is written as base64 after `whsec_`: those of Standard Webhooks."""

SECRET_GRACE_S = 30 * 86_400
"""The longest time in seconds for which a webhook's secret goes on signing beside the new one."""

SECRETS_KEPT = 4
"""Secrets before the present one that still sign: each makes the headers of each request longer."""

RETRY_AFTER_S = 86_400
"""The longest wait in seconds that another side's Retry-After can ask for."""

MEMORY_QUERY_CHARS = 20_000
"""Characters of a query's text that are read; of a longer one, the beginning."""

MEMORY_QUERY_LIMIT = 100
"""Memories of one answer."""

SCHEMA_STEPS = 2_000_000
"""Steps in which a payload is checked by the schema of its type: some 0.5 s. A step asks one subschema about one value;
where alternatives multiply, there may be many for each."""

MEMORY_PATHS = frozenset({"query", "status"})
"""Ids that no memory may have: below `/api/v1/memory/` they are something else."""

MEMORY_TAGS = 100
"""Tags of one memory; of a note with more, the first."""

MEMORY_TAG_CHARS = 100
"""Characters of a tag, with its `#`."""

MEMORY_ENTITIES = 1000
"""Entities of one memory."""

MEMORY_LINKS = 1000
"""Links of one memory; of a note with more, the first."""

MEMORY_WORD_CHARS = 200
"""Characters of an entity, a link's target or a link's type."""

NOTE_READ_CHARS = 128 * 1024
"""Characters of a note in which tags and links are looked for: a Markdown parser is slow, and hostile texts make it
slower. The whole note is found by its words."""
NOTE_CONTENT_BYTES = 900 * 1024
"""Bytes of a note's text that a File event carries, as UTF-8 and as JSON: an event may have 1 MiB."""

NOTE_HASHED_BYTES = 64 * 1024 * 1024
"""Bytes of a note that are read for its hash; a longer one is told apart by its size and time alone."""

EXPRESSION_CHARACTERS = 4096
"""Characters of one CEL expression."""

EXPRESSION_CPU_MS = 1000
"""Milliseconds of processor time of one evaluation, or of one check of a hook: then its worker process is ended."""

RENDERED_BYTES = 4 * 1024 * 1024
"""Bytes of all that the templates of one action come to: an event of 1 MiB a few times over."""

TEMPLATES = 200
"""Templates (`{{ … }}`) of one hook."""

SCRIPT_BYTES = 64 * 1024
"""Bytes of one script: to check it takes about 0.1 s."""

SCRIPT_DEPTH = 100
"""Nested blocks, brackets and operators of a script; CPython's own parser gives up at 100 blocks and 200 brackets."""

HOOK_REQUESTS = 128
"""Requests of HTTP hooks at once, for Post hooks and again for Pre hooks; one hook has at most a quarter of them."""

HOOK_COMMANDS = 32
"""Commands of Shell hooks at once, for Post hooks and again for Pre hooks; one hook has at most a quarter of them."""
UNSENT_BYTES = 64 * 1024 * 1024
"""Bytes of answers and events that the clients of one process have not taken. Beyond it the connection of the one that
has been behind for longest is closed."""

STALL_S = 30.0
"""Seconds in which a client may take nothing at all of what waits for it; then its connection is closed."""

LIVE_BYTES = 32 * 1024 * 1024
"""Bytes of memory for the latest events that wait for slow subscriptions, over all of a gateway. One that is further
behind gets a `gap` and reads the log instead."""

CATCH_UP_BYTES = 16 * 1024 * 1024
"""Bytes of the past that a gateway holds for its subscriptions; the more of them read it, the fewer each at a time."""

FAILING_AFTER = 10
"""Runs in a row that fail the same way, after which their hook is shown as failing."""

TURN_S = 0.005
"""Seconds that one request works at a stretch before all others have their turn: a large batch delays nobody by more
than this and the time that one event of it takes, which is some 0.1 s where somebody makes it as costly as he can."""

FILTERS = 1000
"""Filters of one hook, webhook or subscription: all of them are compiled at once."""
