"""Limits and defaults that a user can meet, each with its unit and its reason."""

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

RETRY_AFTER_S = 86_400
"""The longest wait in seconds that another side's Retry-After can ask for."""
