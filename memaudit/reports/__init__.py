"""Reports: what an audit found, for people; one file a format."""
