"""What the service costs next to a server that does nothing; see README.md."""
