"""Hubs: threads that have one, and what runs on it.

Each module owns one noun::

    threads          hubs in native threads
    mailbox          calls into another hub, and what wakes it
    signals          events that threads wait for
    greenlet_pool    the greenlets that handlers run in
    guard            what takes up what an exception left undone
    crossings        what of one hub was used on another

It imports `glb.model` alone.
"""
