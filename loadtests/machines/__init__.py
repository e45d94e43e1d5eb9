"""Are all hosts behind a load balancer deployed without one failed request?

    python -m loadtests.machines [deploy] [locust] --balancer haproxy --requests 10000 --rate 300

Hosts are network namespaces, joined by a bridge: three with `glb serve`, one with HAProxy or Envoy,
and three that send load. The configuration files are those of docs/many-machines.md, as they stand
there. Each module owns one noun::

    __main__     the command
    network      the namespaces, the bridge, and processes on hosts
    page         the files in docs/many-machines.md, and what a run changes in them
    balancers    HAProxy and Envoy, and which hosts they have found to be up
    service      `glb serve` on a host, which can be replaced
    application  what it serves: each reply has the client's address and the process's
    clients      a host's load: a program of its own
    deploy       the rolling deploy, and what clients saw of it
    swarm        locust: a master and workers on hosts of their own
"""
