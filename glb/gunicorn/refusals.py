"""Refusals: which of gunicorn's settings `glb.gunicorn.FastWorker` can't honour.

A setting is honoured, or refused by its name where its value isn't the default. One that neither of
these lists has came with a version of gunicorn that glb doesn't know, and is refused as well.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["HONOURED", "REFUSED", "refused"]

#: With the reason.
REFUSED: Final = {
    "pre_request": "it is called with gunicorn's own request",
    "post_request": "it is called with gunicorn's own request",
    "protocol": "it speaks HTTP alone",
    "http_protocols": "it speaks HTTP/1 alone",
    "http2_cleartext": "it speaks HTTP/1 alone",
    "permit_obsolete_folding": "its parser is strict",
    "strip_header_spaces": "its parser is strict",
    "permit_unconventional_http_method": "its parser is strict",
    "permit_unconventional_http_version": "its parser is strict",
    "casefold_http_method": "its parser is strict",
    "header_map": "fields whose names have an underscore are left out",
    "forwarder_headers": "fields whose names have an underscore are left out",
    "http_parser": "it has a parser of its own",
    "suppress_ragged_eofs": "the end of a connection is the end of a request",
}

#: What the arbiter, the base of all workers or the logger do by themselves; what the worker hands
#: to its server; and what is for workers of other kinds, so that gunicorn's gevent worker has no
#: use for it either.
HONOURED: Final = frozenset(
    """
    access_log_format accesslog asgi_disconnect_grace_period asgi_lifespan asgi_loop backlog bind
    ca_certs capture_output cert_reqs certfile chdir check_config child_exit ciphers config
    control_socket control_socket_disable control_socket_mode daemon default_proc_name dirty_apps
    dirty_graceful_timeout dirty_post_fork dirty_threads dirty_timeout dirty_worker_exit
    dirty_worker_init dirty_workers disable_redirect_access_to_syslog do_handshake_on_connect
    dogstatsd_tags enable_backlog_metric enable_stdio_inheritance errorlog forwarded_allow_ips
    graceful_timeout group http2_initial_window_size http2_max_concurrent_streams
    http2_max_frame_size http2_max_header_list_size initgroups keepalive keyfile
    limit_request_field_size limit_request_fields limit_request_line logconfig logconfig_dict
    logconfig_json logger_class loglevel max_requests max_requests_jitter nworkers_changed
    on_dirty_starting on_exit on_reload on_starting paste pidfile post_fork post_worker_init
    pre_exec pre_fork preload_app print_config proc_name proxy_allow_ips proxy_protocol pythonpath
    raw_env raw_paste_global_conf reload reload_engine reload_extra_files reuse_port root_path
    secure_scheme_headers sendfile spew ssl_context ssl_version statsd_host statsd_prefix syslog
    syslog_addr syslog_facility syslog_prefix threads timeout tmp_upload_dir umask user
    uwsgi_allow_ips websocket_max_message_size when_ready worker_abort worker_class
    worker_connections worker_exit worker_int worker_tmp_dir workers wsgi_app
    """.split()  # noqa: SIM905  # a hundred names in quotes don't read better
)


def refused(cfg: Any) -> list[str]:
    """Return what of gunicorn's *cfg* can't be honoured, each with name, value and reason."""
    found = []
    for name, setting in sorted(cfg.settings.items()):
        value = setting.get()
        if name in HONOURED or value == type(setting)().get():
            continue
        reason = REFUSED.get(name, "this version of glb doesn't know it")
        found.append(f"{name} = {getattr(value, '__name__', None) or repr(value)} ({reason})")
    return found
