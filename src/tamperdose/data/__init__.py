"""Prompts, attack and defence examples, the bundled sets, and the checks that keep them apart."""
