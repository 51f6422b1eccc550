"""A typed client of the service: deadlines, request ids, retries, streams that resume.

It knows the contract and nothing of the server.
"""

from infrascout_sessions.client.channels import AddressError, open_channel
from infrascout_sessions.client.client import SessionsClient
from infrascout_sessions.client.errors import CallError

__all__ = ["AddressError", "CallError", "SessionsClient", "open_channel"]
