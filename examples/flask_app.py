"""Flask on four hubs: a handler that blocks stops one of them.

    glb serve flask_app:app --clones 8 --hubs 4
    curl http://127.0.0.1:8000/

Each reply says which clone gave it. It needs flask.
"""

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def index() -> str:
    clone = request.environ["glb.clone"]
    return f"served by clone {clone} of {clone.server.clones}\n"
