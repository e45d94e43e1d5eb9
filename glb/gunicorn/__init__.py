"""gunicorn's workers over glb: exact turns over clones and hubs in each of its processes.

    gunicorn -k glb.gunicorn.Worker myproject.wsgi:application
    gunicorn -k glb.gunicorn.FastWorker myproject.wsgi:application

gunicorn supervises: it binds, forks, reloads, restarts and ends its processes. Within each of them
a glb server accepts on the socket that all of them have, and connections go round its clones in
exact turn. `docs/gunicorn.md` says what the settings mean.

* `Worker` leaves requests to gunicorn: its parser, its limits, its hooks, its log.
* `FastWorker` serves them by `glb.pywsgi`, for a fraction of the CPU, and refuses at the start what
  it can't do.

The variables ``GLB_CLONES``, ``GLB_HUBS`` and ``GLB_REQUEST_TIMEOUT`` are for both: see
`glb.gunicorn.variables.Variables`.
"""

from .fast import FastWorker
from .worker import Worker

__all__ = ["FastWorker", "Worker"]
