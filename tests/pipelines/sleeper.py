"""A module that starts a child and sleeps: what `pipelines.bound` is tried on."""

import subprocess
import sys
import time

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
