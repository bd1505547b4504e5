"""The zoo of networks is that of the compression tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "compress"))
