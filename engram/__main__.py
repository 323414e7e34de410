"""`python -m engram` is the command `engram`."""
import sys

from .cli import main

sys.exit(main())
