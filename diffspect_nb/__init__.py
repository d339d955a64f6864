__version__ = "0.2.0"

import os

# PyTorch's threads wait for their next piece of work by spinning, for milliseconds; beside other busy programs that is
# time taken from those who have work. A short spin costs an idle machine little. Read when PyTorch is loaded, so a
# program that imports it first decides for itself; a user's own setting stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
