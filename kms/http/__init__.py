"""The HTTPS edge: routes, problem documents, limits, TLS."""
