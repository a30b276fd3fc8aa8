"""What mkdocs asks while it builds the site: formulas as MathML, the language of the Chinese pages."""

from __future__ import annotations

import html
import re
from typing import Any

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as the browser's own MathML: no script, nothing fetched."""
    from latex2mathml.converter import convert

    return FORMULA.sub(
        lambda m: convert(html.unescape(m[2]), display="block" if m[1] == "div" else "inline"), content
    )


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Chinese pages say so, for fonts, hyphens and readers aloud."""
    if ".zh-TW." in page.file.src_uri:
        output = output.replace('<html lang="en"', '<html lang="zh-TW"', 1)
    return output
