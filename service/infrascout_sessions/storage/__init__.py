"""How sessions are kept."""
