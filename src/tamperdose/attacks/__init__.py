"""Attacks: each turns an untampered model into one trajectory of checkpoints."""
