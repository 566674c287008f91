"""Evidence as it arrives, and what it proves about the launch and the app."""
