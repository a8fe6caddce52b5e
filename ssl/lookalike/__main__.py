"""`python -m lookalike`, for launchers that start modules."""

from lookalike.cli import main

if __name__ == "__main__":
    main()
