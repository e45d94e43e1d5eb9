"""Hubs: threads that have one, and what runs on it.

Each module owns one noun::

    threads              hubs in native threads
    mailbox              calls into another hub, and what wakes it
    signals              events of one thread that greenlets of another wait for
    greenlet_pool        the handler greenlets of a hub, and gevent's pool of them
    handler_greenlets    greenlets that run one handler after another
    proof                whether a handler greenlet may be used again
    guard                takes up what an exception has left undone
    crossings            objects of one hub that were used on another

It imports `glb.model` alone.
"""
