"""Texts that would like to be more than text, for what goes out of a run and what comes in."""

HOSTILE = (
    "<script>window.pwned = 1</script>",
    "![](http://127.0.0.1:9/pixel.png) {{ 7 * 7 }} ${7*7} =cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m \x07 \x9b2J",
    "\u202etxet desrever\u202c \u2066isolated\u2069",
    "---\nname: other\n- !!python/object/apply:os.system ['true']\n...",
    "big " * 250_000,
)
CANARY = "xylophone-canary"
"""Stands in every answer to a harmful prompt that must not be shown."""
EVIL_NAME = "org/<script>alert(1)</script>\u202e: {a}\n- b"
"""A model's name."""
