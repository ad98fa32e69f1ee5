import codecs

import pytest

from crucible_core.errors import MalformedError
from crucible_core.text import decode_text

TEXT = "# Café 会議 👩‍💻\r\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_text_is_read_by_its_mark(data: bytes) -> None:
    assert decode_text(data) == TEXT


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"caf\xe9", "byte 3 is not UTF-8: save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\0b", "byte 4 is not UTF-16-LE"),
        ("ab".encode("utf-16-le"), "binary, or UTF-16 without a byte order mark"),
        (b"\x00\x01\x02", "binary"),
    ],
)
def test_bytes_that_are_no_text_are_told(data: bytes, told: str) -> None:
    with pytest.raises(MalformedError, match=told):
        decode_text(data)
