"""The system of record for InfraScout's assessment sessions, as a gRPC service."""

__version__ = "0.1.0"
