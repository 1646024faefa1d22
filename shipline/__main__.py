"""`python -m shipline`."""

import sys

from shipline.commands import main

sys.exit(main())
