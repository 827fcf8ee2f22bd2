"""`python -m dpo_operator.generate`."""

import sys

from dpo_operator.generate.files import main

if __name__ == "__main__":
    sys.exit(main())
