"""The stores: SQLite by default. Decisions, spent challenges, policy revisions, marks."""
