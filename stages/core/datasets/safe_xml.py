"""XML from strangers: parsed with defusedxml, so that entity bombs and external references are refused."""

from __future__ import annotations

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
        root: Element = DefusedElementTree.fromstring(path.read_bytes())
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
    if root.tag != root_tag:
        raise SchemaError(f"expected <{root_tag}> as the outermost element, found <{root.tag}>", where=path)
    return root
