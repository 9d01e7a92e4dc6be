"""Before anything of ours is imported: the registry takes up the models that lie in ATTENDANSEE_HOME."""

import os
import tempfile

# Not the developer's own home, with models that the tests do not know; each test run gets one in tests/conftest.py.
os.environ["ATTENDANSEE_HOME"] = os.path.join(tempfile.gettempdir(), "attendansee-tests-no-home")  # noqa: PTH118
