"""One stage, many machines: whoever works on a stage says so in the store, and the others wait for the result.

File locks end at the machine. A running stage therefore renews the tag ``rhstudy.alive_at`` of its run; a machine that
finds such a run of the same stage waits until it ends, or until it has not been renewed for `LOST_AFTER_S`: then its
machine is taken for gone and its run is ended as KILLED.

Two that begin at the same moment: each first makes its run and then looks for others. Of any two, the one that looked
last sees the other, so never both go on; both may withdraw, and try again after a random pause.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator

from rhstudy.tracking.process import ENDED_BY_TAG, end_run_as_stale
from rhstudy.tracking.recorder import Recorder, RunRecord

ALIVE_TAG = "rhstudy.alive_at"
RENEW_EVERY_S = 30.0
# Longer than the four minutes for which MLflow's client waits for a server, and than clocks differ.
LOST_AFTER_S = 600.0
LOOK_EVERY_S = 5.0  # in the end; sooner at first

_log = logging.getLogger(__name__)


def alive_tags() -> dict[str, str]:
    """The tag that says: at work now."""
    return {ALIVE_TAG: f"{time.time():.0f}"}


def workers(recorder: Recorder, digest_tags: dict[str, str], own_run_id: str = "") -> list[RunRecord]:
    """Other RUNNING runs of the stage that say they are at work; those that fell silent are ended as KILLED.

    Args:
        recorder: where runs are recorded.
        digest_tags: the tag that names the stage's digest.
        own_run_id: the run of this process.
    """
    found = []
    for record in recorder.find_runs(digest_tags, "RUNNING"):
        renewed = record.tags.get(ALIVE_TAG)
        if record.run_id == own_run_id or renewed is None:
            continue
        if time.time() - float(renewed) > LOST_AFTER_S:
            end_run_as_stale(recorder, record)
        else:
            found.append(record)
    return found


def wait_for_workers(recorder: Recorder, digest_tags: dict[str, str]) -> bool:
    """Wait until no other process works on the stage; returns whether there was one."""
    told, pause_s = "", 0.5
    while found := workers(recorder, digest_tags):
        if found[0].run_id != told:
            told = found[0].run_id
            _log.info("run %s on %s is doing this stage; waiting for it", told, found[0].tags.get("rhstudy.host"))
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LOOK_EVERY_S)
    return bool(told)


def is_ours(recorder: Recorder, digest_tags: dict[str, str], run_id: str) -> bool:
    """Whether `run_id`, just made, may do the stage; otherwise it is withdrawn: KILLED, with a tag that says why."""
    others = workers(recorder, digest_tags, run_id)
    if not others:
        return True
    reason = f"run {others[0].run_id} began the same stage at the same moment"
    recorder.set_tags(run_id, {ENDED_BY_TAG: "withdrawn", "mlflow.note.content": f"Withdrawn: {reason}."})
    recorder.end_run(run_id, "KILLED")
    # Apart from both of them, not from one seed: equal pauses would let them meet again.
    time.sleep(random.SystemRandom().uniform(0.0, 2.0))
    return False


@contextlib.contextmanager
def renewed(recorder: Recorder, run_id: str) -> Iterator[None]:
    """While entered, say every `RENEW_EVERY_S` that `run_id` is at work; a store that does not answer is no failure."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_EVERY_S):
            try:
                recorder.set_tags(run_id, alive_tags())
            except Exception as error:  # the work goes on; at the worst another machine does it too
                _log.debug("run %s could not be renewed: %s", run_id, error)

    thread = threading.Thread(target=renew, daemon=True, name="rhstudy-lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)  # while the server is gone it may hang for minutes; it ends with the process
