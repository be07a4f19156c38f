"""What a finished run becomes in tools that others made."""
