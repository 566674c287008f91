"""Policy: documents, their revision, the compiled look-ups, and the decision. Pure: bytes and values only."""
