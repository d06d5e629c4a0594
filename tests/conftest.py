"""What all tests share."""

import os

# Before torch is imported: tests run side by side, and two threads for each of them would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
