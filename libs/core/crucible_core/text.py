"""Text from bytes, by its byte order mark."""

import codecs

from crucible_core.errors import MalformedError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes) -> str:
    """The text in `data`, without its mark: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises MalformedError, which says where it ends to be text and how to mend it.
    """
    encoding, mark = next(((name, mark) for mark, name in _MARKS if data.startswith(mark)), ("utf-8", b""))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        offset = error.start + len(mark)
        raise MalformedError(f"byte {offset} is not {encoding.upper()}: save the file as UTF-8") from None
    if not mark and "\0" in text[:64]:
        raise MalformedError("it is binary, or UTF-16 without a byte order mark: save the file as UTF-8")
    return text
