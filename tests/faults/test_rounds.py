"""Rounds end: a client that is killed or frozen is named in time, one that fails or is late with the reason."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from support.process_federation import NAMES, Stage

LATE = "edge-2"


def test_idle_clients_that_are_killed_and_frozen_are_named_in_time(stage: Callable[..., Stage]) -> None:
    run = stage(min_clients=3)  # nobody ever gets work
    server, *clients = run.server(), *map(run.client, NAMES)
    for name in NAMES:
        run.expect("ready", node=name)
    killed_at = time.time()
    clients[0].send(signal.SIGKILL)
    assert run.expect("lost", node=NAMES[0])["at"] - killed_at < 1
    time.sleep(1.5)  # idle
    frozen_at = time.time()
    clients[1].send(signal.SIGSTOP)
    lost = run.expect("lost", node=NAMES[1])
    assert 1 < lost["at"] - frozen_at < 5, "named too late, or before its time"
    assert time.strftime("%H:%M", time.localtime(lost["at"])) in lost["text"], "the event says when"
    clients[1].send(signal.SIGCONT)
    run.expect("ready", 2, node=NAMES[1])
    server.send(signal.SIGTERM)
    assert server.wait() == 130
    assert "error" not in run.log("server")


def test_failed_and_late_clients_are_named_and_the_round_goes_on(stage: Callable[..., Stage]) -> None:
    run = stage(min_clients=1, deadline_s=4, total=25)
    faults = "client.data:1:delay_ms=200,client.work:2:memory,client.work:3:enospc,client.reply:3:raise"
    server, steady = run.server(), run.client(NAMES[1])
    run.expect("ready", node=NAMES[1])
    failing, late = run.client(NAMES[0], faults), run.client(LATE, "client.work:2:delay_ms=7000")
    assert [process.wait() for process in (server, steady, failing, late)] == [0, 0, 0, 0], run.log("server")
    assert len(run.faults()) == 5
    failed = [event["reason"] for event in run.events("no-reply", node=NAMES[0])]
    assert [reason.split(":")[0] for reason in failed] == ["out-of-memory", "no-space", "failed"]
    assert "No space left on device" in run.log(NAMES[0]), "the details are in the client's own log"
    rounds = run.rounds()
    assert failed[0] in [each["failures"].get(NAMES[0]) for each in rounds]
    missed = [each["round"] for each in rounds if LATE in each["missing"]]
    assert missed, "nobody was late"
    assert missed[-1] < len(rounds), "the client that was late did not come back"
    assert "the round's deadline has passed" in run.log(LATE)
    assert not run.events("quarantine")
