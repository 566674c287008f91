"""The audit record: what was decided, for whom, on what evidence."""
