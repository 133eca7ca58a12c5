"""`python -m edgetune`, and the module that `accelerate launch -m edgetune` starts."""

from edgetune.cli import main

if __name__ == "__main__":
    main()
