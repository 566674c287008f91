"""What operators see while the server runs."""
