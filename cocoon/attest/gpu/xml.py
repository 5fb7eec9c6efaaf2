"""A strict reader for the small XML that RIMs are, and its canonical form (Canonical XML 1.1, without comments).

Only what NVIDIA's files use is taken: UTF-8, elements, attributes, namespaces, text. Document types (and with
them every entity and external reference), processing instructions, CDATA sections and `xml:` attributes are
refused, not interpreted: each is a way to make two readers see two documents. Comments are dropped, as the
canonical form drops them. Depth, elements and attributes are bounded while the parser runs.

The canonical form of an element renders all namespaces in scope at its top, as Canonical XML asks for a document
subset, and drops a redundant declaration further down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from ...errors import RimInvalid
from .. import limits

XMLNS: Final = "xmlns"
_ATTRIBUTE_ESCAPES: Final = (
    ("&", "&amp;"), ("<", "&lt;"), ('"', "&quot;"), ("\t", "&#x9;"), ("\n", "&#xA;"), ("\r", "&#xD;"),
)  # fmt: skip
_TEXT_ESCAPES: Final = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\r", "&#xD;"))


@dataclass(slots=True)
class Element:
    """One element. `scope` maps every prefix in scope to its namespace; "" is the default one."""

    qname: str
    attributes: dict[str, str]  # as written, without namespace declarations
    scope: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def name(self) -> tuple[str, str]:
        """(namespace, local name)."""
        prefix, _, local = self.qname.rpartition(":")
        return self.scope.get(prefix, ""), local

    def attribute(self, local: str, namespace: str = "") -> str | None:
        """The value of an attribute by expanded name; unprefixed attributes have no namespace."""
        for qname, value in self.attributes.items():
            prefix, _, name = qname.rpartition(":")
            if name == local and (self.scope.get(prefix, "") if prefix else "") == namespace:
                return value
        return None

    def elements(self) -> list[Element]:
        """Child elements in order."""
        return [child for child in self.children if isinstance(child, Element)]

    @property
    def text(self) -> str:
        """The element's own text, when it has no child elements; else empty."""
        if any(isinstance(child, Element) for child in self.children):
            return ""
        return "".join(child for child in self.children if isinstance(child, str))


def parse(data: bytes) -> Element:
    """The document element. Raises `RimInvalid` for anything this reader does not take."""
    if len(data) > limits.RIM_BYTES_MAX:
        raise RimInvalid(f"an XML document of {len(data)} bytes is too long", reason="rim.size")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # expat would follow a byte-order mark into UTF-16
        raise RimInvalid("an XML document that is not UTF-8", reason="rim.xml")
    builder = _Builder()
    parser = expat.ParserCreate("utf-8")  # whatever the document declares
    parser.buffer_text = True
    parser.ordered_attributes = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.EntityDeclHandler = _refuse_doctype
    parser.ProcessingInstructionHandler = _refuse_instruction
    parser.StartCdataSectionHandler = _refuse_cdata
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, UnicodeDecodeError, ValueError) as error:
        raise RimInvalid(f"not well-formed XML: {str(error)[:80]}", reason="rim.xml") from None
    if builder.root is None:
        raise RimInvalid("an empty XML document", reason="rim.xml")
    return builder.root


def canonical(element: Element, *, without: Element | None = None) -> bytes:
    """The canonical bytes of an element, leaving out one descendant (an enveloped signature)."""
    out: list[str] = []
    _render(element, {}, without, out)
    return "".join(out).encode()


def _render(element: Element, rendered: dict[str, str], without: Element | None, out: list[str]) -> None:
    out.append(f"<{element.qname}")
    for prefix, uri in sorted(element.scope.items()):
        if rendered.get(prefix, "") != uri:
            out.append(f' {XMLNS}{":" if prefix else ""}{prefix}="{_escape(uri, _ATTRIBUTE_ESCAPES)}"')
    for _, qname, value in sorted(
        (_attribute_key(qname, element.scope), qname, value) for qname, value in element.attributes.items()
    ):
        out.append(f' {qname}="{_escape(value, _ATTRIBUTE_ESCAPES)}"')
    out.append(">")
    for child in element.children:
        if isinstance(child, str):
            out.append(_escape(child, _TEXT_ESCAPES))
        elif child is not without:
            _render(child, element.scope, without, out)
    out.append(f"</{element.qname}>")


def _attribute_key(qname: str, scope: dict[str, str]) -> tuple[str, str]:
    prefix, _, local = qname.rpartition(":")
    return (scope[prefix] if prefix else "", local)


def _escape(text: str, escapes: tuple[tuple[str, str], ...]) -> str:
    for plain, escaped in escapes:
        text = text.replace(plain, escaped)
    return text


class _Builder:
    """Builds the tree, and refuses it while it grows too large."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def start(self, qname: str, flat: list[str]) -> None:
        self._count += 1
        if self._count > limits.XML_NODES_MAX or len(self._open) >= limits.XML_DEPTH_MAX:
            raise RimInvalid("an XML document with too many or too deep elements", reason="rim.xml-bomb")
        if len(flat) // 2 > limits.XML_ATTRIBUTES_MAX:
            raise RimInvalid("an XML element with too many attributes", reason="rim.xml-bomb")
        scope = self._open[-1].scope if self._open else {}
        attributes: dict[str, str] = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            prefix, colon, local = name.partition(":")
            if name == XMLNS or prefix == XMLNS:
                if ":" in local or local in ("xml", XMLNS) or (colon and (not local or not value)):
                    raise RimInvalid("a forbidden namespace declaration", reason="rim.xml-namespace")
                scope = {**scope, local: value}
            elif prefix == "xml":
                raise RimInvalid("an xml: attribute", reason="rim.xml-attribute")
            else:
                attributes[name] = value
        _check_names(qname, attributes, scope)
        element = Element(qname=qname, attributes=attributes, scope=scope)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _qname: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        if self._open:
            children = self._open[-1].children
            if children and isinstance(children[-1], str):
                children[-1] += text
            else:
                children.append(text)


def _check_names(qname: str, attributes: dict[str, str], scope: dict[str, str]) -> None:
    expanded = set()
    for name in attributes:
        prefix, colon, local = name.partition(":")
        if colon and (prefix not in scope or not local or ":" in local):
            raise RimInvalid("an undeclared or malformed prefix", reason="rim.xml-namespace")
        expanded.add((scope[prefix] if colon else "", local if colon else name))
    prefix, colon, local = qname.partition(":")
    if colon and (prefix not in scope or not local or ":" in local):
        raise RimInvalid("an undeclared or malformed prefix", reason="rim.xml-namespace")
    if len(expanded) != len(attributes):  # two prefixes of one namespace
        raise RimInvalid("an attribute given twice", reason="rim.xml-attribute")


def _refuse_doctype(*_: object) -> None:
    raise RimInvalid("a document type or entity declaration", reason="rim.doctype")


def _refuse_instruction(*_: object) -> None:
    raise RimInvalid("a processing instruction", reason="rim.xml-instruction")


def _refuse_cdata(*_: object) -> None:
    raise RimInvalid("a CDATA section", reason="rim.xml-cdata")
