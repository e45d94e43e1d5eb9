"""States: a table of moves, a drawing that says the same, and servers that keep to both."""

from __future__ import annotations

from itertools import product
from typing import Any

import gevent
import pytest
from gevent.event import Event

from glb.model import states
from glb.model.states import MOVES, PAUSES, State, before, of_clone, of_server
from glb.server import StreamServer

from ..support.engine import acceptors_of, admission_of
from ..support.helpers import Holder, ask, close_all, connect, receive_all, wait_until

LOCAL = ("127.0.0.1", 0)

#: What a clone's state is: a row for each of its own, a column for each of its server's.
OF_CLONE = """
                STOPPED   ACCEPTING    FULL      BACKING_OFF  PAUSED    DRAINING
    STOPPED     STOPPED   STOPPED      STOPPED   STOPPED      STOPPED   DRAINING
    ACCEPTING   STOPPED   ACCEPTING    FULL      BACKING_OFF  PAUSED    DRAINING
    FULL        STOPPED   FULL         FULL      FULL         FULL      DRAINING
    BACKING_OFF STOPPED   BACKING_OFF  BACKING_OFF BACKING_OFF BACKING_OFF DRAINING
    PAUSED      STOPPED   PAUSED       PAUSED    PAUSED       PAUSED    DRAINING
    DRAINING    DRAINING  DRAINING     DRAINING  DRAINING     DRAINING  DRAINING
"""


def reply_ok(sock: Any, _peer: Any) -> None:
    sock.sendall(b"ok")


def clone_states(server: StreamServer) -> list[str]:
    return [each.state for each in server.clone_stats()]


def state_of(server: StreamServer) -> State:
    """Return it as it is now: what it was before says nothing."""
    return server.state


# -- the table ----------------------------------------------------------------------------------


def test_each_state_has_its_moves() -> None:
    """The table has a row for every state, and leads to states alone."""
    assert set(MOVES) == set(State)
    assert all(then <= set(State) for then in MOVES.values())


def test_every_state_is_reached_from_the_beginning() -> None:
    """From STOPPED, in at most two moves."""
    first = MOVES[State.STOPPED]
    assert first.union(*(MOVES[each] for each in first)) == set(State)


def test_every_state_leads_back_to_stopped() -> None:
    """In one move: a server may be closed at any time."""
    assert before(State.STOPPED) == set(State)


def test_what_drains_stops_and_does_nothing_else() -> None:
    """It does not even begin to drain again."""
    assert MOVES[State.DRAINING] == {State.STOPPED}


def test_what_is_stopped_is_started_or_drained() -> None:
    """There may be handlers still, and to stop it twice is harmless."""
    assert MOVES[State.STOPPED] == {State.STOPPED, State.ACCEPTING, State.DRAINING}


def test_everything_drains_but_what_does_already() -> None:
    """And that only once."""
    assert before(State.DRAINING) == set(State) - {State.DRAINING}


def test_a_pause_never_becomes_another_one_that_ends_by_itself() -> None:
    """FULL and BACKING_OFF begin while connections are accepted, and at no other time."""
    for pause in PAUSES:
        assert before(pause) == {State.ACCEPTING}
        assert not MOVES[pause] & set(PAUSES)


def test_a_pause_may_end_and_may_be_cut_short() -> None:
    """By its end, by its owner, or by the end of all."""
    for pause in PAUSES:
        assert MOVES[pause] == {State.ACCEPTING, State.PAUSED, State.DRAINING, State.STOPPED}


def test_an_owners_pause_is_left_to_accept_and_for_nothing_that_ends_by_itself() -> None:
    """Or room in a pool would undo it."""
    assert MOVES[State.PAUSED] == set(State) - set(PAUSES)


@pytest.mark.parametrize("state", [*State])
def test_before_is_the_table_read_backwards(state: State) -> None:
    """What leads to a state is what has it in its row."""
    assert {(each, state) for each in before(state)} == {
        (each, then) for each, row in MOVES.items() for then in row if then is state
    }


@pytest.mark.parametrize("state", [*State])
def test_the_drawing_has_every_state(state: State) -> None:
    """Once or more, by its name."""
    drawing = (states.__doc__ or "").partition("::")[2].partition("``")[0]
    assert state.name in drawing


def test_names_are_what_reports_have() -> None:
    """In words, with no underscore, and no two alike."""
    names = [state.value for state in State]
    assert len({*names}) == len(names)
    assert names == [state.name.lower().replace("_", " ") for state in State]


# -- a clone's, within its server's -------------------------------------------------------------


