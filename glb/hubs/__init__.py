"""Hubs: threads that have one, and what runs on it.

Each module owns one noun::

    threads          hubs in native threads, and calls into them
    signals          events that threads wait for
    greenlet_pool    the handler greenlets of a hub, and gevent's pool of them
    handler_greenlets    greenlets that run one handler after another
    proof            whether a handler greenlet may be used again
    guard            what takes up what an exception left undone
    crossings        what of one hub was used on another

It imports `glb.model` alone.
"""
