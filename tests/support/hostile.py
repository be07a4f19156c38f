"""Names that try to become markup, script, template, terminal control or another direction."""

import random

PIECES = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--", "-->", "<![CDATA[", "]]>",
    "</style>", "</title>", "</td></tr></table>", "</textarea>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>", "<svg><desc><script>alert(1)</script>", "<math><mtext>",
    "\" onmouseover=\"alert(1)", "' onfocus='alert(1)", "` onclick=`",
    "javascript:alert(1)", "data:text/html,<script>", "https://example.org/x.png",
    "{{ 7 * 7 }}", "{% raw %}", "{# #}", "${alert(1)}", "#{7*7}", "<%= 7 %>",
    "&lt;script&gt;", "&#60;b&#62;", "&nbsp;", "&", "\\u003cscript\\u003e",
    "\u202e\u2066evil\u2069", "\u200b\u200d", "\ufeff", "\x1b[31m", "\x00", "\r\n", "\t",
    "\u2028", "\U000e0041", "a\u0300" * 30, "\U0001f469\u200d\U0001f4bb", "漢字", "مرحبا",
    "::error::", "| a | b |", "```", "[x](javascript:alert(1))", "<base href=//example.org>",
    "<meta http-equiv=refresh content=0>", "<link rel=stylesheet href=//example.org>",
    "<template>", "<noscript>", "<plaintext>", "<iframe srcdoc=x>", "=1+1", "x" * 300,
)  # fmt: skip


def hostile_names(n, seed=0):
    """That many different ones, the same from the same seed."""
    rng = random.Random(seed)
    return [
        f"{i}" + "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 4))) for i in range(n)
    ]
