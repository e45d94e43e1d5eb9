"""Controls: what a program asks of a server, and has it do, beyond what gevent's has."""

from __future__ import annotations

from collections.abc import Callable

from ..model.states import State, of_server
from ..model.stats import CloneStats, DrainReport, RollReport
from .drain import LINGER_SECONDS
from .engine import Engine
from .hooks import Handler

__all__ = ["Controls"]


class Controls:
    """A server's clones, their state, and its end."""

    #: What stands behind the server. It may change with each version of ours.
    glb_engine: Engine

    @property
    def is_ready(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        return self.glb_engine.admission.is_open and self.state is State.ACCEPTING

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        engine = self.glb_engine
        return of_server(
            engine.admission.shown_state, [each.state for each in engine.clones.acceptors]
        )

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way to an end, and takes no more connections."""
        return self.glb_engine.admission.shown_state is State.DRAINING

    @property
    def active(self) -> int:
        """How many connections it has: for which a handler runs, or is about to."""
        return self.glb_engine.workers.active

    def clone_stats(self) -> list[CloneStats]:
        """Return what each clone has done since the server was made, by index."""
        return [acceptor.stats() for acceptor in self.glb_engine.clones.acceptors]

    def pause_clone(self, index: int) -> None:
        """Pass over clone *index* until `resume_clone`; its handlers go on. Twice is once.

        It is paused also when the server stops and starts meanwhile. One that `resize` ends, and
        that comes again, is not.

        With all clones paused, clients wait in the accept queue.

        Raises:
            TypeError, ValueError: *index* is not 0 to N-1.
        """
        self.glb_engine.clones.at(index).enter(State.PAUSED)

    def resume_clone(self, index: int) -> None:
        """Let clone *index* have turns again, from the end of the line. Twice is once.

        One whose accept loop has ended has none until the server starts again.
        """
        self.glb_engine.clones.at(index).enter(State.ACCEPTING)

    def replace_clone(
        self,
        index: int,
        handle: Handler,
        *,
        timeout: float | None = None,
        wait: bool = True,
    ) -> DrainReport:
        """Give clone *index* another handler, or application, from its next connection on.

        It keeps its place in the ring, and no connection is refused or closed. Handlers in flight
        finish with the old one. HTTP's kept-alive connections get the new application with
        their next request; streams are closed that are in `glb.idle`.

        Args:
            timeout: How many seconds the old one has; what it still does then is killed.
                ``None`` is as long as it takes.
            wait: Whether to wait for the old one.

        Returns:
            What became of the connections on which the old one was at work.

        Raises:
            TypeError, ValueError: An argument has the wrong type or shape. Nothing has changed.

        Switches:
            While waiting: for another change of this server, and for the old one. A kill leaves
            the new one in place.
        """
        return self.glb_engine.rolling.replace(index, handle, timeout, wait=wait)

    def roll(
        self,
        handle: Handler | None = None,
        *,
        handler_factory: Callable[[int], Handler] | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> RollReport:
        """Give all clones another handler, one after another; see `replace_clone`.

        Args:
            handle, handler_factory: One of them: the handler of all clones, or what is called with
                each clone's index, before the first one changes.
            timeout, wait: Of each clone's old one, before the next clone changes.

        Returns:
            What became of the connections, by clone.

        Raises:
            TypeError, ValueError: As `replace_clone`; and what *handler_factory* raises. Nothing
                has changed then.

        Switches:
            As `replace_clone`. A kill leaves some clones with the new one, some with the old.
        """
        return self.glb_engine.rolling.roll(handle, handler_factory, timeout, wait=wait)

    def resize(self, clones: int, *, timeout: float | None = None) -> DrainReport:
        """Have *clones* clones from now on: the last ones go, or new ones come behind them.

        Clones that go are drained: see `drain`. No client in the accept queue is lost.

        Args:
            clones: 1 or more, and at least as many as there are hubs.
            timeout: How many seconds the handlers of those that go have; ``None`` is as long as
                they take.

        Returns:
            What became of the connections of those that went.

        Raises:
            TypeError, ValueError: *clones* is no such number.

        Switches:
            While waiting.
        """
        return self.glb_engine.rolling.resize(clones, timeout)

    def drain(
        self,
        timeout: float | None = None,
        *,
        spread: float = 0.0,
        linger: float = LINGER_SECONDS,
        delay: float = 0.0,
    ) -> DrainReport:
        """Take no more connections, finish what is in flight, and stop.

        Handlers in flight finish. HTTP connections are closed when no request is under way, after a
        reply with ``Connection: close`` where there is one; so are those whose handler is in
        `glb.idle`; with TLS they get a close_notify. A client that has just connected has a second
        for its first request, from then on, or from the drain's beginning if that was later. An
        idle HTTP connection stays open for 0.3 seconds: a client that is busy on it learns of the
        end by the reply to its next request. What remains at the deadline is killed. The address is
        free as soon as its accept queue is empty, long before that.

        A second call waits for the same end. A handler that drains its own server doesn't wait for
        itself.

        Args:
            timeout: How many seconds the handlers have; ``None`` is as long as they take.
            spread: Close connections over so many seconds, so that their clients don't all come
                back at once. With more than 0, streams and websockets are closed as well: their
                handlers read the end of the stream, as if the client had left.
            linger: With the last server of an address: for how many seconds, at most, clients are
                still served that the kernel has let in already, and that would be reset. On Linux
                no other is let in meanwhile: it tries again a second later.
            delay: For so many seconds before all that, go on accepting and serving, but be draining
                outwardly: the state says so, and HTTP's replies say ``Connection: close``. In
                this time a load balancer finds out that it is to send no more clients.

        Returns:
            What became of the connections that were in use.

        Raises:
            TypeError, ValueError: An argument is not a number of seconds. It goes on serving.

        Switches:
            While waiting. A kill stops the server at once, as `close` does.
        """
        return self.glb_engine.draining.drain(timeout, spread, linger, delay)
