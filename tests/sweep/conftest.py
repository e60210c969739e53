"""What the sweep's tests share."""

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine


@pytest.fixture(autouse=True)
def _studies_do_not_wait_for_the_disk():
    """Waiting guards against power cuts only, and costs a loaded disk seconds a test."""

    def connected(connection, record):
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)
