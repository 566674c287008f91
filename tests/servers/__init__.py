"""Real servers that tests start: each module knows one, and skips with a sentence where it is not there."""
