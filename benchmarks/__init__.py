"""Benchmarks: memaudit beside its peers, on the same model, token ids, dtype and threads."""
