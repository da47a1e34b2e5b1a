"""XML from strangers: parsed with defusedxml, so that entity bombs and external references are refused."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as DefusedElementTree

from stages.core.errors import SchemaError


def parse_xml(path: Path, root_tag: str) -> Element:
    """Parse a file and check its outermost element.

    Raises:
        FileNotFoundError: no such file.
        SchemaError: not well-formed (the message gives line and column), another outermost element, or
            XML that declares entities or refers to other files.
    """
    try:
        root = _parse(path.read_bytes())
    except ParseError as error:
        raise SchemaError(
            f"not well-formed XML ({error})", where=path, hint="write the file again"
        ) from error
    except DefusedXmlException as error:
        raise SchemaError(
            f"refused: the XML declares entities or refers to other files ({type(error).__name__})",
            where=path,
            hint="annotations need neither; remove the <!DOCTYPE ...> part if you trust the file",
        ) from error
    except (ValueError, LookupError) as error:
        # An unknown or contradictory encoding declaration.
        raise SchemaError(f"not readable as XML ({error})", where=path) from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # annotations have no use for namespaces
    if root.tag.lower() != root_tag:
        raise SchemaError(f"expected <{root_tag}> as the outermost element, found <{root.tag}>", where=path)
    return root


_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""")


def _parse(content: bytes) -> Element:
    """Parse bytes; what expat cannot decode (GB 2312, say, or Latin-1 that is not declared) is decoded first."""
    declared = _DECLARATION.match(content)
    try:
        root: Element = DefusedElementTree.fromstring(content)
    except ValueError:
        if declared is None:
            raise
        text = content[declared.end() :].decode(declared[1].decode("ascii"))
        root = DefusedElementTree.fromstring(text)
    except ParseError:
        if declared is not None or _is_utf8(content):
            raise
        root = DefusedElementTree.fromstring(content.decode("cp1252", errors="replace"))
    return root


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
