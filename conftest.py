"""Tests run on one thread each: tiny models lose more to synchronisation than they gain."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here or in a child process

pytest_plugins = ["hub_server"]  # tests/hub_server.py: the fixture `hub`
