"""Gate: a finished run held to limits, for a job that must stop a release."""
