"""Pages for a browser: one file that holds its data and its program, and asks no other address for anything.

A page is an HTML template beside the script that fills it in. What begins with %% in it is replaced; %%style and
%%program stand for page.css and page.js in the same folder, which the pages share.
"""

import base64
import json
import string
from pathlib import Path

import numpy as np


class Page(string.Template):
    delimiter = "%%"  # the usual one, $, has a meaning in the page's own script


def fill(template: Path, **parts: str) -> str:
    """The text of a page from its template. The parts must be HTML already."""
    shared = {name: (template.parent / file).read_text("utf-8") for name, file in SHARED.items()}
    return Page(template.read_text("utf-8")).substitute(**shared, **parts)


SHARED = {"style": "page.css", "program": "page.js"}


def json_in_html(value) -> str:
    """JSON that can stand in a <script> element, whatever the texts in it say: "<" becomes \\u003c, so none ends it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


ARRAYS = {"float32": "Float32Array", "uint16": "Uint16Array", "uint32": "Uint32Array"}


def packed(array) -> dict:
    """An array as page.js unpacks it: its bytes (little-endian) in base64, four letters for three bytes."""
    array = np.ascontiguousarray(array)
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {"type": ARRAYS[str(array.dtype)], "shape": array.shape, "data": base64.b64encode(data).decode()}
