"""Content negotiation (RFC 9110, 12.5.1): the media type, of several, that an Accept header wants most."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from litestar.datastructures import Headers

_WEIGHT = re.compile(r"\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}", re.ASCII)
"""Also as the JDK's clients write it: `*; q=.2`."""
_ANY = "*/*"


class Range(NamedTuple):
    """`application/*;q=0.5`, say. `parameters` are those of the media type; a charset says nothing about JSON."""

    kind: str
    parameters: frozenset[str]
    weight: float

    @property
    def specificity(self) -> tuple[bool, bool, int]:
        return self.kind != _ANY, not self.kind.endswith("/*"), len(self.parameters)

    def matches(self, kind: str, parameters: frozenset[str]) -> bool:
        inside = self.kind in (_ANY, kind) or (self.kind.endswith("/*") and kind.startswith(self.kind[:-1]))
        return inside and self.parameters <= parameters


def accept_of(headers: Headers) -> str | None:
    """All Accept headers of a request together; None where there is none."""
    return ",".join(headers.getall("accept", [])) or None


def preferred(accept: str | None, offers: Sequence[str]) -> str | None:
    """The offer with the most weight, None if none is wanted. Of equals the one that is named most exactly counts, then
    the one that is named first, then the first offer, which no header at all gets too."""
    if accept is None or not accept.strip():
        return offers[0]
    ranges = list(_ranges(accept))
    ranked = []
    for index, offer in enumerate(offers):
        kind, parameters = _parse(offer)
        matching = [(r.specificity, -order, r.weight) for order, r in enumerate(ranges) if r.matches(kind, parameters)]
        if matching:
            specificity, order, weight = max(matching)
            ranked.append((weight, specificity, order, -index, offer))
    best = max(ranked, default=None)
    return best[-1] if best and best[0] > 0 else None


def _ranges(accept: str) -> Iterator[Range]:
    """Parts that cannot be read are skipped."""
    for part in accept.lower().split(","):
        kind, parameters = _parse(part)
        weights = [name[2:] for name in parameters if name.startswith("q=")]
        weight = weights[0] if weights else "1"
        if ("/" in kind or kind == "*") and _WEIGHT.fullmatch(weight):
            yield Range(_ANY if kind == "*" else kind, parameters - {f"q={weight}"}, min(1.0, float(weight)))


def _parse(text: str) -> tuple[str, frozenset[str]]:
    kind, *parameters = text.split(";")
    plain = (re.sub(r'[\s"]', "", parameter) for parameter in parameters)
    return kind.strip(), frozenset(each for each in plain if each and not each.startswith("charset="))
