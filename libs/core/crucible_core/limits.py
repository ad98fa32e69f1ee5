"""Limits and defaults that a user can meet, each with its unit and its reason."""

YAML_BYTES = 64 * 1024
"""Bytes of one YAML document, such as the front matter of a hook or a note: read in about 50 ms at the worst."""

YAML_DEPTH = 64
"""Nested collections of a YAML document, as deep as JSON may be: libyaml overflows the stack at some ten thousand."""

YAML_VALUES = 10_000
"""Keys and values of a YAML document, with each alias counted as what it stands for."""
