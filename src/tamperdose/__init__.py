"""tamperdose: how large a dose of fine-tuning removes a language model's refusals, and how sure are we.

Importing this package loads no model library; see `tamperdose.cli` for the commands.
"""

__version__ = "0.1.0"
