"""A policy folder on disk: read whole, and watched."""
