"""Stands in for ComfyUI where the point is its process: starts in no time, and dies as told by STAND_IN_* variables."""

import argparse
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODELS = {
    "pack_version": "0",
    "device": "cpu",
    "device_name": "stand-in",
    "cuda_available": False,
    "dtype": "float32",
    "offload": "none",
    "vram_total_bytes": None,
    "vram_free_bytes": None,
    "current_model": None,
    "default_model": "flux-schnell",
    "models": [],
}
NODES = {} if os.environ.get("STAND_IN_WITHOUT_NODES") else {"NeuroLuxResult": {}}
ANSWERS = {
    "/system_stats": {"system": {}},
    "/neurolux/models": MODELS,
    "/object_info": {},
    "/object_info/NeuroLuxResult": NODES,
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 - http.server's own name
        path = self.path.split("?")[0]
        found = path in ANSWERS and not (path == "/neurolux/models" and os.environ.get("STAND_IN_WITHOUT_PACK"))
        body = json.dumps(ANSWERS[path]).encode() if found else b"{}"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def die():
    print("the stand-in dies", flush=True)
    os._exit(7)


def main():
    if os.environ.get("STAND_IN_BROKEN"):
        raise RuntimeError("the stand-in is broken")
    once = os.environ.get("STAND_IN_KILLED_UNLESS")
    if once and not os.path.exists(once):
        open(once, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("STAND_IN_WITHOUT_NODES"):
        print("Error while calling comfy_entrypoint in /packs/neurolux: No module named 'diffusers'", flush=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    args, _ = parser.parse_known_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    ill = os.environ.get("STAND_IN_DIES_WHILE")
    if ill and os.path.exists(ill):
        threading.Timer(0.6, die).start()
    server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
