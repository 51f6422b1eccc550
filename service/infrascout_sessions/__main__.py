"""`python -m infrascout_sessions` is `infrascout-sessions`."""

from infrascout_sessions.cli import main

if __name__ == "__main__":
    main()
