"""The runner of the tiers ends what it started."""

import signal
import sys

import pytest

from tests import tied
from tests.run_tiers import end

pytestmark = pytest.mark.unit

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def test_a_process_that_takes_no_notice_of_the_signal_is_killed():
    process = tied.popen([sys.executable, "-c", DEAF], stdout=-1)
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    end(process, 0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
