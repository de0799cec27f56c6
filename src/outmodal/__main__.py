"""`python -m outmodal` is the same as the command `outmodal`."""

from outmodal.launch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
