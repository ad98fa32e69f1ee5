"""Limits and defaults that a user can meet, each with its unit and its reason."""

YAML_BYTES = 1024 * 1024
"""Bytes of one YAML document. A hook file or the front matter of a note is a few hundred; PyYAML reads about 1 MB/s."""

YAML_DEPTH = 64
"""Nested collections of a YAML document, as deep as JSON may be: libyaml overflows the stack at some ten thousand."""
