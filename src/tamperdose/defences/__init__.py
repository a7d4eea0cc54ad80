"""Defences: each gives a model refusals before the attack; the result is dose 0."""