def test_a_clones_state_is_its_own_within_its_servers() -> None:
    """Draining comes first, then a stopped server, then what the clone has of its own."""
    columns, *rows = [line.split() for line in OF_CLONE.split("\n") if line]
    wanted = {
        (State[own], State[servers]): State[state]
        for own, *row in rows
        for servers, state in zip(columns, row, strict=True)
    }
    assert {pair: of_clone(*pair) for pair in product(State, State)} == wanted


def test_a_server_is_full_when_every_clone_is_that_is_not_paused() -> None:
    """One clone with room is enough, and what the server does itself comes first."""
    full, paused, accepting = State.FULL, State.PAUSED, State.ACCEPTING
    assert of_server(accepting, [full, full]) is full
    assert of_server(accepting, [full, paused]) is full
    assert of_server(accepting, [full, State.STOPPED]) is full  # its accept loop has ended
    assert of_server(accepting, [full, accepting]) is accepting
    assert of_server(accepting, [paused, paused]) is accepting
    assert of_server(accepting, []) is accepting
    for own in {*State} - {accepting}:
        assert of_server(own, [full, full]) is own


# -- moves of a clone ---------------------------------------------------------------------------


def test_a_clone_makes_the_moves_of_the_table() -> None:
    """Each pair of states: any other move is refused, and changes nothing."""
    acceptor = acceptors_of(StreamServer(LOCAL, reply_ok, clones=1))[0]
    for own, then in product(State, State):
        acceptor.own = own
        is_legal = then in MOVES[own]
        assert acceptor.enter(then) is is_legal, (own, then)
        assert acceptor.own is (then if is_legal else own), (own, then)


def test_a_clone_moves_only_from_where_it_is_said_to_be() -> None:
    """Room is no reason to end a pause by the owner."""
    acceptor = acceptors_of(StreamServer(LOCAL, reply_ok, clones=1))[0]
    acceptor.enter(State.PAUSED)
    assert acceptor.enter(State.ACCEPTING, after=(State.FULL,)) is False
    assert acceptor.own is State.PAUSED


def test_a_clone_that_drains_is_not_resumed_nor_paused() -> None:
    """It gets no connection any more; the others have all turns."""
    with StreamServer(LOCAL, lambda sock, _: sock.sendall(b"%d" % index()), clones=2) as server:
        server.start()
        acceptors_of(server)[0].enter(State.DRAINING)
        server.resume_clone(0)
        server.pause_clone(0)
        server.resume_clone(0)
        assert clone_states(server) == ["draining", "accepting"]
        assert [ask(server.address) for _ in range(4)] == [b"1"] * 4


def index() -> int:
    import glb

    clone = glb.current_clone()
    assert clone is not None
    return clone.index


def test_a_full_clone_that_is_paused_stays_so_when_it_has_room() -> None:
    """Only its owner lets it go on, and then it does."""
    holder = Holder()
    with StreamServer(LOCAL, holder, clones=1, max_connections_per_clone=1) as server:
        server.start()
        with connect(server.address) as client:
            wait_until(lambda: clone_states(server) == ["full"])
            server.pause_clone(0)
            assert clone_states(server) == ["paused"]
            holder.release()
            assert receive_all(client) == b"done"
        wait_until(lambda: server.active == 0)
        assert clone_states(server) == ["paused"]
        server.resume_clone(0)
        assert clone_states(server) == ["accepting"]
        assert ask(server.address) == b"done"


