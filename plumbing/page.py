"""Pages for a browser: each is one file that contains its data and its program, and loads nothing else.

A page is made from an HTML template in scripts/pages, where %%name is replaced: %%page_css by page.css and so on for
all files there, any other name by what fill_page() is given.
"""

import base64
import html
import json
import math
import string
from pathlib import Path

import numpy as np

from config import ROOT
from plumbing.files import whole_file
from plumbing.text import print_next, shown_path

PAGES = ROOT / "scripts" / "pages"
ARRAYS = {"float32": "Float32Array", "uint16": "Uint16Array", "uint32": "Uint32Array"}  # numpy's name -> JavaScript's


class PageTemplate(string.Template):
    delimiter = "%%"  # $ has a meaning in the page's own program


def fill_page(template: str, facts: list[str], data, **parts: str) -> str:
    """The text of a page. `facts` are lines of text below its title, `data` is what its program reads, and `parts`
    must be HTML already."""
    shared = {path.name.replace(".", "_"): path.read_text("utf-8") for path in PAGES.iterdir()}
    return PageTemplate(shared[template.replace(".", "_")]).substitute(
        shared,
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        data=json_in_html(data),
        **parts,
    )


def write_page(path: Path, page: str, contents: str) -> None:
    """Write a page, and say what it contains and how to open it."""
    with whole_file(path) as file:
        size = file.write(page.encode(errors="backslashreplace"))  # a file name can contain bytes that are not text
    print(f"{shown_path(path)}: {contents}, {size / 1e6:.2f} MB")
    print_next(f"open {shown_path(path)} in a browser; it needs no network.")


def json_in_html(value) -> str:
    """JSON for a <script> element. "<" becomes \\u003c, so no text in it can end the element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def without_infinities(value):
    """The same value with None for infinite numbers and NaN, which JSON cannot express."""
    if isinstance(value, dict):
        return {key: without_infinities(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_infinities(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def packed(array: np.ndarray) -> dict:
    """An array as page.js unpacks it: its bytes (little-endian) in base64, four letters for three bytes."""
    array = np.ascontiguousarray(array)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {"type": ARRAYS[str(array.dtype)], "shape": array.shape, "data": base64.b64encode(data).decode()}
