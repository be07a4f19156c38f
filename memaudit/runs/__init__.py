"""Runs: what an audit keeps on disk, while it works and when it is done."""
