import os
import signal
import threading

import pytest

from orchestrator.errors import DataError, ResourceError
from orchestrator.host import Resources, TrialJob
from orchestrator.local_host import InProcessHost


class Stream:
    """Hands out given trials and writes down what it is told."""

    def __init__(self, *calls, stop_at=None):
        self._jobs = iter([TrialJob(f"{n:03d}", call, {}) for n, call in enumerate(calls)])
        self._stop_at, self.told = stop_at, []

    def next(self):
        return next(self._jobs, None)

    def report(self, id, report):
        self.told.append((id, report["step"]))
        return report["step"] == self._stop_at

    def finished(self, id, error, crashed=False):
        self.told.append((id, error))


def steps(*, worker):
    for step in (1, 2, 3):
        yield {"step": step}


def run(*calls, **options):
    stream = Stream(*calls, **options)
    InProcessHost().run_trials(stream, Resources(), 4)
    return stream.told


def test_trials_run_one_after_another():
    assert run(steps, steps) == [
        *(("000", step) for step in (1, 2, 3)),
        ("000", None),
        *(("001", step) for step in (1, 2, 3)),
        ("001", None),
    ]


def test_a_stopped_trial_ends_in_order():
    ended = []

    def trial(*, worker):
        try:
            yield from steps(worker=worker)
        finally:
            ended.append(worker.world_size)

    assert run(trial, stop_at=2) == [("000", 1), ("000", 2), ("000", None)]
    assert ended == [1]


def test_what_a_trial_raises_is_told_and_the_next_one_runs():
    def mistaken(*, worker):
        raise DataError("no such folder")
        yield

    def broken(*, worker):
        yield {"step": 1}
        raise KeyError("x")

    def not_a_generator(*, worker):
        raise ValueError("at once")

    told = run(mistaken, broken, not_a_generator, steps)
    assert told[:4] == [
        ("000", "no such folder"),
        ("001", 1),
        ("001", "KeyError: 'x'"),
        ("002", "ValueError: at once"),
    ]
    assert told[-1] == ("003", None)


def test_an_error_while_a_trial_is_stopped_is_told():
    def trial(*, worker):
        try:
            yield {"step": 1}
        finally:
            raise OSError("disk full")

    assert run(trial, stop_at=1)[-1] == ("000", "OSError: disk full")


def test_a_fault_of_the_stream_is_not_the_trials():
    class Broken(Stream):
        def report(self, id, report):
            raise RuntimeError("study is locked")

    stream = Broken(steps)
    with pytest.raises(RuntimeError, match="study is locked"):
        InProcessHost().run_trials(stream, Resources(), 1)
    assert stream.told == []


def swallowing(received):
    def trial(*, worker):
        before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
        try:
            yield {"step": 1}
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)

    return trial


def test_ctrl_c_that_a_trial_takes_for_itself_ends_the_sweep():
    received = []
    stream = Stream(swallowing(received), steps)
    with pytest.raises(KeyboardInterrupt):
        InProcessHost().run_trials(stream, Resources(), 1)
    assert received == [signal.SIGINT]
    assert stream.told == [("000", 1)]
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def python_hears_ctrl_c():
    """A process that a script starts in the background ignores SIGINT, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_hears_ctrl_c")
def test_ctrl_c_in_a_trial_that_does_not_listen():
    def trial(*, worker):
        yield {"step": 1}
        os.kill(os.getpid(), signal.SIGINT)
        yield {"step": 2}

    stream = Stream(trial, steps)
    with pytest.raises(KeyboardInterrupt):
        InProcessHost().run_trials(stream, Resources(), 1)
    assert stream.told == [("000", 1)]


def test_trials_run_outside_the_main_thread():
    told = []
    thread = threading.Thread(target=lambda: told.extend(run(steps)))
    thread.start()
    thread.join()
    assert told[-1] == ("000", None)


def test_submit_keeps_results_and_errors():
    host = InProcessHost()
    pending = host.submit(
        lambda worker, x: (worker.rank, str(worker.device), x), {"x": 3}, Resources()
    )
    assert pending.done()
    assert pending.result() == (0, "cpu", 3)

    def fail(worker):
        raise DataError("no such folder")

    failed = host.submit(fail, {}, Resources())
    with pytest.raises(DataError, match="no such folder"):
        failed.result()


def test_what_one_process_has_not_is_refused():
    host = InProcessHost()
    assert host.capacity(Resources(1, 8)) == 1
    with pytest.raises(ResourceError, match="workers=2"):
        host.submit(steps, {}, Resources(workers=2))
    with pytest.raises(ResourceError, match=r"gpus=0\.5"):
        host.run_trials(Stream(steps), Resources(gpus=0.5), 1)
