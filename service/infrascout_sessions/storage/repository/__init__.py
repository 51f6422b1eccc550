"""Every statement of the service: one file an aggregate, functions of a connection."""
