"""`python -m cocoon` is `cocoon`."""

import sys

from .cli import main

sys.exit(main())
