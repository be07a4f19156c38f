"""The command line: one file a command; errors become text and exit codes in `main` alone."""
