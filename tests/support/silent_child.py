"""A child process that never answers."""

import sys
import threading

if __name__ == "__main__":
    sys.stdin.close()
    threading.Event().wait(600)
