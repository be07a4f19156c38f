"""Verification: really distil, see what the student recites, compare with what was predicted."""
