"""What tests of several packages share."""

import shutil
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("/usr/bin/chromium", "chromium", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[2]
