"""Do clients and applications see of each other what they see under gevent's WSGIServer?

__main__  the command, and the comparison
programs  the clients: how each is run, and what it saw
serve     the servers' process, which tells what its applications saw
"""