def test_a_full_clone_that_is_resumed_takes_no_more_than_it_may() -> None:
    """To resume what was not paused is no way around a limit."""
    holder = Holder()
    with StreamServer(LOCAL, holder, clones=2, max_connections_per_clone=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        wait_until(lambda: clone_states(server) == ["full", "full"])
        server.resume_clone(0)
        server.resume_clone(1)
        wait_until(lambda: clone_states(server) == ["full", "full"])
        assert [each.accepted for each in server.clone_stats()] == [1, 1]
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 4
        close_all(clients)


def test_a_pause_outlasts_a_restart() -> None:
    """It is the owner's, and the server's end and beginning don't undo it."""
    server = StreamServer(LOCAL, reply_ok, clones=2)
    server.pause_clone(1)
    assert clone_states(server) == ["stopped", "stopped"]
    for _ in range(2):
        server.start()
        assert clone_states(server) == ["accepting", "paused"]
        server.stop()


# -- moves of a server --------------------------------------------------------------------------


def test_a_server_makes_the_moves_of_the_table() -> None:
    """Each pair of states: any other move changes nothing."""
    with StreamServer(LOCAL, reply_ok, clones=2) as server:
        server.start()
        admission = admission_of(server)
        for own, then in product(State, State):
            admission.state = own
            admission.enter(then)
            assert admission.state is (then if then in MOVES[own] else own), (own, then)
        admission.state = State.STOPPED
        server.start_accepting()
        assert ask(server.address) == b"ok"


def test_a_server_moves_only_from_where_it_is_said_to_be() -> None:
    """And only in the pause that it is about: a timer of an earlier one changes nothing."""
    with StreamServer(LOCAL, reply_ok, clones=2) as server:
        server.start()
        admission = admission_of(server)
        admission.enter(State.FULL)
        earlier = admission._episode
        admission.enter(State.ACCEPTING, after=(State.BACKING_OFF,))
        assert state_of(server) is State.FULL
        admission.enter(State.ACCEPTING)
        admission.enter(State.BACKING_OFF)
        admission.enter(State.ACCEPTING, episode=earlier)
        admission.accept_again(earlier)
        assert state_of(server) is State.BACKING_OFF
        admission.accept_again()
        assert state_of(server) is State.ACCEPTING


def test_a_server_goes_through_its_states() -> None:
    """Stopped, accepting, full, accepting, draining, stopped; each is what its clones have."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=2, max_connections=1)
    assert (state_of(server), clone_states(server)) == (State.STOPPED, ["stopped"] * 2)
    server.start()
    assert (state_of(server), clone_states(server)) == (State.ACCEPTING, ["accepting"] * 2)
    with connect(server.address) as client:
        wait_until(lambda: state_of(server) is State.FULL)
        assert clone_states(server) == ["full"] * 2
        holder.release()
        receive_all(client)
    wait_until(lambda: state_of(server) is State.ACCEPTING)
    assert clone_states(server) == ["accepting"] * 2
    server.stop()
    assert (state_of(server), clone_states(server)) == (State.STOPPED, ["stopped"] * 2)


class Draining:
    """A server that drains, since one of its handlers has not ended."""

    def __init__(self) -> None:
        self.holder = Holder()
        self.server = StreamServer(LOCAL, self.holder, clones=2)
        self.server.start()
        self.client = connect(self.server.address)
        self.holder.wait_for(1)
        self.over = Event()
        self._draining = gevent.spawn(self._drain)
        wait_until(lambda: self.server.is_draining)

    def _drain(self) -> None:
        self.server.drain()
        self.over.set()

    def finish(self) -> None:
        self.holder.release()
        assert receive_all(self.client) == b"done"
        self.client.close()
        self.over.wait()
        self._draining.get()


def test_a_server_that_drains_does_not_start_to_accept() -> None:
    """Neither it nor its address is opened again, until it has stopped."""
    draining = Draining()
    server = draining.server
    server.start_accepting()
    assert state_of(server) is State.DRAINING
    assert clone_states(server) == ["draining"] * 2
    assert server.is_ready is False
    with pytest.raises(ConnectionRefusedError):
        connect(server.address)
    draining.finish()
    assert state_of(server) is State.STOPPED


def test_no_pause_begins_or_ends_while_a_server_drains() -> None:
    """Neither a clone's nor its own."""
    draining = Draining()
    server = draining.server
    server.pause_clone(0)
    server.resume_clone(0)
    server.resume_clone(1)
    for state in (State.FULL, State.BACKING_OFF, State.ACCEPTING, State.PAUSED):
        admission_of(server).enter(state)
    admission_of(server).accept_again()
    assert (state_of(server), clone_states(server)) == (State.DRAINING, ["draining"] * 2)
    draining.finish()


def test_what_has_drained_may_be_started_again() -> None:
    """It is stopped then, as any other."""
    draining = Draining()
    draining.finish()
    with draining.server as server:
        server.start()
        assert state_of(server) is State.ACCEPTING
        assert ask(server.address) == b"done"


def test_room_does_not_start_a_server_whose_owner_has_stopped_it() -> None:
    """Stopped while it was full, it stays so when a handler ends."""
    holder = Holder()
    with StreamServer(LOCAL, holder, clones=2, max_connections=1) as server:
        server.start()
        with connect(server.address) as client:
            wait_until(lambda: state_of(server) is State.FULL)
            server.stop_accepting()
            assert state_of(server) is State.STOPPED
            holder.release()
            assert receive_all(client) == b"done"
        wait_until(lambda: server.active == 0)
        with connect(server.address) as waiting:
            gevent.idle()
            assert (state_of(server), acceptors_of(server)[1].accepted) == (State.STOPPED, 0)
            server.start_accepting()
            assert receive_all(waiting) == b"done"
